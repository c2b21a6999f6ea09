//! The mesh as it is at one revision: the records, and what follows from them.
//!
//! Nothing here writes: plans read the world and name mutations, the store takes them, and
//! [`World::apply`] follows. It also says what each node is to be told of them, so that a change
//! costs what it concerns.

use super::{
    addresses::Addresses,
    deltas::{DeltaBuilder, Deltas, RelayDelta},
    images::Images,
    keys::{KeyOwner, Keys},
    network::NetworkState,
    nodes::Nodes,
    quarantines::Quarantines,
    resources::NetworkResources,
};
use crate::{
    plan::{PolicyUpdate, PolicyUpdates},
    records::{
        ApprovalRecord, ApprovedNodeRecord, CredentialRecord, Mutation, NodeRecord,
        QuarantineRecord, Record, RecordKey, RefusedRecord, RelayRecord, Standing, TargetRecord,
        TokenRecord, WorkloadRecord,
    },
};
use ipnet::IpNet;
use meshward_control_proto::relay::{RelaySpec, ToRelay};
use meshward_policy::{LetIn, Policy, Rule};
use meshward_types::{
    IdentityId, LabelKey, Labels, NetworkName, NodeName, PolicyFile, PortSpec, Revision,
    WorkloadId, relay::RelayNumber, selector::Requirement,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// The mesh at one revision.
#[derive(Debug, Default)]
pub struct World {
    pub revision: Revision,
    pub networks: BTreeMap<NetworkName, NetworkState>,
    pub nodes: Nodes,
    /// The nodes that were approved by name, whether or not they have joined.
    pub approved_nodes: BTreeMap<NodeName, ApprovedNodeRecord>,
    pub relays: BTreeMap<NodeName, RelayRecord>,
    /// What may be behind which node.
    pub approvals: BTreeSet<ApprovalRecord>,
    pub tokens: BTreeMap<String, TokenRecord>,
    pub credentials: BTreeMap<String, CredentialRecord>,
    pub quarantines: Quarantines,
    /// The networks of all workloads, those that are not let in included.
    pub workload_networks: HashMap<WorkloadId, NetworkName>,
    /// The signatures of images.
    pub images: Images,
    /// Whose the WireGuard keys are.
    pub keys: Keys,
    /// Where nodes say that their endpoints are.
    pub addresses: Addresses,
    /// The workloads that a trigger has given labels.
    pub overridden: BTreeSet<WorkloadId>,
    next_identity: u32,
}

impl World {
    /// The world that follows from the records.
    ///
    /// # Errors
    /// A sentence naming the record that does not fit.
    pub fn load(revision: Revision, records: Vec<Record>) -> Result<Self, String> {
        Self::default().reload(revision, records)
    }

    /// The world that follows from the records, in which nodes have the indices that they have in
    /// this one.
    ///
    /// # Errors
    /// A sentence naming the record that does not fit.
    pub fn reload(&self, revision: Revision, mut records: Vec<Record>) -> Result<Self, String> {
        records.sort_by_key(Record::load_order);
        let mut world =
            Self { revision, nodes: Nodes::with_indices_of(&self.nodes), ..Self::default() };
        let mut nobody = Deltas::muted();
        for record in records {
            let mut policies = PolicyUpdates::new();
            world.check(&record, &mut policies)?;
            world.put(record, &policies, &mut nobody);
        }
        world.update_forensics(&mut nobody);
        Ok(world)
    }

    /// Checks that a record that was loaded fits to those before it. A policy is parsed on the way.
    fn check(&self, record: &Record, policies: &mut PolicyUpdates) -> Result<(), String> {
        let network = match record {
            Record::Policy(record) => {
                let policy = record.policy();
                let policy = policy
                    .map_err(|error| format!("the stored policy of {}: {error}", record.network))?;
                policies.insert(record.network.clone(), PolicyUpdate { policy, step: None });
                &record.network
            }
            Record::Identity(identity) => &identity.network,
            _ => match Standing::of(record) {
                Some(known) if !self.nodes.contains_key(known.node()) => {
                    return Err(format!("{:?} runs on a node that is not stored", record.key()));
                }
                Some(known) => known.network(),
                None => return Ok(()),
            },
        };
        match self.networks.contains_key(network) {
            true => Ok(()),
            false => Err(format!("{:?} belongs to a network that is not stored", record.key())),
        }
    }

    /// Applies what the store has written, and returns what nodes and relays are to be told.
    pub fn apply(
        &mut self,
        revision: Revision,
        mutations: &[Mutation],
        policies: &PolicyUpdates,
    ) -> Deltas {
        let mut deltas = Deltas::default();
        self.revision = revision;
        for mutation in mutations {
            match mutation {
                Mutation::Put(record) => self.put(record.clone(), policies, &mut deltas),
                Mutation::Delete(key) => self.delete(key, policies, &mut deltas),
            }
        }
        deltas
    }

    fn put(&mut self, record: Record, policies: &PolicyUpdates, deltas: &mut Deltas) {
        match record {
            Record::Network(record) => {
                let name = record.name.clone();
                match self.networks.get_mut(&name) {
                    Some(network) => network.record = record,
                    None => {
                        self.networks.insert(name.clone(), NetworkState::new(record));
                    }
                }
                self.with_builder(&name, deltas, |builder| builder.network_changed());
            }
            Record::Node(record) => self.put_node(record, deltas),
            Record::ApprovedNode(record) => {
                self.approved_nodes.insert(record.name.clone(), record);
            }
            Record::Relay(record) => {
                self.relays.insert(record.name.clone(), record);
                deltas.push_relay(RelayDelta::Relays(self.relay_specs()));
            }
            Record::Approval(record) => {
                self.approvals.insert(record);
            }
            Record::Token(record) => {
                self.tokens.insert(record.id.clone(), record);
            }
            Record::Credential(record) => {
                self.credentials.insert(record.name.clone(), record);
            }
            Record::Identity(record) => {
                self.next_identity = self.next_identity.max(record.id.0);
                if let Some(network) = self.networks.get_mut(&record.network) {
                    let subject = (record.labels.clone(), record.accepts.clone());
                    network.by_subject.insert(subject, record.id);
                    network.identities.insert(record.id, record);
                }
            }
            Record::Workload(record) => self.put_workload(record, deltas),
            Record::Refused(record) => self.put_refused(*record, deltas),
            Record::Image(record) => self.images.put(record),
            Record::Policy(record) => {
                // Checked before it was stored, and again when it is loaded; if it is unreadable
                // all the same, the closed side is to allow nothing.
                let parsed = || PolicyUpdate {
                    policy: record
                        .policy()
                        .unwrap_or_else(|_| Arc::new(Policy::deny_all(record.network.clone()))),
                    step: None,
                };
                let update = policies.get(&record.network).cloned().unwrap_or_else(parsed);
                self.set_policy(&record.network, update, (record.files, record.resets), deltas);
            }
            Record::Quarantine(record) => {
                let (target, forensic) = (record.target.clone(), record.allow_from.is_some());
                let before = self
                    .quarantines
                    .get(&record.id)
                    .is_some_and(|before| before.allow_from.is_some());
                self.quarantines.put(record);
                self.update_held(&target, deltas);
                if forensic || before {
                    self.update_forensics(deltas);
                }
            }
        }
    }

    fn put_workload(&mut self, mut record: WorkloadRecord, deltas: &mut Deltas) {
        // One text for a name, however many workloads have it.
        if let (Some((name, _)), Some((node, _))) =
            (self.networks.get_key_value(&record.network), self.nodes.get_key_value(&record.node))
        {
            (record.network, record.node) = (name.clone(), node.clone());
        }
        let name = record.network.clone();
        let known = self.workload_networks.insert(record.id.clone(), name.clone()).is_some();
        let id = record.id.clone();
        self.note_override(&id, record.label_override.is_some());
        if known {
            self.note_image(&name, &id, false);
            self.note_device(&name, &id, false);
        }
        let measurement = record.measurement.clone();
        self.with_builder(&name, deltas, |builder| {
            if known {
                builder.forget_refused(&record.id);
                builder.stop(&record.id);
            }
            builder.start(record);
        });
        if measurement.is_some() {
            self.note_image(&name, &id, true);
        }
        self.note_device(&name, &id, true);
        if self.quarantines.lets_forensics_to(&id) {
            // Its labels may be others.
            self.update_forensics(deltas);
        }
    }

    fn put_refused(&mut self, record: RefusedRecord, deltas: &mut Deltas) {
        let (id, name) = (record.report.id.clone(), record.report.network.clone());
        self.workload_networks.insert(id.clone(), name.clone());
        self.note_override(&id, record.label_override.is_some());
        self.note_image(&name, &id, false);
        self.note_device(&name, &id, false);
        self.with_builder(&name, deltas, |builder| {
            builder.cut(&id);
            builder.forget_refused(&id);
            builder.refuse(record);
        });
        self.note_image(&name, &id, true);
        self.note_device(&name, &id, true);
        if self.quarantines.lets_forensics_to(&id) {
            self.update_forensics(deltas);
        }
    }

    /// Notes whether a trigger has given a workload labels.
    fn note_override(&mut self, id: &WorkloadId, has: bool) {
        match has {
            true => self.overridden.insert(id.clone()),
            false => self.overridden.remove(id),
        };
    }

    /// Notes that the images of a workload are used, or are not any more.
    fn note_image(&mut self, network: &NetworkName, id: &WorkloadId, used: bool) {
        let Some(network) = self.networks.get(network) else { return };
        let running = network.workloads.get(id).map(|record| &record.measurement);
        let refused = network.refused.get(id).map(|record| &record.report.measurement);
        let Some(Some(measured)) = running.or(refused) else { return };
        measured.all_images().for_each(|image| self.images.note(image.digest, used));
    }

    /// Notes that a workload, if it is a device, has its key, or has it no more.
    fn note_device(&mut self, network: &NetworkName, id: &WorkloadId, has: bool) {
        let known = self.networks.get(network).and_then(|network| network.standing(id));
        let Some(key) = known.and_then(|known| known.device()) else { return };
        let owner = KeyOwner::Device(id.clone());
        if has { self.keys.note(key, &owner) } else { self.keys.forget(key, &owner) }
    }

    /// Notes that a node has the keys and addresses of its endpoints, or has them no more.
    fn note_endpoints(&mut self, name: &NodeName, has: bool) {
        let Some(node) = self.nodes.get(name) else { return };
        let owner = KeyOwner::Node(name.clone());
        for endpoint in node.endpoints.values() {
            match has {
                true => {
                    endpoint.keys().for_each(|key| self.keys.note(key, &owner));
                    self.addresses.note(endpoint, name);
                }
                false => {
                    endpoint.keys().for_each(|key| self.keys.forget(key, &owner));
                    self.addresses.forget(endpoint, name);
                }
            }
        }
    }

    fn put_node(&mut self, record: NodeRecord, deltas: &mut Deltas) {
        let name = record.name.clone();
        if self.nodes.get(&name).is_none_or(|known| known.key != record.key) {
            let admitted = ToRelay::Admit(name.clone(), record.key.clone());
            deltas.push_relay(RelayDelta::Tell(admitted));
        }
        let index = self.nodes.index(&name);
        let before: Vec<_> = self
            .networks
            .values()
            .map(|network| {
                let resources = NetworkResources {
                    network,
                    nodes: &self.nodes,
                    quarantines: &self.quarantines,
                };
                let resource = |found: Option<(_, _)>| found.map(|(_, resource)| resource);
                (
                    resource(index.and_then(|at| resources.own_network(at))),
                    resource(index.and_then(|at| resources.peer(at))),
                )
            })
            .collect();
        self.note_endpoints(&name, false);
        let index = self.nodes.put(record);
        self.note_endpoints(&name, true);
        let names: Vec<NetworkName> = self.networks.keys().cloned().collect();
        for (network, before) in names.iter().zip(before) {
            self.with_builder(network, deltas, |builder| builder.node_changed(index, before));
        }
    }

    fn set_policy(
        &mut self,
        name: &NetworkName,
        PolicyUpdate { policy, step }: PolicyUpdate,
        (files, resets): (Arc<Vec<PolicyFile>>, u64),
        deltas: &mut Deltas,
    ) {
        let revision = self.revision;
        let policy = self.with_forensics(name, policy);
        self.with_builder(name, deltas, |builder| {
            builder.set_policy(policy, step, resets);
            builder.network.policy_files = files;
            builder.network.policy_revision = Some(revision);
        });
    }

    /// The policy, with who may still reach what is quarantined.
    pub fn with_forensics(&self, name: &NetworkName, policy: Arc<Policy>) -> Arc<Policy> {
        let let_in: Vec<LetIn> = self
            .quarantines
            .values()
            .filter_map(|quarantine| self.let_in(name, quarantine))
            .collect();
        if policy.let_in == let_in {
            return policy;
        }
        Arc::new(Policy { let_in, ..Policy::clone(&policy) })
    }

    fn let_in(&self, name: &NetworkName, quarantine: &QuarantineRecord) -> Option<LetIn> {
        let from = quarantine.allow_from.clone()?;
        let to = match (&quarantine.target.selector, &quarantine.target.workload) {
            (Some(selector), _) => selector.clone(),
            (None, Some(id)) => {
                let network = self.networks.get(name)?;
                let identity = network.identities.get(&network.workloads.get(id)?.identity)?;
                let exactly = |(key, value): (&LabelKey, &str)| {
                    (key.clone(), Requirement::In(vec![value.to_owned()]))
                };
                identity.labels.iter().map(exactly).collect()
            }
            (None, None) => return None,
        };
        let elsewhere = quarantine.target.network.as_ref().is_some_and(|own| own != name);
        let name = format!("quarantine {}", quarantine.id);
        let rule = Rule {
            name,
            from,
            to,
            allow: vec![PortSpec::ANY],
            deny: vec![],
            observe: false,
            on_deny: None,
        };
        (!elsewhere).then_some(LetIn { rule, by_admin: quarantine.by_admin })
    }

    /// Follows that quarantines with forensics have come, gone or moved.
    fn update_forensics(&mut self, deltas: &mut Deltas) {
        let names: Vec<NetworkName> = self.networks.keys().cloned().collect();
        for name in names {
            let before = self.networks[&name].links.policy().clone();
            let after = self.with_forensics(&name, before.clone());
            if !Arc::ptr_eq(&before, &after) {
                self.with_builder(&name, deltas, |builder| {
                    let resets = builder.network.resets;
                    builder.set_policy(after, None, resets);
                });
            }
        }
    }

    fn delete(&mut self, key: &RecordKey, policies: &PolicyUpdates, deltas: &mut Deltas) {
        match key {
            RecordKey::Network(name) => {
                self.with_builder(name, deltas, |builder| builder.network_deleted());
                self.networks.remove(name);
            }
            RecordKey::Node(name) => {
                let Some(index) = self.nodes.index(name) else { return };
                let networks: Vec<NetworkName> = self.networks.keys().cloned().collect();
                for network in &networks {
                    // Its workloads have been deleted before it, so nobody has it as a peer.
                    self.with_builder(network, deltas, |builder| {
                        builder.network.forget_node(index)
                    });
                }
                self.note_endpoints(name, false);
                self.nodes.remove(name);
                deltas.push_relay(RelayDelta::Tell(ToRelay::Expel(name.clone())));
            }
            RecordKey::ApprovedNode(name) => {
                self.approved_nodes.remove(name);
            }
            RecordKey::Relay(name) => {
                self.relays.remove(name);
                deltas.push_relay(RelayDelta::Disconnect(name.clone()));
                deltas.push_relay(RelayDelta::Relays(self.relay_specs()));
            }
            RecordKey::Approval(record) => {
                self.approvals.remove(record);
            }
            RecordKey::Token(id) => {
                self.tokens.remove(id);
            }
            RecordKey::Credential(name) => {
                self.credentials.remove(name);
            }
            RecordKey::Identity(id) => {
                for network in self.networks.values_mut() {
                    if let Some(record) = network.identities.remove(id) {
                        network.by_subject.remove(&(record.labels, record.accepts));
                    }
                }
            }
            RecordKey::Workload(id) => {
                self.overridden.remove(id);
                if let Some(network) = self.workload_networks.remove(id) {
                    self.note_image(&network, id, false);
                    self.note_device(&network, id, false);
                    self.with_builder(&network, deltas, |builder| {
                        builder.forget_refused(id);
                        builder.stop(id);
                    });
                    if self.quarantines.lets_forensics_to(id) {
                        self.update_forensics(deltas);
                    }
                }
            }
            RecordKey::Image(digest) => self.images.remove(digest),
            RecordKey::Policy(name) => {
                let deny_all = || PolicyUpdate {
                    policy: Arc::new(Policy::deny_all(name.clone())),
                    step: None,
                };
                let update = policies.get(name).cloned().unwrap_or_else(deny_all);
                self.set_policy(name, update, Default::default(), deltas);
            }
            RecordKey::Quarantine(id) => {
                if let Some(removed) = self.quarantines.remove(id) {
                    self.update_held(&removed.target, deltas);
                    if removed.allow_from.is_some() {
                        self.update_forensics(deltas);
                    }
                }
            }
        }
    }

    fn with_builder(
        &mut self,
        name: &NetworkName,
        deltas: &mut Deltas,
        what: impl FnOnce(&mut DeltaBuilder),
    ) {
        let Some(network) = self.networks.get_mut(name) else { return };
        what(&mut DeltaBuilder {
            network,
            nodes: &self.nodes,
            quarantines: &self.quarantines,
            deltas,
        });
    }

    /// A quarantine of a target has come or gone.
    fn update_held(&mut self, target: &TargetRecord, deltas: &mut Deltas) {
        if let Some(id) = &target.workload
            && let Some(name) = self.workload_networks.get(id).cloned()
        {
            self.with_builder(&name, deltas, |builder| builder.workload_held(id));
        }
        let Some(selector) = &target.selector else { return };
        let names: Vec<NetworkName> = match &target.network {
            Some(name) => vec![name.clone()],
            None => self.networks.keys().cloned().collect(),
        };
        for name in names {
            self.with_builder(&name, deltas, |builder| {
                let held = builder.network.links.select(selector);
                held.into_iter().for_each(|identity| builder.identity_held(identity));
            });
        }
    }

    /// The quarantine that holds a workload, by its labels or by itself.
    pub fn quarantine_of(
        &self,
        network: &NetworkName,
        labels: &Labels,
        workload: Option<&WorkloadId>,
    ) -> Option<&QuarantineRecord> {
        let alone = workload.and_then(|id| self.quarantines.of_workload(id));
        alone.or_else(|| self.quarantines.selects(network, labels))
    }

    /// The workloads that a target names, whose network it allows.
    pub fn targeted(&self, target: &TargetRecord) -> Vec<&WorkloadRecord> {
        let networks = self.networks.values().filter(|network| {
            target.network.as_ref().is_none_or(|own| *own == network.record.name)
        });
        let mut found: Vec<&WorkloadRecord> = networks
            .flat_map(|network| {
                let selected =
                    target.selector.iter().flat_map(|selector| network.links.select(selector));
                let alone = target.workload.iter().filter_map(|id| network.workloads.get(id));
                selected.flat_map(|identity| network.workloads_of(identity)).chain(alone)
            })
            .map(|record| &**record)
            .collect();
        found.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// Every workload with its labels and whether it is quarantined, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = (&WorkloadRecord, &Labels, bool)> {
        self.networks.values().flat_map(move |network| {
            let identities = network.links.identities();
            identities.flat_map(move |(identity, labels)| {
                let held = self.quarantines.selects(&network.record.name, labels).is_some();
                let workloads = network.workloads_of(identity);
                workloads.map(move |workload| {
                    (&**workload, labels, held || self.quarantines.holds(&workload.id).quarantined)
                })
            })
        })
    }

    /// How many workloads of a network are quarantined.
    pub fn quarantined_in(&self, network: &NetworkState) -> usize {
        let name = &network.record.name;
        let identities = network.links.identities();
        let held =
            identities.filter(|(_, labels)| self.quarantines.selects(name, labels).is_some());
        let held: BTreeSet<IdentityId> = held.map(|(identity, _)| identity).collect();
        let by_labels: usize =
            held.iter().map(|identity| network.workloads_of(*identity).count()).sum();
        let alone = self.quarantines.workloads().filter_map(|id| network.workloads.get(id));
        by_labels + alone.filter(|workload| !held.contains(&workload.identity)).count()
    }

    /// The workloads of a node.
    pub fn workloads_on(&self, node: &NodeName) -> impl Iterator<Item = &WorkloadRecord> {
        let index = self.nodes.index(node);
        self.networks
            .values()
            .flat_map(move |network| {
                index.into_iter().flat_map(move |index| network.workloads_on(index))
            })
            .map(|record| &**record)
    }

    /// A workload as it stands.
    pub fn standing(&self, id: &WorkloadId) -> Option<Standing<'_>> {
        self.networks.get(self.workload_networks.get(id)?)?.standing(id)
    }

    /// The ids of a node's workloads, those that are not let in included.
    pub fn workload_ids_on(&self, node: &NodeName) -> Vec<WorkloadId> {
        let Some(index) = self.nodes.index(node) else { return vec![] };
        let refused = self.networks.values().flat_map(|network| network.refused_on(index));
        let refused = refused.map(|record| record.report.id.clone());
        self.workloads_on(node).map(|record| record.id.clone()).chain(refused).collect()
    }

    /// The relays that have addresses, as nodes are told of them.
    pub fn relay_specs(&self) -> Vec<RelaySpec> {
        let placed = self.relays.values().filter(|relay| !relay.addresses.is_empty());
        let spec = |relay: &RelayRecord| RelaySpec {
            number: RelayNumber(relay.number),
            name: relay.name.clone(),
            addresses: relay.addresses.clone(),
            stun_port: relay.stun_port,
        };
        placed.map(spec).collect()
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

#[cfg(test)]
mod tests;
