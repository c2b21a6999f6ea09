//! Packets of the model, and their bytes.

use crate::headers::Fragment;
use std::net::IpAddr;

/// A party at one end of a packet.
pub(super) type PartyNumber = usize;

/// The ends of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Direction {
    pub(super) from: PartyNumber,
    pub(super) to: PartyNumber,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
}

impl Direction {
    /// Returns the direction of an answer.
    pub(super) fn reversed(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// A packet as the model reads it.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) direction: Direction,
    pub(super) is_v6: bool,
    pub(super) protocol: u8,
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) fragment: Fragment,
    /// The type of ICMP.
    pub(super) icmp: u8,
    /// The packet that an ICMP error quotes.
    pub(super) quoted: Option<Box<Packet>>,
}

impl Packet {
    /// Returns whether its protocol is ICMP of its family.
    pub(super) fn is_icmp(&self) -> bool {
        matches!(self.protocol, 1 | 58)
    }

    /// Returns whether it is an echo request.
    pub(super) fn is_echo_request(&self) -> bool {
        matches!(self.icmp, 8 | 128)
    }

    /// Returns whether it is an echo reply.
    pub(super) fn is_echo_reply(&self) -> bool {
        matches!(self.icmp, 0 | 129)
    }

    /// Returns whether it goes in this direction, with the family and the protocol of `like`.
    pub(super) fn is_of(&self, direction: Direction, like: &Self) -> bool {
        (self.direction, self.is_v6, self.protocol) == (direction, like.is_v6, like.protocol)
            && self.quoted.is_none()
            && !matches!(self.fragment, Fragment::Later(_))
    }

    /// Returns its bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Direction { from, to, source_port, destination_port } = self.direction;
        let mut payload = match self.protocol {
            1 | 58 => vec![self.icmp, 0, 0, 0, (source_port >> 8) as u8, source_port as u8, 0, 0],
            6 => vec![0; 20],
            _ => vec![0; 8],
        };
        if let Some(quoted) = &self.quoted {
            payload.extend(quoted.bytes());
        } else if !self.is_icmp() {
            payload[..2].copy_from_slice(&source_port.to_be_bytes());
            payload[2..4].copy_from_slice(&destination_port.to_be_bytes());
        }
        if self.protocol == 6 {
            payload[4..8].copy_from_slice(&self.sequence.to_be_bytes());
            payload[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
            (payload[12], payload[13]) = (5 << 4, self.flags);
            payload[14..16].copy_from_slice(&8192u16.to_be_bytes());
        }
        payload.resize(payload.len().max(40), 0);
        let (source, destination) = (address(self.is_v6, from), address(self.is_v6, to));
        ip(source, destination, self.protocol, self.fragment, &payload)
    }
}

/// Returns the address of a party.
pub(super) fn address(is_v6: bool, party: PartyNumber) -> IpAddr {
    match is_v6 {
        false => [10, 0, 0, party as u8 + 1].into(),
        true => [0xfd00, 0, 0, 0, 0, 0, 0, party as u16 + 1].into(),
    }
}

/// Returns the party that has an address.
pub(super) fn party_at(address: IpAddr) -> PartyNumber {
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    PartyNumber::from(last) - 1
}

fn ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: Fragment,
    payload: &[u8],
) -> Vec<u8> {
    let (id, word) = match fragment {
        Fragment::Whole => (0, 0u16),
        Fragment::First(id) => (id, 1),
        Fragment::Later(id) => (id, 5 << 3),
    };
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = [0x45, 0, 0, 0, 0, id as u8, 0, 0, 64, protocol, 0, 0];
            packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&((word & 1) << 13 | word >> 3).to_be_bytes());
            [&packet[..], &source.octets(), &destination.octets(), payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = word.to_be_bytes();
            let extension = [protocol, 0, high, low, 0, 0, 0, id as u8];
            let extension = if word == 0 { &[][..] } else { &extension };
            let next = if word == 0 { protocol } else { 44 };
            let mut packet = [0x60, 0, 0, 0, 0, 0, next, 64];
            packet[4..6].copy_from_slice(&((extension.len() + payload.len()) as u16).to_be_bytes());
            [&packet[..], &source.octets(), &destination.octets(), extension, payload].concat()
        }
        _ => unreachable!("both are of one family"),
    }
}
