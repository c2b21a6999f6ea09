//! The mesh at one revision: the records, and the indices that follow from them.

use super::{
    addresses::Addresses, drains::Drains, images::Images, keys::Keys, network::NetworkState,
    nodes::Nodes, quarantines::Quarantines,
};
use crate::records::{
    ApprovalRecord, ApprovedNodeRecord, CredentialRecord, QuarantineRecord, RelayRecord,
    TargetRecord, TokenRecord, WorkloadRecord, WorkloadRef,
};
use ipnet::IpNet;
use meshward_control_proto::relay::RelaySpec;
use meshward_policy::{LetIn, Policy, Rule};
use meshward_types::{
    IdentityId, LabelKey, Labels, NetworkName, NodeName, PortSpec, Revision, Selector, WorkloadId,
    relay::RelayNumber, selector::Requirement,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// An admitted workload, as policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct AdmittedWorkload<'a> {
    /// The workload's record.
    pub record: &'a WorkloadRecord,
    /// The verified labels.
    pub labels: &'a Labels,
    /// `true` while a quarantine cuts its links.
    pub is_quarantined: bool,
}

/// The mesh at one revision.
#[derive(Debug, Default)]
pub struct World {
    /// The revision.
    pub revision: Revision,
    /// The networks.
    pub networks: BTreeMap<NetworkName, NetworkState>,
    /// The nodes that have joined.
    pub nodes: Nodes,
    /// The nodes that were approved by name, before or after they joined.
    pub approved_nodes: BTreeMap<NodeName, ApprovedNodeRecord>,
    /// The relays that have joined.
    pub relays: BTreeMap<NodeName, RelayRecord>,
    /// The routes that an admin approved.
    pub approvals: BTreeSet<ApprovalRecord>,
    /// The join tokens by id.
    pub tokens: BTreeMap<String, TokenRecord>,
    /// The credentials by name.
    pub credentials: BTreeMap<String, CredentialRecord>,
    /// The quarantines in force.
    pub quarantines: Quarantines,
    /// The drains in force.
    pub drains: Drains,
    /// The networks of all workloads, refused ones included.
    pub workload_networks: HashMap<WorkloadId, NetworkName>,
    /// The signatures of images.
    pub images: Images,
    /// The owners of WireGuard keys.
    pub keys: Keys,
    /// The addresses that nodes claim for their endpoints.
    pub addresses: Addresses,
    /// The workloads that a trigger has given labels.
    pub overridden: BTreeSet<WorkloadId>,
    /// The largest number of an identity.
    pub(super) newest_identity: u32,
}

impl World {
    /// Returns a quarantine that isolates a workload, by its id or its labels.
    pub fn quarantine_of(
        &self,
        network: &NetworkName,
        labels: &Labels,
        workload: Option<&WorkloadId>,
    ) -> Option<&QuarantineRecord> {
        let by_id = workload.and_then(|id| self.quarantines.of_workload(id));
        by_id.or_else(|| self.quarantines.of_labels(network, labels))
    }

    /// Returns the admitted workloads of a quarantine's target, by id.
    pub fn targeted(&self, target: &TargetRecord) -> Vec<&WorkloadRecord> {
        let networks = self.networks.values().filter(|network| {
            target.network.as_ref().is_none_or(|own| *own == network.record.name)
        });
        let mut found: Vec<&WorkloadRecord> = networks
            .flat_map(|network| {
                let selected =
                    target.selector.iter().flat_map(|selector| network.links.select(selector));
                let by_id = target.workload.iter().filter_map(|id| network.workloads.get(id));
                selected.flat_map(|identity| network.workloads_of(identity)).chain(by_id)
            })
            .map(|record| &**record)
            .collect();
        found.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// Returns every admitted workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = AdmittedWorkload<'_>> {
        self.networks.values().flat_map(move |network| {
            let identities = network.links.identities();
            identities.flat_map(move |(identity, labels)| {
                let by_labels = self.quarantines.of_labels(&network.record.name, labels).is_some();
                let workloads = network.workloads_of(identity);
                workloads.map(move |workload| {
                    let by_id = || self.quarantines.state_of(&workload.id).quarantined;
                    AdmittedWorkload {
                        record: workload,
                        labels,
                        is_quarantined: by_labels || by_id(),
                    }
                })
            })
        })
    }

