//! Binding an endpoint's sockets.

use crate::sys;
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind as bind_socket, setsockopt, socket,
    sockopt,
};
use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    num::NonZeroUsize,
    os::fd::AsRawFd,
};

/// The requested size of a socket's buffers, in bytes.
const BUFFER: usize = 4 << 20;

/// Binds an endpoint's sockets for both address families, as many as there are workers, to `kept`
/// if it is given, else to the first free port from `first` on.
///
/// # Errors
/// Fails if no port can be had.
pub(crate) fn bind(kept: Option<u16>, first: u16, workers: NonZeroUsize) -> Result<Vec<UdpSocket>> {
    let bound = match kept {
        Some(port) => bind_port(port).with_context(|| {
            format!("UDP port {port}, which the other nodes know, is taken; end what uses it")
        })?,
        None => {
            let free = (first..=u16::MAX).find_map(|port| match bind_port(port) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => None,
                other => Some(other),
            });
            free.context("no UDP port is free")?.context("cannot open a UDP socket")?
        }
    };
    let address = bound.local_addr()?;
    let mut sockets = vec![bound];
    if workers.get() > 1 {
        sys::share_port(&sockets[0]).context("cannot share the port between workers")?;
        for _ in 1..workers.get() {
            sockets.push(bind_shared(address).context("cannot share the port between workers")?);
        }
    }
    for socket in &sockets {
        configure(socket)?;
    }
    Ok(sockets)
}

fn bind_port(port: u16) -> std::io::Result<UdpSocket> {
    match UdpSocket::bind(("::", port)) {
        Err(error) if error.kind() != ErrorKind::AddrInUse => UdpSocket::bind(("0.0.0.0", port)),
        other => other,
    }
}

fn bind_shared(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let another = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    sys::share_port(&another)?;
    bind_socket(another.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(another.into())
}

fn configure(socket: &UdpSocket) -> Result<()> {
    socket.set_nonblocking(true)?;
    sys::allow_fragments(socket).context("cannot let the kernel fragment datagrams")?;
    // Without the right to go over the limit, the limit is what there is.
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &BUFFER);
    }
    let _ = setsockopt(socket, sockopt::SndBuf, &BUFFER);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_port_that_no_one_else_can_have() {
        let two = NonZeroUsize::new(2).unwrap();
        let sockets = bind(None, 42_000, two).unwrap();
        let port = sockets[0].local_addr().unwrap().port();
        assert_eq!(sockets[1].local_addr().unwrap().port(), port);
        let again = bind(Some(port), 42_000, two).unwrap_err();
        assert!(again.to_string().contains("is taken"), "{again:#}");
        let next = bind(None, port, two).unwrap();
        assert_ne!(next[0].local_addr().unwrap().port(), port);
    }
}
