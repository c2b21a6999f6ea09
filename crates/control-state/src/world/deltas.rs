//! Deltas: the changes that nodes get, derived from a change of the world and not from the world.
//!
//! A delta goes to a set of nodes, so that a change which a thousand nodes need is derived, and
//! kept, once. A node *meets* an identity if a link joins it with one of the node's; the nodes that
//! meet an identity are its *subscribers*. So a node knows the links of its own identities, both
//! ends of these, all workloads of the identities that it meets and, as peers, the nodes that run
//! them.

use super::{
    drains::Drains,
    extent::Extent,
    network::NetworkState,
    node_set::{NodeIndex, NodeSet},
    nodes::Nodes,
    quarantines::Quarantines,
    resources::{NetworkResources, put, refused_resource},
};
use crate::records::{RefusedRecord, WorkloadRecord};
use meshward_control_proto::{
    Change, Resource, ResourceKey,
    relay::{RelaySpec, ToRelay},
};
use meshward_policy::LinkChange;
use meshward_types::{IdentityId, NetworkName, NodeName, WorkloadId};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Changes for some nodes.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The nodes.
    pub nodes: NodeSet,
    /// The changes.
    pub changes: Arc<[Change]>,
    /// `true` if something is revoked or granted, or a workload waits for the changes: they are
    /// sent at once.
    pub urgent: bool,
}

/// The deltas of a change of the world, in the order in which nodes apply them.
#[derive(Debug, Default)]
pub struct Deltas {
    /// The deltas of nodes.
    pub all: Vec<Delta>,
    /// The deltas of relays, in the order in which relays apply them.
    pub relays: Vec<RelayDelta>,
    urgency: Urgency,
    /// `true` while the world is loaded: there are no sessions then.
    muted: bool,
}

/// The time within which changes are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Urgency {
    /// Together with others, after a delay that grows with the number of sessions.
    #[default]
    Batched,
    /// Immediately.
    Urgent,
}

impl Deltas {
    /// Makes deltas that stay empty.
    pub fn muted() -> Self {
        Self { muted: true, ..Self::default() }
    }

    /// Returns all nodes that get changes.
    pub fn touched(&self) -> NodeSet {
        self.all.iter().map(|delta| &delta.nodes).collect()
    }

    /// Appends a delta of relays.
    pub(super) fn push_relay(&mut self, delta: RelayDelta) {
        if !self.muted {
            self.relays.push(delta);
        }
    }

    pub(super) fn push(&mut self, nodes: NodeSet, changes: Vec<Change>) {
        if !self.muted && !nodes.is_empty() && !changes.is_empty() {
            let urgent = self.urgency == Urgency::Urgent;
            self.all.push(Delta { nodes, changes: changes.into(), urgent });
        }
    }

    pub(super) fn push_to(&mut self, node: NodeIndex, changes: Vec<Change>) {
        self.push(NodeSet::from_iter([node]), changes);
    }
}

/// A change for relays.
#[derive(Debug, Clone)]
pub enum RelayDelta {
    /// A message for all relays.
    Send(ToRelay),
    /// A relay was removed: its link is closed.
    Disconnect(NodeName),
    /// The relays in the form that nodes get.
    Relays(Vec<RelaySpec>),
}

/// A node as far as a network is concerned, before a change of the node.
pub(super) struct NodeBefore {
    /// The node's site.
    pub(super) site: Option<String>,
    /// The network, as the node has it.
    pub(super) network: Option<(ResourceKey, Resource)>,
    /// The node, as others have it.
    pub(super) peer: Option<(ResourceKey, Resource)>,
}

/// A workload that starts or stops, as far as narrowing is concerned.
#[derive(Clone, Copy)]
pub(super) struct Arrival<'a> {
    /// The workload.
    pub(super) id: &'a WorkloadId,
    /// Its identity.
    pub(super) identity: IdentityId,
    /// Its node.
    pub(super) node: NodeIndex,
    /// `true` if no other workload has the identity.
    pub(super) is_only: bool,
    /// `true` if no other workload of the node has it.
    pub(super) is_only_on_node: bool,
}

