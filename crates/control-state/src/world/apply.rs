//! Applies records to the world, and derives the deltas of nodes and relays on the way.

use super::{
    deltas::{DeltaBuilder, Deltas, NodeBefore, RelayDelta},
    keys::KeyOwner,
    network::{NetworkState, Subject},
    nodes::Nodes,
    resources::NetworkResources,
    state::World,
};
use crate::{
    plan::{PolicyUpdate, PolicyUpdates},
    records::{
        IdentityRecord, Mutation, NetworkRecord, NodeRecord, PolicyRecord, QuarantineRecord,
        Record, RecordKey, RefusedRecord, RelayRecord, TargetRecord, WorkloadRecord, WorkloadRef,
    },
};
use meshward_control_proto::relay::{ServedNode, ToRelay};
use meshward_policy::Policy;
use meshward_types::{
    IdentityId, NetworkName, NodeName, PolicyFile, Revision, WorkloadId, measurement::Measurement,
};
use std::sync::Arc;

/// A policy as its authors wrote it.
#[derive(Default)]
struct Written {
    files: Arc<Vec<PolicyFile>>,
    /// See [`PolicyRecord::resets`].
    resets: u64,
}

/// A change of an index.
#[derive(Clone, Copy)]
enum IndexChange {
    Add,
    Remove,
}

impl World {
    /// Derives the world from its records.
    ///
    /// # Errors
    /// Fails if a record does not fit the others; the error names it.
    pub fn load(revision: Revision, records: Vec<Record>) -> Result<Self, String> {
        Self::default().reload(revision, records)
    }

    /// Derives the world from its records. Nodes keep the indices that they have in this one.
    ///
    /// # Errors
    /// Fails if a record does not fit the others; the error names it.
    pub fn reload(&self, revision: Revision, mut records: Vec<Record>) -> Result<Self, String> {
        records.sort_by_key(Record::load_order);
        let mut world =
            Self { revision, nodes: Nodes::with_indices_of(&self.nodes), ..Self::default() };
        let mut deltas = Deltas::muted();
        for record in records {
            let mut policies = PolicyUpdates::new();
            world.check(&record, &mut policies)?;
            world.put(record, &policies, &mut deltas);
        }
        world.update_forensics(&mut deltas);
        world.networks.values_mut().for_each(NetworkState::find_concerned);
        let names: Vec<NetworkName> = world.networks.keys().cloned().collect();
        for name in names {
            world.with_builder(&name, &mut deltas, |builder| {
                builder.narrowing_changed();
            });
        }
        Ok(world)
    }

