//! Vouching: how a node makes its new workload known to its peers while the coordinator is away.
//!
//! A vouch travels inside the WireGuard session of two nodes, so the peer that says it is authenticated. It binds one
//! address of the peer's own prefixes to an identity that the coordinator said this peer may vouch for; anything
//! else is ignored, and the coordinator's own word about an address always wins.
//!
//! Form: an IPv6 packet from and to `fe80::` with next header 253 (RFC 3692), then `MWV1`, the identity
//! (big-endian `u32`) and the address (16 bytes, IPv4 mapped as in RFC 4291 §2.5.5.2).

use meshward_model::IdentityId;
use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
const EXPERIMENT: u8 = 253;
const MAGIC: &[u8; 4] = b"MWV1";
pub(crate) const LENGTH: usize = 40 + 4 + 4 + 16;

/// How often a node repeats its vouches.
pub(crate) const REPEAT: Duration = Duration::from_secs(2);
/// For how long a vouch is good.
pub(crate) const LIFETIME: Duration = Duration::from_secs(15);

/// The packet that vouches for `address`.
pub(crate) fn encode(identity: IdentityId, address: IpAddr) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&((LENGTH - 40) as u16).to_be_bytes());
    packet[6] = EXPERIMENT;
    packet[7] = 1;
    packet[8..24].copy_from_slice(&LINK_LOCAL.octets());
    packet[24..40].copy_from_slice(&LINK_LOCAL.octets());
    packet[40..44].copy_from_slice(MAGIC);
    packet[44..48].copy_from_slice(&identity.0.to_be_bytes());
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    packet[48..].copy_from_slice(&address.octets());
    packet
}

/// Reads a vouch; `None` if the packet is something else.
pub(crate) fn decode(packet: &[u8]) -> Option<(IdentityId, IpAddr)> {
    let packet: &[u8; LENGTH] = packet.try_into().ok()?;
    let link_local = LINK_LOCAL.octets();
    let ours = packet[0] >> 4 == 6
        && packet[6] == EXPERIMENT
        && packet[8..24] == link_local
        && packet[24..40] == link_local
        && packet[40..44] == *MAGIC;
    if !ours {
        return None;
    }
    let identity = u32::from_be_bytes(packet[44..48].try_into().ok()?);
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[48..]).ok()?);
    Some((IdentityId(identity), IpAddr::V6(address).to_canonical()))
}
