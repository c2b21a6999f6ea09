//! A network at one revision, with the indices from which deltas and views are derived.

use super::{
    names::Names,
    narrowing::Narrowing,
    node_set::{NodeIndex, NodeSet},
    quarantines::QuarantineState,
    services::Services,
};
use crate::records::{IdentityRecord, NetworkRecord, RefusedRecord, WorkloadRecord, WorkloadRef};
use ipnet::IpNet;
use meshward_control_proto::{
    Resource, ResourceKey,
    view::{Digest, Hash128, WorkloadSpec},
};
use meshward_policy::{Links, Policy};
use meshward_types::{
    AcceptFrom, IdentityId, InstanceStates, Labels, PolicyFile, Revision, WorkloadId,
};
use roaring::RoaringBitmap;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

/// The workloads that share an identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The verified labels.
    pub labels: Labels,
    /// The declarations of who may reach them.
    pub accepts: Vec<AcceptFrom>,
}

/// A workload that is shared with the world.
#[derive(Debug, Clone)]
pub enum SharedWorkload {
    /// A workload that admission admits.
    Admitted(Arc<WorkloadRecord>),
    /// A workload that admission refuses.
    Refused(Arc<RefusedRecord>),
}

impl SharedWorkload {
    /// Returns a reference to the record.
    pub fn workload(&self) -> WorkloadRef<'_> {
        match self {
            Self::Admitted(record) => WorkloadRef::Admitted(record),
            Self::Refused(record) => WorkloadRef::Refused(record),
        }
    }
}

/// A network and its workloads.
#[derive(Debug)]
pub struct NetworkState {
    /// The network's settings.
    pub record: NetworkRecord,
    /// The files of the policy; none for default deny.
    pub policy_files: Arc<Vec<PolicyFile>>,
    /// The revision in which the policy was last changed since the coordinator started.
    pub policy_revision: Option<Revision>,
    /// See [`PolicyRecord::resets`](crate::records::PolicyRecord::resets).
    pub resets: u64,
    /// `true` if the policy has selectors on nodes: then nodes are among the workloads' labels.
    pub names_node: bool,
    /// The links between identities that have a workload.
    pub links: Links,
    /// The services.
    pub services: Services,
    /// The subsets of services, and what nodes know because of them.
    pub narrowing: Narrowing,
    /// The admitted workloads.
    pub workloads: HashMap<WorkloadId, Arc<WorkloadRecord>>,
    /// The identities, those without a workload included.
    pub identities: BTreeMap<IdentityId, IdentityRecord>,
    /// The identities by the labels and declarations that they stand for.
    pub by_subject: HashMap<Subject, IdentityId>,
    /// The workloads by address, refused ones included.
    pub by_address: HashMap<IpAddr, WorkloadId>,
    /// The workloads by the prefixes behind them, refused ones included.
    routes: HashMap<IpNet, BTreeSet<WorkloadId>>,
    /// The workloads that admission refuses.
    pub refused: HashMap<WorkloadId, Arc<RefusedRecord>>,
    refused_on: HashMap<NodeIndex, BTreeSet<WorkloadId>>,
    /// The workloads by identity.
    running: HashMap<IdentityId, Running>,
    /// The workloads by node.
    on_node: HashMap<NodeIndex, OnNode>,
    /// The identities of the workloads that each node has had since the coordinator started.
    hosted: HashMap<NodeIndex, RoaringBitmap>,
    /// The owners of workloads' names.
    pub names: Names,
    /// The workloads that quarantines name or that are drained, as nodes know them.
    states: HashMap<WorkloadId, WorkloadState>,
    /// The nodes that serve the network.
    members: NodeSet,
    /// The hash of each node's resource as a peer.
    peers: HashMap<NodeIndex, Hash128>,
}

/// The workloads of an identity, shared with readers without a lock: they are copied when they
/// change meanwhile.
pub(super) type Group = Arc<HashMap<WorkloadId, Arc<WorkloadRecord>>>;

#[derive(Debug, Default)]
struct Running {
    workloads: Group,
    /// The nodes that run one of them.
    hosts: NodeSet,
    /// The digest of the workloads' resources.
    digest: Digest,
}

#[derive(Debug, Default)]
struct OnNode {
    workloads: HashSet<WorkloadId>,
    /// The number of workloads of each identity; at least 1.
    identities: BTreeMap<IdentityId, usize>,
}

