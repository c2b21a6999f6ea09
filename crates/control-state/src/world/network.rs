//! One network and what is in it, with the indices that deltas and views are made from.

use super::quarantines::Hold;
use crate::records::{IdentityRecord, NetworkRecord, RefusedRecord, Standing, WorkloadRecord};
use ipnet::IpNet;
use meshward_control_proto::{
    Resource, ResourceKey,
    view::{Digest, Hash128, WorkloadSpec},
};
use meshward_policy::{Links, Policy};
use meshward_types::{AcceptFrom, IdentityId, Labels, PolicyFile, Revision, WorkloadId};
use roaring::{MultiOps, RoaringBitmap};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// What an identity stands for: its labels, and what its workloads declare about who may reach
/// them.
pub type Subject = (Labels, Vec<AcceptFrom>);

/// A workload as it stands, apart from the world.
#[derive(Debug, Clone)]
pub enum Shared {
    /// It is let in.
    Admitted(Arc<WorkloadRecord>),
    /// It is not.
    Refused(Arc<RefusedRecord>),
}

impl Shared {
    /// The same, as what is in the world is looked at.
    pub fn standing(&self) -> Standing<'_> {
        match self {
            Self::Admitted(record) => Standing::Admitted(record),
            Self::Refused(record) => Standing::Refused(record),
        }
    }
}

/// One network.
#[derive(Debug)]
pub struct NetworkState {
    pub record: NetworkRecord,
    /// The policy as it was written, and the revision that has it.
    pub policy_files: Arc<Vec<PolicyFile>>,
    pub policy_revision: Option<Revision>,
    /// See [`PolicyRecord::resets`](crate::records::PolicyRecord::resets).
    pub resets: u64,
    /// Whether the policy speaks of nodes: then they are among the labels of the workloads.
    pub names_node: bool,
    /// Of the identities that have a workload.
    pub links: Links,
    pub workloads: HashMap<WorkloadId, Arc<WorkloadRecord>>,
    pub identities: BTreeMap<IdentityId, IdentityRecord>,
    pub by_subject: HashMap<Subject, IdentityId>,
    pub by_address: HashMap<IpAddr, WorkloadId>,
    /// Those that have a prefix behind them.
    routes: HashMap<IpNet, BTreeSet<WorkloadId>>,
    /// The workloads that are not let in.
    pub refused: HashMap<WorkloadId, Arc<RefusedRecord>>,
    refused_on: HashMap<u32, BTreeSet<WorkloadId>>,
    /// What is known of the workloads of an identity.
    running: HashMap<IdentityId, Running>,
    /// The workloads of a node, and how many of each identity they are.
    on_node: HashMap<u32, OnNode>,
    /// The identities whose workloads each node has had, since the coordinator has started.
    hosted: HashMap<u32, RoaringBitmap>,
    /// The workloads that are told as held by themselves.
    held: HashMap<WorkloadId, Hold>,
    /// The nodes that serve the network.
    members: RoaringBitmap,
    /// The hash of a node as a peer.
    peers: HashMap<u32, Hash128>,
}

/// The workloads of an identity. Who looks at them beside the world shares them: they are copied
/// when they change meanwhile.
pub type Group = Arc<HashMap<WorkloadId, Arc<WorkloadRecord>>>;

#[derive(Debug, Default)]
struct Running {
    workloads: Group,
    hosts: RoaringBitmap,
    /// Of the workloads as resources.
    digest: Digest,
}

#[derive(Debug, Default)]
struct OnNode {
    workloads: HashSet<WorkloadId>,
    identities: BTreeMap<IdentityId, usize>,
}

impl NetworkState {
    pub fn new(record: NetworkRecord) -> Self {
        Self {
            links: Links::new(Arc::new(Policy::deny_all(record.name.clone()))),
            record,
            policy_files: Arc::default(),
            policy_revision: None,
            resets: 0,
            names_node: false,
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
            held: HashMap::new(),
            members: RoaringBitmap::new(),
            peers: HashMap::new(),
        }
    }

    /// The nodes that run a workload of an identity; `None` if there is no workload.
    pub fn hosts(&self, identity: IdentityId) -> Option<&RoaringBitmap> {
        self.running.get(&identity).map(|running| &running.hosts)
    }

    /// The same as a set of its own, empty if there is no workload.
    pub fn host_set(&self, identity: IdentityId) -> RoaringBitmap {
        self.hosts(identity).cloned().unwrap_or_default()
    }

