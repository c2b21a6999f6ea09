//! In-band control: messages between the endpoints of two nodes inside a WireGuard session, beside
//! the packets of their workloads. The session authenticates the sender.
//!
//! Form: an IPv6 packet from and to `fe80::` with next header 253 (RFC 3692), then four bytes that
//! name the kind, and a body. A workload cannot send such a packet, and a stock WireGuard drops it.

pub(crate) mod name_message;
pub(crate) mod path_probe;
pub(crate) mod vouch;

use std::net::{IpAddr, Ipv6Addr};

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
const EXPERIMENT: u8 = 253;
const IPV6_HEADER: usize = 40;
/// Bytes in front of a body: the IPv6 header and the kind.
pub(crate) const HEADER: usize = IPV6_HEADER + 4;

/// Writes the header of a message into a packet whose body stands behind [`HEADER`] bytes.
pub(crate) fn write_header(kind: [u8; 4], packet: &mut [u8]) {
    let payload = (packet.len() - IPV6_HEADER) as u16;
    packet[..IPV6_HEADER].fill(0);
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    (packet[6], packet[7]) = (EXPERIMENT, 1);
    packet[8..24].copy_from_slice(&LINK_LOCAL.octets());
    packet[24..40].copy_from_slice(&LINK_LOCAL.octets());
    packet[IPV6_HEADER..HEADER].copy_from_slice(&kind);
}

/// The length of an address, in bytes.
const ADDRESS: usize = 16;

/// Returns an address as messages have it: IPv4 mapped as in RFC 4291 §2.5.5.2.
fn encode_address(address: IpAddr) -> [u8; ADDRESS] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Returns the address of [`encode_address`].
fn decode_address(bytes: [u8; ADDRESS]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
}

/// Reads the kind and the body of a message; `None` if the packet is no in-band control. Padding of
/// the session is not part of the body.
#[inline]
pub(crate) fn read(packet: &[u8]) -> Option<([u8; 4], &[u8])> {
    let (header, rest) = packet.split_first_chunk::<IPV6_HEADER>()?;
    let link_local = LINK_LOCAL.octets();
    let is_control = header[0] >> 4 == 6
        && header[6] == EXPERIMENT
        && header[8..24] == link_local
        && header[24..40] == link_local;
    if !is_control {
        return None;
    }
    let payload = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
    payload.split_first_chunk().map(|(kind, body)| (*kind, body))
}
