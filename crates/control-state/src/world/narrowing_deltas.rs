//! The deltas of narrowed pairs: nodes come to know workloads, or know them no longer, as subsets
//! change.

use super::{
    deltas::{Arrival, DeltaBuilder},
    narrowing::{Located, NarrowedService},
    network::NetworkState,
    node_set::{NodeIndex, NodeSet},
    nodes::Nodes,
    resources::put,
};
use crate::{
    loads::FanOutChange,
    records::WorkloadRecord,
    subsets::{Linked, Moves},
};
use meshward_control_proto::Change;
use meshward_policy::Service;
use meshward_types::{FanOut, IdentityId, ServiceName, WorkloadId};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes and workloads that they may have come to know, or may know no longer.
pub(super) type Doubts = BTreeSet<(NodeIndex, WorkloadId)>;

impl NetworkState {
    /// Returns `true` if a node is to know a workload because of subsets alone.
    fn is_to_know(&self, node: NodeIndex, host: NodeIndex, record: &WorkloadRecord) -> bool {
        node != host
            && !self.meets_widely(node, record.identity)
            && (self.has_in_subset(node, record) || self.has_as_client(node, host, record))
    }

    /// Returns `true` if an instance is in the subset of a node that may reach it.
    fn has_in_subset(&self, node: NodeIndex, instance: &WorkloadRecord) -> bool {
        self.narrowing.selecting(instance.identity).any(|name| {
            let service = self.narrowing.service(name);
            service.is_some_and(|service| service.is_joined(node, &instance.id))
                && self.identities_on(node).any(|own| self.uses_for(own, instance.identity, name))
        })
    }

    /// Returns `true` if a node runs an instance that is in the subset of a client's node.
    fn has_as_client(&self, node: NodeIndex, host: NodeIndex, client: &WorkloadRecord) -> bool {
        self.narrowing.used_by(client.identity).any(|name| {
            let service = self.narrowing.service(name);
            service.into_iter().flat_map(|service| service.joined(host)).any(|id| {
                self.runs_workload(node, id)
                    && self.workloads.get(id).is_some_and(|instance| {
                        self.uses_for(client.identity, instance.identity, name)
                    })
            })
        })
    }

    /// Returns `true` if a node is to begin no flows to an instance that it knows because of
    /// subsets alone: it has left them.
    fn is_to_retire(&self, node: NodeIndex, instance: &WorkloadRecord) -> bool {
        let services = self.narrowing.selecting(instance.identity);
        let mut services = services.filter_map(|name| self.narrowing.service(name));
        let mut is_leaving = false;
        let is_linked = services.any(|service| {
            is_leaving |= service.is_leaving(node, &instance.id);
            service.subsets.links(node.0, &instance.id)
        });
        is_leaving && !is_linked
    }

    /// Returns `true` if a narrowed link by a rule about a service leads from one identity to
    /// another.
    fn uses_for(&self, from: IdentityId, to: IdentityId, service: &ServiceName) -> bool {
        self.links.narrowed(from, to).is_some_and(|services| services.contains(service))
            && !self.links.are_widely_linked(from, to)
    }

    /// Returns the services that an identity has narrowed links to.
    fn services_used(&self, identity: IdentityId) -> BTreeSet<ServiceName> {
        let reached = self.links.leaving(identity).map(|(to, _)| to);
        let narrow = reached.filter(|to| !self.links.are_widely_linked(identity, *to));
        narrow.filter_map(|to| self.links.narrowed(identity, to)).flatten().cloned().collect()
    }

    /// Returns the narrowing services with an instance of an identity.
    fn services_selecting(&self, identity: IdentityId) -> BTreeSet<ServiceName> {
        let services =
            self.services_of(identity).into_iter().filter_map(|position| self.service_at(position));
        let names = services.map(|service| &service.name);
        names.filter(|name| self.narrowing.service(name).is_some()).cloned().collect()
    }

