//! The source addresses that a workload and a peer may send from.

use super::{
    local_entry::{LocalEntry, NextHop},
    state::Tables,
};
use crate::{
    drop_reason::DropReason,
    index::{PeerIndex, WorkloadIndex},
    rules::Party,
};
use std::{net::IpAddr, time::Instant};

impl Tables {
    /// Returns whether a packet with this source may come from a workload.
    #[inline]
    pub(crate) fn is_source_of(
        &self,
        workload: WorkloadIndex,
        local: &LocalEntry,
        address: &IpAddr,
    ) -> bool {
        local.workload.addresses.contains(address)
            || !local.workload.prefixes.is_empty()
                && self.local_at(*address).is_some_and(|(own, _)| own == workload)
    }

    /// Returns the workload for which another may send an ICMP error about a packet to `quoted`:
    /// itself, or, if it is a route, another route of this node, since both interfaces are the
    /// host's own.
    pub(crate) fn icmp_error_sender<'a>(
        &'a self,
        workload: WorkloadIndex,
        local: &'a LocalEntry,
        quoted: IpAddr,
    ) -> Option<&'a LocalEntry> {
        if self.is_source_of(workload, local, &quoted) {
            return Some(local);
        }
        let (_, other) = self.local_at(quoted)?;
        let are_routes = !local.workload.prefixes.is_empty() && !other.workload.prefixes.is_empty();
        are_routes.then_some(other)
    }

    /// Returns the party that sends from an address, if it is one of a peer's.
    ///
    /// # Errors
    /// The reason to drop the packet, if the peer may not send from it.
    pub(crate) fn sender(
        &self,
        now: Instant,
        peer: PeerIndex,
        address: &IpAddr,
    ) -> Result<Party, DropReason> {
        if self.peer_owns(peer, *address) {
            let route = self.route(now, address)?;
            let is_own = route.next_hop == NextHop::Peer(peer);
            return is_own.then_some(route.party).ok_or(DropReason::SpoofedByPeer);
        }
        // Any gateway of a prefix may be the one that its machines send by.
        let found = self.gateways(&self.remote_prefixes, *address);
        let gateways = found.map_or(&[][..], |found| found.gateways);
        let own = gateways.iter().find(|gateway| gateway.peer == peer);
        own.map(|gateway| gateway.party).ok_or(DropReason::SpoofedByPeer)
    }

    /// Returns whether an ICMP error with this source address may come from the workload `sender`,
    /// which a packet to `quoted` was going to: from its own addresses and those behind it, and, if
    /// it is the gateway behind which `quoted` lies, from routers that the mesh does not know (RFC
    /// 1812 §4.3.2.4 leaves open which of its addresses a router uses).
    pub(crate) fn is_source_of_error(
        &self,
        now: Instant,
        sender: Party,
        source: IpAddr,
        quoted: IpAddr,
    ) -> bool {
        if source == quoted {
            return true;
        }
        // Several gateways may have one prefix.
        let remote = self.gateways(&self.remote_prefixes, source);
        let has_prefix = || {
            let gateways = remote.map_or(&[][..], |found| found.gateways);
            gateways.iter().any(|gateway| gateway.party.owner == sender.owner)
        };
        let is_router = || !self.is_of_network(source) && self.is_behind_gateway(quoted);
        match self.route(now, &source) {
            // That an egress gateway leads there says nothing of where the router is.
            Ok(route) => {
                route.party.owner == sender.owner
                    || has_prefix()
                    || self.is_by_default_only(source) && is_router()
            }
            Err(DropReason::UnknownAddress) => is_router(),
            Err(_) => false,
        }
    }

    /// Returns `true` if nothing but a default route leads to an address.
    fn is_by_default_only(&self, address: IpAddr) -> bool {
        let local = self.local_prefixes.find(address).map(|found| found.length);
        let remote = self.remote_prefixes.find(address).map(|found| found.length);
        self.addresses.get(&address).is_none()
            && [local, remote].iter().all(|length| length.is_none_or(|length| length == 0))
    }

    fn is_behind_gateway(&self, address: IpAddr) -> bool {
        self.addresses.get(&address).is_none()
            && (self.gateways(&self.local_prefixes, address).is_some()
                || self.gateways(&self.remote_prefixes, address).is_some())
    }

    /// Returns whether the coordinator gave a peer the prefix of an address.
    pub(crate) fn peer_owns(&self, peer: PeerIndex, address: IpAddr) -> bool {
        let peer = self.peers.get(peer.position()).and_then(Option::as_ref);
        peer.is_some_and(|peer| peer.prefixes.iter().any(|prefix| prefix.contains(&address)))
    }
}
