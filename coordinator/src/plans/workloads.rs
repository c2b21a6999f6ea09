//! Workloads: what a node says that it runs, checked against what it may.

use crate::{
    mesh::{Plan, Refusal},
    records::{IdentityRecord, Mutation, Record, RecordKey, WorkloadRecord},
    world::World,
};
use meshward_model::{IdentityId, Labels, NetworkName, NodeName, WorkloadId, control::WorkloadReport};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

/// The workloads of a report that are refused, and why.
pub type Refused = Vec<(WorkloadId, String)>;

/// Takes all that a node runs: what it no longer names has stopped while it was away.
pub fn reconcile(
    world: &World,
    node: &NodeName,
    reports: &[WorkloadReport],
) -> Result<Plan<Refused>, Refusal> {
    let named: BTreeSet<&WorkloadId> = reports.iter().map(|report| &report.id).collect();
    let gone = world
        .networks
        .values()
        .flat_map(|network| network.workloads_on(node))
        .filter(|workload| !named.contains(&workload.id))
        .map(|workload| Mutation::Delete(RecordKey::Workload(workload.id.clone())));
    let mut batch = Batch { mutations: gone.collect(), ..Batch::new(world, node)? };
    let stopped = batch.mutations.len();
    reports.iter().for_each(|report| batch.admit(report));
    let started = batch.started;
    Ok(batch.plan(format!("node {node} came back: {started} workloads started, {stopped} stopped meanwhile")))
}

/// Takes workloads that have started.
pub fn start(world: &World, node: &NodeName, reports: &[WorkloadReport]) -> Result<Plan<Refused>, Refusal> {
    let mut batch = Batch::new(world, node)?;
    reports.iter().for_each(|report| batch.admit(report));
    let names: Vec<String> =
        reports.iter().map(|report| format!("{} ({})", report.name, report.id)).collect();
    Ok(batch.plan(format!("started {}", names.join(", "))))
}

/// Takes that workloads have stopped.
pub fn stop(world: &World, node: &NodeName, ids: &[WorkloadId]) -> Result<Plan<()>, Refusal> {
    let own = ids.iter().filter(|id| {
        let network = world.workload_networks.get(*id).and_then(|network| world.networks.get(network));
        network.and_then(|network| network.workloads.get(*id)).is_some_and(|workload| workload.node == *node)
    });
    let mutations: Vec<_> = own.clone().map(|id| Mutation::Delete(RecordKey::Workload(id.clone()))).collect();
    let names: Vec<&str> = own.map(WorkloadId::as_str).collect();
    Ok(Plan { mutations, action: format!("stopped {}", names.join(", ")), outcome: () })
}

/// Workloads of one node that are admitted together.
struct Batch<'a> {
    world: &'a World,
    node: &'a crate::records::NodeRecord,
    mutations: Vec<Mutation>,
    refused: Refused,
    started: usize,
    /// Identities and addresses that this batch gives out, unknown to the world as yet.
    identities: HashMap<(NetworkName, Labels), IdentityId>,
    addresses: HashMap<(NetworkName, IpAddr), WorkloadId>,
}

impl<'a> Batch<'a> {
    fn new(world: &'a World, node: &NodeName) -> Result<Self, Refusal> {
        let node = world
            .nodes
            .get(node)
            .ok_or_else(|| Refusal::Missing(format!("node `{node}` was removed from the mesh")))?;
        Ok(Self {
            world,
            node,
            mutations: vec![],
            refused: vec![],
            started: 0,
            identities: HashMap::new(),
            addresses: HashMap::new(),
        })
    }

    fn plan(self, action: String) -> Plan<Refused> {
        Plan { mutations: self.mutations, action, outcome: self.refused }
    }

    fn admit(&mut self, report: &WorkloadReport) {
        match self.check(report) {
            Err(reason) => self.refused.push((report.id.clone(), reason)),
            Ok(labels) => self.put(report, labels),
        }
    }

    /// What policy is to see of the workload, if the node may run it.
    fn check(&self, report: &WorkloadReport) -> Result<Labels, String> {
        let (network, node) = (&report.network, self.node);
        let state = self.world.networks.get(network).ok_or(format!("there is no network `{network}`"))?;
        let blocks = node.blocks.get(network).ok_or_else(|| match node.problems.get(network) {
            Some(problem) => problem.clone(),
            None => format!(
                "node {} may not serve network `{network}`: its join token did not name it",
                node.name
            ),
        })?;
        if report.addresses.is_empty() {
            return Err("it has no address".into());
        }
        if self.world.workload_networks.get(&report.id).is_some_and(|own| own != network) {
            return Err(format!("workload id {} is used in another network", report.id));
        }
        if state.workloads.get(&report.id).is_some_and(|workload| workload.node != node.name) {
            return Err(format!("workload id {} belongs to another node", report.id));
        }
        for address in &report.addresses {
            if !blocks.iter().any(|block| block.contains(address)) {
                return Err(format!("{address} is not in a block of node {}", node.name));
            }
            let known = state.by_address.get(address);
            let new = self.addresses.get(&(network.clone(), *address));
            let leaving = |id: &&WorkloadId| {
                !self.mutations.contains(&Mutation::Delete(RecordKey::Workload((*id).clone())))
            };
            if let Some(other) = known.filter(leaving).or(new).filter(|id| **id != report.id) {
                return Err(format!("{address} belongs to workload {other}"));
            }
        }
        report.labels.check_unreserved().map_err(|error| error.to_string())?;
        match &node.site {
            Some(site) => report.labels.clone().with_fact("site", site).map_err(|error| error.to_string()),
            None => Ok(report.labels.clone()),
        }
    }

    fn put(&mut self, report: &WorkloadReport, labels: Labels) {
        let network = &report.network;
        let identity = self.identity(network, labels);
        for address in &report.addresses {
            self.addresses.insert((network.clone(), *address), report.id.clone());
        }
        let record = WorkloadRecord {
            id: report.id.clone(),
            network: network.clone(),
            node: self.node.name.clone(),
            name: report.name.clone(),
            addresses: report.addresses.clone(),
            declared: report.labels.clone(),
            identity,
        };
        let known = self.world.networks[network].workloads.get(&report.id);
        if known != Some(&record) {
            self.started += 1;
            self.mutations.push(Mutation::Put(Record::Workload(record)));
        }
    }

    fn identity(&mut self, network: &NetworkName, labels: Labels) -> IdentityId {
        if let Some(id) = self.world.networks[network].by_labels.get(&labels) {
            return *id;
        }
        let next = IdentityId(self.world.next_identity().0 + self.identities.len() as u32);
        let id = *self.identities.entry((network.clone(), labels.clone())).or_insert(next);
        if id == next {
            let record = IdentityRecord { id, network: network.clone(), labels };
            self.mutations.push(Mutation::Put(Record::Identity(record)));
        }
        id
    }
}
