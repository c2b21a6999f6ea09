//! What endpoints of two nodes say to each other inside a WireGuard session, beside the packets of
//! their workloads. The session authenticates who says it.
//!
//! Form: an IPv6 packet from and to `fe80::` with next header 253 (RFC 3692), then four bytes that
//! name the kind and a body. A workload cannot send such a packet, and a stock WireGuard drops it.

use std::net::Ipv6Addr;

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
const EXPERIMENT: u8 = 253;
/// The bytes in front of a body: the IPv6 header and the kind.
pub(crate) const HEADER: usize = 40 + 4;

/// Writes the header of a message of this kind into a packet whose body stands behind [`HEADER`]
/// bytes.
pub(crate) fn wrap(kind: &[u8; 4], packet: &mut [u8]) {
    let payload = (packet.len() - 40) as u16;
    packet[..40].fill(0);
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    (packet[6], packet[7]) = (EXPERIMENT, 1);
    packet[8..24].copy_from_slice(&LINK_LOCAL.octets());
    packet[24..40].copy_from_slice(&LINK_LOCAL.octets());
    packet[40..HEADER].copy_from_slice(kind);
}

/// The kind and the body; `None` if the packet is something else. Padding of the session is not
/// part of the body.
pub(crate) fn unwrap(packet: &[u8]) -> Option<(&[u8; 4], &[u8])> {
    let (head, rest) = packet.split_first_chunk::<40>()?;
    let link_local = LINK_LOCAL.octets();
    let ours = head[0] >> 4 == 6
        && head[6] == EXPERIMENT
        && head[8..24] == link_local
        && head[24..40] == link_local;
    if !ours {
        return None;
    }
    rest.get(..usize::from(u16::from_be_bytes([head[4], head[5]])))?.split_first_chunk()
}
