//! Where nodes say that their endpoints are, by address: which others have said the same.

use crate::records::EndpointRecord;
use meshward_types::NodeName;
use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
};

/// The public addresses among the candidates of all endpoints, each with the nodes that claim it.
/// Private ones are many hosts' at once.
#[derive(Debug, Default)]
pub struct Addresses(HashMap<SocketAddr, Vec<NodeName>>);

impl Addresses {
    /// The nodes that claim an address.
    pub fn claimants(&self, address: &SocketAddr) -> &[NodeName] {
        self.0.get(address).map_or(&[], Vec::as_slice)
    }

    pub fn note(&mut self, endpoint: &EndpointRecord, node: &NodeName) {
        for address in endpoint.candidates.iter().filter(|address| is_one_hosts(address.ip())) {
            self.0.entry(*address).or_default().push(node.clone());
        }
    }

    pub fn forget(&mut self, endpoint: &EndpointRecord, node: &NodeName) {
        for address in &endpoint.candidates {
            let Entry::Occupied(mut claimants) = self.0.entry(*address) else { continue };
            if let Some(at) = claimants.get().iter().position(|own| own == node) {
                claimants.get_mut().swap_remove(at);
            }
            if claimants.get().is_empty() {
                claimants.remove();
            }
        }
    }
}

/// Whether an address is one host's, wherever one is: not private (RFC 1918, RFC 4193), shared (RFC
/// 6598), of a link, or of a relay.
pub fn is_one_hosts(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_private() || ip.is_link_local() || ip.is_loopback() || is_shared)
        }
        IpAddr::V6(ip) => {
            let is_discard_only = ip.segments()[..4] == [0x100, 0, 0, 0];
            !(ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.is_loopback()
                || is_discard_only)
        }
    }
}
