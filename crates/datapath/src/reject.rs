//! Rejections: the answers to packets that are denied. A TCP reset (RFC 9293 §3.10.7.1), and
//! ICMP's "administratively prohibited" (RFC 792, RFC 1812 §5.2.7.1; RFC 4443 §3.1) for everything
//! else.
//!
//! An answer goes to whoever has sent the packet and to nobody else, says nothing that they did not
//! send or know, and is no reason for another answer: none is given about a reset, an ICMP error,
//! or a later fragment (RFC 1122 §3.2.2, RFC 4443 §2.4).

use crate::{
    checksum::{Sum, set_ipv4},
    headers::{Fragment, Headers, Icmp, RST},
    owner::QuotaOwner,
    tcp::{BareSegment, Segment},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Maximum number of answers that one workload gets in a second, and all of a network on this node.
const MAX_PER_WORKLOAD: u16 = 100;
const MAX_PER_ENDPOINT: u32 = 10_000;
const SECOND: Duration = Duration::from_secs(1);
/// The longest errors: as much of a packet is quoted as they have room for (RFC 1812 §4.3.2.3, RFC
/// 4443 §2.4 (c)).
const MAX_ERROR_V4: usize = 576;
const MAX_ERROR_V6: usize = 1280;

/// One end of a TCP connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpEnd {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// The content of an ICMP error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IcmpError {
    /// Type and code in ICMP.
    pub(crate) kind_v4: [u8; 2],
    /// Type and code in `ICMPv6`.
    pub(crate) kind_v6: [u8; 2],
    /// The four bytes behind the checksum.
    pub(crate) rest: u32,
}

/// Destination unreachable, communication administratively prohibited.
const PROHIBITED: IcmpError = IcmpError { kind_v4: [3, 13], kind_v6: [1, 1], rest: 0 };

/// Destination unreachable, port unreachable: what a host says that has no program there.
const PORT_UNREACHABLE: IcmpError = IcmpError { kind_v4: [3, 3], kind_v6: [1, 4], rest: 0 };

/// Returns the answer to a packet that is denied; `None` if it is to have none.
pub(crate) fn rejection(packet: &[u8], headers: &Headers) -> Option<Vec<u8>> {
    answer(packet, headers, PROHIBITED)
}

/// Returns the answer to a packet to where nothing receives it; `None` if it is to have none.
pub(crate) fn refusal(packet: &[u8], headers: &Headers) -> Option<Vec<u8>> {
    answer(packet, headers, PORT_UNREACHABLE)
}

fn answer(packet: &[u8], headers: &Headers, error: IcmpError) -> Option<Vec<u8>> {
    if matches!(headers.fragment, Fragment::Later(_))
        || matches!(headers.icmp, Icmp::Error | Icmp::Other)
    {
        return None;
    }
    if headers.ip_protocol != 6 {
        let limit = if headers.source.is_ipv4() { MAX_ERROR_V4 } else { MAX_ERROR_V6 };
        return Some(icmp_error(packet, headers, error, limit));
    }
    if headers.tcp_flags & RST != 0 {
        return None;
    }
    let reset = Segment::read(packet, headers).reset(headers.fragment)?;
    let from = TcpEnd { address: headers.destination, port: headers.destination_port };
    let to = TcpEnd { address: headers.source, port: headers.source_port };
    Some(tcp_segment(from, to, reset))
}

/// Returns a TCP segment without data, options and window, from one end to the other.
pub(crate) fn tcp_segment(from: TcpEnd, to: TcpEnd, segment: BareSegment) -> Vec<u8> {
    let BareSegment { seq, ack, flags } = segment;
    let (mut packet, at) = ip(from.address, to.address, 6, 20);
    let tcp = &mut packet[at..];
    tcp[..2].copy_from_slice(&from.port.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port.to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, flags);
    let sum = Sum::default().add_pseudo(from.address, to.address, 6, 20).add(tcp).finish();
    tcp[16..18].copy_from_slice(&sum);
    packet
}

/// An ICMP error about a packet, from where it was going to where it came from, of `limit` bytes at
/// the most.
pub(crate) fn icmp_error(
    packet: &[u8],
    headers: &Headers,
    error: IcmpError,
    limit: usize,
) -> Vec<u8> {
    let (from, to) = (headers.destination, headers.source);
    let (protocol, kind, head) =
        if to.is_ipv4() { (1, error.kind_v4, 20 + 8) } else { (58, error.kind_v6, 40 + 8) };
    let quoted = &packet[..packet.len().min(limit - head)];
    let (mut answer, at) = ip(from, to, protocol, 8 + quoted.len());
    let message = &mut answer[at..];
    message[..2].copy_from_slice(&kind);
    message[4..8].copy_from_slice(&error.rest.to_be_bytes());
    message[8..].copy_from_slice(quoted);
    let pseudo = match to {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => Sum::default().add_pseudo(from, to, 58, message.len()),
    };
    let sum = pseudo.add(message).finish();
    message[2..4].copy_from_slice(&sum);
    answer
}

/// Returns a packet with an IP header and a payload of zeros, and the offset of the payload.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: usize) -> (Vec<u8>, usize) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut packet = vec![0; 20 + payload];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&((20 + payload) as u16).to_be_bytes());
            (packet[8], packet[9]) = (64, protocol);
            packet[12..16].copy_from_slice(&from.octets());
            packet[16..20].copy_from_slice(&to.octets());
            set_ipv4(&mut packet, 20);
            (packet, 20)
        }
        (from, to) => {
            let mut packet = vec![0; 40 + payload];
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
            (packet[6], packet[7]) = (protocol, 64);
            for (at, address) in [(8, from), (24, to)] {
                if let IpAddr::V6(address) = address {
                    packet[at..at + 16].copy_from_slice(&address.octets());
                }
            }
            (packet, 40)
        }
    }
}

