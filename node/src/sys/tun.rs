//! The TUN driver's ioctls.

use nix::{
    errno::Errno,
    libc::{self, c_char, c_int},
};
use std::{
    fs::{File, OpenOptions},
    io,
    mem::{self, size_of},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

// Request codes of linux/if_tun.h.
nix::ioctl_write_ptr_bad!(
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<c_int>()),
    libc::ifreq
);
nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<c_int>()));
nix::ioctl_read_bad!(
    tun_get_iff,
    nix::request_code_read!(b'T', 210, size_of::<c_int>()),
    libc::ifreq
);
nix::ioctl_write_int_bad!(tun_set_persist, nix::request_code_write!(b'T', 203, size_of::<c_int>()));

// Offloads of linux/if_tun.h: checksum, TCP over IPv4 and IPv6, UDP over IPv4 and IPv6 (kernel
// 6.2).
const CHECKSUM: c_int = 0x01;
const TCP: c_int = 0x02 | 0x04;
const UDP: c_int = 0x20 | 0x40;

/// The super-packets that the kernel hands over and takes by a TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TunOffloads {
    /// The offloads of TCP (`TUN_F_TSO4`, `TUN_F_TSO6`).
    pub(crate) tcp: bool,
    /// The offloads of UDP (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    pub(crate) udp: bool,
}

/// An open TUN device.
#[derive(Debug)]
pub(crate) struct Tun {
    /// The descriptor: each packet has a virtio network header in front.
    pub(crate) fd: OwnedFd,
    /// The offloads in use.
    pub(crate) offloads: TunOffloads,
}

/// Opens the TUN device `name` in the namespace of the calling thread, making it if it is not
/// there. It outlives this process until [`delete_tun_at_close`] is called (`TUNSETPERSIST`). An
/// older kernel is asked for fewer offloads than are `wanted`.
pub(crate) fn open_tun(name: &str, wanted: TunOffloads) -> io::Result<Tun> {
    let device: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG.into());
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the descriptor is open, and `request` is a valid `ifreq` for the length of the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }?;
    // SAFETY: the descriptor is an attached TUN; the argument is an integer.
    unsafe { tun_set_persist(device.as_raw_fd(), 1) }?;
    let offload = |which: c_int| {
        // SAFETY: the descriptor is an attached TUN; the argument is an integer.
        unsafe { tun_set_offload(device.as_raw_fd(), which) }.is_ok()
    };
    let tcp_flags = if wanted.tcp { TCP } else { 0 };
    let udp = wanted.udp && offload(CHECKSUM | tcp_flags | UDP);
    let rest = udp || offload(CHECKSUM | tcp_flags);
    Ok(Tun { fd: device.into(), offloads: TunOffloads { tcp: wanted.tcp && rest, udp } })
}

/// Returns the name of the device, in whatever namespace it is.
pub(crate) fn tun_name(tun: &Tun) -> io::Result<String> {
    // SAFETY: an `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: the descriptor is an attached TUN, and `request` is a valid `ifreq` for the length of
    // the call.
    unsafe { tun_get_iff(tun.fd.as_raw_fd(), &raw mut request) }?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    Ok(name.map(|byte| char::from(*byte as u8)).collect())
}

/// Lets the device disappear when its descriptor is closed.
pub(crate) fn delete_tun_at_close(tun: &Tun) -> io::Result<()> {
    // SAFETY: the descriptor is an attached TUN; the argument is an integer.
    unsafe { tun_set_persist(tun.fd.as_raw_fd(), 0) }?;
    Ok(())
}
