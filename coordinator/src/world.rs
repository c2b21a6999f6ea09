//! The mesh as it is at one revision: the records, and what follows from them.
//!
//! Nothing here writes: plans read the world and name mutations, the store takes them, and [`World::apply`] follows. It
//! also says whose views they touch, so that a change costs what it concerns.

use crate::records::{
    CredentialRecord, IdentityRecord, Mutation, NodeRecord, Record, RecordKey, TokenRecord, WorkloadRecord,
};
use ipnet::IpNet;
use meshward_model::{
    IdentityId, Labels, NetworkName, NodeName, Revision, WorkloadId,
    api::{Network, Quarantine, QuarantineTarget},
};
use meshward_policy::{Links, Policy};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// The nodes whose views a change touches.
pub type Touched = BTreeSet<NodeName>;

/// The mesh at one revision.
#[derive(Debug, Default)]
pub struct World {
    pub revision: Revision,
    pub networks: BTreeMap<NetworkName, NetworkState>,
    pub nodes: BTreeMap<NodeName, NodeRecord>,
    pub tokens: BTreeMap<String, TokenRecord>,
    pub credentials: BTreeMap<String, CredentialRecord>,
    pub quarantines: BTreeMap<String, Quarantine>,
    pub workload_networks: HashMap<WorkloadId, NetworkName>,
    next_identity: u32,
    /// Records of networks that have not been read yet, while the store is loaded.
    early: Vec<Record>,
}

/// One network and what is in it.
#[derive(Debug)]
pub struct NetworkState {
    pub record: Network,
    pub policy_source: String,
    /// Of the identities that have a workload.
    pub links: Links,
    pub workloads: BTreeMap<WorkloadId, WorkloadRecord>,
    pub identities: BTreeMap<IdentityId, IdentityRecord>,
    pub by_labels: HashMap<Labels, IdentityId>,
    pub by_address: HashMap<IpAddr, WorkloadId>,
    by_identity: HashMap<IdentityId, BTreeSet<WorkloadId>>,
    by_node: HashMap<NodeName, BTreeSet<WorkloadId>>,
    hosts: HashMap<IdentityId, BTreeMap<NodeName, usize>>,
}

impl NetworkState {
    fn new(record: Network) -> Self {
        Self {
            links: Links::new(Policy::deny_all(record.name.clone())),
            record,
            policy_source: String::new(),
            workloads: BTreeMap::new(),
            identities: BTreeMap::new(),
            by_labels: HashMap::new(),
            by_address: HashMap::new(),
            by_identity: HashMap::new(),
            by_node: HashMap::new(),
            hosts: HashMap::new(),
        }
    }

    /// The nodes that run a workload of an identity.
    pub fn hosts(&self, identity: IdentityId) -> impl Iterator<Item = &NodeName> {
        self.hosts.get(&identity).into_iter().flat_map(BTreeMap::keys)
    }

    /// The workloads of an identity.
    pub fn workloads_of(&self, identity: IdentityId) -> impl Iterator<Item = &WorkloadRecord> {
        let ids = self.by_identity.get(&identity).into_iter().flatten();
        ids.filter_map(|id| self.workloads.get(id))
    }

    /// The workloads of a node.
    pub fn workloads_on(&self, node: &NodeName) -> impl Iterator<Item = &WorkloadRecord> {
        let ids = self.by_node.get(node).into_iter().flatten();
        ids.filter_map(|id| self.workloads.get(id))
    }

    /// Everyone who is told of an identity: its own nodes, and those of the identities that it has a link with.
    fn interested(&self, identity: IdentityId) -> Touched {
        let neighbours = self.links.neighbours(identity);
        let all = neighbours.into_iter().chain([identity]);
        all.flat_map(|id| self.hosts(id).cloned().collect::<Vec<_>>()).collect()
    }

    fn add_workload(&mut self, record: WorkloadRecord) -> Touched {
        let identity = record.identity;
        if let Some(known) = self.identities.get(&identity) {
            self.links.insert(identity, known.labels.clone());
        }
        self.by_identity.entry(identity).or_default().insert(record.id.clone());
        self.by_node.entry(record.node.clone()).or_default().insert(record.id.clone());
        *self.hosts.entry(identity).or_default().entry(record.node.clone()).or_default() += 1;
        for address in &record.addresses {
            self.by_address.insert(*address, record.id.clone());
        }
        self.workloads.insert(record.id.clone(), record);
        self.interested(identity)
    }

