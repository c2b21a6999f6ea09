//! The resources of a network, as nodes get them.

use super::{
    drains::Drains,
    network::{NetworkState, WorkloadState, workload_resource},
    node_set::{NodeIndex, NodeSet},
    nodes::Nodes,
    quarantines::Quarantines,
};
use crate::records::{RefusedRecord, ReportRecord, WorkloadRecord};
use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, NetworkSpec, PeerSpec, ServiceSpec},
};
use meshward_policy::Service;
use meshward_types::{Acl, IdentityId, NetworkName, WorkloadId, trigger::TriggerSpec};
use std::sync::Arc;

/// Derives the resources of a network.
#[derive(Clone, Copy)]
pub(super) struct NetworkResources<'a> {
    /// The network.
    pub(super) network: &'a NetworkState,
    /// The nodes of the mesh.
    pub(super) nodes: &'a Nodes,
    /// The quarantines in force.
    pub(super) quarantines: &'a Quarantines,
    /// The drains in force.
    pub(super) drains: &'a Drains,
}

impl NetworkResources<'_> {
    /// Returns the network's name.
    pub(super) fn name(&self) -> &NetworkName {
        &self.network.record.name
    }

    /// Returns the network as a node gets it; `None` if the node does not serve it.
    pub(super) fn own_network(&self, node: NodeIndex) -> Option<(ResourceKey, Resource)> {
        let node = self.nodes.record(node)?;
        let blocks = node.blocks.get(self.name())?.clone();
        let record = &self.network.record;
        let admission = !self.network.links.policy().admission.is_empty();
        let conduct = self.network.links.policy().conduct(self.network.resets);
        let spec = NetworkSpec {
            prefixes: record.prefixes.clone(),
            blocks,
            mtu: record.mtu,
            admission,
            conduct,
            site: node.site.clone(),
            service_blocks: record.service_blocks.clone(),
            resolver: record.resolver.clone(),
            dns: self.network.links.policy().dns.clone(),
        };
        Some((ResourceKey::Network(self.name().clone()), Resource::Network(spec)))
    }

    /// Returns the triggers about workloads, which every node of the network gets.
    pub(super) fn triggers(&self) -> impl Iterator<Item = (ResourceKey, Resource)> {
        let name = self.name().clone();
        let triggers = self.network.links.policy().triggers.iter();
        triggers.filter(|trigger| trigger.when.desired.is_none()).map(move |trigger| {
            let spec = TriggerSpec::new(
                trigger.watch.clone(),
                &trigger.when,
                trigger.alone,
                trigger.lasts,
            );
            (ResourceKey::Trigger(name.clone(), trigger.name.clone()), Resource::Trigger(spec))
        })
    }

    /// Returns the changes that drop the network and its triggers.
    pub(super) fn drop_network(&self) -> Vec<Change> {
        let keys =
            self.triggers().map(|(key, _)| key).chain([ResourceKey::Network(self.name().clone())]);
        keys.map(Change::Drop).collect()
    }

    /// Returns a node as a peer; `None` while it has no endpoint.
    pub(super) fn peer(&self, node: NodeIndex) -> Option<(ResourceKey, Resource)> {
        let record = self.nodes.record(node)?;
        let (endpoint, prefixes) =
            (record.endpoints.get(self.name())?, record.blocks.get(self.name())?);
        let spec = PeerSpec {
            public_key: endpoint.public_key,
            candidates: endpoint.candidates.clone(),
            prefixes: prefixes.clone(),
            site: record.site.clone(),
        };
        Some((ResourceKey::Peer(self.name().clone(), record.name.clone()), Resource::Peer(spec)))
    }

    /// Returns an identity; `None` if it has no workload.
    pub(super) fn identity(&self, id: IdentityId) -> Option<(ResourceKey, Resource)> {
        let labels = self.network.links.labels(id)?;
        let state = self.quarantines.state_of_labels(self.name(), labels);
        let accepts = self.network.links.accepts(id).to_vec();
        let spec = IdentitySpec {
            labels: labels.clone(),
            accepts,
            quarantined: state.quarantined,
            reset: state.reset,
        };
        Some((ResourceKey::Identity(self.name().clone(), id), Resource::Identity(spec)))
    }

    /// Returns an admitted workload.
    pub(super) fn workload(&self, record: &WorkloadRecord) -> (ResourceKey, Resource) {
        workload_resource(record, self.state_of(record))
    }

    /// Returns an admitted workload for a node that is to begin no flows to it.
    pub(super) fn drained(&self, record: &WorkloadRecord) -> (ResourceKey, Resource) {
        workload_resource(record, WorkloadState { draining: true, ..self.state_of(record) })
    }

    /// Returns an admitted workload as a node has it that knows it because of subsets alone.
    pub(super) fn workload_for(
        &self,
        node: NodeIndex,
        record: &WorkloadRecord,
    ) -> (ResourceKey, Resource) {
        match self.network.narrowing.is_retiring(node, &record.id) {
            true => self.drained(record),
            false => self.workload(record),
        }
    }

    /// Returns the state of a workload beside its record.
    pub(super) fn state_of(&self, record: &WorkloadRecord) -> WorkloadState {
        let quarantine = self.quarantines.state_of(&record.id);
        WorkloadState { quarantine, draining: self.drains.of(record).is_some() }
    }

    /// Returns a service; `None` if it has no virtual address.
    pub(super) fn service(&self, service: &Service) -> Option<(ResourceKey, Resource)> {
        let record = self.network.services.record(&service.name)?;
        let Service { name, instances, ports, prefer, health, affinity, weights, .. } =
            service.clone();
        let addresses = record.addresses.clone();
        let spec = ServiceSpec { addresses, instances, ports, prefer, health, affinity, weights };
        Some((ResourceKey::Service(self.name().clone(), name), Resource::Service(spec)))
    }

    pub(super) fn refused_key(&self, id: &WorkloadId) -> ResourceKey {
        ResourceKey::Refused(self.name().clone(), id.clone())
    }

    /// Returns a link.
    pub(super) fn link(
        &self,
        from: IdentityId,
        to: IdentityId,
        acl: &Arc<Acl>,
    ) -> (ResourceKey, Resource) {
        (ResourceKey::Link(self.name().clone(), from, to), Resource::Link(Acl::clone(acl)))
    }

    /// Returns the changes that put an identity, its workloads and the nodes that run them, for a
    /// node that now meets it.
    pub(super) fn section(&self, id: IdentityId, learner: Option<NodeIndex>) -> Vec<Change> {
        let hosts = self.network.hosts(id).into_iter().flat_map(NodeSet::iter);
        let hosts = hosts.filter(|host| Some(*host) != learner);
        let workloads = self.network.workloads_of(id).map(|record| self.workload(record));
        self.identity(id)
            .into_iter()
            .chain(hosts.filter_map(|host| self.peer(host)))
            .chain(workloads)
            .map(put)
            .collect()
    }

    /// Returns the changes that put the links between two identities, in both directions.
    pub(super) fn between(&self, a: IdentityId, b: IdentityId) -> Vec<Change> {
        let there = self.network.links.acl(a, b).map(|acl| self.link(a, b, acl));
        let back = self.network.links.acl(b, a).filter(|_| a != b).map(|acl| self.link(b, a, acl));
        there.into_iter().chain(back).map(put).collect()
    }

    /// Returns the changes that drop the workloads of an identity that run on other nodes.
    pub(super) fn drop_others(&self, id: IdentityId, node: NodeIndex) -> Vec<Change> {
        let own = self.nodes.name(node);
        let others = self.network.workloads_of(id).filter(|record| Some(&record.node) != own);
        others.map(|record| Change::Drop(self.workload_key(&record.id))).collect()
    }

    pub(super) fn workload_key(&self, id: &WorkloadId) -> ResourceKey {
        ResourceKey::Workload(self.name().clone(), id.clone())
    }
}

/// Returns the resource of a refused workload.
pub(super) fn refused_resource(record: &RefusedRecord) -> (ResourceKey, Resource) {
    let ReportRecord { network, id, .. } = &record.report;
    (ResourceKey::Refused(network.clone(), id.clone()), Resource::Refused(record.reason()))
}

pub(super) fn put((key, resource): (ResourceKey, Resource)) -> Change {
    Change::Put(key, resource)
}
