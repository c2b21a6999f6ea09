//! The system calls that no crate of ours wraps: the TUN driver's ioctls. The only module with `unsafe`.

use nix::{
    errno::Errno,
    libc::{self, c_char, c_int},
};
use std::{
    fs::{File, OpenOptions},
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

// Request codes of linux/if_tun.h.
nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<c_int>()), libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, nix::request_code_write!(b'T', 203, size_of::<c_int>()));

/// Opens the TUN device `name` in the namespace of the calling thread, making it if it is not there. It outlives this
/// process until [`delete_tun_at_close`] is called (`TUNSETPERSIST`).
pub fn open_tun(name: &str) -> io::Result<OwnedFd> {
    let device: File =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: an `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the descriptor is open, and `request` is a valid `ifreq` for the length of the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &request) }?;
    // SAFETY: the descriptor is an attached TUN; the argument is an integer.
    unsafe { tun_set_persist(device.as_raw_fd(), 1) }?;
    Ok(device.into())
}

/// Has the device disappear when its descriptor is closed.
pub fn delete_tun_at_close(tun: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is an attached TUN; the argument is an integer.
    unsafe { tun_set_persist(tun.as_raw_fd(), 0) }?;
    Ok(())
}