    fn remove_workload(&mut self, id: &WorkloadId) -> Touched {
        let Some(record) = self.workloads.remove(id) else { return Touched::new() };
        let touched = self.interested(record.identity);
        for address in &record.addresses {
            if self.by_address.get(address) == Some(id) {
                self.by_address.remove(address);
            }
        }
        if let Some(ids) = self.by_node.get_mut(&record.node) {
            ids.remove(id);
        }
        if let Some(hosts) = self.hosts.get_mut(&record.identity)
            && let Some(count) = hosts.get_mut(&record.node)
        {
            *count -= 1;
            if *count == 0 {
                hosts.remove(&record.node);
            }
        }
        if let Some(ids) = self.by_identity.get_mut(&record.identity) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_identity.remove(&record.identity);
                self.hosts.remove(&record.identity);
                self.links.remove(record.identity);
            }
        }
        touched
    }

    fn everyone(&self) -> Touched {
        self.by_node.keys().cloned().collect()
    }
}

impl World {
    /// The world that follows from the records.
    ///
    /// # Errors
    /// A sentence naming the record that does not fit.
    pub fn load(revision: Revision, mut records: Vec<Record>) -> Result<Self, String> {
        let order = |record: &Record| match record {
            Record::Network(_) => 0,
            Record::Identity(_) | Record::Policy(_) => 1,
            _ => 2,
        };
        records.sort_by_key(order);
        let mut world = Self { revision, ..Self::default() };
        for record in records {
            if let Record::Policy(policy) = &record {
                Policy::parse(&policy.source)
                    .map_err(|error| format!("the stored policy of {}: {error}", policy.network))?;
            }
            world.put(record);
        }
        match world.early.first() {
            Some(record) => Err(format!("{:?} belongs to a network that is not stored", record.key())),
            None => Ok(world),
        }
    }

    /// Follows what the store has taken.
    pub fn apply(&mut self, revision: Revision, mutations: &[Mutation]) -> Touched {
        let mut touched = Touched::new();
        for mutation in mutations {
            touched.extend(match mutation {
                Mutation::Put(record) => self.put(record.clone()),
                Mutation::Delete(key) => self.delete(key),
            });
        }
        self.revision = revision;
        touched
    }

    fn put(&mut self, record: Record) -> Touched {
        match record {
            Record::Network(record) => {
                let name = record.name.clone();
                match self.networks.get_mut(&name) {
                    Some(network) => network.record = record,
                    None => {
                        self.networks.insert(name.clone(), NetworkState::new(record));
                    }
                }
                self.networks[&name].everyone()
            }
            Record::Node(record) => self.put_node(record),
            Record::Token(record) => {
                self.tokens.insert(record.id.clone(), record);
                Touched::new()
            }
            Record::Credential(record) => {
                self.credentials.insert(record.name.clone(), record);
                Touched::new()
            }
            Record::Identity(record) => {
                self.next_identity = self.next_identity.max(record.id.0);
                let Some(network) = self.networks.get_mut(&record.network) else {
                    self.early.push(Record::Identity(record));
                    return Touched::new();
                };
                network.by_labels.insert(record.labels.clone(), record.id);
                network.identities.insert(record.id, record);
                Touched::new()
            }
            Record::Workload(record) => {
                let Some(network) = self.networks.get_mut(&record.network) else {
                    self.early.push(Record::Workload(record));
                    return Touched::new();
                };
                self.workload_networks.insert(record.id.clone(), record.network.clone());
                let mut touched = network.remove_workload(&record.id);
                touched.extend(network.add_workload(record));
                touched
            }
            Record::Policy(record) => {
                let Some(network) = self.networks.get_mut(&record.network) else {
                    self.early.push(Record::Policy(record));
                    return Touched::new();
                };
                // Checked before it was stored, and again when it is loaded; if it is unreadable all the same, the
                // closed side is to allow nothing.
                let policy = Policy::parse(&record.source)
                    .unwrap_or_else(|_| Policy::deny_all(record.network.clone()));
                network.links = network.links.with_policy(policy);
                network.policy_source = record.source;
                network.everyone()
            }
            Record::Quarantine(record) => {
                let touched = self.targeted(&record.target);
                self.quarantines.insert(record.id.clone(), record);
                touched
            }
        }
    }