/// The identity of a workload that starts.
struct Starting<'a> {
    identity: IdentityId,
    node: NodeIndex,
    /// The identities that links join with it.
    neighbours: &'a BTreeSet<IdentityId>,
    /// The neighbours that the node meets now, or to another extent than before.
    met: Vec<(IdentityId, Extent)>,
    /// `true` if no workload had the identity.
    is_new: bool,
    /// `true` if no workload of the node had it.
    is_first: bool,
}

/// Changes a network, and derives the deltas on the way.
pub(super) struct DeltaBuilder<'a> {
    pub(super) network: &'a mut NetworkState,
    pub(super) nodes: &'a Nodes,
    pub(super) quarantines: &'a Quarantines,
    pub(super) drains: &'a Drains,
    pub(super) deltas: &'a mut Deltas,
}

impl DeltaBuilder<'_> {
    pub(super) fn resources(&self) -> NetworkResources<'_> {
        let Self { network, nodes, quarantines, drains, .. } = self;
        NetworkResources { network, nodes, quarantines, drains }
    }

    pub(super) fn name(&self) -> NetworkName {
        self.network.record.name.clone()
    }

    pub(super) fn is_muted(&self) -> bool {
        self.deltas.muted
    }

    /// Makes all deltas that follow urgent.
    pub(super) fn make_urgent(&mut self) {
        self.deltas.urgency = Urgency::Urgent;
    }

    /// Derives deltas that are sent at once. Those that follow are not.
    pub(super) fn urgently(&mut self, derive: impl FnOnce(&mut Self)) {
        self.deltas.urgency = Urgency::Urgent;
        derive(self);
        self.deltas.urgency = Urgency::Batched;
    }

    /// Adds an admitted workload.
    pub(super) fn start(&mut self, record: WorkloadRecord) {
        let (id, identity) = (record.id.clone(), record.identity);
        let Some(node) = self.nodes.index(&record.node) else { return };
        let is_new = self.network.links.labels(identity).is_none();
        if is_new && let Some(known) = self.network.identities.get(&identity) {
            let (labels, accepts) = (known.labels.clone(), known.accepts.clone().into());
            self.network.links.insert(identity, labels, accepts);
        }
        let state = self.resources().state_of(&record);
        if self.is_muted() {
            return self.network.add(record, node, state);
        }
        let neighbours = self.network.links.neighbours(identity);
        let is_first = !self.network.runs(node, identity);
        let others = neighbours.iter().filter(|_| is_first);
        let mut met: Vec<(IdentityId, Extent)> =
            others.map(|other| (*other, self.network.extent(node, *other))).collect();
        self.network.add(record, node, state);
        met.retain_mut(|(other, extent)| {
            let before = std::mem::replace(extent, self.network.extent(node, *other));
            *extent > before
        });
        let Some(workload) = self.network.workloads.get(&id) else { return };
        let workload = put(self.resources().workload(workload));
        self.push_start(
            Starting { identity, node, neighbours: &neighbours, met, is_new, is_first },
            workload,
        );
        if is_first {
            self.services_started(identity, node, is_new);
        }
        let (is_only, is_only_on_node) = (is_new, is_first);
        self.narrowing_started(Arrival { id: &id, identity, node, is_only, is_only_on_node });
    }

    /// Appends the deltas of a workload that was added.
    fn push_start(&mut self, starting: Starting, workload: Change) {
        let Starting { identity, node, neighbours, met, is_new, is_first } = starting;
        let subscribers = self.network.subscribers(identity);
        let resources = self.resources();
        let mut all = Vec::new();
        if is_new {
            for &other in neighbours.iter().filter(|other| **other != identity) {
                all.push((self.network.host_set(other), resources.between(identity, other)));
            }
            let spec = resources.identity(identity).into_iter().map(put).collect();
            all.push((subscribers, spec));
        }
        let mut others = self.network.wide_subscribers(identity);
        others.remove(node);
        if is_first {
            all.push((others.clone(), resources.peer(node).into_iter().map(put).collect()));
        }
        let mut own = Vec::new();
        if is_first {
            own.extend(resources.identity(identity).map(put));
            own.extend(neighbours.iter().flat_map(|other| resources.between(identity, *other)));
            own.extend(met.into_iter().flat_map(|(other, extent)| match extent {
                Extent::All => resources.section(other, Some(node)),
                _ => resources.identity(other).map(put).into_iter().collect(),
            }));
        }
        own.push(workload.clone());
        all.push((others, vec![workload]));
        for (nodes, changes) in all {
            self.deltas.push(nodes, changes);
        }
        // The workload waits for this.
        self.urgently(|builder| builder.deltas.push_to(node, own));
    }

    /// Removes a workload that is no longer admitted.
    pub(super) fn cut(&mut self, id: &WorkloadId) {
        self.urgently(|builder| builder.stop(id));
    }

    /// Removes a workload that has stopped.
    pub(super) fn stop(&mut self, id: &WorkloadId) {
        let Some(record) = self.network.workloads.get(id) else { return };
        let identity = record.identity;
        let Some(node) = self.nodes.index(&record.node) else { return };
        let (neighbours, subscribers) =
            (self.network.links.neighbours(identity), self.network.subscribers(identity));
        let name = self.name();
        let services = self.services_before(identity);
        let others = neighbours.iter().copied().filter(|other| *other != identity);
        let others = others.chain([identity]);
        let met: Vec<(IdentityId, Extent)> =
            others.map(|other| (other, self.network.extent(node, other))).collect();
        let mut all = self.network.wide_subscribers(identity);
        self.network.remove(id, node);
        all |= self.network.narrowing.forget_workload(id);
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
                let mut hosts = self.network.host_set(other);
                // The node itself may have no other workload to have these links for.
                hosts.insert(node);
                self.deltas.push(hosts, changes);
            }
            self.deltas.push(
                subscribers,
                vec![Change::Drop(ResourceKey::Identity(name.clone(), identity))],
            );
        }
        let is_only_on_node = !self.network.runs(node, identity);
        if is_only_on_node {
            let own = self.last_stopped(node, identity, met);
            self.deltas.push_to(node, own);
            self.services_stopped(services, node, ended);
        }
        let stopped = Arrival { id, identity, node, is_only: ended, is_only_on_node };
        self.narrowing_stopped(stopped, &neighbours);
    }

    /// Adds a refused workload. If it was admitted before, it has been cut.
    pub(super) fn refuse(&mut self, record: RefusedRecord) {
        let Some(node) = self.nodes.index(&record.node) else { return };
        let refused = put(refused_resource(&record));
        self.network.add_refused(record, node);
        // The workload waits for this.
        self.urgently(|builder| builder.deltas.push_to(node, vec![refused]));
    }

    /// Removes a refused workload that has stopped or is classified again.
    pub(super) fn remove_refused(&mut self, id: &WorkloadId) {
        let node = self.network.refused.get(id).and_then(|record| self.nodes.index(&record.node));
        let Some(node) = node else { return };
        self.network.remove_refused(id, node);
        let dropped = Change::Drop(self.resources().refused_key(id));
        self.deltas.push_to(node, vec![dropped]);
    }

    /// Returns the changes for a node that has stopped its last workload of an identity. `met` are
    /// the identity and those that had links with it, with the extents to which the node met them.
    fn last_stopped(
        &self,
        node: NodeIndex,
        identity: IdentityId,
        met: Vec<(IdentityId, Extent)>,
    ) -> Vec<Change> {
        let (name, resources) = (self.name(), self.resources());
        let mut changes = Vec::new();
        for (other, _) in met.iter().filter(|(other, _)| !self.network.runs(node, *other)) {
            changes.push(Change::Drop(ResourceKey::Link(name.clone(), identity, *other)));
            if *other != identity {
                changes.push(Change::Drop(ResourceKey::Link(name.clone(), *other, identity)));
            }
        }
        for (other, before) in met {
            let forget = Change::Forget(name.clone(), other);
            match (before, self.network.extent(node, other), self.network.runs(node, other)) {
                (_, Extent::All, _)
                | (Extent::Subset, Extent::Subset, _)
                | (Extent::Subset | Extent::None, _, true) => {}
                (Extent::All, _, true) => changes.extend(resources.drop_others(other, node)),
                (_, Extent::None, false) => changes.push(forget),
                (_, Extent::Subset, false) => {
                    changes.push(forget);
                    changes.extend(resources.identity(other).map(put));
                }
            }
        }
        changes
    }

    /// Derives the deltas of a node that has joined or changed.
    pub(super) fn node_changed(&mut self, node: NodeIndex, before: &NodeBefore) {
        let name = self.name();
        let own = self.resources().own_network(node);
        match own {
            Some(_) => self.network.add_member(node),
            None => self.network.remove_member(node),
        }
        if before.network != own {
            let changes = match own {
                Some(own) => {
                    std::iter::once(own).chain(self.resources().triggers()).map(put).collect()
                }
                None => self.resources().drop_network(),
            };
            self.deltas.push_to(node, changes);
        }
        if before.site.as_deref() != self.nodes.site(node) {
            self.site_changed(node);
        }
        let peer = self.resources().peer(node);
        if before.peer == peer {
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

    /// Derives the deltas of a network whose settings have changed.
    pub(super) fn network_changed(&mut self) {
        for node in self.network.members().clone().iter() {
            let own = self.resources().own_network(node);
            self.deltas.push_to(node, own.into_iter().map(put).collect());
        }
    }

    /// Derives the deltas of a network that is deleted. It has no workloads any more.
    pub(super) fn network_deleted(&mut self) {
        let changes = self.resources().drop_network();
        self.deltas.push(self.network.members().clone(), changes);
    }

    /// Derives the deltas of an identity after a quarantine that selects it was imposed or
    /// released.
    pub(super) fn identity_quarantine_changed(&mut self, id: IdentityId) {
        self.deltas.urgency = Urgency::Urgent;
        let all = &self.network.subscribers(id) | &self.network.host_set(id);
        let changes = self.resources().identity(id).into_iter().map(put).collect();
        self.deltas.push(all, changes);
    }

    /// Derives the deltas of a workload after a quarantine or a drain that names it, or its node,
    /// has begun or ended.
    pub(super) fn workload_state_changed(&mut self, id: &WorkloadId) {
        let Some(record) = self.network.workloads.get(id).cloned() else { return };
        let state = self.resources().state_of(&record);
        self.network.set_state(id, state);
        self.push_workload(&record);
    }

    /// Replaces the record of a workload by one that differs in what services and names have of it
    /// alone: its flows go on.
    pub(super) fn update(&mut self, record: WorkloadRecord) {
        let id = record.id.clone();
        self.network.replace(record);
        let Some(record) = self.network.workloads.get(&id).cloned() else { return };
        self.push_workload(&record);
    }

    /// Appends a workload for all nodes that know it.
    fn push_workload(&mut self, record: &WorkloadRecord) {
        self.deltas.urgency = Urgency::Urgent;
        self.instance_changed(record);
        let mut all = self.network.wide_subscribers(record.identity);
        all |= self.network.narrowing.knowing(&record.id).cloned().unwrap_or_default();
        all.extend(self.nodes.index(&record.node));
        let is_retiring = |node: &NodeIndex| self.network.narrowing.is_retiring(*node, &record.id);
        let retiring: NodeSet = all.iter().filter(is_retiring).collect();
        let (usual, drained) =
            (put(self.resources().workload(record)), put(self.resources().drained(record)));
        self.deltas.push(&all - &retiring, vec![usual]);
        self.deltas.push(retiring, vec![drained]);
    }
}
