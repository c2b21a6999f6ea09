//! Routing: from a destination address to the next hop.

use super::{
    local_entry::NextHop,
    state::{Holder, RemoteGateway, Tables, VouchedWorkload},
};
use crate::{
    drop_reason::DropReason,
    gateways::{LongestPrefix, Prefixes, first_up},
    index::WorkloadIndex,
    owner::QuotaOwner,
    rules::Party,
};
use ipnet::IpNet;
use std::{hash::BuildHasher, net::IpAddr, time::Instant};

/// The next hop of a packet, and the party at its destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) next_hop: NextHop,
    pub(crate) party: Party,
}

impl Tables {
    /// Returns the route to an address.
    ///
    /// # Errors
    /// The reason to drop the packet, if no workload is known there, or it is not admitted.
    #[inline]
    pub(crate) fn route(&self, now: Instant, address: &IpAddr) -> Result<Route, DropReason> {
        match self.addresses.get(address) {
            Some(Holder::Peer(peer, party)) => {
                Ok(Route { next_hop: NextHop::Peer(*peer), party: *party })
            }
            Some(Holder::Local(workload)) => self.route_to_local(*workload),
            None => self.route_beyond(now, *address),
        }
    }

    /// Returns the route to an address that is not itself in the configuration: one that a peer
    /// vouches for, or one behind a gateway.
    fn route_beyond(&self, now: Instant, address: IpAddr) -> Result<Route, DropReason> {
        if let Some(vouched) = self.vouched.get(&address).filter(|vouched| vouched.until > now) {
            let owner = self.owner_of_vouched(vouched, address);
            let party = Party::of_identity(vouched.identity, owner);
            return Ok(Route { next_hop: NextHop::Peer(vouched.peer), party });
        }
        let local = self.gateways(&self.local_prefixes, address);
        let remote = self.gateways(&self.remote_prefixes, address);
        match (local, remote) {
            // A prefix behind this node needs no other gateway.
            (Some(own), _) if remote.is_none_or(|other| own.length >= other.length) => {
                let gateway = own.gateways.first().ok_or(DropReason::UnknownAddress)?;
                self.route_to_local(gateway.workload)
            }
            (_, Some(other)) => {
                let RemoteGateway { peer, party, .. } =
                    first_up(other.gateways, &self.down, |gateway| gateway.peer)
                        .ok_or(DropReason::UnknownAddress)?;
                Ok(Route { next_hop: NextHop::Peer(peer), party })
            }
            _ => Err(DropReason::UnknownAddress),
        }
    }

    /// Returns the owner of what is kept of the workload at an address, or in front of it; a
    /// workload of this node need not be admitted.
    pub(crate) fn owner_at(&self, now: Instant, address: IpAddr) -> Option<QuotaOwner> {
        let owner = self.route(now, &address).ok().map(|route| route.party.owner);
        owner.or_else(|| Some(self.local_at(address)?.1.owner))
    }

    /// Returns the owner of what is kept of a workload that a peer vouches for.
    pub(super) fn owner_of_vouched(
        &self,
        vouched: &VouchedWorkload,
        address: IpAddr,
    ) -> QuotaOwner {
        let workload = self.hasher.hash_one(address) as u32;
        QuotaOwner::Remote { peer: vouched.peer, workload }
    }

    /// Returns the longest prefix that contains an address, and its gateways. A default route, that
    /// of an egress gateway, leads to no address of the network itself.
    pub(super) fn gateways<'a, T: Copy>(
        &self,
        prefixes: &'a Prefixes<T>,
        address: IpAddr,
    ) -> Option<LongestPrefix<'a, T>> {
        let found = prefixes.find(address);
        found.filter(|found| found.length > 0 || !self.is_of_network(address))
    }

    /// Returns `true` if an address is in the network's prefixes.
    pub(crate) fn is_of_network(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    /// Returns the egress gateways of a family that are not down, in the order in which packets
    /// prefer them, with the party that each is; the first of them if all are down. `default`: the
    /// default prefix of the family.
    pub(crate) fn egress_gateways(&self, default: IpNet) -> impl Iterator<Item = (NextHop, Party)> {
        let local = self.local_prefixes.of(default).iter().filter_map(|gateway| {
            let route = self.route_to_local(gateway.workload).ok()?;
            Some((route.next_hop, route.party))
        });
        let remote = self.remote_prefixes.of(default);
        let first = first_up(remote, &self.down, |gateway| gateway.peer);
        let is_first = move |gateway: &&RemoteGateway| {
            first.is_some_and(|first| first.claimant == gateway.claimant)
        };
        let is_up = |gateway: &&RemoteGateway| !self.down.contains(&gateway.peer);
        let others = remote.iter().filter(is_up).filter(move |gateway| !is_first(gateway)).copied();
        let remote = first.into_iter().chain(others);
        local.chain(remote.map(|gateway| (NextHop::Peer(gateway.peer), gateway.party)))
    }

    #[inline]
    fn route_to_local(&self, workload: WorkloadIndex) -> Result<Route, DropReason> {
        let local = self.local(workload).ok_or(DropReason::UnknownAddress)?;
        let next_hop = local.next_hop(workload);
        Ok(Route { next_hop, party: local.party().ok_or(DropReason::NotAdmitted)? })
    }

    /// Returns the route to a workload of this node by its address, or by one that lies behind it.
    ///
    /// # Errors
    /// The reason to drop the packet, if there is none, or it is not admitted.
    pub(crate) fn local_route(&self, address: IpAddr) -> Result<Route, DropReason> {
        let (workload, _) = self.local_at(address).ok_or(DropReason::UnknownAddress)?;
        self.route_to_local(workload)
    }

    /// Returns the next hop to a workload of this node: its TUN, or the peer that it is as a
    /// device.
    #[inline]
    pub(crate) fn next_hop_of(&self, workload: WorkloadIndex) -> Option<NextHop> {
        Some(self.local(workload)?.next_hop(workload))
    }
}
