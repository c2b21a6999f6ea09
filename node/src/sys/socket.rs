//! An endpoint's sockets: their options, and many datagrams in one call.

use nix::{
    errno::Errno,
    libc::{self, c_int, c_void},
};
use std::{
    io,
    mem::{self, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    ptr,
};

/// Lets the kernel fragment a socket's datagrams where a path takes only smaller ones, and clears
/// "don't fragment" (`IP_PMTUDISC_DONT`, ip(7)): a tunnel's packets have a fixed size, and must
/// arrive all the same.
pub(crate) fn allow_fragments(socket: &impl AsRawFd) -> io::Result<()> {
    discover_mtu(socket, libc::IPV6_PMTUDISC_DONT, libc::IP_PMTUDISC_DONT)
}

/// Has the kernel, and everybody on the way, cut no datagram into fragments, and believe no ICMP
/// message about how long they may be (`IP_PMTUDISC_PROBE`, ip(7)).
pub(crate) fn forbid_fragments(socket: &impl AsRawFd) -> io::Result<()> {
    discover_mtu(socket, libc::IPV6_PMTUDISC_PROBE, libc::IP_PMTUDISC_PROBE)
}

fn discover_mtu(socket: &impl AsRawFd, v6: c_int, v4: c_int) -> io::Result<()> {
    // An IPv6 socket sends to IPv4 addresses, too, and has both options.
    let v6 = set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6);
    let v4 = set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4);
    v6.or(v4)
}

fn set_option(socket: &impl AsRawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let (value, length) = (&raw const value, size_of::<c_int>() as libc::socklen_t);
    // SAFETY: the descriptor is open, and `value` points to an int of the given length for the
    // length of the call.
    Errno::result(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), length)
    })?;
    Ok(())
}

/// Has the kernel say which ECN field each datagram came with.
pub(crate) fn receive_marks(socket: &impl AsRawFd) {
    // An IPv6 socket receives from IPv4 addresses, too; without these options, marks are lost and
    // nothing else.
    let _ = set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
    let _ = set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
}

/// Has the kernel say to which address of this host each datagram came (`IPV6_PKTINFO`, ipv6(7);
/// `IP_PKTINFO`, ip(7)).
pub(crate) fn receive_destinations(socket: &impl AsRawFd) {
    // An IPv6 socket says it of IPv4, too, as a mapped address.
    let v6 = set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
    if v6.is_err() {
        let _ = set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1);
    }
}

/// Has the kernel gather datagrams of one sender (`UDP_GRO`, udp(7)).
pub(crate) fn gather(socket: &impl AsRawFd) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Lets several sockets of this process have one port. To be called after the first was bound, so
/// that a port that another process has is not shared by mistake, and before the others are.
pub(crate) fn share_port(socket: &impl AsRawFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
}

/// The parameters of one `sendmsg` besides the bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing {
    /// The destination.
    pub to: SocketAddr,
    /// The source address; the kernel chooses without one. It is of the family of `to`, or mapped
    /// as it is.
    pub source: Option<IpAddr>,
    /// The outer header's traffic class: DSCP and ECN.
    pub class: u8,
    /// The length of each datagram but the last, if there are several (`UDP_SEGMENT`, udp(7)).
    pub segment: Option<u16>,
}

