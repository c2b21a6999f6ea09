//! Narrowing: the subsets of a network's services, and the workloads that nodes know because of
//! them alone.
//!
//! A pair of identities that rules about services alone link is *narrowed*. A node with a client
//! knows the instances of its subset only, and a node with an instance knows only the clients on
//! nodes whose subset has that instance: both ends judge every flow.

use super::node_set::{NodeIndex, NodeSet};
use crate::subsets::{Client, Instance, Linked, Moves, Subsets};
use meshward_policy::Service;
use meshward_types::{
    FanOut, IdentityId, Labels, NodeName, ServiceName, Weight, WeightRule, WorkloadId,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The subsets of a network's services, and the workloads that nodes know because of them alone.
#[derive(Debug, Default)]
pub struct Narrowing {
    services: BTreeMap<ServiceName, NarrowedService>,
    /// The services with an instance of an identity.
    selecting: HashMap<IdentityId, BTreeSet<ServiceName>>,
    /// The services that an identity has narrowed links to.
    used_by: HashMap<IdentityId, BTreeSet<ServiceName>>,
    /// The services whose subsets are to be settled.
    unsettled: BTreeSet<ServiceName>,
    /// The workloads that nodes know because of subsets alone, and the reverse.
    known_to: HashMap<NodeIndex, BTreeSet<WorkloadId>>,
    knowing: HashMap<WorkloadId, NodeSet>,
    /// The instances, of those, to which the node is to begin no flows.
    retiring: BTreeSet<(NodeIndex, WorkloadId)>,
}

/// A node with its site.
#[derive(Debug, Clone, Copy)]
pub(super) struct Located<'a> {
    /// The node's name.
    pub(super) node: &'a NodeName,
    /// The node's site.
    pub(super) site: Option<&'a str>,
}

/// A service whose clients are linked with subsets.
#[derive(Debug, Default)]
pub struct NarrowedService {
    /// The fan-out of all clients.
    pub fan_out: FanOut,
    /// The subsets.
    pub subsets: Subsets,
    /// The weights of instances.
    weights: Vec<WeightRule>,
    /// The fan-outs that load has changed, by node; each above the least.
    grown: HashMap<NodeIndex, usize>,
    /// The pairs that have left the subsets, and may have flows. The client's node has the instance
    /// as one that is drained, until they are released.
    leaving: BTreeSet<Linked>,
}

impl NarrowedService {
    /// Returns the fan-out of a client's node.
    pub fn fan_out_of(&self, client: NodeIndex) -> usize {
        match self.fan_out {
            FanOut::All => usize::MAX,
            FanOut::Exactly(number) => number as usize,
            FanOut::Auto | FanOut::Between { .. } => {
                self.grown.get(&client).copied().unwrap_or_else(|| self.least())
            }
        }
    }

    /// Returns the weight of an instance with these labels.
    pub(super) fn weight_of(&self, labels: &Labels) -> Weight {
        WeightRule::weight_of(&self.weights, labels)
    }

    /// Returns the fan-out that load does not take any client's below.
    fn least(&self) -> usize {
        self.fan_out.bounds().map_or(0, |bounds| *bounds.start() as usize)
    }

    /// Returns the clients' nodes whose fan-outs load has changed.
    pub fn grown(&self) -> impl Iterator<Item = NodeIndex> {
        self.grown.keys().copied()
    }

    /// Returns the pairs that have left the subsets, and may have flows.
    pub fn leaving(&self) -> impl Iterator<Item = &Linked> {
        self.leaving.iter()
    }

    /// Returns `true` if an instance has left the subset of a client's node, and may have flows.
    pub fn is_leaving(&self, client: NodeIndex, instance: &WorkloadId) -> bool {
        !self.leaving.is_empty()
            && self.leaving.contains(&Linked { client: client.0, instance: instance.clone() })
    }

    /// Returns `true` if an instance is in the subset of a client's node, or leaves it.
    pub fn is_joined(&self, client: NodeIndex, instance: &WorkloadId) -> bool {
        self.subsets.links(client.0, instance) || self.is_leaving(client, instance)
    }

    /// Returns the subset of a client's node, and what leaves it.
    pub(super) fn joined(&self, client: NodeIndex) -> impl Iterator<Item = &WorkloadId> {
        let leaving = self.leaving.iter().filter(move |linked| linked.client == client.0);
        self.subsets.of(client.0).chain(leaving.map(|linked| &linked.instance))
    }

    /// Returns the nodes whose subset an instance is in, or leaves.
    pub(super) fn clients_of(&self, instance: &WorkloadId) -> impl Iterator<Item = NodeIndex> {
        let first = Linked { client: 0, instance: instance.clone() };
        let leaving = self.leaving.range(first..).take_while(|own| own.instance == *instance);
        let all = self.subsets.clients_of(instance).chain(leaving.map(|linked| linked.client));
        all.map(NodeIndex)
    }

