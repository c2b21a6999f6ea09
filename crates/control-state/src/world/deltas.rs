//! What each node is to be told of a change, derived from the change and not from the world.
//!
//! A delta is said to a set of nodes at once, so that a change which a thousand nodes need is
//! worked out, and kept, one time. A node *meets* an identity if a link joins it with one of its
//! own; the nodes that meet an identity are its *subscribers*. From that follows what a node knows:
//! the links of its own identities; both ends of these; all workloads of those that it meets; and,
//! as peers, the nodes on which those run.

use super::{
    network::NetworkState,
    nodes::Nodes,
    quarantines::Quarantines,
    resources::{NetworkResources, put},
};
use crate::records::{RefusedRecord, WorkloadRecord};
use meshward_control_proto::{
    Change, Resource, ResourceKey,
    relay::{RelaySpec, ToRelay},
};
use meshward_policy::{LinkChange, Policy, PolicyStep};
use meshward_types::{IdentityId, NetworkName, NodeName, WorkloadId};
use roaring::{MultiOps, RoaringBitmap};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// What some nodes are to be told.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The nodes, by their indices.
    pub nodes: RoaringBitmap,
    /// What they are told.
    pub changes: Arc<[Change]>,
    /// Whether something is revoked or granted, or a workload waits to be let in: that is not held
    /// back.
    pub urgent: bool,
}

/// What follows from a change, in the order in which each node is to take it.
#[derive(Debug, Default)]
pub struct Deltas {
    /// The deltas of nodes.
    pub all: Vec<Delta>,
    /// The deltas of relays, in the order in which each relay is to be told.
    pub relays: Vec<RelayDelta>,
    urgent: bool,
    /// While a store is read there is nobody to tell.
    muted: bool,
}

impl Deltas {
    /// Deltas that nobody is told.
    pub fn muted() -> Self {
        Self { muted: true, ..Self::default() }
    }

    /// All nodes that are told something.
    pub fn touched(&self) -> RoaringBitmap {
        self.all.iter().map(|delta| &delta.nodes).union()
    }

    /// Adds a delta of relays.
    pub(super) fn push_relay(&mut self, delta: RelayDelta) {
        if !self.muted {
            self.relays.push(delta);
        }
    }

    fn push(&mut self, nodes: RoaringBitmap, changes: Vec<Change>) {
        if !self.muted && !nodes.is_empty() && !changes.is_empty() {
            self.all.push(Delta { nodes, changes: changes.into(), urgent: self.urgent });
        }
    }

    /// What follows of this change is not held back.
    fn set_urgent(&mut self, urgent: bool) {
        self.urgent = urgent;
    }

    fn push_to(&mut self, node: u32, changes: Vec<Change>) {
        self.push(RoaringBitmap::from_iter([node]), changes);
    }
}

/// A change of what relays are told.
#[derive(Debug, Clone)]
pub enum RelayDelta {
    /// A message to all relays.
    Tell(ToRelay),
    /// A relay is no member any more: its link ends.
    Disconnect(NodeName),
    /// The relays as nodes are told of them.
    Relays(Vec<RelaySpec>),
}

/// A network, and what else its resources are made of.
pub struct DeltaBuilder<'a> {
    pub network: &'a mut NetworkState,
    pub nodes: &'a Nodes,
    pub quarantines: &'a Quarantines,
    pub deltas: &'a mut Deltas,
}