/// The limits of rejections: how many were sent in the current second.
#[derive(Debug, Default)]
pub(crate) struct RejectionLimits(Mutex<LimitWindow>);

#[derive(Debug, Default)]
struct LimitWindow {
    until: Option<Instant>,
    in_all: u32,
    /// By workload; bounded by `MAX_PER_ENDPOINT`.
    each: HashMap<QuotaOwner, u16, RandomState>,
}

impl RejectionLimits {
    /// Returns whether one more may be given to a workload, which counts it.
    pub(crate) fn allow(&self, now: Instant, to: QuotaOwner) -> bool {
        let mut given = self.0.lock();
        if given.until.is_none_or(|until| now >= until) {
            given.until = Some(now + SECOND);
            given.in_all = 0;
            given.each.clear();
        }
        if given.in_all >= MAX_PER_ENDPOINT {
            return false;
        }
        let own = given.each.entry(to).or_default();
        if *own >= MAX_PER_WORKLOAD {
            return false;
        }
        *own += 1;
        given.in_all += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        headers::{SYN, build},
        icmp_error::Quoted,
        index::WorkloadIndex,
    };

    fn rejected(packet: &[u8]) -> Option<(Vec<u8>, Headers)> {
        let headers = Headers::parse(packet).unwrap();
        let answer = rejection(packet, &headers)?;
        let read = Headers::parse(&answer).unwrap();
        assert_eq!((read.source, read.destination), (headers.destination, headers.source));
        assert_eq!(read.length, answer.len());
        let pseudo = Sum::default().add_pseudo(
            read.source,
            read.destination,
            read.ip_protocol,
            answer.len() - read.payload,
        );
        let sum = if read.ip_protocol == 1 { Sum::default() } else { pseudo };
        assert!(sum.add(&answer[read.payload..]).is_valid());
        assert!(read.source.is_ipv6() || Sum::default().add(&answer[..20]).is_valid());
        Some((answer, read))
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    const ENDS: [(&str, &str); 2] = [("10.42.0.1", "10.42.1.1"), ("fd42::1", "fd42::2")];

    #[test]
    fn tcp_is_answered_with_a_reset_that_its_sender_takes() {
        for (a, b) in ENDS {
            let tcp = |flags: u8, seq: u32, ack: u32, data: &[u8]| {
                let mut packet =
                    build::with_tcp_flags(build::packet(a, b, 6, (4000, 80), data), flags);
                let at = Headers::parse(&packet).unwrap().payload;
                packet[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
                packet[at + 8..at + 12].copy_from_slice(&ack.to_be_bytes());
                packet
            };
            // A SYN with data: what it fills is acknowledged.
            let (reset, read) = rejected(&tcp(SYN, u32::MAX, 7, b"early")).unwrap();
            let at = read.payload;
            assert_eq!((read.source_port, read.destination_port), (80, 4000));
            assert_eq!(
                (word(&reset, at + 4), word(&reset, at + 8), read.tcp_flags),
                (0, 5, RST | 16)
            );
            // What acknowledges something: the reset is where its sender expects the next byte.
            let (reset, read) = rejected(&tcp(16, 5, 99, b"data")).unwrap();
            assert_eq!((word(&reset, read.payload + 4), read.tcp_flags), (99, RST));
            assert!(
                rejected(&tcp(RST, 5, 99, b"")).is_none()
                    && rejected(&tcp(RST | 16, 5, 9, b"")).is_none()
            );
        }
    }

    #[test]
    fn everything_else_is_answered_with_prohibited_but_no_error_and_no_tail() {
        for ((a, b), kind) in ENDS.into_iter().zip([[3, 13], [1, 1]]) {
            for protocol in [17, 132, 50] {
                let packet = build::packet(a, b, protocol, (5000, 53), &[7; 2000]);
                let (error, read) = rejected(&packet).unwrap();
                assert_eq!(
                    (read.icmp, &error[read.payload..read.payload + 2]),
                    (Icmp::Error, &kind[..])
                );
                assert!(error.len() <= if read.source.is_ipv4() { 576 } else { 1280 });
                let quoted = Quoted::read(&error, &read).unwrap();
                assert!(quoted.headers.same_flow(&Headers::parse(&packet).unwrap()));
                assert!(rejected(&error).is_none(), "no error about an error");
            }
        }
        let mut tail = build::packet("10.42.0.1", "10.42.1.1", 17, (5000, 53), &[7; 64]);
        tail[6..8].copy_from_slice(&[0, 9]);
        assert!(rejected(&tail).is_none());
    }

    #[test]
    fn a_workload_gets_so_many_answers_in_a_second_and_takes_none_from_others() {
        let (limits, now) = (RejectionLimits::default(), Instant::now());
        let given = |at: Instant, to: u32| {
            (0..1000).filter(|_| limits.allow(at, QuotaOwner::Workload(WorkloadIndex(to)))).count()
                as u16
        };
        assert_eq!(
            (given(now, 1), given(now, 1), given(now, 2)),
            (MAX_PER_WORKLOAD, 0, MAX_PER_WORKLOAD)
        );
        let later = now + SECOND;
        assert_eq!(given(later, 1), MAX_PER_WORKLOAD);
        let all: u32 = (2..1000).map(|to| u32::from(given(later, to))).sum();
        assert_eq!(all, MAX_PER_ENDPOINT - u32::from(MAX_PER_WORKLOAD));
    }
}
