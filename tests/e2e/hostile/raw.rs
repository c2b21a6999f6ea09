//! Packets that somebody with `CAP_NET_RAW` makes by himself, and whether they arrive.

use meshward_netns::Netns;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv,
    sendto, setsockopt, socket, sockopt,
};
use std::{
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Stands in every packet that is made here, and in no other.
pub(super) const MARK: &[u8; 8] = b"\xf0hostile";

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

/// Sends whole packets from a namespace.
pub(super) struct Sender {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Sender {
    pub(super) fn new(netns: &Netns) -> Self {
        let open =
            |family| socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
        netns
            .run(|| Self { v4: open(AddressFamily::Inet), v6: open(AddressFamily::Inet6) })
            .unwrap()
    }

    /// Sends a packet, headers included; whether the kernel took it.
    pub(super) fn send(&self, to: IpAddr, packet: &[u8]) -> bool {
        let sent = match to {
            IpAddr::V4(to) => {
                let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
                sendto(self.v4.as_raw_fd(), packet, &to, MsgFlags::MSG_DONTWAIT)
            }
            IpAddr::V6(to) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
                sendto(self.v6.as_raw_fd(), packet, &to, MsgFlags::MSG_DONTWAIT)
            }
        };
        sent.is_ok()
    }
}

/// Counts marked packets that arrive in a namespace.
pub(super) struct Sniffer {
    seen: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Sniffer {
    pub(super) fn start(netns: &Netns) -> Self {
        let open = || {
            let all = socket(
                AddressFamily::Packet,
                SockType::Datagram,
                SockFlag::empty(),
                SockProtocol::EthAll,
            )?;
            setsockopt(&all, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 50_000))?;
            Ok::<OwnedFd, nix::Error>(all)
        };
        let socket = netns.run(open).unwrap().unwrap();
        let (seen, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (seen.clone(), ended.clone());
        thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            while !end.load(Ordering::Relaxed) {
                let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
                    continue;
                };
                if buffer[..length].windows(MARK.len()).any(|window| window == MARK) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { seen, ended }
    }

    pub(super) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Returns `true` if something more arrives within `patience`.
    pub(super) fn sees_more(
        &self,
        patience: Duration,
        mut meanwhile: impl FnMut() -> bool,
    ) -> bool {
        let (before, deadline) = (self.seen(), Instant::now() + patience);
        while Instant::now() < deadline {
            let _ = meanwhile();
            thread::sleep(Duration::from_millis(20));
            if self.seen() > before {
                return true;
            }
        }
        false
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The IP header of a packet.
#[derive(Clone, Copy)]
pub(super) struct Ip<'a> {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    /// IPv4 options, in whole words; without effect in IPv6.
    pub options: &'a [u8],
    /// The flags and the offset of a fragment (RFC 791 §3.1); without effect in IPv6.
    pub fragment: u16,
}

impl Ip<'_> {
    /// A header without options, of a packet that is whole.
    pub(super) fn new(from: IpAddr, to: IpAddr, protocol: u8) -> Self {
        Self { from, to, protocol, options: &[], fragment: 0 }
    }

    /// Returns the packet with this payload.
    pub(super) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = match self.from {
            IpAddr::V4(_) => {
                let header = 20 + self.options.len();
                let mut packet = vec![0x40 | (header / 4) as u8, 0];
                packet.extend(((header + payload.len()) as u16).to_be_bytes());
                packet.extend([0x12, 0x34]);
                packet.extend(self.fragment.to_be_bytes());
                packet.extend([64, self.protocol, 0, 0]);
                packet
            }
            IpAddr::V6(_) => {
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend((payload.len() as u16).to_be_bytes());
                packet.extend([self.protocol, 64]);
                packet
            }
        };
        packet.extend(octets(self.from));
        packet.extend(octets(self.to));
        if self.from.is_ipv4() {
            packet.extend(self.options);
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum);
        }
        packet.extend(payload);
        packet
    }
}

/// A transport header and payload whose checksum is right. `at`: where the checksum stands.
fn with_checksum(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    at: usize,
    mut message: Vec<u8>,
) -> Vec<u8> {
    let pseudo = [&(message.len() as u32).to_be_bytes()[..], &[0, 0, 0, protocol]].concat();
    // ICMP's checksum has no pseudo-header.
    let sum = match protocol {
        ICMP => checksum(&[&message]),
        _ => checksum(&[&octets(from), &octets(to), &pseudo, &message]),
    };
    message[at..at + 2].copy_from_slice(&sum);
    message
}

pub(super) fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut message = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    message.extend(((8 + payload.len()) as u16).to_be_bytes());
    message.extend([0, 0]);
    message.extend(payload);
    with_checksum(from, to, UDP, 6, message)
}

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;

pub(super) fn tcp(
    from: IpAddr,
    to: IpAddr,
    ports: (u16, u16),
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut message = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    message.extend([0, 0, 1, 0, 0, 0, 2, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    message.extend(payload);
    with_checksum(from, to, TCP, 16, message)
}

/// An ICMP message, of either version.
pub(super) fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, rest: &[u8]) -> (u8, Vec<u8>) {
    let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(rest);
    (protocol, with_checksum(from, to, protocol, 2, message))
}
