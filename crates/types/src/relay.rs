//! Addresses of peers behind relays.
//!
//! To the data path, a peer behind a relay has an address like any other: in `100::/64`, which is
//! never routed (RFC 6666), with the relay's number as the port.

use crate::names::{NetworkName, NodeName};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

const PREFIX: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

/// The number of a relay, unique in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelayNumber(pub u16);

impl RelayNumber {
    /// The number of the coordinator, which is a relay as well.
    pub const COORDINATOR: Self = Self(1);
}

impl fmt::Display for RelayNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a node in relayed frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelayId(pub [u8; 8]);

/// The id of a network in relayed frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelayNetwork(pub [u8; 4]);

fn name_hash<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..N]);
    bytes
}

impl RelayId {
    /// Returns the id of a node: the first 8 bytes of its name's SHA-256.
    pub fn of(node: &NodeName) -> Self {
        Self(name_hash(node.as_str()))
    }

    /// Returns the address of this node behind a relay, as endpoints use it.
    pub fn address(self, relay: RelayNumber) -> SocketAddr {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&PREFIX);
        bytes[8..].copy_from_slice(&self.0);
        SocketAddr::new(Ipv6Addr::from(bytes).into(), relay.0)
    }

    /// Returns the node and the relay that an address stands for; `None` if it is an ordinary
    /// address.
    pub fn at(address: &SocketAddr) -> Option<(Self, RelayNumber)> {
        let IpAddr::V6(ip) = address.ip() else { return None };
        let bytes = ip.octets();
        let (prefix, id) = (bytes.first_chunk::<8>()?, bytes.last_chunk::<8>()?);
        (*prefix == PREFIX).then_some((Self(*id), RelayNumber(address.port())))
    }
}

impl RelayNetwork {
    /// Returns the id of a network: the first 4 bytes of its name's SHA-256.
    pub fn of(network: &NetworkName) -> Self {
        Self(name_hash(network.as_str()))
    }
}

/// Returns `true` if an address is that of a peer behind a relay.
pub fn is_relayed(address: &SocketAddr) -> bool {
    RelayId::at(address).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_its_address() {
        let id = RelayId::of(&"rack".parse().unwrap());
        let address = id.address(RelayNumber(7));
        assert_eq!(RelayId::at(&address), Some((id, RelayNumber(7))));
        assert!(is_relayed(&address));
        for other in ["192.0.2.1:1", "[::1]:1", "[100:0:0:1::]:1"] {
            assert!(!is_relayed(&other.parse().unwrap()), "{other}");
        }
    }
}