    /// Updates what narrowing has of an identity. Returns the services that it has come to use, or
    /// no longer uses.
    fn update_identity(&mut self, identity: IdentityId) -> BTreeSet<ServiceName> {
        let selecting = self.services_selecting(identity);
        self.narrowing.set_selecting(identity, selecting);
        let used = self.services_used(identity);
        self.narrowing.set_used_by(identity, &used)
    }

    /// Returns the index of the node that runs a workload.
    fn host(&self, nodes: &Nodes, id: &WorkloadId) -> Option<NodeIndex> {
        self.workloads.get(id).and_then(|record| nodes.index(&record.node))
    }

    /// Returns the workloads of a node that use a service.
    fn clients_on(
        &self,
        node: NodeIndex,
        service: &ServiceName,
    ) -> impl Iterator<Item = &WorkloadId> {
        let workloads = self.workloads_on(node);
        let using = workloads.filter(move |own| self.narrowing.uses(own.identity, service));
        using.map(|record| &record.id)
    }

    /// Returns the doubts about both ends of a pair.
    fn doubts_about(
        &self,
        service: &ServiceName,
        client: NodeIndex,
        instance: &WorkloadId,
        host: Option<NodeIndex>,
    ) -> Doubts {
        let clients = host.into_iter().flat_map(|host| {
            self.clients_on(client, service).map(move |workload| (host, workload.clone()))
        });
        clients.chain([(client, instance.clone())]).collect()
    }

    /// Returns the pairs outside subsets, by service, because of which a node may have known a
    /// workload: as an instance, or as a client of its own instances.
    fn former_pairs(
        &self,
        node: NodeIndex,
        host: NodeIndex,
        record: &WorkloadRecord,
    ) -> Vec<(ServiceName, Linked)> {
        let mut pairs = Vec::new();
        let mut add = |name: &ServiceName, client: NodeIndex, instance: &WorkloadId| {
            let service = self.narrowing.service(name);
            let is_former = |service: &NarrowedService| {
                service.subsets.has_client(client.0)
                    && service.subsets.has_instance(instance)
                    && !service.is_joined(client, instance)
            };
            if service.is_some_and(is_former) {
                pairs.push((name.clone(), Linked { client: client.0, instance: instance.clone() }));
            }
        };
        for name in self.narrowing.selecting(record.identity) {
            if self.identities_on(node).any(|own| self.uses_for(own, record.identity, name)) {
                add(name, node, &record.id);
            }
        }
        for own in self.workloads_on(node) {
            for name in self.narrowing.selecting(own.identity) {
                if self.uses_for(record.identity, own.identity, name) {
                    add(name, host, &own.id);
                }
            }
        }
        pairs
    }

    /// Returns everything that a node may know because of subsets.
    pub(super) fn doubts_of(&self, node: NodeIndex) -> Doubts {
        let mut doubts: Doubts =
            self.narrowing.known_to(node).map(|id| (node, id.clone())).collect();
        for name in self.identities_on(node).flat_map(|identity| self.narrowing.used_by(identity)) {
            let service = self.narrowing.service(name);
            let instances = service.into_iter().flat_map(|service| service.joined(node));
            doubts.extend(instances.map(|id| (node, id.clone())));
        }
        for record in self.workloads_on(node) {
            for name in self.narrowing.selecting(record.identity) {
                let service = self.narrowing.service(name);
                let clients = service.into_iter().flat_map(|own| own.clients_of(&record.id));
                let workloads = clients.flat_map(|client| self.clients_on(client, name));
                doubts.extend(workloads.map(|id| (node, id.clone())));
            }
        }
        doubts
    }