impl NetworkState {
    /// Makes a network without workloads and policy.
    pub fn new(record: NetworkRecord) -> Self {
        Self {
            links: Links::new(Arc::new(Policy::deny_all(record.name.clone()))),
            record,
            policy_files: Arc::default(),
            policy_revision: None,
            resets: 0,
            names_node: false,
            services: Services::default(),
            narrowing: Narrowing::default(),
            workloads: HashMap::new(),
            identities: BTreeMap::new(),
            by_subject: HashMap::new(),
            by_address: HashMap::new(),
            routes: HashMap::new(),
            refused: HashMap::new(),
            refused_on: HashMap::new(),
            running: HashMap::new(),
            on_node: HashMap::new(),
            hosted: HashMap::new(),
            names: Names::default(),
            states: HashMap::new(),
            members: NodeSet::default(),
            peers: HashMap::new(),
        }
    }

    /// Returns the nodes that run a workload of an identity; `None` if there is no workload.
    pub fn hosts(&self, identity: IdentityId) -> Option<&NodeSet> {
        self.running.get(&identity).map(|running| &running.hosts)
    }

    /// Returns a copy of [`Self::hosts`], empty if there is no workload.
    pub fn host_set(&self, identity: IdentityId) -> NodeSet {
        self.hosts(identity).cloned().unwrap_or_default()
    }

    /// Returns the workloads of an identity.
    pub fn workloads_of(&self, identity: IdentityId) -> impl Iterator<Item = &Arc<WorkloadRecord>> {
        let running = self.running.get(&identity);
        running.into_iter().flat_map(|running| running.workloads.values())
    }

    /// Returns the workloads of an identity, shared.
    pub fn group(&self, identity: IdentityId) -> Option<&Group> {
        self.running.get(&identity).map(|running| &running.workloads)
    }

    /// Returns the digest of the resources of an identity's workloads.
    pub fn digest_of(&self, identity: IdentityId) -> Digest {
        self.running.get(&identity).map(|running| running.digest).unwrap_or_default()
    }

    /// Returns the admitted workloads of a node.
    pub fn workloads_on(&self, node: NodeIndex) -> impl Iterator<Item = &Arc<WorkloadRecord>> {
        let ids = self.on_node.get(&node).map(|on| &on.workloads);
        ids.into_iter().flatten().filter_map(|id| self.workloads.get(id))
    }

    /// Returns the identities of a node's workloads.
    pub fn identities_on(&self, node: NodeIndex) -> impl Iterator<Item = IdentityId> {
        self.on_node.get(&node).into_iter().flat_map(|on| on.identities.keys().copied())
    }

    /// Returns `true` if a node runs a workload of an identity.
    pub fn runs(&self, node: NodeIndex, identity: IdentityId) -> bool {
        self.on_node.get(&node).is_some_and(|on| on.identities.contains_key(&identity))
    }

    /// Returns `true` if a node runs a workload.
    pub fn runs_workload(&self, node: NodeIndex, id: &WorkloadId) -> bool {
        self.on_node.get(&node).is_some_and(|on| on.workloads.contains(id))
    }

    /// Returns the nodes that meet an identity.
    pub fn subscribers(&self, identity: IdentityId) -> NodeSet {
        let neighbours = self.links.neighbours(identity);
        neighbours.into_iter().filter_map(|other| self.hosts(other)).collect()
    }

    /// Returns the nodes that serve the network.
    pub fn members(&self) -> &NodeSet {
        &self.members
    }

    /// Adds a node to those that serve the network.
    pub(super) fn add_member(&mut self, node: NodeIndex) {
        self.members.insert(node);
    }

    /// Removes a node from those that serve the network.
    pub(super) fn remove_member(&mut self, node: NodeIndex) {
        self.members.remove(node);
    }

    /// Removes a node that has left the mesh.
    pub(super) fn remove_node(&mut self, node: NodeIndex) {
        self.members.remove(node);
        self.peers.remove(&node);
        self.hosted.remove(&node);
    }

    /// Returns the hash of a node's resource as a peer; `None` while it has no endpoint.
    pub fn peer(&self, node: NodeIndex) -> Option<Hash128> {
        self.peers.get(&node).copied()
    }

    /// Sets the resource that a node is as a peer.
    pub(super) fn set_peer(&mut self, node: NodeIndex, peer: Option<&(ResourceKey, Resource)>) {
        match peer {
            Some((key, resource)) => self.peers.insert(node, Hash128::of(key, resource)),
            None => self.peers.remove(&node),
        };
    }

