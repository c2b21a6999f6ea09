//! The peers, and what the coordinator says of workloads.

use super::{
    local_entry::Claimant,
    state::{Holder, KnownWorkload, RemoteGateway, TablePeer, Tables},
};
use crate::{
    config::{PeerSite, WorkloadConfig},
    index::PeerIndex,
    owner::QuotaOwner,
    rules::Party,
};
use ipnet::IpNet;
use meshward_types::{NodeName, WorkloadId};
use std::{collections::HashSet, net::IpAddr};

impl Tables {
    /// Adds or changes a peer.
    pub(crate) fn put_peer(
        &mut self,
        node: &NodeName,
        prefixes: Vec<IpNet>,
        site: PeerSite,
    ) -> PeerIndex {
        let index = self.index_of_peer(node);
        let peer = TablePeer { node: node.clone(), prefixes, site };
        let before = self.peers[index.position()].replace(peer);
        self.sites_changed |= before.map(|before| before.site).unwrap_or_default() != site;
        index
    }

    /// Removes a peer. Returns the index that it had.
    pub(crate) fn remove_peer(&mut self, node: &NodeName) -> PeerIndex {
        let index = self.index_of_peer(node);
        self.peers[index.position()] = None;
        self.vouched.retain(|_, vouched| vouched.peer != index);
        index
    }

    /// Returns the index of a node as a peer, which it keeps.
    fn index_of_peer(&mut self, node: &NodeName) -> PeerIndex {
        if let Some(&index) = self.peer_indices.get(node) {
            return index;
        }
        let index = PeerIndex::of_position(self.peers.len());
        self.peers.push(None);
        self.peer_indices.insert(node.clone(), index);
        index
    }

    /// Returns the peers with their indices.
    pub(crate) fn peers(&self) -> impl Iterator<Item = (PeerIndex, &NodeName)> {
        let peers = self.peers.iter().enumerate();
        peers.filter_map(|(position, peer)| {
            peer.as_ref().map(|peer| (PeerIndex::of_position(position), &peer.node))
        })
    }

    /// Returns the peers that are gateways beside others.
    pub(crate) fn redundant_gateways(&self) -> HashSet<PeerIndex> {
        self.remote_prefixes.shared().map(|gateway| gateway.peer).collect()
    }

    /// Applies what the coordinator says of a workload; `None`: it is gone.
    pub(crate) fn put_workload(&mut self, id: &WorkloadId, config: Option<WorkloadConfig>) {
        self.update_admission(id, config.as_ref());
        let before = self.workloads.remove(id);
        let claimant = before.as_ref().map(|known| known.claimant);
        if let Some(known) = &before {
            self.withdraw(known, config.as_ref().filter(|config| config.node != self.node));
        }
        let Some(config) = config else { return };
        let claimant = claimant.unwrap_or_else(|| self.next_claimant());
        if config.node != self.node {
            self.claim(claimant, &config);
        }
        self.workloads.insert(id.clone(), KnownWorkload { claimant, config });
    }

    /// Withdraws the claims of a workload of a peer, but for the addresses that it keeps.
    fn withdraw(&mut self, known: &KnownWorkload, next: Option<&WorkloadConfig>) {
        let KnownWorkload { claimant, config: before } = known;
        if before.node == self.node {
            return;
        }
        let peer = self.index_of_peer(&before.node);
        if next.is_none_or(|next| next.node != before.node) {
            let owner = QuotaOwner::Remote { peer, workload: *claimant };
            self.rules.learnt_names().forget(owner);
        }
        if let Some(count) = self.hosted.get_mut(&(peer, before.identity)) {
            *count -= 1;
            if *count == 0 {
                self.hosted.remove(&(peer, before.identity));
            }
        }
        let is_kept = |address: &&IpAddr| next.is_some_and(|next| next.addresses.contains(address));
        for address in before.addresses.iter().filter(|address| !is_kept(address)) {
            self.addresses.remove(address, *claimant);
        }
        for prefix in &before.prefixes {
            self.remote_prefixes.remove(*prefix, |own| own.claimant == *claimant);
        }
    }

    /// Claims the addresses and prefixes of a workload of a peer.
    fn claim(&mut self, claimant: Claimant, config: &WorkloadConfig) {
        let peer = self.index_of_peer(&config.node);
        *self.hosted.entry((peer, config.identity)).or_default() += 1;
        let owner = QuotaOwner::Remote { peer, workload: claimant };
        let party = Party::of_workload(config, owner);
        for address in &config.addresses {
            let holder = Holder::Peer(peer, party);
            self.addresses.put(*address, claimant, holder, Holder::outranks);
            if let Some(vouched) = self.vouched.remove(address) {
                let before = self.owner_of_vouched(&vouched, *address);
                self.rules.learnt_names().rename(before, owner);
            }
        }
        for prefix in &config.prefixes {
            let Self { remote_prefixes, peers, .. } = self;
            // Gateways of one prefix are used in the order of their nodes' names.
            let rank = |gateway: &RemoteGateway| {
                let peer = peers.get(gateway.peer.position()).and_then(Option::as_ref);
                (peer.map(|peer| peer.node.clone()), gateway.claimant)
            };
            remote_prefixes.add(*prefix, RemoteGateway { claimant, peer, party }, rank);
        }
    }
}
