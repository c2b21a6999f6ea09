//! Reading the headers of an IP packet: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260, RFC 792,
//! RFC 4443.

use meshward_types::Protocol;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP's FIN, SYN and RST flags (RFC 9293 §3.1).
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;

pub(crate) const V6_HOP_BY_HOP: u8 = 0;
const V6_ROUTING: u8 = 43;
pub(crate) const V6_FRAGMENT: u8 = 44;
pub(crate) const V6_DESTINATION: u8 = 60;
const MAX_EXTENSIONS: usize = 8;
// IPv4 options that end the options, that fill them, and that have a packet routed by its source
// (RFC 791 §3.1).
const V4_END: u8 = 0;
const V4_FILLER: u8 = 1;
const V4_LOOSE_ROUTE: u8 = 131;
const V4_STRICT_ROUTE: u8 = 137;

/// Bytes that are no IP packet which the mesh forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unforwardable {
    /// Not an IP packet, or one whose header contradicts its length or contents.
    #[error("not a well-formed IPv4 or IPv6 packet")]
    Malformed,
    /// A packet that is routed by its source: it has an IPv4 source route option (RFC 7126 §4.3,
    /// §4.4) or an IPv6 routing header (RFC 5095).
    #[error("a packet that is routed by its source")]
    SourceRouted,
}

use Unforwardable::{Malformed, SourceRouted};

/// The part of a packet that a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// A packet that is whole.
    Whole,
    /// The first fragment, which has the ports.
    First(u32),
    /// A later fragment, without ports.
    Later(u32),
}

/// The role of an ICMP message in the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp {
    /// No ICMP message.
    None,
    /// An echo request: it may begin a flow.
    Request,
    /// An echo reply: it belongs to the flow of its request.
    Reply,
    /// An error, which quotes the packet that it is about.
    Error,
    /// Another question or answer: it is checked by itself.
    Other,
}

impl Icmp {
    /// Returns the role of a type of message, for ICMP (1) and `ICMPv6` (58). What IANA has not
    /// given out counts as an error in IPv4, as types below 128 are in IPv6 (RFC 4443 §2.1).
    pub(crate) fn of(ip_protocol: u8, kind: u8) -> Self {
        match (ip_protocol, kind) {
            (1, 8) | (58, 128) => Self::Request,
            (1, 0) | (58, 129) => Self::Reply,
            // Timestamps, information, address masks; extended echoes (RFC 8335).
            (1, 13..=18 | 42 | 43) | (58, 128..) => Self::Other,
            _ => Self::Error,
        }
    }
}

/// The headers of a packet, as far as the filter needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number of the payload.
    pub ip_protocol: u8,
    /// Source port; for an ICMP echo its identifier; else 0.
    pub source_port: u16,
    /// Destination port; for an ICMP echo its identifier; else 0.
    pub destination_port: u16,
    /// TCP's flags; else 0.
    pub tcp_flags: u8,
    /// Fragmentation.
    pub fragment: Fragment,
    /// The offset of a fragment's payload in its packet, in bytes.
    pub offset: u32,
    /// Length of the packet by its own header, in bytes.
    pub length: usize,
    /// Offset of the payload of IP, in bytes.
    pub payload: usize,
    /// The role of an ICMP message.
    pub icmp: Icmp,
}