    /// Adds an admitted workload. Its identity is among the links.
    pub(super) fn add(&mut self, record: WorkloadRecord, node: NodeIndex, state: WorkloadState) {
        if state != WorkloadState::default() {
            self.states.insert(record.id.clone(), state);
        }
        self.names.add(&record);
        let record = Arc::new(record);
        let running = self.running.entry(record.identity).or_default();
        Arc::make_mut(&mut running.workloads).insert(record.id.clone(), record.clone());
        running.hosts.insert(node);
        running.digest.add(hash(&record, state));
        self.hosted.entry(node).or_default().insert(record.identity.0);
        let on = self.on_node.entry(node).or_default();
        on.workloads.insert(record.id.clone());
        *on.identities.entry(record.identity).or_default() += 1;
        for address in &record.addresses {
            self.by_address.insert(*address, record.id.clone());
        }
        self.add_routes(&record.id, &record.prefixes);
        self.workloads.insert(record.id.clone(), record);
    }

    /// Returns the identities of the workloads that a node has had since the coordinator started.
    pub fn hosted_by(&self, node: NodeIndex) -> RoaringBitmap {
        self.hosted.get(&node).cloned().unwrap_or_default()
    }

    /// Removes an admitted workload. The links keep its identity even if it was the last of it.
    pub(super) fn remove(&mut self, id: &WorkloadId, node: NodeIndex) {
        let Some(record) = self.workloads.remove(id) else { return };
        let state = self.states.remove(id).unwrap_or_default();
        self.names.remove(&record);
        self.free_addresses(id, &record.addresses);
        self.remove_routes(id, &record.prefixes);
        let mut last_on_node = true;
        if let Some(on) = self.on_node.get_mut(&node) {
            on.workloads.remove(id);
            if let Some(count) = on.identities.get_mut(&record.identity) {
                *count -= 1;
                last_on_node = *count == 0;
                if last_on_node {
                    on.identities.remove(&record.identity);
                }
            }
            if on.workloads.is_empty() {
                self.on_node.remove(&node);
            }
        }
        if let Some(running) = self.running.get_mut(&record.identity) {
            Arc::make_mut(&mut running.workloads).remove(id);
            running.digest.remove(hash(&record, state));
            if last_on_node {
                running.hosts.remove(node);
            }
            if running.workloads.is_empty() {
                self.running.remove(&record.identity);
            }
        }
    }