    /// Settles the subsets. Returns the pairs that moved: those that leave are lost, and so are
    /// those that had left and whose client or instance is gone.
    fn settle(&mut self) -> Moves {
        let mut moves = self.subsets.settle();
        for linked in &moves.gained {
            self.leaving.remove(linked);
        }
        self.leaving.extend(moves.lost.iter().cloned());
        let subsets = &self.subsets;
        let gone = self.leaving.extract_if(.., |linked| {
            !subsets.has_client(linked.client) || !subsets.has_instance(&linked.instance)
        });
        moves.lost.extend(gone);
        moves
    }
}

impl Narrowing {
    /// Returns the services whose clients are linked with subsets.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &NarrowedService)> {
        self.services.iter()
    }

    /// Returns a service.
    pub fn service(&self, name: &ServiceName) -> Option<&NarrowedService> {
        self.services.get(name)
    }

    /// Returns `true` if no service narrows anything.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Returns the workloads that a node knows because of subsets alone.
    pub fn known_to(&self, node: NodeIndex) -> impl Iterator<Item = &WorkloadId> {
        self.known_to.get(&node).into_iter().flatten()
    }

    /// Returns the nodes that know a workload because of subsets alone.
    pub fn knowing(&self, id: &WorkloadId) -> Option<&NodeSet> {
        self.knowing.get(id)
    }

    /// Returns `true` if a node knows a workload because of subsets alone.
    pub(super) fn knows(&self, node: NodeIndex, id: &WorkloadId) -> bool {
        self.knowing.get(id).is_some_and(|nodes| nodes.contains(node))
    }

    /// Returns every node with the workloads that it knows because of subsets alone.
    pub(super) fn all_known(&self) -> impl Iterator<Item = (NodeIndex, &WorkloadId)> {
        self.known_to.iter().flat_map(|(node, ids)| ids.iter().map(|id| (*node, id)))
    }

    /// Notes that a node knows a workload.
    pub(super) fn learn(&mut self, node: NodeIndex, id: &WorkloadId) {
        self.known_to.entry(node).or_default().insert(id.clone());
        self.knowing.entry(id.clone()).or_default().insert(node);
    }

    /// Notes that a node does not know a workload.
    pub(super) fn forget(&mut self, node: NodeIndex, id: &WorkloadId) {
        self.set_retiring(node, id, false);
        if let Some(ids) = self.known_to.get_mut(&node) {
            ids.remove(id);
            if ids.is_empty() {
                self.known_to.remove(&node);
            }
        }
        if let Some(nodes) = self.knowing.get_mut(id) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.knowing.remove(id);
            }
        }
    }

    /// Returns `true` if a node is to begin no flows to a workload.
    pub(super) fn is_retiring(&self, node: NodeIndex, id: &WorkloadId) -> bool {
        !self.retiring.is_empty() && self.retiring.contains(&(node, id.clone()))
    }

    /// Sets whether a node is to begin flows to a workload that it knows. Returns `true` if that is
    /// new.
    pub(super) fn set_retiring(
        &mut self,
        node: NodeIndex,
        id: &WorkloadId,
        is_retiring: bool,
    ) -> bool {
        match is_retiring {
            true => self.retiring.insert((node, id.clone())),
            false => self.retiring.remove(&(node, id.clone())),
        }
    }

    /// Notes that a pair has left the subsets of a service.
    pub(super) fn retain(&mut self, name: &ServiceName, linked: Linked) {
        if let Some(service) = self.services.get_mut(name) {
            service.leaving.insert(linked);
        }
    }

    /// Releases pairs that have left the subsets of a service. Returns those that were there.
    pub(super) fn release(&mut self, name: &ServiceName, pairs: &[Linked]) -> Vec<Linked> {
        let Some(service) = self.services.get_mut(name) else { return vec![] };
        pairs.iter().filter(|linked| service.leaving.remove(*linked)).cloned().collect()
    }

    /// Notes that no node knows a workload. Returns those that did.
    pub(super) fn forget_workload(&mut self, id: &WorkloadId) -> NodeSet {
        let nodes = self.knowing.get(id).cloned().unwrap_or_default();
        nodes.iter().for_each(|node| self.forget(node, id));
        nodes
    }

    /// Returns the services with an instance of an identity.
    pub(super) fn selecting(&self, identity: IdentityId) -> impl Iterator<Item = &ServiceName> {
        self.selecting.get(&identity).into_iter().flatten()
    }

    /// Returns the services that an identity has narrowed links to.
    pub(super) fn used_by(&self, identity: IdentityId) -> impl Iterator<Item = &ServiceName> {
        self.used_by.get(&identity).into_iter().flatten()
    }

    /// Returns `true` if an identity has narrowed links to a service.
    pub(super) fn uses(&self, identity: IdentityId, service: &ServiceName) -> bool {
        self.used_by.get(&identity).is_some_and(|services| services.contains(service))
    }

    /// Sets the services with an instance of an identity.
    pub(super) fn set_selecting(&mut self, id: IdentityId, services: BTreeSet<ServiceName>) {
        set(&mut self.selecting, id, services);
    }

    /// Sets the services that an identity has narrowed links to. Returns those that differ.
    pub(super) fn set_used_by(
        &mut self,
        id: IdentityId,
        services: &BTreeSet<ServiceName>,
    ) -> BTreeSet<ServiceName> {
        let before = set(&mut self.used_by, id, services.clone());
        before.symmetric_difference(services).cloned().collect()
    }

    /// Returns the identities with narrowed links to a service.
    pub(super) fn identities(&self) -> BTreeSet<IdentityId> {
        self.selecting.keys().chain(self.used_by.keys()).copied().collect()
    }

    /// Keeps these services alone, and adds those that are new.
    pub(super) fn set_services(&mut self, policies: &BTreeMap<&ServiceName, &Service>) {
        self.services.retain(|name, _| policies.contains_key(name));
        for (name, policy) in policies {
            let service = self.services.entry((*name).clone()).or_default();
            if service.fan_out != policy.fan_out {
                service.fan_out = policy.fan_out;
                service.grown.clear();
            }
            service.subsets.set_prefer(&policy.prefer);
            service.weights.clone_from(&policy.weights);
            self.unsettled.insert((*name).clone());
        }
    }

    /// Makes a workload an instance of a service, or changes it.
    pub(super) fn put_instance(&mut self, name: &ServiceName, instance: Instance) {
        if let Some(service) = self.services.get_mut(name) {
            service.subsets.put_instance(instance);
            self.unsettled.insert(name.clone());
        }
    }

    /// Removes a workload from the instances of services.
    pub(super) fn remove_instance(&mut self, services: &BTreeSet<ServiceName>, id: &WorkloadId) {
        for name in services {
            if let Some(service) = self.services.get_mut(name) {
                service.subsets.remove_instance(id);
                self.unsettled.insert(name.clone());
            }
        }
    }

    /// Makes a node a client of a service, or changes it.
    pub(super) fn put_client(&mut self, name: &ServiceName, node: NodeIndex, at: Located) {
        let Some(service) = self.services.get_mut(name) else { return };
        let (index, fan_out) = (node.0, service.fan_out_of(node));
        service.subsets.put_client(Client { index, name: at.node, site: at.site, fan_out });
        self.unsettled.insert(name.clone());
    }

    /// Removes a node from the clients of a service.
    pub(super) fn remove_client(&mut self, name: &ServiceName, node: NodeIndex) {
        let Some(service) = self.services.get_mut(name) else { return };
        service.grown.remove(&node);
        service.subsets.remove_client(node.0);
        self.unsettled.insert(name.clone());
    }

    /// Sets the fan-out of a client of a service that load decides about.
    pub(super) fn set_fan_out(
        &mut self,
        name: &ServiceName,
        node: NodeIndex,
        at: Located,
        fan_out: usize,
    ) {
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(bounds) = service.fan_out.bounds() else { return };
        if !service.subsets.has_client(node.0) {
            return;
        }
        let fan_out = fan_out.min(*bounds.end() as usize);
        match fan_out <= service.least() {
            true => service.grown.remove(&node),
            false => service.grown.insert(node, fan_out),
        };
        self.put_client(name, node, at);
    }

    /// Settles the subsets that have changed. Returns the pairs that moved, by service.
    pub(super) fn settle(&mut self) -> Vec<(ServiceName, Moves)> {
        let unsettled = std::mem::take(&mut self.unsettled);
        let mut all = Vec::new();
        for name in unsettled {
            if let Some(service) = self.services.get_mut(&name) {
                let moves = service.settle();
                all.push((name, moves));
            }
        }
        all
    }
}

/// Sets a value, or removes an empty one. Returns the one of before.
fn set(
    map: &mut HashMap<IdentityId, BTreeSet<ServiceName>>,
    id: IdentityId,
    services: BTreeSet<ServiceName>,
) -> BTreeSet<ServiceName> {
    match services.is_empty() {
        true => map.remove(&id),
        false => map.insert(id, services),
    }
    .unwrap_or_default()
}