/// Sends datagrams without waiting.
pub(crate) fn send(socket: &impl AsRawFd, datagrams: &[u8], outgoing: Outgoing) -> nix::Result<()> {
    let (mut name, name_length) = encode_address(outgoing.to);
    let mut part =
        libc::iovec { iov_base: datagrams.as_ptr().cast_mut().cast(), iov_len: datagrams.len() };
    let mut control = ControlRoom([0; CONTROL_ROOM]);
    // SAFETY: a `msghdr` is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_length;
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    let mut used = 0;
    if let Some(size) = outgoing.segment {
        used += control.put(used, libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
    if outgoing.class != 0 {
        let class = c_int::from(outgoing.class).to_ne_bytes();
        let (level, kind) = match outgoing.to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            SocketAddr::V6(to) if to.ip().to_ipv4_mapped().is_some() => {
                (libc::IPPROTO_IP, libc::IP_TOS)
            }
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        used += control.put(used, level, kind, &class);
    }
    match outgoing.source {
        // `struct in_pktinfo`: interface, the address that counts, and the header's, which does
        // not.
        Some(IpAddr::V4(ip)) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&ip.octets());
            used += control.put(used, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        // `struct in6_pktinfo`: address, interface. For a mapped address IPv4 takes it, too.
        Some(IpAddr::V6(ip)) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            used += control.put(used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    if used > 0 {
        (message.msg_control, message.msg_controllen) = (control.0.as_mut_ptr().cast(), used);
    }
    // SAFETY: everything that `message` points to lives until the call returns, and has the length
    // that it says.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
    Errno::result(sent).map(drop)
}

/// Room for two control messages that each hold a number, and one with an address.
const CONTROL_ROOM: usize = 96;

/// Control messages (cmsg(3)): a header of length, level and kind, then the data, each padded to
/// whole words.
#[repr(align(8))]
struct ControlRoom([u8; CONTROL_ROOM]);

impl ControlRoom {
    /// Writes a message at an offset, and gives how much room it takes.
    fn put(&mut self, at: usize, level: c_int, kind: c_int, data: &[u8]) -> usize {
        let word = size_of::<usize>();
        let head = size_of::<libc::cmsghdr>();
        let room = &mut self.0[at..];
        room[..word].copy_from_slice(&(head + data.len()).to_ne_bytes());
        room[word..word + 4].copy_from_slice(&level.to_ne_bytes());
        room[word + 4..word + 8].copy_from_slice(&kind.to_ne_bytes());
        room[head..head + data.len()].copy_from_slice(data);
        head + data.len().next_multiple_of(word)
    }
}

fn encode_address(address: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: socket addresses are plain data for which all zeroes is a valid value.
    let mut name: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    match address {
        SocketAddr::V6(address) => {
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_addr.s6_addr = address.ip().octets();
            name.sin6_scope_id = address.scope_id();
            (name, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
        SocketAddr::V4(address) => {
            // The two begin alike: family and port; IPv4's address stands where IPv6 has its flow
            // label.
            name.sin6_family = libc::AF_INET as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_flowinfo = u32::from_ne_bytes(address.ip().octets());
            (name, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
    }
}

/// Room of one message, in bytes: more than the kernel gathers in one. No power of two, so that the
/// beginnings of all messages do not share the same lines of the processor's caches.
const MESSAGE: usize = (64 << 10) + 23 * 64;
/// The most messages of one call.
const MESSAGES: usize = 64;
/// Beyond this many bytes in one call, the next asks for fewer messages: what was received should
/// still be in the cache when it is opened.
const ENOUGH: usize = 160 << 10;

/// A receive buffer for many messages in a call; each is one datagram, or several that were
/// gathered.
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    slots: Vec<Slot>,
    headers: Vec<libc::mmsghdr>,
    /// The number of messages that the next call asks for.
    wanted: usize,
}

/// The memory for a message's address and control data.
struct Slot {
    name: libc::sockaddr_in6,
    control: ControlRoom,
    part: libc::iovec,
}

/// A message that was received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message {
    /// The offset in the buffer.
    pub start: usize,
    /// The length in bytes.
    pub length: usize,
    /// The sender's address.
    pub from: SocketAddr,
    /// The destination address, if the kernel gives it.
    pub to: Option<IpAddr>,
    /// The length of each datagram but the last, if several were gathered.
    pub segment: Option<usize>,
    /// The outer header's traffic class.
    pub class: u8,
}

/// The outcome of [`Inbox::receive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceivedMessages {
    /// The number of messages that were received.
    pub(crate) count: usize,
    pub(crate) may_have_more: bool,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let slot = || Slot {
            // SAFETY: a socket address and an `iovec` are plain data for which all zeroes is a
            // valid value.
            name: unsafe { mem::zeroed() },
            control: ControlRoom([0; CONTROL_ROOM]),
            // SAFETY: as above.
            part: unsafe { mem::zeroed() },
        };
        Self {
            buffer: vec![0; MESSAGES * MESSAGE],
            slots: (0..MESSAGES).map(|_| slot()).collect(),
            headers: Vec::with_capacity(MESSAGES),
            wanted: MESSAGES,
        }
    }

    /// The bytes that were received.
    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Receives without waiting.
    ///
    /// # Errors
    /// `EAGAIN` if nothing is there; others may be about something that was sent, and the next call
    /// goes on.
    pub(crate) fn receive(&mut self, socket: &impl AsRawFd) -> nix::Result<ReceivedMessages> {
        let base = self.buffer.as_mut_ptr();
        self.headers.clear();
        for (number, slot) in self.slots[..self.wanted].iter_mut().enumerate() {
            // SAFETY: the buffer has room for all messages, one behind the other.
            let start = unsafe { base.add(number * MESSAGE) };
            slot.part = libc::iovec { iov_base: start.cast::<c_void>(), iov_len: MESSAGE };
            // SAFETY: a `msghdr` is plain data for which all zeroes is a valid value.
            let mut header: libc::msghdr = unsafe { mem::zeroed() };
            header.msg_name = (&raw mut slot.name).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            (header.msg_iov, header.msg_iovlen) = (&raw mut slot.part, 1);
            (header.msg_control, header.msg_controllen) =
                (slot.control.0.as_mut_ptr().cast(), CONTROL_ROOM);
            self.headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        }
        let (socket, headers) = (socket.as_raw_fd(), self.headers.as_mut_ptr());
        // SAFETY: `headers` has as many entries as it says, and all that they point to lives in
        // `self` until the call returns.
        let count = unsafe {
            libc::recvmmsg(
                socket,
                headers,
                self.wanted as _,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let count = Errno::result(count)? as usize;
        let may_have_more = count == self.wanted;
        let bytes: usize = self.headers[..count].iter().map(|header| header.msg_len as usize).sum();
        self.wanted = match bytes / count.max(1) {
            0 => MESSAGES,
            each => (ENOUGH / each).clamp(2, MESSAGES),
        };
        Ok(ReceivedMessages { count, may_have_more })
    }

    /// A message of the last call; `None` if its sender's address is of no known family.
    pub(crate) fn message(&self, number: usize) -> Option<Message> {
        let (header, slot) = (self.headers.get(number)?, &self.slots[number]);
        let from = decode_address(&slot.name)?;
        let mut message = Message {
            start: number * MESSAGE,
            length: header.msg_len as usize,
            from,
            to: None,
            segment: None,
            class: 0,
        };
        for (level, kind, data) in slot.control.messages(header.msg_hdr.msg_controllen) {
            let number = data.first_chunk().map(|bytes| c_int::from_ne_bytes(*bytes));
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    message.segment = number.and_then(|n| usize::try_from(n).ok());
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    message.class = data.first().copied().unwrap_or(0);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let address = data.get(8..).and_then(|rest| rest.first_chunk::<4>());
                    message.to = address.map(|octets| IpAddr::from(*octets));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let address = data.first_chunk::<16>();
                    message.to = address.map(|octets| IpAddr::from(*octets).to_canonical());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    message.class = number.unwrap_or(0) as u8;
                }
                _ => {}
            }
        }
        Some(message)
    }
}

// SAFETY: the pointers in it are into its own memory, which moves with it only by reference, and
// are written anew at each call.
unsafe impl Send for Inbox {}

impl ControlRoom {
    /// The messages in the first `length` bytes.
    fn messages(&self, length: usize) -> impl Iterator<Item = (c_int, c_int, &[u8])> {
        let (word, head) = (size_of::<usize>(), size_of::<libc::cmsghdr>());
        let mut rest = &self.0[..length.min(CONTROL_ROOM)];
        std::iter::from_fn(move || {
            let all = usize::from_ne_bytes(*rest.first_chunk()?);
            let number = |at: usize| Some(c_int::from_ne_bytes(*rest.get(at..)?.first_chunk()?));
            let (level, kind) = (number(word)?, number(word + 4)?);
            let data = rest.get(head..all)?;
            rest = rest.get(all.next_multiple_of(word)..).unwrap_or(&[]);
            Some((level, kind, data))
        })
    }
}

fn decode_address(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    let port = u16::from_be(name.sin6_port);
    match c_int::from(name.sin6_family) {
        libc::AF_INET6 => {
            let ip = IpAddr::from(Ipv6Addr::from(name.sin6_addr.s6_addr)).to_canonical();
            Some(match ip {
                IpAddr::V6(ip) => {
                    std::net::SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into()
                }
                IpAddr::V4(ip) => (ip, port).into(),
            })
        }
        libc::AF_INET => Some((Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes()), port).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn datagrams_arrive_whole_with_sender_and_mark_in_both_families() {
        for host in ["127.0.0.1", "::1"] {
            let (receiver, sender) =
                (UdpSocket::bind((host, 0)).unwrap(), UdpSocket::bind((host, 0)).unwrap());
            receive_marks(&receiver);
            let gathers = gather(&receiver).is_ok();
            let to = receiver.local_addr().unwrap();
            let datagrams = [&[1; 1000][..], &[2; 1000], &[3; 500]].concat();
            send(&sender, &datagrams, Outgoing { to, source: None, class: 2, segment: Some(1000) })
                .unwrap();
            send(&sender, &[4; 10], Outgoing { to, source: None, class: 0, segment: None })
                .unwrap();
            let mut inbox = Inbox::new();
            let ReceivedMessages { count, may_have_more } = inbox.receive(&receiver).unwrap();
            assert!(!may_have_more);
            let messages: Vec<Message> =
                (0..count).map(|number| inbox.message(number).unwrap()).collect();
            let mut bytes = Vec::new();
            for message in &messages {
                assert_eq!(message.from, sender.local_addr().unwrap());
                bytes.extend_from_slice(&inbox.buffer()[message.start..][..message.length]);
            }
            assert_eq!(bytes, [&datagrams[..], &[4; 10]].concat());
            assert_eq!((messages[0].class, messages[count - 1].class), (2, 0));
            if gathers {
                assert_eq!((count, messages[0].segment), (2, Some(1000)));
            }
            assert_eq!(inbox.receive(&receiver), Err(Errno::EAGAIN));
        }
    }
    #[test]
    fn what_answers_can_leave_from_the_address_that_was_spoken_to() {
        for (bound, own) in [("0.0.0.0", "127.0.0.9"), ("::", "::1"), ("::", "127.0.0.9")] {
            let server = UdpSocket::bind((bound, 0)).unwrap();
            receive_destinations(&server);
            let own: IpAddr = own.parse().unwrap();
            let at = SocketAddr::new(own, server.local_addr().unwrap().port());
            let client =
                UdpSocket::bind(if own.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            client.send_to(b"question", at).unwrap();
            let mut inbox = Inbox::new();
            let count = inbox.receive(&server).unwrap().count;
            let message = inbox.message(0).unwrap();
            assert_eq!((count, message.to), (1, Some(own)), "{bound} {own}");
            let as_bound = |ip: IpAddr| match ip {
                IpAddr::V4(ip) if bound == "::" => ip.to_ipv6_mapped().into(),
                _ => ip,
            };
            let to = SocketAddr::new(as_bound(message.from.ip()), message.from.port());
            let source = Some(as_bound(own));
            let segments = [1u8; 20];
            send(&server, &segments, Outgoing { to, source, class: 2, segment: Some(10) }).unwrap();
            let (length, from) = client.recv_from(&mut [0; 100]).unwrap();
            assert_eq!((length, from), (10, at));
            let nowhere =
                as_bound(if own.is_ipv6() { "2001:db8::9" } else { "192.0.2.9" }.parse().unwrap());
            let refused = Outgoing { to, source: Some(nowhere), class: 0, segment: None };
            assert!(
                send(&server, b"x", refused).is_err(),
                "an address that this host does not have"
            );
        }
    }
}