    /// Returns the doubts about a workload of a client: on the nodes of its subset.
    fn doubts_about_client(&self, nodes: &Nodes, arrival: Arrival) -> Doubts {
        let mut doubts = Doubts::new();
        for name in self.narrowing.used_by(arrival.identity) {
            let service = self.narrowing.service(name);
            let instances = service.into_iter().flat_map(|service| service.joined(arrival.node));
            let hosts = instances.filter_map(|id| self.host(nodes, id));
            doubts.extend(hosts.map(|host| (host, arrival.id.clone())));
        }
        doubts
    }

    /// Settles subsets, and returns the doubts about the pairs that moved. `gone` is a workload
    /// that has stopped, with its node.
    pub(super) fn settle(
        &mut self,
        nodes: &Nodes,
        gone: Option<(&WorkloadId, NodeIndex)>,
    ) -> Doubts {
        let mut doubts = Doubts::new();
        for (name, Moves { gained, lost }) in self.narrowing.settle() {
            for linked in gained.iter().chain(&lost) {
                let host = self.host(nodes, &linked.instance);
                let host = host.or_else(|| {
                    gone.filter(|(id, _)| **id == linked.instance).map(|(_, node)| node)
                });
                doubts.extend(self.doubts_about(
                    &name,
                    NodeIndex(linked.client),
                    &linked.instance,
                    host,
                ));
            }
        }
        doubts
    }

    /// Makes the services, their instances and clients what policy, workloads and links say.
    /// Returns everything that any node may know because of subsets.
    fn renew_narrowing(&mut self, nodes: &Nodes) -> Doubts {
        let policy = self.links.policy().clone();
        let named: BTreeSet<&ServiceName> =
            policy.tiers().filter_map(|(_, rule)| rule.target.service()).collect();
        let narrow = policy.services.iter().filter(|own| own.fan_out != FanOut::All);
        let narrow: BTreeMap<&ServiceName, &Service> =
            narrow.filter(|own| named.contains(&own.name)).map(|own| (&own.name, own)).collect();
        let mut doubts: Doubts =
            self.narrowing.all_known().map(|(node, id)| (node, id.clone())).collect();
        self.narrowing.set_services(&narrow);
        let mut identities = self.narrowing.identities();
        identities.extend(self.links.all_narrowed().map(|(from, _, _)| from));
        for service in narrow.values() {
            identities.extend(self.links.select(&service.instances));
        }
        for identity in &identities {
            self.update_identity(*identity);
        }
        for name in narrow.keys() {
            self.renew_service_narrowing(nodes, name, &identities);
        }
        self.narrowing.settle();
        for (name, service) in self.narrowing.services() {
            for client in service.subsets.clients().map(NodeIndex) {
                for instance in service.joined(client) {
                    let host = self.host(nodes, instance);
                    doubts.extend(self.doubts_about(name, client, instance, host));
                }
            }
        }
        doubts
    }

    /// Makes the instances and clients of a service what workloads and links say.
    fn renew_service_narrowing(
        &mut self,
        nodes: &Nodes,
        name: &ServiceName,
        identities: &BTreeSet<IdentityId>,
    ) {
        let Some(service) = self.narrowing.service(name) else { return };
        let selected = identities.iter().filter(|identity| {
            self.narrowing.selecting(**identity).any(|selecting| selecting == name)
        });
        let instances: BTreeSet<WorkloadId> = selected
            .flat_map(|identity| self.workloads_of(*identity))
            .map(|record| record.id.clone())
            .collect();
        let using = identities.iter().filter(|identity| self.narrowing.uses(**identity, name));
        let mut clients: NodeSet = service.subsets.clients().map(NodeIndex).collect();
        using.for_each(|identity| clients |= self.host_set(*identity));
        let gone: Vec<WorkloadId> =
            service.subsets.instances().filter(|id| !instances.contains(*id)).cloned().collect();
        let only = BTreeSet::from([name.clone()]);
        for id in &gone {
            self.narrowing.remove_instance(&only, id);
        }
        for id in &instances {
            self.put_instance(nodes, id, &only);
        }
        for client in clients.iter() {
            self.update_client(nodes, client, &only);
        }
    }
}