    /// Checks that a loaded record refers to records that exist. Parses a policy on the way.
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
            Record::Service(service) => &service.network,
            _ => match WorkloadRef::of(record) {
                Some(workload) if !self.nodes.contains_key(workload.node()) => {
                    return Err(format!("{:?} runs on a node that is not stored", record.key()));
                }
                Some(workload) => workload.network(),
                None => return Ok(()),
            },
        };
        match self.networks.contains_key(network) {
            true => Ok(()),
            false => Err(format!("{:?} belongs to a network that is not stored", record.key())),
        }
    }

    /// Applies a change that the store has committed. Returns the deltas of nodes and relays.
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
            Record::Network(record) => self.put_network(record, deltas),
            Record::Node(record) => self.put_node(record, deltas),
            Record::ApprovedNode(record) => {
                self.approved_nodes.insert(record.name.clone(), record);
            }
            Record::Relay(record) => self.put_relay(record, deltas),
            Record::Approval(record) => {
                self.approvals.insert(record);
            }
            Record::Token(record) => {
                self.tokens.insert(record.id.clone(), record);
            }
            Record::Credential(record) => {
                self.credentials.insert(record.name.clone(), record);
            }
            Record::Identity(record) => self.put_identity(record),
            Record::Workload(record) => self.put_workload(record, deltas),
            Record::Refused(record) => self.put_refused(*record, deltas),
            Record::Image(record) => self.images.put(record),
            Record::Policy(record) => self.put_policy(record, policies, deltas),
            Record::Quarantine(record) => self.put_quarantine(record, deltas),
            Record::Drain(record) => self.put_drain(record, deltas),
            Record::Service(record) => {
                let network = record.network.clone();
                self.with_builder(&network, deltas, |builder| builder.put_service(record));
            }
        }
    }

    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "a method of one lifetime is not a function of any"
    )]
    fn put_network(&mut self, record: NetworkRecord, deltas: &mut Deltas) {
        let name = record.name.clone();
        match self.networks.get_mut(&name) {
            Some(network) => network.record = record,
            None => {
                self.networks.insert(name.clone(), NetworkState::new(record));
            }
        }
        self.with_builder(&name, deltas, |builder| builder.network_changed());
    }

    fn put_node(&mut self, record: NodeRecord, deltas: &mut Deltas) {
        let name = record.name.clone();
        if self.nodes.get(&name).is_none_or(|known| known.key != record.key) {
            let admitted =
                ToRelay::Admit(ServedNode { node: name.clone(), key: record.key.clone() });
            deltas.push_relay(RelayDelta::Send(admitted));
        }
        let index = self.nodes.index(&name);
        let before = |network: &NetworkState| {
            let resources = NetworkResources {
                network,
                nodes: &self.nodes,
                quarantines: &self.quarantines,
                drains: &self.drains,
            };
            NodeBefore {
                site: index.and_then(|index| self.nodes.site(index)).map(str::to_owned),
                network: index.and_then(|index| resources.own_network(index)),
                peer: index.and_then(|index| resources.peer(index)),
            }
        };
        let before: Vec<(NetworkName, NodeBefore)> =
            self.networks.iter().map(|(name, network)| (name.clone(), before(network))).collect();
        self.index_endpoints(&name, IndexChange::Remove);
        let index = self.nodes.put(record);
        self.index_endpoints(&name, IndexChange::Add);
        for (network, before) in before {
            self.with_builder(&network, deltas, |builder| builder.node_changed(index, &before));
        }
    }

    fn put_relay(&mut self, record: RelayRecord, deltas: &mut Deltas) {
        self.relays.insert(record.name.clone(), record);
        deltas.push_relay(RelayDelta::Relays(self.relay_specs()));
    }

    fn put_identity(&mut self, record: IdentityRecord) {
        self.newest_identity = self.newest_identity.max(record.id.0);
        if let Some(network) = self.networks.get_mut(&record.network) {
            let (labels, accepts) = (record.labels.clone(), record.accepts.clone());
            let subject = Subject { labels, accepts };
            network.by_subject.insert(subject, record.id);
            network.identities.insert(record.id, record);
        }
    }

    fn put_workload(&mut self, mut record: WorkloadRecord, deltas: &mut Deltas) {
        // All workloads share one text of a name.
        if let (Some((name, _)), Some((node, _))) =
            (self.networks.get_key_value(&record.network), self.nodes.get_key_value(&record.node))
        {
            (record.network, record.node) = (name.clone(), node.clone());
        }
        let (id, name) = (record.id.clone(), record.network.clone());
        let known = self.networks.get(&name).and_then(|network| network.workloads.get(&id));
        if known.is_some_and(|known| known.is_same_flow_end(&record)) {
            return self.with_builder(&name, deltas, |builder| builder.update(record));
        }
        let is_known = self.workload_networks.insert(id.clone(), name.clone()).is_some();
        self.index_override(&id, record.label_override.is_some());
        if is_known {
            self.index_workload(&name, &id, IndexChange::Remove);
        }
        self.with_builder(&name, deltas, |builder| {
            if is_known {
                builder.remove_refused(&record.id);
                builder.stop(&record.id);
            }
            builder.start(record);
        });
        self.index_workload(&name, &id, IndexChange::Add);
        if self.quarantines.lets_forensics_to(&id) {
            // Its labels may have changed.
            self.update_forensics(deltas);
        }
    }

    fn put_refused(&mut self, record: RefusedRecord, deltas: &mut Deltas) {
        let (id, name) = (record.report.id.clone(), record.report.network.clone());
        self.workload_networks.insert(id.clone(), name.clone());
        self.index_override(&id, record.label_override.is_some());
        self.index_workload(&name, &id, IndexChange::Remove);
        self.with_builder(&name, deltas, |builder| {
            builder.cut(&id);
            builder.remove_refused(&id);
            builder.refuse(record);
        });
        self.index_workload(&name, &id, IndexChange::Add);
        if self.quarantines.lets_forensics_to(&id) {
            self.update_forensics(deltas);
        }
    }

    fn put_policy(&mut self, record: PolicyRecord, policies: &PolicyUpdates, deltas: &mut Deltas) {
        // It was checked before it was stored, and again when it was loaded. An unreadable one
        // fails closed.
        let parsed = || PolicyUpdate {
            policy: record
                .policy()
                .unwrap_or_else(|_| Arc::new(Policy::deny_all(record.network.clone()))),
            step: None,
        };
        let update = policies.get(&record.network).cloned().unwrap_or_else(parsed);
        let written = Written { files: record.files, resets: record.resets };
        self.set_policy(&record.network, update, written, deltas);
    }

    fn put_quarantine(&mut self, record: QuarantineRecord, deltas: &mut Deltas) {
        let (target, forensic) = (record.target.clone(), record.allow_from.is_some());
        let before = self.quarantines.get(&record.id);
        let was_forensic = before.is_some_and(|before| before.allow_from.is_some());
        self.quarantines.put(record);
        self.update_quarantined(&target, deltas);
        if forensic || was_forensic {
            self.update_forensics(deltas);
        }
    }

    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "a method of one lifetime is not a function of any"
    )]
    fn delete(&mut self, key: &RecordKey, policies: &PolicyUpdates, deltas: &mut Deltas) {
        match key {
            RecordKey::Network(name) => {
                self.with_builder(name, deltas, |builder| builder.network_deleted());
                self.networks.remove(name);
            }
            RecordKey::Node(name) => self.delete_node(name, deltas),
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
            RecordKey::Identity(id) => self.delete_identity(*id),
            RecordKey::Workload(id) => self.delete_workload(id, deltas),
            RecordKey::Image(digest) => self.images.remove(digest),
            RecordKey::Policy(name) => {
                let deny_all = || PolicyUpdate {
                    policy: Arc::new(Policy::deny_all(name.clone())),
                    step: None,
                };
                let update = policies.get(name).cloned().unwrap_or_else(deny_all);
                self.set_policy(name, update, Written::default(), deltas);
            }
            RecordKey::Drain(target) => self.remove_drain(target, deltas),
            RecordKey::Service(network, name) => {
                self.with_builder(network, deltas, |builder| builder.remove_service(name));
            }
            RecordKey::Quarantine(id) => {
                if let Some(removed) = self.quarantines.remove(id) {
                    self.update_quarantined(&removed.target, deltas);
                    if removed.allow_from.is_some() {
                        self.update_forensics(deltas);
                    }
                }
            }
        }
    }

    fn delete_node(&mut self, name: &NodeName, deltas: &mut Deltas) {
        let Some(index) = self.nodes.index(name) else { return };
        // Its workloads have been deleted before it, so no node has it as a peer.
        self.networks.values_mut().for_each(|network| network.remove_node(index));
        self.index_endpoints(name, IndexChange::Remove);
        self.nodes.remove(name);
        deltas.push_relay(RelayDelta::Send(ToRelay::Expel(name.clone())));
    }

    fn delete_identity(&mut self, id: IdentityId) {
        for network in self.networks.values_mut() {
            if let Some(record) = network.identities.remove(&id) {
                let IdentityRecord { labels, accepts, .. } = record;
                network.by_subject.remove(&Subject { labels, accepts });
            }
        }
    }

    fn delete_workload(&mut self, id: &WorkloadId, deltas: &mut Deltas) {
        self.overridden.remove(id);
        let Some(network) = self.workload_networks.remove(id) else { return };
        self.index_workload(&network, id, IndexChange::Remove);
        self.with_builder(&network, deltas, |builder| {
            builder.remove_refused(id);
            builder.stop(id);
        });
        if self.quarantines.lets_forensics_to(id) {
            self.update_forensics(deltas);
        }
    }

    fn set_policy(
        &mut self,
        name: &NetworkName,
        PolicyUpdate { policy, step }: PolicyUpdate,
        written: Written,
        deltas: &mut Deltas,
    ) {
        let revision = self.revision;
        let policy = self.with_forensics(name, policy);
        self.with_builder(name, deltas, |builder| {
            builder.set_policy(policy, step, written.resets);
            builder.network.policy_files = written.files;
            builder.network.policy_revision = Some(revision);
        });
    }

    /// Updates the policies after quarantines that let workloads in were imposed, changed or
    /// released.
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

    /// Updates the resources of a target after its quarantine was imposed or released.
    fn update_quarantined(&mut self, target: &TargetRecord, deltas: &mut Deltas) {
        if let Some(id) = &target.workload
            && let Some(name) = self.workload_networks.get(id).cloned()
        {
            self.with_builder(&name, deltas, |builder| builder.workload_state_changed(id));
        }
        let Some(selector) = &target.selector else { return };
        let names: Vec<NetworkName> = match &target.network {
            Some(name) => vec![name.clone()],
            None => self.networks.keys().cloned().collect(),
        };
        for name in names {
            self.with_builder(&name, deltas, |builder| {
                for identity in builder.network.links.select(selector) {
                    builder.identity_quarantine_changed(identity);
                }
            });
        }
    }

    pub(super) fn with_builder(
        &mut self,
        name: &NetworkName,
        deltas: &mut Deltas,
        change: impl FnOnce(&mut DeltaBuilder),
    ) {
        let Some(network) = self.networks.get_mut(name) else { return };
        change(&mut DeltaBuilder {
            network,
            nodes: &self.nodes,
            quarantines: &self.quarantines,
            drains: &self.drains,
            deltas,
        });
    }

    /// Adds a workload to, or removes it from, the index of those with labels of a trigger.
    fn index_override(&mut self, id: &WorkloadId, has_override: bool) {
        match has_override {
            true => self.overridden.insert(id.clone()),
            false => self.overridden.remove(id),
        };
    }

    /// Adds the images of a workload and the key of a device to their indices, or removes them.
    fn index_workload(&mut self, network: &NetworkName, id: &WorkloadId, change: IndexChange) {
        let Some(workload) = self.networks.get(network).and_then(|own| own.workload(id)) else {
            return;
        };
        if let Some(key) = workload.device() {
            let owner = KeyOwner::Device(id.clone());
            match change {
                IndexChange::Add => self.keys.add(key, &owner),
                IndexChange::Remove => self.keys.remove(key, &owner),
            }
        }
        for image in workload.measurement().into_iter().flat_map(Measurement::all_images) {
            match change {
                IndexChange::Add => self.images.add_use(image.digest),
                IndexChange::Remove => self.images.remove_use(image.digest),
            }
        }
    }

    /// Adds the keys and addresses of a node's endpoints to their indices, or removes them.
    fn index_endpoints(&mut self, name: &NodeName, change: IndexChange) {
        let Some(node) = self.nodes.get(name) else { return };
        let owner = KeyOwner::Node(name.clone());
        for endpoint in node.endpoints.values() {
            match change {
                IndexChange::Add => {
                    endpoint.keys().for_each(|key| self.keys.add(key, &owner));
                    self.addresses.add(endpoint, name);
                }
                IndexChange::Remove => {
                    endpoint.keys().for_each(|key| self.keys.remove(key, &owner));
                    self.addresses.remove(endpoint, name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