    /// Returns the number of quarantined workloads of a network.
    pub fn quarantined_in(&self, network: &NetworkState) -> usize {
        let name = &network.record.name;
        let identities = network.links.identities();
        let quarantined =
            identities.filter(|(_, labels)| self.quarantines.of_labels(name, labels).is_some());
        let quarantined: BTreeSet<IdentityId> = quarantined.map(|(identity, _)| identity).collect();
        let by_labels: usize =
            quarantined.iter().map(|identity| network.workloads_of(*identity).count()).sum();
        let by_id = self.quarantines.workloads().filter_map(|id| network.workloads.get(id));
        by_labels + by_id.filter(|workload| !quarantined.contains(&workload.identity)).count()
    }

    /// Returns the admitted workloads of a node.
    pub fn workloads_on(&self, node: &NodeName) -> impl Iterator<Item = &WorkloadRecord> {
        let index = self.nodes.index(node);
        self.networks
            .values()
            .flat_map(move |network| {
                index.into_iter().flat_map(move |index| network.workloads_on(index))
            })
            .map(|record| &**record)
    }

    /// Returns a workload, admitted or refused.
    pub fn workload(&self, id: &WorkloadId) -> Option<WorkloadRef<'_>> {
        self.networks.get(self.workload_networks.get(id)?)?.workload(id)
    }

    /// Returns the ids of a node's workloads, refused ones included.
    pub fn workload_ids_on(&self, node: &NodeName) -> Vec<WorkloadId> {
        let Some(index) = self.nodes.index(node) else { return vec![] };
        let refused = self.networks.values().flat_map(|network| network.refused_on(index));
        let refused = refused.map(|record| record.report.id.clone());
        self.workloads_on(node).map(|record| record.id.clone()).chain(refused).collect()
    }

    /// Returns the relays that have addresses, in the form that nodes get.
    pub fn relay_specs(&self) -> Vec<RelaySpec> {
        let reachable = self.relays.values().filter(|relay| !relay.addresses.is_empty());
        let spec = |relay: &RelayRecord| RelaySpec {
            number: RelayNumber(relay.number),
            name: relay.name.clone(),
            addresses: relay.addresses.clone(),
            stun_port: relay.stun_port,
        };
        reachable.map(spec).collect()
    }

    /// Returns the blocks of a network that belong to nodes or to services.
    pub fn assigned_blocks(&self, network: &NetworkName) -> BTreeSet<IpNet> {
        let own = self.nodes.values().filter_map(|node| node.blocks.get(network)).flatten();
        let services = self.networks.get(network).map(|own| &own.record.service_blocks);
        own.chain(services.into_iter().flatten()).copied().collect()
    }

    /// Returns the smallest number that no identity has had.
    pub fn next_identity(&self) -> IdentityId {
        IdentityId(self.newest_identity + 1)
    }

    /// Returns a policy with the rules of the quarantines in force that let workloads reach
    /// isolated ones.
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

    /// Returns the rule of a quarantine that lets workloads of a network reach isolated ones.
    fn let_in(&self, name: &NetworkName, quarantine: &QuarantineRecord) -> Option<LetIn> {
        let target = &quarantine.target;
        if target.network.as_ref().is_some_and(|own| own != name) {
            return None;
        }
        let from = quarantine.allow_from.clone()?;
        let to = match (&target.selector, &target.workload) {
            (Some(selector), _) => selector.clone(),
            (None, Some(id)) => self.exact_selector(name, id)?,
            (None, None) => return None,
        };
        let name = format!("quarantine {}", quarantine.id);
        let rule = Rule::allowing(name, from, to, vec![PortSpec::ANY]);
        Some(LetIn { rule, by_admin: quarantine.by_admin })
    }

    /// Returns the selector that requires all labels of a workload.
    fn exact_selector(&self, name: &NetworkName, id: &WorkloadId) -> Option<Selector> {
        let network = self.networks.get(name)?;
        let identity = network.identities.get(&network.workloads.get(id)?.identity)?;
        let exactly = |(key, value): (&LabelKey, &str)| {
            (key.clone(), Requirement::In(vec![value.to_owned()]))
        };
        Some(identity.labels.iter().map(exactly).collect())
    }
}