impl Headers {
    /// Reads the headers of `packet`.
    ///
    /// # Errors
    /// [`Unforwardable::Malformed`] for anything that is cut short, lies about its length, or whose
    /// transport header is split over fragments (RFC 1858's tiny fragments);
    /// [`Unforwardable::SourceRouted`] for what is routed by its source.
    pub fn parse(packet: &[u8]) -> Result<Self, Unforwardable> {
        match packet.first().ok_or(Malformed)? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => Err(Malformed),
        }
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, Unforwardable> {
        let header: &[u8; 20] = packet.first_chunk().ok_or(Malformed)?;
        let payload = usize::from(header[0] & 15) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if payload < 20 || length < payload || packet.len() < length {
            return Err(Malformed);
        }
        if payload > 20 {
            check_options(&packet[20..payload])?;
        }
        let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
        let word = u16::from_be_bytes([header[6], header[7]]);
        let (offset, more) = (word & 0x1fff, word & 0x2000 != 0);
        let fragment = match (offset, more) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First(id),
            // RFC 1858 §3: at offset 1 the rest would overwrite what was checked.
            (1, _) => return Err(Malformed),
            _ => Fragment::Later(id),
        };
        Self {
            source: Ipv4Addr::from(<[u8; 4]>::try_from(&header[12..16]).map_err(|_| Malformed)?)
                .into(),
            destination: Ipv4Addr::from(
                <[u8; 4]>::try_from(&header[16..20]).map_err(|_| Malformed)?,
            )
            .into(),
            ip_protocol: header[9],
            fragment,
            offset: u32::from(offset) * 8,
            length,
            payload,
            ..Self::EMPTY
        }
        .with_transport(packet)
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, Unforwardable> {
        let header: &[u8; 40] = packet.first_chunk().ok_or(Malformed)?;
        let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if packet.len() < length {
            return Err(Malformed);
        }
        let (mut next, mut at, mut fragment, mut offset) = (header[6], 40, Fragment::Whole, 0);
        for _ in 0..MAX_EXTENSIONS {
            let extension = match next {
                V6_HOP_BY_HOP | V6_DESTINATION | V6_FRAGMENT => {
                    packet[..length].get(at..at + 8).ok_or(Malformed)?
                }
                _ => break,
            };
            if next == V6_FRAGMENT {
                let word = u16::from_be_bytes([extension[2], extension[3]]);
                let id =
                    u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
                fragment = match (word >> 3, word & 1) {
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First(id),
                    _ => Fragment::Later(id),
                };
                offset = u32::from(word >> 3) * 8;
                at += 8;
            } else {
                at += 8 + usize::from(extension[1]) * 8;
            }
            next = extension[0];
            if matches!(fragment, Fragment::Later(_)) {
                break;
            }
        }
        // In a later fragment, it says what the first one begins with.
        if next == V6_ROUTING {
            return Err(SourceRouted);
        }
        // Still an extension, or one that is not walked. Behind a later fragment's header is the
        // middle of something.
        let later = matches!(fragment, Fragment::Later(_));
        if at > length || (!later && matches!(next, 0 | 44 | 60 | 135 | 139 | 140)) {
            return Err(Malformed);
        }
        Self {
            source: Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).map_err(|_| Malformed)?)
                .into(),
            destination: Ipv6Addr::from(
                <[u8; 16]>::try_from(&header[24..40]).map_err(|_| Malformed)?,
            )
            .into(),
            ip_protocol: next,
            fragment,
            offset,
            length,
            payload: at,
            ..Self::EMPTY
        }
        .with_transport(packet)
    }

    const EMPTY: Self = Self {
        source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ip_protocol: 0,
        source_port: 0,
        destination_port: 0,
        tcp_flags: 0,
        fragment: Fragment::Whole,
        offset: 0,
        length: 0,
        payload: 0,
        icmp: Icmp::None,
    };

    /// Headers of a packet of which only this is known.
    pub(crate) fn between(source: IpAddr, destination: IpAddr, ip_protocol: u8) -> Self {
        Self { source, destination, ip_protocol, ..Self::EMPTY }
    }

    fn with_transport(mut self, packet: &[u8]) -> Result<Self, Unforwardable> {
        if matches!(self.fragment, Fragment::Later(_)) {
            return Ok(self);
        }
        let bytes = &packet[self.payload..self.length];
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let v4 = self.source.is_ipv4();
        let least = match self.ip_protocol {
            6 => 20,
            17 | 1 | 58 => 8,
            132 => 12,
            _ => 0,
        };
        if bytes.len() < least {
            return Err(Malformed);
        }
        match self.ip_protocol {
            6 | 17 | 132 => (self.source_port, self.destination_port) = (port(0), port(2)),
            // Redirects and neighbour discovery change a host's routing and belong to no mesh link.
            1 if v4 && matches!(bytes[0], 5 | 9 | 10) => return Err(Malformed),
            58 if !v4 && matches!(bytes[0], 130..=137 | 141..=143 | 148 | 149 | 151..=153) => {
                return Err(Malformed);
            }
            1 if v4 => self.icmp = Icmp::of(1, bytes[0]),
            58 if !v4 => self.icmp = Icmp::of(58, bytes[0]),
            _ => {}
        }
        if matches!(self.icmp, Icmp::Request | Icmp::Reply) {
            (self.source_port, self.destination_port) = (port(4), port(4));
        }
        if self.ip_protocol == 6 {
            self.tcp_flags = bytes[13];
        }
        Ok(self)
    }

    /// Returns whether both are packets of one flow in one direction.
    pub(crate) fn same_flow(&self, other: &Self) -> bool {
        self.source_port == other.source_port
            && self.destination_port == other.destination_port
            && self.ip_protocol == other.ip_protocol
            && self.source == other.source
            && self.destination == other.destination
    }

    /// Returns the class that policy sees. ICMP of the other address family is no ICMP.
    pub fn protocol(&self) -> Protocol {
        match (self.ip_protocol, self.source) {
            (1, IpAddr::V6(_)) | (58, IpAddr::V4(_)) => Protocol::Other,
            (number, _) => Protocol::from_ip(number),
        }
    }
}