impl DeltaBuilder<'_> {
    /// Appends what a workload that was added means for nodes that know subsets.
    pub(super) fn narrowing_started(&mut self, arrival: Arrival) {
        if self.network.narrowing.is_empty() {
            return;
        }
        let Arrival { id, identity, node, is_only, is_only_on_node } = arrival;
        if is_only {
            let clients: BTreeSet<IdentityId> =
                self.network.links.arriving(identity).map(|(from, _)| from).collect();
            self.update_identities(clients.into_iter().chain([identity]));
        }
        let selecting = self.network.narrowing.selecting(identity).cloned().collect();
        self.network.put_instance(self.nodes, id, &selecting);
        if is_only_on_node {
            let used = self.network.narrowing.used_by(identity).cloned().collect();
            self.network.update_client(self.nodes, node, &used);
        }
        let mut doubts = self.network.settle(self.nodes, None);
        doubts.extend(self.network.doubts_about_client(self.nodes, arrival));
        if is_only_on_node {
            doubts.extend(self.network.doubts_of(node));
        }
        self.resolve(doubts, Some(node));
    }

    /// Appends what a workload that was removed means for nodes that know subsets. `neighbours` are
    /// the identities that had links with its own.
    pub(super) fn narrowing_stopped(
        &mut self,
        arrival: Arrival,
        neighbours: &BTreeSet<IdentityId>,
    ) {
        if self.network.narrowing.is_empty() {
            return;
        }
        let Arrival { id, identity, node, is_only, is_only_on_node } = arrival;
        let selecting = self.network.narrowing.selecting(identity).cloned().collect();
        let used = self.network.narrowing.used_by(identity).cloned().collect();
        self.network.narrowing.remove_instance(&selecting, id);
        if is_only_on_node {
            self.network.update_client(self.nodes, node, &used);
        }
        let mut doubts = self.network.settle(self.nodes, Some((id, node)));
        if is_only {
            self.update_identities(neighbours.iter().copied().chain([identity]));
            doubts.extend(self.network.settle(self.nodes, Some((id, node))));
        }
        if is_only_on_node {
            doubts.extend(self.network.doubts_of(node));
        }
        self.resolve(doubts, None);
    }

    /// Appends what a change of policy, or of the network as it is loaded, means for nodes that
    /// know subsets.
    pub(super) fn narrowing_changed(&mut self) {
        let policy = self.network.links.policy();
        if self.network.narrowing.is_empty() && policy.services.is_empty() {
            return;
        }
        let doubts = self.network.renew_narrowing(self.nodes);
        self.resolve(doubts, None);
    }

    /// Sets the fan-outs of clients that load decides about.
    pub(super) fn set_fan_outs(&mut self, changes: &[&FanOutChange]) {
        self.make_urgent();
        for FanOutChange { service, node, fan_out, .. } in changes {
            if let Some(index) = self.nodes.index(node) {
                let at = Located { node, site: self.nodes.site(index) };
                self.network.narrowing.set_fan_out(service, index, at, *fan_out);
            }
        }
        let doubts = self.network.settle(self.nodes, None);
        self.resolve(doubts, None);
    }

    /// Updates what narrowing has of identities, and the clients that follow from it.
    fn update_identities(&mut self, identities: impl Iterator<Item = IdentityId>) {
        for identity in identities {
            let changed = self.network.update_identity(identity);
            if !changed.is_empty() {
                for node in self.network.host_set(identity).iter() {
                    self.network.update_client(self.nodes, node, &changed);
                }
            }
        }
    }

    /// Releases pairs that have left the subsets of a service: they have no flows any more.
    pub(super) fn release(&mut self, service: &ServiceName, pairs: &[Linked]) {
        let mut doubts = Doubts::new();
        for Linked { client, instance } in self.network.narrowing.release(service, pairs) {
            let host = self.network.host(self.nodes, &instance);
            doubts.extend(self.network.doubts_about(service, NodeIndex(client), &instance, host));
        }
        self.resolve(doubts, None);
    }

    /// Makes workloads that a node knows ones that have left its subsets, where that is why it may
    /// know them: another coordinator, or this one before it was restarted, had them there.
    pub(super) fn adopt<'a>(
        &mut self,
        node: NodeIndex,
        known: impl Iterator<Item = &'a WorkloadId>,
    ) {
        let mut doubts = Doubts::new();
        for id in known {
            let Some(record) = self.network.workloads.get(id).cloned() else { continue };
            if self.network.narrowing.knows(node, id) {
                continue;
            }
            let host = self.nodes.index(&record.node).filter(|host| *host != node);
            let Some(host) = host else { continue };
            if self.network.meets_widely(node, record.identity) {
                continue;
            }
            for (service, linked) in self.network.former_pairs(node, host, &record) {
                let Linked { client, instance } = &linked;
                let client = NodeIndex(*client);
                let host = self.network.host(self.nodes, instance);
                doubts.extend(self.network.doubts_about(&service, client, instance, host));
                self.network.narrowing.retain(&service, linked);
            }
        }
        self.resolve(doubts, None);
    }

    /// Finds out what nodes know because of subsets, and appends the differences: at once for
    /// `waiting`, the node of a workload that waits for them.
    pub(super) fn resolve(&mut self, doubts: Doubts, waiting: Option<NodeIndex>) {
        let mut told: BTreeMap<WorkloadId, NodeSet> = BTreeMap::new();
        let mut lost: BTreeMap<WorkloadId, NodeSet> = BTreeMap::new();
        for (node, id) in doubts {
            let Some(record) = self.network.workloads.get(&id).cloned() else { continue };
            let Some(host) = self.nodes.index(&record.node) else { continue };
            let is_to_know = self.network.is_to_know(node, host, &record);
            let knows = self.network.narrowing.knows(node, &id);
            if is_to_know {
                self.network.narrowing.learn(node, &id);
                let is_to_retire = self.network.is_to_retire(node, &record);
                if self.network.narrowing.set_retiring(node, &id, is_to_retire) || !knows {
                    told.entry(id).or_default().insert(node);
                }
            } else if knows {
                self.network.narrowing.forget(node, &id);
                if node != host && !self.network.meets_widely(node, record.identity) {
                    lost.entry(id).or_default().insert(node);
                }
            }
        }
        for (id, nodes) in lost {
            let dropped = Change::Drop(self.resources().workload_key(&id));
            self.deltas.push(nodes, vec![dropped]);
        }
        for (id, mut nodes) in told {
            let Some(record) = self.network.workloads.get(&id).cloned() else { continue };
            if let Some(node) = waiting.filter(|node| nodes.contains(*node)) {
                nodes.remove(node);
                let own = NodeSet::from_iter([node]);
                self.urgently(|builder| builder.push_known(&own, &record));
            }
            self.push_known(&nodes, &record);
        }
    }

    /// Appends a workload, and its node as a peer, for nodes that know it because of subsets alone.
    fn push_known(&mut self, nodes: &NodeSet, record: &WorkloadRecord) {
        let resources = self.resources();
        let peer = self.nodes.index(&record.node).and_then(|host| resources.peer(host)).map(put);
        let (usual, drained) = (resources.workload(record), resources.drained(record));
        let is_retiring = |node: &NodeIndex| self.network.narrowing.is_retiring(*node, &record.id);
        let retiring: NodeSet = nodes.iter().filter(is_retiring).collect();
        let changes = |workload| peer.iter().cloned().chain([put(workload)]).collect();
        let (usual, drained): (Vec<Change>, Vec<Change>) = (changes(usual), changes(drained));
        self.deltas.push(nodes - &retiring, usual);
        self.deltas.push(retiring, drained);
    }
}
