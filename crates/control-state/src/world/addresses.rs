//! The addresses that nodes claim for their endpoints.

use crate::records::EndpointRecord;
use meshward_types::NodeName;
use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
};

/// The public addresses among the candidates of all endpoints, each with the nodes that claim it.
/// Private ones are left out, since many hosts have the same.
#[derive(Debug, Default)]
pub struct Addresses(HashMap<SocketAddr, Vec<NodeName>>);

impl Addresses {
    /// Returns the nodes that claim an address.
    pub fn claimants(&self, address: &SocketAddr) -> &[NodeName] {
        self.0.get(address).map_or(&[], Vec::as_slice)
    }

    /// Adds the candidates of a node's endpoint.
    pub(super) fn add(&mut self, endpoint: &EndpointRecord, node: &NodeName) {
        for address in endpoint.candidates.iter().filter(|address| is_globally_unique(address.ip()))
        {
            self.0.entry(*address).or_default().push(node.clone());
        }
    }

    /// Removes the candidates of a node's endpoint.
    pub(super) fn remove(&mut self, endpoint: &EndpointRecord, node: &NodeName) {
        for address in &endpoint.candidates {
            let Entry::Occupied(mut claimants) = self.0.entry(*address) else { continue };
            if let Some(index) = claimants.get().iter().position(|own| own == node) {
                claimants.get_mut().swap_remove(index);
            }
            if claimants.get().is_empty() {
                claimants.remove();
            }
        }
    }
}

/// Returns `true` if an address belongs to one host in the world: it is not private (RFC 1918, RFC
/// 4193), shared (RFC 6598), link-local or loopback, and does not stand for a relay (RFC 6666).
pub fn is_globally_unique(ip: IpAddr) -> bool {
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
