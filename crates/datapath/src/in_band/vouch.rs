//! Vouches: how a node makes its new workload known to its peers while the coordinator is away.
//!
//! A vouch binds one address of the peer's own prefixes to an identity that the coordinator has
//! said this peer may vouch for; any other is ignored, and what the coordinator says of an address
//! always goes before.
//!
//! Body: the identity (big-endian `u32`) and the address (16 bytes, IPv4 mapped as in RFC 4291
//! §2.5.5.2).

use super::{ADDRESS, HEADER, decode_address, encode_address, write_header};
use meshward_types::IdentityId;
use std::{net::IpAddr, time::Duration};

const KIND: [u8; 4] = *b"MWV1";
/// Length of a vouch, in bytes.
pub(crate) const LENGTH: usize = HEADER + 4 + ADDRESS;

/// Time after which a node repeats its vouches.
pub(crate) const REPEAT: Duration = Duration::from_secs(2);
/// Time for which a vouch is good.
pub(crate) const LIFETIME: Duration = Duration::from_secs(15);

/// A vouch for a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vouch {
    pub(crate) identity: IdentityId,
    pub(crate) address: IpAddr,
}

impl Vouch {
    /// Returns the packet that carries the vouch.
    pub(crate) fn encode(self) -> [u8; LENGTH] {
        let mut packet = [0; LENGTH];
        write_header(KIND, &mut packet);
        packet[HEADER..HEADER + 4].copy_from_slice(&self.identity.0.to_be_bytes());
        packet[HEADER + 4..].copy_from_slice(&encode_address(self.address));
        packet
    }

    /// Reads a vouch by the kind and the body of its message; `None` if that is something else.
    pub(crate) fn read(kind: [u8; 4], body: &[u8]) -> Option<Self> {
        let body: &[u8; 4 + ADDRESS] = body.try_into().ok().filter(|_| kind == KIND)?;
        let (identity, address) = body.split_first_chunk()?;
        let address = decode_address(address.try_into().ok()?);
        Some(Self { identity: IdentityId(u32::from_be_bytes(*identity)), address })
    }
}