impl DeltaBuilder<'_> {
    fn resources(&self) -> NetworkResources<'_> {
        NetworkResources { network: self.network, nodes: self.nodes, quarantines: self.quarantines }
    }

    fn name(&self) -> NetworkName {
        self.network.record.name.clone()
    }

    fn is_muted(&self) -> bool {
        self.deltas.muted
    }

    /// A workload has started.
    pub fn start(&mut self, record: WorkloadRecord) {
        let (id, identity) = (record.id.clone(), record.identity);
        let Some(node) = self.nodes.index(&record.node) else { return };
        let is_new = self.network.links.labels(identity).is_none();
        if is_new && let Some(known) = self.network.identities.get(&identity) {
            let (labels, accepts) = (known.labels.clone(), known.accepts.clone().into());
            self.network.links.insert(identity, labels, accepts);
        }
        let held = self.quarantines.holds(&id);
        if self.is_muted() {
            return self.network.add(record, node, held);
        }
        let neighbours = self.network.links.neighbours(identity);
        let is_first = !self.network.runs(node, identity);
        let unmet: Vec<IdentityId> = neighbours
            .iter()
            .copied()
            .filter(|other| is_first && !self.network.meets(node, *other))
            .collect();
        self.network.add(record, node, held);
        let subscribers = self.network.subscribers(identity);
        let resources = self.resources();
        let mut told = Vec::new();
        if is_new {
            for &other in neighbours.iter().filter(|other| **other != identity) {
                told.push((self.network.host_set(other), resources.between(identity, other)));
            }
            told.push((
                subscribers.clone(),
                resources.identity(identity).into_iter().map(put).collect(),
            ));
        }
        if is_first {
            let mut others = subscribers.clone();
            others.remove(node);
            told.push((others, resources.peer(node).into_iter().map(put).collect()));
        }
        let started: Vec<Change> = self
            .network
            .workloads
            .get(&id)
            .map(|record| put(resources.workload(record)))
            .into_iter()
            .collect();
        let mut own = Vec::new();
        if is_first {
            own.extend(resources.identity(identity).map(put));
            own.extend(neighbours.iter().flat_map(|other| resources.between(identity, *other)));
            own.extend(unmet.into_iter().flat_map(|other| resources.section(other, Some(node))));
        }
        own.extend(started.iter().cloned());
        let mut others = subscribers;
        others.remove(node);
        told.push((others, started));
        told.into_iter().for_each(|(nodes, changes)| self.deltas.push(nodes, changes));
        // The workload waits for this.
        self.deltas.set_urgent(true);
        self.deltas.push_to(node, own);
        self.deltas.set_urgent(false);
    }

    /// A workload may not run any more: that is not held back.
    pub fn cut(&mut self, id: &WorkloadId) {
        self.deltas.set_urgent(true);
        self.stop(id);
        self.deltas.set_urgent(false);
    }

    /// A workload has stopped.
    pub fn stop(&mut self, id: &WorkloadId) {
        let Some(record) = self.network.workloads.get(id) else { return };
        let identity = record.identity;
        let Some(node) = self.nodes.index(&record.node) else { return };
        let (neighbours, subscribers) =
            (self.network.links.neighbours(identity), self.network.subscribers(identity));
        let name = self.name();
        self.network.remove(id, node);
        let mut all = subscribers.clone();
        all.insert(node);
        self.deltas.push(all, vec![Change::Drop(self.resources().workload_key(id))]);
        let ended = self.network.hosts(identity).is_none();
        if ended {
            let closed = self.network.links.remove(identity);
            let mut dropped: BTreeMap<IdentityId, Vec<Change>> = BTreeMap::new();
            for LinkChange { from, to, .. } in closed {
                let other = if from == identity { to } else { from };
                dropped.entry(other).or_default().push(Change::Drop(ResourceKey::Link(
                    name.clone(),
                    from,
                    to,
                )));
            }
            for (other, changes) in dropped {
                let hosts = self.network.host_set(other);
                // The node itself may have no other workload to have these links for.
                self.deltas.push(hosts | RoaringBitmap::from_iter([node]), changes);
            }
            self.deltas.push(
                subscribers,
                vec![Change::Drop(ResourceKey::Identity(name.clone(), identity))],
            );
        }
        if !self.network.runs(node, identity) {
            let own = self.left(node, identity, &neighbours);
            self.deltas.push_to(node, own);
        }
    }

    /// A workload is not let in. Before, it was stopped, if it ran.
    pub fn refuse(&mut self, record: RefusedRecord) {
        let Some(node) = self.nodes.index(&record.node) else { return };
        let told = put(self.resources().refused(&record));
        self.network.add_refused(record, node);
        // The workload waits for this.
        self.deltas.set_urgent(true);
        self.deltas.push_to(node, vec![told]);
        self.deltas.set_urgent(false);
    }

    /// A workload that was not let in has stopped, or is judged anew.
    pub fn forget_refused(&mut self, id: &WorkloadId) {
        let node = self.network.refused.get(id).and_then(|record| self.nodes.index(&record.node));
        let Some(node) = node else { return };
        self.network.remove_refused(id, node);
        let dropped = Change::Drop(self.resources().refused_key(id));
        self.deltas.push_to(node, vec![dropped]);
    }

    /// What a node does not need any more that has stopped its last workload of an identity.
    fn left(
        &self,
        node: u32,
        identity: IdentityId,
        neighbours: &BTreeSet<IdentityId>,
    ) -> Vec<Change> {
        let (name, resources) = (self.name(), self.resources());
        let mut changes = Vec::new();
        for &other in neighbours {
            if !self.network.runs(node, other) {
                changes.push(Change::Drop(ResourceKey::Link(name.clone(), identity, other)));
                changes.push(Change::Drop(ResourceKey::Link(name.clone(), other, identity)));
            }
        }
        for &other in neighbours.iter().chain([&identity]) {
            match (self.network.meets(node, other), self.network.runs(node, other)) {
                (true, _) => {}
                (false, true) => changes.extend(resources.drop_others(other, node)),
                (false, false) => changes.push(Change::Forget(name.clone(), other)),
            }
        }
        changes
    }

    /// The network has another policy. `step`: what that changes, if it was worked out already.
    /// `resets`: see [`PolicyRecord`](crate::records::PolicyRecord).
    pub fn set_policy(&mut self, policy: Arc<Policy>, step: Option<Arc<PolicyStep>>, resets: u64) {
        self.deltas.set_urgent(true);
        let triggers: Vec<_> = self.resources().triggers().collect();
        let settings =
            |policy: &Policy, resets: u64| (!policy.admission.is_empty(), policy.conduct(resets));
        let before_it = settings(self.network.links.policy(), self.network.resets);
        let is_other = before_it != settings(&policy, resets);
        self.network.resets = resets;
        self.network.names_node = policy.speaks_of_nodes();
        let is_this = |step: &Arc<PolicyStep>| {
            self.network.links.is_ground_of(step) && step.policy().let_in == policy.let_in
        };
        let step = match step.filter(is_this) {
            Some(step) => step,
            None => Arc::new(self.network.links.step(policy)),
        };
        let ends: BTreeSet<IdentityId> =
            step.changes.iter().flat_map(|change| [change.from, change.to]).collect();
        let before: Vec<(IdentityId, RoaringBitmap)> =
            ends.iter().map(|id| (*id, self.network.subscribers(*id))).collect();
        self.network.links.apply_step(&step);
        if self.is_muted() {
            return;
        }
        if is_other {
            self.network_changed();
        }
        let name = self.name();
        let now: Vec<_> = self.resources().triggers().collect();
        let gone = triggers.iter().filter(|(key, _)| !now.iter().any(|(own, _)| own == key));
        let gone = gone.map(|(key, _)| Change::Drop(key.clone()));
        let new = now.iter().filter(|resource| !triggers.contains(resource)).cloned().map(put);
        let changed = gone.chain(new).collect();
        self.deltas.push(self.network.members().clone(), changed);
        let mut by_end: HashMap<IdentityId, Vec<Change>> = HashMap::new();
        for LinkChange { from, to, after, .. } in &step.changes {
            let (from, to) = (*from, *to);
            let change = match after {
                Some(acl) => put(self.resources().link(from, to, acl)),
                None => Change::Drop(ResourceKey::Link(name.clone(), from, to)),
            };
            by_end.entry(from).or_default().push(change.clone());
            if from != to {
                by_end.entry(to).or_default().push(change);
            }
        }
        for (end, changes) in by_end {
            let hosts = self.network.host_set(end);
            self.deltas.push(hosts, changes);
        }
        for (id, before) in before {
            let (after, hosts) = (self.network.subscribers(id), self.network.host_set(id));
            let (gained, lost) = (&after - &before, &before - &after);
            if !gained.is_empty() {
                let section = self.resources().section(id, None);
                self.deltas.push(&gained - &hosts, section);
                for node in gained & &hosts {
                    let section = self.resources().section(id, Some(node));
                    self.deltas.push_to(node, section);
                }
            }
            self.deltas.push(&lost - &hosts, vec![Change::Forget(name.clone(), id)]);
            for node in lost & &hosts {
                let dropped = self.resources().drop_others(id, node);
                self.deltas.push_to(node, dropped);
            }
        }
    }

    /// A node has joined, has another endpoint, or other blocks. `before`: what it was as a member
    /// and as a peer.
    pub fn node_changed(&mut self, node: u32, before: (Option<Resource>, Option<Resource>)) {
        let name = self.name();
        let own = self.resources().own_network(node);
        self.network.set_member(node, own.is_some());
        if before.0.as_ref() != own.as_ref().map(|(_, resource)| resource) {
            let changes = match own {
                Some(own) => {
                    std::iter::once(own).chain(self.resources().triggers()).map(put).collect()
                }
                None => self.resources().drop_network(),
            };
            self.deltas.push_to(node, changes);
        }
        let peer = self.resources().peer(node);
        if before.1.as_ref() == peer.as_ref().map(|(_, resource)| resource) {
            return;
        }
        self.network.set_peer(node, peer.as_ref());
        let mut meeting = self.network.meeting(node);
        meeting.remove(node);
        let change = match (peer, self.nodes.name(node)) {
            (Some(peer), _) => put(peer),
            (None, Some(gone)) => Change::Drop(ResourceKey::Peer(name, gone.clone())),
            (None, None) => return,
        };
        self.deltas.push(meeting, vec![change]);
    }

    /// The network's settings are others.
    pub fn network_changed(&mut self) {
        for node in self.network.members().clone() {
            let own = self.resources().own_network(node);
            self.deltas.push_to(node, own.into_iter().map(put).collect());
        }
    }

    /// The network goes. It has no workloads any more.
    pub fn network_deleted(&mut self) {
        let changes = self.resources().drop_network();
        self.deltas.push(self.network.members().clone(), changes);
    }

    /// A quarantine that names an identity's labels has come or gone.
    pub fn identity_held(&mut self, id: IdentityId) {
        self.deltas.set_urgent(true);
        let all = self.network.subscribers(id) | self.network.host_set(id);
        let changes = self.resources().identity(id).into_iter().map(put).collect();
        self.deltas.push(all, changes);
    }

    /// A workload is held by a quarantine that names it, or is not any more.
    pub fn workload_held(&mut self, id: &WorkloadId) {
        self.deltas.set_urgent(true);
        self.network.set_held(id, self.quarantines.holds(id));
        let Some(record) = self.network.workloads.get(id) else { return };
        let mut all = self.network.subscribers(record.identity);
        all.extend(self.nodes.index(&record.node));
        let changes = vec![put(self.resources().workload(record))];
        self.deltas.push(all, changes);
    }
}