    fn put_node(&mut self, record: NodeRecord) -> Touched {
        let name = record.name.clone();
        let before = self.nodes.insert(name.clone(), record);
        let record = &self.nodes[&name];
        let mut touched = Touched::from([name.clone()]);
        for (network, state) in &self.networks {
            let same = before.as_ref().is_some_and(|before| {
                before.endpoints.get(network) == record.endpoints.get(network)
                    && before.blocks.get(network) == record.blocks.get(network)
            });
            if !same {
                touched.extend(state.meeting(&name));
            }
        }
        touched
    }

    fn delete(&mut self, key: &RecordKey) -> Touched {
        match key {
            RecordKey::Network(name) => {
                self.networks.remove(name);
                // Whoever had a block of it.
                self.nodes.keys().cloned().collect()
            }
            RecordKey::Node(name) => {
                let mut touched = Touched::from([name.clone()]);
                self.networks.values().for_each(|state| touched.extend(state.meeting(name)));
                self.nodes.remove(name);
                touched
            }
            RecordKey::Token(id) => {
                self.tokens.remove(id);
                Touched::new()
            }
            RecordKey::Credential(name) => {
                self.credentials.remove(name);
                Touched::new()
            }
            RecordKey::Identity(id) => {
                for network in self.networks.values_mut() {
                    if let Some(record) = network.identities.remove(id) {
                        network.by_labels.remove(&record.labels);
                    }
                }
                Touched::new()
            }
            RecordKey::Workload(id) => {
                let network = self.workload_networks.remove(id);
                let network = network.and_then(|network| self.networks.get_mut(&network));
                network.map(|network| network.remove_workload(id)).unwrap_or_default()
            }
            RecordKey::Policy(name) => {
                let Some(network) = self.networks.get_mut(name) else { return Touched::new() };
                network.links = network.links.with_policy(Policy::deny_all(name.clone()));
                network.policy_source.clear();
                network.everyone()
            }
            RecordKey::Quarantine(id) => {
                let removed = self.quarantines.remove(id);
                removed.map(|removed| self.targeted(&removed.target)).unwrap_or_default()
            }
        }
    }

    /// The nodes that are told of what a quarantine targets.
    fn targeted(&self, target: &QuarantineTarget) -> Touched {
        let mut touched = Touched::new();
        for (name, network) in &self.networks {
            if target.network.as_ref().is_some_and(|own| own != name) {
                continue;
            }
            for (identity, labels) in network.links.identities() {
                if target.selector.as_ref().is_some_and(|selector| selector.matches(labels)) {
                    touched.extend(network.interested(identity));
                }
            }
            if let Some(workload) = target.workload.as_ref().and_then(|id| network.workloads.get(id)) {
                touched.extend(network.interested(workload.identity));
            }
        }
        touched
    }

    /// Whether a quarantine selects an identity.
    pub fn is_quarantined(&self, network: &NetworkName, labels: &Labels) -> bool {
        self.quarantine_of(network, labels, None).is_some()
    }

    /// The quarantine that holds a workload, by its labels or by itself.
    pub fn quarantine_of(
        &self,
        network: &NetworkName,
        labels: &Labels,
        workload: Option<&WorkloadId>,
    ) -> Option<&Quarantine> {
        self.quarantines.values().find(|quarantine| {
            let target = &quarantine.target;
            let selected = target.selector.as_ref().is_some_and(|selector| selector.matches(labels))
                || (workload.is_some() && target.workload.as_ref() == workload);
            selected && target.network.as_ref().is_none_or(|own| own == network)
        })
    }

    /// Every workload with its labels and whether it is quarantined.
    pub fn workloads(&self) -> impl Iterator<Item = (&WorkloadRecord, &Labels, bool)> {
        self.networks.values().flat_map(move |network| {
            network.workloads.values().filter_map(move |workload| {
                let labels = &network.identities.get(&workload.identity)?.labels;
                let held = self.quarantine_of(&network.record.name, labels, Some(&workload.id)).is_some();
                Some((workload, labels, held))
            })
        })
    }

    /// The blocks of a network that nodes have.
    pub fn taken_blocks(&self, network: &NetworkName) -> BTreeSet<IpNet> {
        self.nodes.values().filter_map(|node| node.blocks.get(network)).flatten().copied().collect()
    }

    /// A number that no identity has had.
    pub fn next_identity(&self) -> IdentityId {
        IdentityId(self.next_identity + 1)
    }
}

impl NetworkState {
    /// The nodes that have `node` as a peer.
    fn meeting(&self, node: &NodeName) -> Touched {
        let own: BTreeSet<IdentityId> = self.workloads_on(node).map(|workload| workload.identity).collect();
        own.into_iter().flat_map(|identity| self.interested(identity)).collect()
    }
}