    /// Returns a workload, admitted or refused.
    pub fn workload(&self, id: &WorkloadId) -> Option<WorkloadRef<'_>> {
        let admitted = self.workloads.get(id).map(|record| WorkloadRef::Admitted(record));
        admitted.or_else(|| self.refused.get(id).map(|record| WorkloadRef::Refused(record)))
    }

    /// Returns all workloads, admitted and refused.
    pub fn all_workloads(&self) -> impl Iterator<Item = WorkloadRef<'_>> {
        let admitted = self.workloads.values().map(|record| WorkloadRef::Admitted(record));
        admitted.chain(self.refused.values().map(|record| WorkloadRef::Refused(record)))
    }

    /// Returns the workloads of a node, admitted and refused, shared.
    pub fn shared_workloads_on(&self, node: NodeIndex) -> impl Iterator<Item = SharedWorkload> {
        let admitted =
            self.workloads_on(node).map(|record| SharedWorkload::Admitted(record.clone()));
        admitted.chain(self.refused_on(node).map(|record| SharedWorkload::Refused(record.clone())))
    }

    /// Returns the refused workloads of a node.
    pub fn refused_on(&self, node: NodeIndex) -> impl Iterator<Item = &Arc<RefusedRecord>> {
        let ids = self.refused_on.get(&node).into_iter().flatten();
        ids.filter_map(|id| self.refused.get(id))
    }

    /// Adds a refused workload.
    pub(super) fn add_refused(&mut self, record: RefusedRecord, node: NodeIndex) {
        let id = record.report.id.clone();
        for address in &record.report.addresses {
            self.by_address.insert(*address, id.clone());
        }
        self.add_routes(&id, &record.report.prefixes);
        self.refused_on.entry(node).or_default().insert(id.clone());
        self.refused.insert(id, Arc::new(record));
    }

    /// Removes a refused workload, if there is one.
    pub(super) fn remove_refused(&mut self, id: &WorkloadId, node: NodeIndex) {
        let Some(record) = self.refused.remove(id) else { return };
        self.free_addresses(id, &record.report.addresses);
        self.remove_routes(id, &record.report.prefixes);
        if let Some(on) = self.refused_on.get_mut(&node) {
            on.remove(id);
            if on.is_empty() {
                self.refused_on.remove(&node);
            }
        }
    }

    /// Returns the workloads that have a prefix behind them.
    pub fn behind(&self, prefix: &IpNet) -> impl Iterator<Item = WorkloadRef<'_>> {
        self.routes.get(prefix).into_iter().flatten().filter_map(|id| self.workload(id))
    }

    /// Returns the workloads that have prefixes behind them.
    pub fn gateways(&self) -> impl Iterator<Item = WorkloadRef<'_>> {
        let ids: BTreeSet<&WorkloadId> = self.routes.values().flatten().collect();
        ids.into_iter().filter_map(|id| self.workload(id))
    }

    fn add_routes(&mut self, id: &WorkloadId, prefixes: &[IpNet]) {
        for prefix in prefixes {
            self.routes.entry(*prefix).or_default().insert(id.clone());
        }
    }

    fn remove_routes(&mut self, id: &WorkloadId, prefixes: &[IpNet]) {
        for prefix in prefixes {
            let Entry::Occupied(mut ids) = self.routes.entry(*prefix) else { continue };
            ids.get_mut().remove(id);
            if ids.get().is_empty() {
                ids.remove();
            }
        }
    }

    fn free_addresses(&mut self, id: &WorkloadId, addresses: &[IpAddr]) {
        for address in addresses {
            if self.by_address.get(address) == Some(id) {
                self.by_address.remove(address);
            }
        }
    }

    /// Changes the state of a workload: the effect of quarantines and drains that name it.
    pub(super) fn set_state(&mut self, id: &WorkloadId, state: WorkloadState) {
        let before = self.state(id);
        let Some(record) = self.workloads.get(id).filter(|_| before != state) else {
            return;
        };
        if let Some(running) = self.running.get_mut(&record.identity) {
            running.digest.remove(hash(record, before));
            running.digest.add(hash(record, state));
        }
        if state == WorkloadState::default() {
            self.states.remove(id)
        } else {
            self.states.insert(id.clone(), state)
        };
    }

    /// Returns the state of a workload beside its record.
    pub(super) fn state(&self, id: &WorkloadId) -> WorkloadState {
        self.states.get(id).copied().unwrap_or_default()
    }

    /// Replaces the record of a workload by one that differs in what services and names have of it
    /// alone.
    pub(super) fn replace(&mut self, record: WorkloadRecord) {
        let Some(before) = self.workloads.get(&record.id).cloned() else { return };
        let state = self.state(&record.id);
        self.names.remove(&before);
        self.names.add(&record);
        let record = Arc::new(record);
        if let Some(running) = self.running.get_mut(&record.identity) {
            running.digest.remove(hash(&before, state));
            running.digest.add(hash(&record, state));
            Arc::make_mut(&mut running.workloads).insert(record.id.clone(), record.clone());
        }
        self.workloads.insert(record.id.clone(), record);
    }
}

/// The state of a workload beside its record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkloadState {
    /// The effect of the quarantines that name it.
    pub quarantine: QuarantineState,
    /// `true` if it or its node is drained.
    pub draining: bool,
}

impl WorkloadState {
    /// Returns the states as an instance of services.
    pub fn states(self, record: &WorkloadRecord) -> InstanceStates {
        InstanceStates { draining: self.draining, unhealthy: record.unhealthy.clone() }
    }
}

/// Returns the resource of an admitted workload.
pub fn workload_resource(record: &WorkloadRecord, state: WorkloadState) -> (ResourceKey, Resource) {
    let spec = WorkloadSpec {
        node: record.node.clone(),
        addresses: record.addresses.clone(),
        prefixes: record.prefixes.clone(),
        identity: record.identity,
        quarantined: state.quarantine.quarantined,
        reset: state.quarantine.reset,
        name: record.owns_name.then(|| record.name.clone()),
        states: state.states(record),
    };
    (ResourceKey::Workload(record.network.clone(), record.id.clone()), Resource::Workload(spec))
}

fn hash(record: &WorkloadRecord, state: WorkloadState) -> Hash128 {
    let (key, resource) = workload_resource(record, state);
    Hash128::of(&key, &resource)
}
