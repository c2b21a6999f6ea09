//! ICMP errors: what they quote, and how much of it is passed on (RFC 792, RFC 1812 §4.3.2, RFC
//! 4443 §2.4 and §3, RFC 4884, RFC 5927).

use crate::{
    checksum::{Sum, set_ipv4},
    headers::{Headers, Icmp, V6_DESTINATION, V6_FRAGMENT, V6_HOP_BY_HOP},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest error that passes, in bytes: RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c).
const MAX_V4: usize = 576;
const MAX_V6: usize = 1280;
/// The header of an ICMP message, in bytes.
pub(crate) const HEADER: usize = 8;
const MAX_EXTENSIONS: usize = 8;

/// The packet that an error is about, as far as it is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quoted {
    /// The addresses, protocol and ports of the packet, and the offset of its payload; lengths and
    /// flags are not known.
    pub headers: Headers,
    /// The sequence number of a TCP segment.
    pub sequence: Option<u32>,
}

impl Quoted {
    /// Reads what an error quotes. `None`: it quotes no packet that could be one of a flow: one of
    /// the other address family, one cut before its ports, a later fragment, one that is routed by
    /// its source, or another error.
    pub(crate) fn read(packet: &[u8], error: &Headers) -> Option<Self> {
        let bytes = packet.get(error.payload + HEADER..error.length)?;
        let (mut headers, at) = match (bytes.first()? >> 4, error.source) {
            (4, IpAddr::V4(_)) => read_v4(bytes)?,
            (6, IpAddr::V6(_)) => read_v6(bytes)?,
            _ => return None,
        };
        headers.payload = at;
        let transport: &[u8; 8] = bytes.get(at..)?.first_chunk()?;
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        match (headers.ip_protocol, error.source) {
            (6 | 17 | 132, _) => {
                (headers.source_port, headers.destination_port) = (port(0), port(2));
            }
            (1, IpAddr::V4(_)) | (58, IpAddr::V6(_)) => {
                headers.icmp = match Icmp::of(headers.ip_protocol, transport[0]) {
                    echo @ (Icmp::Request | Icmp::Reply) => echo,
                    _ => return None,
                };
                (headers.source_port, headers.destination_port) = (port(4), port(4));
            }
            _ => {}
        }
        let number = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
        Some(Self { headers, sequence: (headers.ip_protocol == 6).then_some(number) })
    }
}

fn read_v4(bytes: &[u8]) -> Option<(Headers, usize)> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let at = usize::from(header[0] & 15) * 4;
    let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if at < 20 || offset != 0 {
        return None;
    }
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let addresses = (address(12).into(), address(16).into());
    Some((Headers::between(addresses.0, addresses.1, header[9]), at))
}

fn read_v6(bytes: &[u8]) -> Option<(Headers, usize)> {
    let header: &[u8; 40] = bytes.first_chunk()?;
    let (mut next, mut at) = (header[6], 40);
    for _ in 0..MAX_EXTENSIONS {
        let extension = match next {
            V6_HOP_BY_HOP | V6_DESTINATION | V6_FRAGMENT => bytes.get(at..at + 8)?,
            _ => break,
        };
        if next == V6_FRAGMENT {
            if u16::from_be_bytes([extension[2], extension[3]]) >> 3 != 0 {
                return None;
            }
            at += 8;
        } else {
            at += 8 + usize::from(extension[1]) * 8;
        }
        next = extension[0];
    }
    if matches!(next, 0 | 43 | 44 | 60) {
        return None;
    }
    let address =
        |at: usize| header[at..at + 16].try_into().map(<Ipv6Addr as From<[u8; 16]>>::from).ok();
    Some((Headers::between(address(8)?.into(), address(24)?.into(), next), at))
}