    /// The workloads of an identity.
    pub fn workloads_of(&self, identity: IdentityId) -> impl Iterator<Item = &Arc<WorkloadRecord>> {
        let running = self.running.get(&identity);
        running.into_iter().flat_map(|running| running.workloads.values())
    }

    /// The same, to be looked at beside the world.
    pub fn group(&self, identity: IdentityId) -> Option<&Group> {
        self.running.get(&identity).map(|running| &running.workloads)
    }

    /// The digest of the workloads of an identity, as resources.
    pub fn digest_of(&self, identity: IdentityId) -> Digest {
        self.running.get(&identity).map(|running| running.digest).unwrap_or_default()
    }

    /// The workloads of a node.
    pub fn workloads_on(&self, node: u32) -> impl Iterator<Item = &Arc<WorkloadRecord>> {
        let ids = self.on_node.get(&node).map(|on| &on.workloads);
        ids.into_iter().flatten().filter_map(|id| self.workloads.get(id))
    }

    /// The identities of a node's workloads.
    pub fn identities_on(&self, node: u32) -> impl Iterator<Item = IdentityId> {
        self.on_node.get(&node).into_iter().flat_map(|on| on.identities.keys().copied())
    }

    /// Whether a node runs a workload of an identity.
    pub fn runs(&self, node: u32, identity: IdentityId) -> bool {
        self.on_node.get(&node).is_some_and(|on| on.identities.contains_key(&identity))
    }

    /// Whether a link joins an identity with one of a node's.
    pub fn meets(&self, node: u32, identity: IdentityId) -> bool {
        let linked = |own: IdentityId| {
            self.links.acl(own, identity).is_some() || self.links.acl(identity, own).is_some()
        };
        self.identities_on(node).any(linked)
    }

    /// The nodes that meet an identity.
    pub fn subscribers(&self, identity: IdentityId) -> RoaringBitmap {
        let neighbours = self.links.neighbours(identity);
        neighbours.into_iter().filter_map(|other| self.hosts(other)).union()
    }

    /// The nodes that have a node as a peer, and itself if it meets an identity of its own.
    pub fn meeting(&self, node: u32) -> RoaringBitmap {
        self.identities_on(node).map(|identity| self.subscribers(identity)).union()
    }

    pub fn members(&self) -> &RoaringBitmap {
        &self.members
    }

    pub fn set_member(&mut self, node: u32, is_member: bool) {
        if is_member {
            self.members.insert(node)
        } else {
            self.members.remove(node)
        };
    }

    /// Forgets a node that has left the mesh.
    pub fn forget_node(&mut self, node: u32) {
        self.members.remove(node);
        self.peers.remove(&node);
        self.hosted.remove(&node);
    }

    /// The hash of a node as a peer; `None` while it has no endpoint.
    pub fn peer(&self, node: u32) -> Option<Hash128> {
        self.peers.get(&node).copied()
    }

    pub fn set_peer(&mut self, node: u32, peer: Option<&(ResourceKey, Resource)>) {
        match peer {
            Some((key, resource)) => self.peers.insert(node, Hash128::of(key, resource)),
            None => self.peers.remove(&node),
        };
    }

    /// Notes a workload. Its identity is among the links.
    pub fn add(&mut self, record: WorkloadRecord, node: u32, held: Hold) {
        if held.quarantined {
            self.held.insert(record.id.clone(), held);
        }
        let record = Arc::new(record);
        let running = self.running.entry(record.identity).or_default();
        Arc::make_mut(&mut running.workloads).insert(record.id.clone(), record.clone());
        running.hosts.insert(node);
        running.digest.add(hash(&record, held));
        self.hosted.entry(node).or_default().insert(record.identity.0);
        let on = self.on_node.entry(node).or_default();
        on.workloads.insert(record.id.clone());
        *on.identities.entry(record.identity).or_default() += 1;
        for address in &record.addresses {
            self.by_address.insert(*address, record.id.clone());
        }
        self.note_routes(&record.id, &record.prefixes, true);
        self.workloads.insert(record.id.clone(), record);
    }

    /// The identities whose workloads a node has, or has had since the coordinator has started.
    pub fn hosted_by(&self, node: u32) -> RoaringBitmap {
        self.hosted.get(&node).cloned().unwrap_or_default()
    }