/// Returns whether an address is one that packets of workloads may go to: unicast, and not of a
/// link alone.
#[inline]
pub(crate) fn is_unicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_multicast() || a.is_broadcast() || a.is_link_local() || a.is_unspecified())
        }
        IpAddr::V6(a) => !(a.is_multicast() || a.is_unicast_link_local() || a.is_unspecified()),
    }
}

/// Checks the IPv4 options for a source route.
fn check_options(mut options: &[u8]) -> Result<(), Unforwardable> {
    while let Some(&kind) = options.first() {
        let length = match kind {
            V4_END => break,
            V4_FILLER => 1,
            V4_LOOSE_ROUTE | V4_STRICT_ROUTE => return Err(SourceRouted),
            _ => usize::from(*options.get(1).filter(|length| **length >= 2).ok_or(Malformed)?),
        };
        options = options.get(length..).ok_or(Malformed)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod build {
    //! Packets for tests.
    use super::*;

    /// Returns a packet of `protocol` with the given ports (or echo identifier) and payload.
    pub(crate) fn packet(
        source: &str,
        destination: &str,
        protocol: u8,
        ports: (u16, u16),
        data: &[u8],
    ) -> Vec<u8> {
        let mut transport = match protocol {
            6 => [&[0; 12][..], &[5 << 4], &[0; 7]].concat(),
            1 | 58 => vec![if protocol == 1 { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 0],
            132 => vec![0; 12],
            _ => vec![0; 8],
        };
        if matches!(protocol, 1 | 58) {
            transport[4..6].copy_from_slice(&ports.0.to_be_bytes());
        } else {
            transport[..2].copy_from_slice(&ports.0.to_be_bytes());
            transport[2..4].copy_from_slice(&ports.1.to_be_bytes());
        }
        transport.extend(data);
        ip(source.parse().unwrap(), destination.parse().unwrap(), protocol, &transport)
    }

    pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0; 20];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
                header[9] = protocol;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0; 40];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
                header[6] = protocol;
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
                header
            }
            _ => panic!("two address families in one packet"),
        };
        packet.extend(payload);
        packet
    }

    pub(crate) fn with_tcp_flags(mut packet: Vec<u8>, flags: u8) -> Vec<u8> {
        let at = Headers::parse(&packet).unwrap().payload + 13;
        packet[at] = flags;
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_ports_and_protocol_are_read_in_both_families() {
        for (a, b) in [("10.0.0.1", "10.0.0.2"), ("fd42::1", "fd42::2")] {
            let headers = Headers::parse(&build::packet(a, b, 17, (5000, 53), b"hi")).unwrap();
            assert_eq!(headers.source, a.parse::<IpAddr>().unwrap());
            assert_eq!(headers.destination, b.parse::<IpAddr>().unwrap());
            assert_eq!((headers.source_port, headers.destination_port), (5000, 53));
            assert_eq!(headers.protocol(), Protocol::Udp);
        }
    }

    #[test]
    fn a_packet_that_lies_about_its_length_is_malformed() {
        let mut packet = build::packet("10.0.0.1", "10.0.0.2", 6, (1, 2), b"");
        packet[3] = 200;
        assert_eq!(Headers::parse(&packet), Err(Malformed));
        let short =
            build::ip("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), 6, &[0; 19]);
        assert_eq!(Headers::parse(&short), Err(Malformed));
    }

    #[test]
    fn first_and_later_fragments_are_recognized() {
        let mut packet = build::packet("10.0.0.1", "10.0.0.2", 17, (1, 2), &[0; 64]);
        packet[4..8].copy_from_slice(&[0, 9, 0x20, 0]);
        assert_eq!(Headers::parse(&packet).unwrap().fragment, Fragment::First(9));
        packet[6..8].copy_from_slice(&[0, 8]);
        assert_eq!(Headers::parse(&packet).unwrap().fragment, Fragment::Later(9));
        packet[6..8].copy_from_slice(&[0, 1]);
        assert_eq!(Headers::parse(&packet), Err(Malformed));
        let inner = [&[17, 0, 0, 1, 0, 0, 0, 7][..], &[0; 64]].concat();
        let v6 = build::ip("fd42::1".parse().unwrap(), "fd42::2".parse().unwrap(), 44, &inner);
        assert_eq!(Headers::parse(&v6).unwrap().fragment, Fragment::First(7));
    }

    #[test]
    fn neighbour_discovery_does_not_pass() {
        let (a, b) = ("fd42::1".parse().unwrap(), "fd42::2".parse().unwrap());
        for kind in [134, 143, 137] {
            assert_eq!(
                Headers::parse(&build::ip(a, b, 58, &[kind, 0, 0, 0, 0, 0, 0, 0])),
                Err(Malformed)
            );
        }
    }

    #[test]
    fn source_routed_packets_do_not_pass_whole_or_in_fragments() {
        let (a, b) = ("fd42::1".parse().unwrap(), "fd42::2".parse().unwrap());
        let routing = [6, 0, 0, 0, 0, 0, 0, 0];
        let behind =
            |next: u8, word: u8, rest: &[u8]| [&[next, 0, 0, word, 0, 0, 0, 7][..], rest].concat();
        let transport = [0; 32];
        for (protocol, payload) in [
            (43, [&routing[..], &transport].concat()),
            (0, [&[43, 0, 1, 4, 0, 0, 0, 0][..], &routing, &transport].concat()),
            (60, [&[43, 0, 1, 4, 0, 0, 0, 0][..], &routing, &transport].concat()),
            // In front of a fragment's header, and behind it: the first fragment and a later one.
            (43, [&[44, 0, 0, 0, 0, 0, 0, 0][..], &behind(6, 9, &transport)].concat()),
            (44, behind(43, 1, &transport)),
            (44, behind(43, 9, &transport)),
        ] {
            assert_eq!(Headers::parse(&build::ip(a, b, protocol, &payload)), Err(SourceRouted));
        }
        let plain = build::packet("10.0.0.1", "10.0.0.2", 17, (1, 2), &[0; 64]);
        let with = |options: &[u8], word: [u8; 2]| {
            let mut packet = [&plain[..20], options, &plain[20..]].concat();
            packet[0] = 0x40 | (5 + options.len() / 4) as u8;
            let length = packet.len() as u16;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[6..8].copy_from_slice(&word);
            Headers::parse(&packet).map(|_| ())
        };
        for word in [[0, 0], [0x20, 0], [0, 9]] {
            assert_eq!(with(&[131, 7, 4, 10, 0, 0, 9, 0], word), Err(SourceRouted));
            assert_eq!(with(&[1, 137, 7, 4, 10, 0, 0, 9], word), Err(SourceRouted));
            assert_eq!(
                with(&[7, 3, 4, 131, 3, 4, 0, 0], word),
                Err(SourceRouted),
                "behind another option"
            );
            assert_eq!(with(&[7, 4, 4, 131], word), Ok(()), "within another option");
            assert_eq!(with(&[148, 4, 0, 0, 0, 131, 3, 4], word), Ok(()), "behind the end");
            assert_eq!(with(&[7, 1, 0, 0], word), Err(Malformed));
            assert_eq!(with(&[7, 9, 0, 0], word), Err(Malformed));
        }
    }

    #[test]
    fn icmp_of_the_other_family_is_no_icmp() {
        let (a, b) = ("fd42::1".parse().unwrap(), "fd42::2".parse().unwrap());
        let headers = Headers::parse(&build::ip(a, b, 1, &[3, 0, 0, 0, 0, 0, 0, 0])).unwrap();
        assert_eq!((headers.icmp, headers.protocol()), (Icmp::None, Protocol::Other));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            six in any::<bool>(),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = if six { 0x60 } else { 0x40 | (*first & 15) };
            }
            if let Ok(headers) = Headers::parse(&bytes) {
                prop_assert!(headers.payload <= headers.length && headers.length <= bytes.len());
                crate::icmp_error::Quoted::read(&bytes, &headers);
            }
        }
    }
}