/// Truncates an error to the longest that passes, and makes its lengths and checksums right again.
/// Returns whether it was longer.
pub(crate) fn truncate(packet: &mut [u8], headers: &mut Headers) -> bool {
    let limit = if headers.source.is_ipv4() { MAX_V4 } else { MAX_V6 };
    if headers.icmp != Icmp::Error || headers.length <= limit || headers.payload + HEADER > limit {
        return false;
    }
    let message = headers.payload;
    headers.length = limit;
    let packet = &mut packet[..limit];
    match headers.source {
        IpAddr::V4(_) => {
            packet[2..4].copy_from_slice(&(limit as u16).to_be_bytes());
            set_ipv4(packet, message);
            // The extensions behind the quoted packet are gone (RFC 4884 §4: the field is its
            // length).
            packet[message + 5] = 0;
        }
        IpAddr::V6(_) => {
            packet[4..6].copy_from_slice(&((limit - 40) as u16).to_be_bytes());
            if matches!(packet[message], 1 | 3) {
                packet[message + 4] = 0;
            }
        }
    }
    packet[message + 2..message + 4].fill(0);
    let sum = match headers.source {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => {
            Sum::default().add_pseudo(headers.source, headers.destination, 58, limit - message)
        }
    };
    let sum = sum.add(&packet[message..]).finish();
    packet[message + 2..message + 4].copy_from_slice(&sum);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::build;
    use proptest::prelude::*;

    pub(crate) fn error(of: &[u8], kind: u8, length: usize) -> Vec<u8> {
        let headers = Headers::parse(of).unwrap();
        let mut message = [&[kind, 1, 0, 0, 0, 0, 0, 0][..], of].concat();
        message.resize(length.max(message.len()), 7);
        let protocol = if headers.source.is_ipv4() { 1 } else { 58 };
        build::ip(headers.destination, headers.source, protocol, &message)
    }

    #[test]
    fn the_packet_that_an_error_is_about_is_found() {
        for (a, b, kind) in [("10.0.0.1", "10.0.0.2", 3), ("fd42::1", "fd42::2", 1)] {
            let mut packet = build::packet(a, b, 6, (5000, 80), b"data");
            let at = Headers::parse(&packet).unwrap().payload;
            packet[at + 4..at + 8].copy_from_slice(&77u32.to_be_bytes());
            let packet = error(&packet, kind, 0);
            let headers = Headers::parse(&packet).unwrap();
            assert_eq!(headers.icmp, Icmp::Error);
            let quoted = Quoted::read(&packet, &headers).unwrap();
            assert_eq!(
                (quoted.headers.source, quoted.headers.destination),
                (headers.destination, headers.source)
            );
            assert_eq!((quoted.headers.source_port, quoted.headers.destination_port), (5000, 80));
            assert_eq!(quoted.sequence, Some(77));
        }
    }

    #[test]
    fn a_fragments_tail_and_another_error_are_not_quoted() {
        let mut tail = build::packet("10.0.0.1", "10.0.0.2", 17, (5000, 53), &[0; 64]);
        let whole = error(&tail, 3, 0);
        let read = |packet: &[u8]| Quoted::read(packet, &Headers::parse(packet).unwrap());
        assert!(read(&whole).is_some() && read(&error(&whole, 3, 0)).is_none());
        tail[6..8].copy_from_slice(&[0, 9]);
        assert_eq!(read(&error(&tail, 3, 0)), None);
        let inner = [&[17, 0, 0, 9, 0, 0, 0, 7][..], &[0; 64]].concat();
        let tail = build::ip("fd42::1".parse().unwrap(), "fd42::2".parse().unwrap(), 44, &inner);
        assert_eq!(read(&error(&tail, 1, 0)), None);
    }

    proptest! {
        #[test]
        fn a_long_error_is_cut_to_a_valid_one(
            six in any::<bool>(),
            kind in 1..5u8,
            length in 0..3000usize,
        ) {
            let (a, b) = if six { ("fd42::1", "fd42::2") } else { ("10.0.0.1", "10.0.0.2") };
            let quoted = build::packet(a, b, 17, (5000, 53), &[9; 100]);
            let mut packet = error(&quoted, if six { kind } else { 3 }, length);
            let mut headers = Headers::parse(&packet).unwrap();
            let was_long = packet.len() > if six { 1280 } else { 576 };
            prop_assert_eq!(truncate(&mut packet, &mut headers), was_long);
            if was_long {
                packet.truncate(headers.length);
                prop_assert_eq!(packet.len(), if six { 1280 } else { 576 });
                prop_assert_eq!(Headers::parse(&packet).unwrap(), headers);
                let message = &packet[headers.payload..];
                let pseudo = Sum::default().add_pseudo(
                    headers.source,
                    headers.destination,
                    58,
                    message.len(),
                );
                let sum = if six { pseudo } else { Sum::default() };
                prop_assert!(sum.add(message).is_valid());
                prop_assert!(six || Sum::default().add(&packet[..20]).is_valid());
            }
            prop_assert!(Quoted::read(&packet, &headers).is_some());
        }
    }
}