    /// Forgets a workload. If it was the last of its identity, the links still have that.
    pub fn remove(&mut self, id: &WorkloadId, node: u32) {
        let Some(record) = self.workloads.remove(id) else { return };
        let held = self.held.remove(id).unwrap_or_default();
        self.free_addresses(id, &record.addresses);
        self.note_routes(id, &record.prefixes, false);
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
            running.digest.remove(hash(&record, held));
            if last_on_node {
                running.hosts.remove(node);
            }
            if running.workloads.is_empty() {
                self.running.remove(&record.identity);
            }
        }
    }

    /// A workload as it stands.
    pub fn standing(&self, id: &WorkloadId) -> Option<Standing<'_>> {
        let admitted = self.workloads.get(id).map(|record| Standing::Admitted(record));
        admitted.or_else(|| self.refused.get(id).map(|record| Standing::Refused(record)))
    }

    /// All workloads as they stand.
    pub fn all_standing(&self) -> impl Iterator<Item = Standing<'_>> {
        let admitted = self.workloads.values().map(|record| Standing::Admitted(record));
        admitted.chain(self.refused.values().map(|record| Standing::Refused(record)))
    }

    /// The workloads of a node as they stand, to be looked at beside the world.
    pub fn shared_on(&self, node: u32) -> impl Iterator<Item = Shared> {
        let admitted = self.workloads_on(node).map(|record| Shared::Admitted(record.clone()));
        admitted.chain(self.refused_on(node).map(|record| Shared::Refused(record.clone())))
    }

    /// The workloads of a node that are not let in.
    pub fn refused_on(&self, node: u32) -> impl Iterator<Item = &Arc<RefusedRecord>> {
        let ids = self.refused_on.get(&node).into_iter().flatten();
        ids.filter_map(|id| self.refused.get(id))
    }

    /// Notes a workload that is not let in.
    pub fn add_refused(&mut self, record: RefusedRecord, node: u32) {
        let id = record.report.id.clone();
        for address in &record.report.addresses {
            self.by_address.insert(*address, id.clone());
        }
        self.note_routes(&id, &record.report.prefixes, true);
        self.refused_on.entry(node).or_default().insert(id.clone());
        self.refused.insert(id, Arc::new(record));
    }

    /// Forgets one, if it is there.
    pub fn remove_refused(&mut self, id: &WorkloadId, node: u32) -> Option<Arc<RefusedRecord>> {
        let record = self.refused.remove(id)?;
        self.free_addresses(id, &record.report.addresses);
        self.note_routes(id, &record.report.prefixes, false);
        if let Some(on) = self.refused_on.get_mut(&node) {
            on.remove(id);
            if on.is_empty() {
                self.refused_on.remove(&node);
            }
        }
        Some(record)
    }

    /// The workloads that have a prefix behind them.
    pub fn behind(&self, prefix: &IpNet) -> impl Iterator<Item = Standing<'_>> {
        self.routes.get(prefix).into_iter().flatten().filter_map(|id| self.standing(id))
    }

    /// The workloads that have prefixes behind them.
    pub fn gateways(&self) -> impl Iterator<Item = Standing<'_>> {
        let ids: BTreeSet<&WorkloadId> = self.routes.values().flatten().collect();
        ids.into_iter().filter_map(|id| self.standing(id))
    }

    fn note_routes(&mut self, id: &WorkloadId, prefixes: &[IpNet], there: bool) {
        for prefix in prefixes {
            let ids = self.routes.entry(*prefix).or_default();
            if there {
                ids.insert(id.clone())
            } else {
                ids.remove(id)
            };
            if ids.is_empty() {
                self.routes.remove(prefix);
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

    /// Follows that a workload is told otherwise, though its record is the same.
    pub fn set_held(&mut self, id: &WorkloadId, held: Hold) {
        let before = self.held.get(id).copied().unwrap_or_default();
        let Some(record) = self.workloads.get(id).filter(|_| before != held) else {
            return;
        };
        if let Some(running) = self.running.get_mut(&record.identity) {
            running.digest.remove(hash(record, before));
            running.digest.add(hash(record, held));
        }
        if held.quarantined {
            self.held.insert(id.clone(), held)
        } else {
            self.held.remove(id)
        };
    }
}

/// A workload as nodes are told of it.
pub fn workload_resource(record: &WorkloadRecord, held: Hold) -> (ResourceKey, Resource) {
    let spec = WorkloadSpec {
        node: record.node.clone(),
        addresses: record.addresses.clone(),
        prefixes: record.prefixes.clone(),
        identity: record.identity,
        quarantined: held.quarantined,
        reset: held.reset,
    };
    (ResourceKey::Workload(record.network.clone(), record.id.clone()), Resource::Workload(spec))
}

fn hash(record: &WorkloadRecord, held: Hold) -> Hash128 {
    let (key, resource) = workload_resource(record, held);
    Hash128::of(&key, &resource)
}
