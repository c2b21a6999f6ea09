//! The answer to a packet that is too long for its link and must not be fragmented: ICMP's
//! "fragmentation needed" (RFC 792, RFC 1191 §4) and `ICMPv6`'s "packet too big" (RFC 4443 §3.2).
//! Without it the sender would never learn why nothing arrives.

use crate::{
    headers::{Headers, Icmp},
    reject::{IcmpError, icmp_error},
};

/// Maximum length of a packet that an answer quotes, so that it fits the least MTU of IPv4's hosts
/// (RFC 1812 §4.3.2.3).
const MAX_QUOTED: usize = 500;

/// Returns whether a packet of `length` bytes on a link of `mtu` wants an answer instead: it is too
/// long, and only its sender may make it shorter.
pub(crate) fn is_too_big(packet: &[u8], headers: &Headers, length: usize, mtu: u16) -> bool {
    let may_be_fragmented = headers.source.is_ipv4() && packet[6] & 0x40 == 0;
    // An error must not be answered by an error (RFC 1122 §3.2.2).
    mtu > 0 && length > usize::from(mtu) && !may_be_fragmented && headers.icmp != Icmp::Error
}

/// A packet that is too long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TooBig<'a> {
    pub(crate) packet: &'a [u8],
    pub(crate) headers: &'a Headers,
    /// The length that would pass, in bytes.
    pub(crate) mtu: u16,
}

impl TooBig<'_> {
    /// Returns the answer to its sender.
    pub(crate) fn answer(&self) -> Vec<u8> {
        let Self { packet, headers, mtu } = *self;
        let head = if headers.source.is_ipv4() { 20 + 8 } else { 40 + 8 };
        let error = IcmpError { kind_v4: [3, 4], kind_v6: [2, 0], rest: mtu.into() };
        icmp_error(packet, headers, error, head + MAX_QUOTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checksum::Sum, headers::build};
    use std::net::IpAddr;

    #[test]
    fn the_answer_is_a_valid_error_that_quotes_the_packet() {
        for (a, b, error) in [("10.42.0.1", "10.42.1.1", (3, 4)), ("fd42::1", "fd42::2", (2, 0))] {
            let packet = build::packet(a, b, 17, (5000, 53), &[7; 2000]);
            let headers = Headers::parse(&packet).unwrap();
            let too_big = TooBig { packet: &packet, headers: &headers, mtu: 1420 };
            let answer = too_big.answer();
            let read = Headers::parse(&answer).unwrap();
            assert_eq!((read.icmp, read.length), (Icmp::Error, answer.len()));
            assert_eq!((read.source, read.destination), (headers.destination, headers.source));
            let message = &answer[read.payload..];
            assert_eq!((message[0], message[1]), error);
            assert_eq!(u32::from_be_bytes(message[4..8].try_into().unwrap()), 1420);
            let quoted = crate::icmp_error::Quoted::read(&answer, &read).unwrap();
            assert!(quoted.headers.same_flow(&headers));
            let sum = match read.source {
                IpAddr::V4(_) => Sum::default(),
                IpAddr::V6(_) => {
                    Sum::default().add_pseudo(read.source, read.destination, 58, message.len())
                }
            };
            assert!(sum.add(message).is_valid());
        }
    }

    #[test]
    fn only_what_must_not_be_fragmented_is_too_big() {
        let mut packet = build::packet("10.42.0.1", "10.42.1.1", 17, (5000, 53), &[7; 2000]);
        let headers = Headers::parse(&packet).unwrap();
        assert!(!is_too_big(&packet, &headers, packet.len(), 1420));
        packet[6] |= 0x40;
        assert!(is_too_big(&packet, &headers, packet.len(), 1420));
        assert!(!is_too_big(&packet, &headers, 1420, 1420));
        assert!(!is_too_big(&packet, &headers, packet.len(), 0), "no MTU is known yet");
    }
}
