//! Vouching: how a node makes its new workload known to its peers while the coordinator is away.
//!
//! A vouch is said [aside](crate::aside), so the peer that says it is authenticated. It binds one
//! address of the peer's own prefixes to an identity that the coordinator said this peer may vouch
//! for; anything else is ignored, and the coordinator's own word about an address always wins.
//!
//! Body: the identity (big-endian `u32`) and the address (16 bytes, IPv4 mapped as in RFC 4291
//! §2.5.5.2).

use crate::aside::{self, HEADER};
use meshward_types::IdentityId;
use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

const KIND: &[u8; 4] = b"MWV1";
pub(crate) const LENGTH: usize = HEADER + 4 + 16;

/// How often a node repeats its vouches.
pub(crate) const REPEAT: Duration = Duration::from_secs(2);
/// For how long a vouch is good.
pub(crate) const LIFETIME: Duration = Duration::from_secs(15);

/// The packet that vouches for `address`.
pub(crate) fn encode(identity: IdentityId, address: IpAddr) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    aside::wrap(KIND, &mut packet);
    packet[HEADER..HEADER + 4].copy_from_slice(&identity.0.to_be_bytes());
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    packet[HEADER + 4..].copy_from_slice(&address.octets());
    packet
}

/// Reads a vouch; `None` if the packet is something else.
pub(crate) fn decode(packet: &[u8]) -> Option<(IdentityId, IpAddr)> {
    let (kind, body) = aside::unwrap(packet)?;
    let body: &[u8; 20] = body.try_into().ok().filter(|_| kind == KIND)?;
    let (identity, address) = body.split_first_chunk()?;
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?);
    Some((IdentityId(u32::from_be_bytes(*identity)), IpAddr::V6(address).to_canonical()))
}
