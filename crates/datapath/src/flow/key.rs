//! The key of a flow: both ends of a conversation, the same for both directions.

use crate::headers::{Headers, Icmp};
use meshward_types::Protocol;
use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
};

/// Both ends of a conversation, the same for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    low: [u64; 2],
    high: [u64; 2],
    /// Both ports, the IP protocol, and [`V6`] and [`ASKED_BY_LOW`].
    rest: u64,
}

const V6: u64 = 1;
/// The low end of an ICMP echo asks: the other may ask with the same identifier, and that is
/// another conversation.
const ASKED_BY_LOW: u64 = 2;

/// An end of a flow: the one with the lower address, or else the lower port, or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlowEnd {
    Low,
    High,
}

impl FlowEnd {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }
}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for word in [self.low[0], self.low[1], self.high[0], self.high[1], self.rest] {
            state.write_u64(word);
        }
    }
}

impl FlowKey {
    #[inline]
    pub(crate) fn of(headers: &Headers) -> (Self, FlowEnd) {
        let source = (words(&headers.source), headers.source_port);
        let destination = (words(&headers.destination), headers.destination_port);
        let (low, high, from) = match source <= destination {
            true => (source, destination, FlowEnd::Low),
            false => (destination, source, FlowEnd::High),
        };
        let asked_by_low = match headers.icmp {
            Icmp::Request => from == FlowEnd::Low,
            Icmp::Reply => from == FlowEnd::High,
            _ => false,
        };
        let marks = if headers.source.is_ipv6() { V6 } else { 0 }
            | if asked_by_low { ASKED_BY_LOW } else { 0 };
        let ports = u64::from(low.1) << 48 | u64::from(high.1) << 32;
        let rest = ports | u64::from(headers.ip_protocol) << 8 | marks;
        (Self { low: low.0, high: high.0, rest }, from)
    }

    pub(crate) fn to_words(self) -> [u64; 5] {
        [self.low[0], self.low[1], self.high[0], self.high[1], self.rest]
    }

    /// The key that has these words, if there is one.
    pub(crate) fn from_words([a, b, c, d, rest]: [u64; 5]) -> Option<Self> {
        let key = Self { low: [a, b], high: [c, d], rest };
        let is_address = rest & V6 != 0 || (a == 0 && c == 0 && b >> 32 == 0 && d >> 32 == 0);
        let is_ordered = (key.low, rest >> 48) <= (key.high, rest >> 32 & 0xffff);
        (is_address
            && is_ordered
            && rest & 0xffff_0000 == 0
            && rest & 0xff & !(V6 | ASKED_BY_LOW) == 0)
            .then_some(key)
    }

    /// Returns the address that has probably begun the flow: in ICMP the one that asks; otherwise
    /// the one with the higher port, which is the one that nobody has chosen.
    #[inline]
    pub(super) fn probable_initiator(&self) -> [u64; 2] {
        let is_low = match self.ip_protocol() {
            1 | 58 => self.rest & ASKED_BY_LOW != 0,
            _ => self.rest >> 48 >= self.rest >> 32 & 0xffff,
        };
        if is_low { self.low } else { self.high }
    }

    /// Returns the IP protocol, if it is one that services have.
    pub(crate) fn translated_protocol(&self) -> Option<u8> {
        Some(self.ip_protocol()).filter(|number| matches!(number, 6 | 17))
    }

    #[inline]
    fn ip_protocol(&self) -> u8 {
        (self.rest >> 8) as u8
    }

    /// A flow as the addresses and ports of the packet that began it.
    pub(crate) fn tuple_from(&self, initiator: FlowEnd) -> FlowTuple {
        let (low, high) =
            ((self.low, (self.rest >> 48) as u16), (self.high, (self.rest >> 32) as u16));
        let (source, destination) = match initiator {
            FlowEnd::Low => (low, high),
            FlowEnd::High => (high, low),
        };
        let v6 = self.rest & V6 != 0;
        let address = |words: [u64; 2]| match v6 {
            true => IpAddr::V6(((u128::from(words[0]) << 64) | u128::from(words[1])).into()),
            false => IpAddr::V4((words[1] as u32).into()),
        };
        let protocol = match (self.ip_protocol(), v6) {
            // ICMP of the other family is no ICMP.
            (1, true) | (58, false) => Protocol::Other,
            (number, _) => Protocol::from_ip(number),
        };
        FlowTuple {
            source: address(source.0),
            destination: address(destination.0),
            protocol,
            destination_port: destination.1,
            source_port: source.1,
        }
    }
}

/// A flow as the addresses and ports of the packet that began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowTuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    pub destination_port: u16,
    pub source_port: u16,
}

/// Returns an address as two words, of which an IPv4 address fills the last.
#[inline]
pub(crate) fn words(address: &IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, u64::from(address.to_bits())],
        IpAddr::V6(address) => [(address.to_bits() >> 64) as u64, address.to_bits() as u64],
    }
}
