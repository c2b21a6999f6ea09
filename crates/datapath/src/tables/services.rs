//! The services, and which workloads are their instances.

use super::state::{KnownWorkload, TablePeer, Tables};
use crate::{
    config::{PeerSite, ServiceConfig, WorkloadConfig},
    index::PeerIndex,
    services::{
        directory::{Described, Locality},
        load::Micros,
    },
};
use hashbrown::HashMap;
use meshward_types::{IdentityId, NodeName, ServiceName, WorkloadId};

/// The nodes from which the localities of workloads follow.
#[derive(Clone, Copy)]
struct Localities<'a> {
    node: &'a NodeName,
    peers: &'a [Option<TablePeer>],
    peer_indices: &'a HashMap<NodeName, PeerIndex>,
}

impl<'a> Localities<'a> {
    fn of(&self, node: &NodeName) -> Locality {
        let peer = self.peer_indices.get(node).and_then(|peer| self.peers.get(peer.position()));
        match peer.and_then(Option::as_ref) {
            _ if node == self.node => Locality::Here,
            Some(TablePeer { site: PeerSite::Same, .. }) => Locality::SameSite,
            _ => Locality::Elsewhere,
        }
    }

    fn describe(self, id: &'a WorkloadId, config: &'a WorkloadConfig) -> Described<'a> {
        Described { id, config, locality: self.of(&config.node) }
    }
}

impl Tables {
    /// Adds or changes a service.
    pub(crate) fn put_service(&mut self, name: ServiceName, config: ServiceConfig) {
        let Self { services, node, peers, peer_indices, workloads, .. } = self;
        let localities = Localities { node, peers, peer_indices };
        let described = workloads.iter().map(|(id, known)| localities.describe(id, &known.config));
        services.put(name, config, described);
    }

    /// Returns the identity of a workload, as the coordinator describes it.
    pub(crate) fn identity_of(&self, id: &WorkloadId) -> Option<IdentityId> {
        self.workloads.get(id).map(|known| known.config.identity)
    }

    /// Has services take in a workload as it is described now. `before`: the identity that it had.
    pub(crate) fn refresh_instance(
        &mut self,
        now: Micros,
        id: &WorkloadId,
        before: Option<IdentityId>,
    ) {
        let Self { services, node, peers, peer_indices, workloads, .. } = self;
        let localities = Localities { node, peers, peer_indices };
        let known = workloads.get(id);
        let described = known.map(|KnownWorkload { config, .. }| localities.describe(id, config));
        services.put_workload(now, id, before, described);
    }

    /// Has services take in all instances again, if nodes have come to another site.
    pub(crate) fn refresh_localities(&mut self) {
        if !std::mem::take(&mut self.sites_changed) {
            return;
        }
        let Self { services, node, peers, peer_indices, workloads, .. } = self;
        let localities = Localities { node, peers, peer_indices };
        let described = workloads.iter().map(|(id, known)| localities.describe(id, &known.config));
        services.replace_all(&described);
    }
}
