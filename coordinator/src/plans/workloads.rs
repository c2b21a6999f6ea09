//! Workloads: what nodes say that they run, checked against what they may.

use crate::{
    mesh::{Plan, Refusal},
    records::{Given, IdentityRecord, Mutation, NodeRecord, Record, RecordKey, WorkloadRecord},
    world::{Subject, World},
};
use meshward_model::{
    AcceptFrom, IdentityId, Labels, NetworkName, NodeName, WorkloadId, control::WorkloadReport,
    labels::BadLabel,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

/// The workloads of a report that are refused, and why.
pub type Refused = Vec<(WorkloadId, String)>;

/// The most workloads that the audit log names one by one.
const NAMED: usize = 8;

/// The most identities without a workload that a network keeps: what comes back soon has its number again, and labels that
/// are never seen again do not pile up.
const MAX_IDLE: usize = 1024;

/// What a node says.
#[derive(Debug, Clone)]
pub enum Report {
    /// All that it runs: what is not named has stopped while it was away.
    All(Vec<WorkloadReport>),
    /// A workload has started, or is other than it was.
    Started(WorkloadReport),
    /// A workload has stopped.
    Stopped(WorkloadId),
}

/// Takes what nodes say, each in its order.
pub fn take(world: &World, reports: &[(&NodeName, &[Report])]) -> Plan<Vec<Result<Refused, Refusal>>> {
    let mut batch = Batch::new(world);
    let outcome = reports.iter().map(|(node, reports)| batch.take(node, reports)).collect();
    if !batch.mutations.is_empty() {
        batch.forget_idle_identities();
    }
    Plan { action: batch.action(), mutations: batch.mutations, outcome }
}

/// Reports that are planned together: the world, and on top of it what they change.
struct Batch<'a> {
    world: &'a World,
    mutations: Vec<Mutation>,
    started: Vec<String>,
    stopped: Vec<String>,
    /// Workloads that have stopped, and those that have started.
    gone: HashSet<WorkloadId>,
    new: HashMap<WorkloadId, WorkloadRecord>,
    identities: HashMap<(NetworkName, Subject), IdentityId>,
    addresses: HashMap<(NetworkName, IpAddr), WorkloadId>,
}

impl<'a> Batch<'a> {
    fn new(world: &'a World) -> Self {
        Self {
            world,
            mutations: vec![],
            started: vec![],
            stopped: vec![],
            gone: HashSet::new(),
            new: HashMap::new(),
            identities: HashMap::new(),
            addresses: HashMap::new(),
        }
    }

    fn take(&mut self, node: &NodeName, reports: &[Report]) -> Result<Refused, Refusal> {
        let node = self
            .world
            .nodes
            .get(node)
            .ok_or_else(|| Refusal::Missing(format!("node `{node}` was removed from the mesh")))?;
        let mut refused = Refused::new();
        for report in reports {
            match report {
                Report::Started(report) => self.start(node, report, &mut refused),
                Report::Stopped(id) => self.stop(node, id),
                Report::All(reports) => {
                    let named: BTreeSet<&WorkloadId> = reports.iter().map(|report| &report.id).collect();
                    let known = self.world.workloads_on(&node.name).map(|workload| &workload.id);
                    let gone: Vec<&WorkloadId> = known.filter(|id| !named.contains(id)).collect();
                    gone.into_iter().for_each(|id| self.stop(node, id));
                    reports.iter().for_each(|report| self.start(node, report, &mut refused));
                }
            }
        }
        Ok(refused)
    }

    /// A workload as it is after what was taken.
    fn current(&self, id: &WorkloadId) -> Option<&WorkloadRecord> {
        if let Some(new) = self.new.get(id) {
            return Some(new);
        }
        let network = self.world.workload_networks.get(id)?;
        self.world.networks.get(network)?.workloads.get(id).filter(|_| !self.gone.contains(id))
    }

    fn stop(&mut self, node: &NodeRecord, id: &WorkloadId) {
        let Some(known) = self.current(id).filter(|known| known.node == node.name).cloned() else { return };
        for address in known.addresses {
            self.addresses.remove(&(known.network.clone(), address));
        }
        self.new.remove(id);
        self.gone.insert(id.clone());
        self.stopped.push(format!("{} ({id})", known.name));
        self.mutations.push(Mutation::Delete(RecordKey::Workload(id.clone())));
    }

    fn start(&mut self, node: &NodeRecord, report: &WorkloadReport, refused: &mut Refused) {
        match self.check(node, report) {
            Err(reason) => refused.push((report.id.clone(), reason)),
            Ok(labels) => self.put(node, report, labels),
        }
    }

    /// What policy is to see of the workload, if the node may run it.
    fn check(&self, node: &NodeRecord, report: &WorkloadReport) -> Result<Labels, String> {
        let network = &report.network;
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
        let known = self.current(&report.id);
        if known.is_some_and(|known| known.network != *network) {
            return Err(format!("workload id {} is used in another network", report.id));
        }
        if known.is_some_and(|known| known.node != node.name) {
            return Err(format!("workload id {} belongs to another node", report.id));
        }
        for address in &report.addresses {
            if !blocks.iter().any(|block| block.contains(address)) {
                return Err(format!("{address} is not in a block of node {}", node.name));
            }
            let before = state.by_address.get(address).filter(|id| !self.gone.contains(*id));
            let owner = self.addresses.get(&(network.clone(), *address)).or(before);
            if let Some(other) = owner.filter(|id| **id != report.id) {
                return Err(format!("{address} belongs to workload {other}"));
            }
        }
        report.labels.check_unreserved().map_err(|error| error.to_string())?;
        AcceptFrom::check_count(&report.accepts).map_err(|error| error.to_string())?;
        let given = known.and_then(|known| known.given.as_ref());
        labels(node, &report.labels, given).map_err(|error| error.to_string())
    }

    fn put(&mut self, node: &NodeRecord, report: &WorkloadReport, labels: Labels) {
        let network = &report.network;
        let identity = self.identity(network, (labels, report.accepts.clone()));
        let given = self.current(&report.id).and_then(|known| known.given.clone());
        let record = WorkloadRecord {
            id: report.id.clone(),
            network: network.clone(),
            node: node.name.clone(),
            name: report.name.clone(),
            addresses: report.addresses.clone(),
            declared: report.labels.clone(),
            accepts: report.accepts.clone(),
            given,
            identity,
        };
        let known = self.current(&report.id);
        if known == Some(&record) {
            return;
        }
        for address in known.map(|known| known.addresses.clone()).unwrap_or_default() {
            self.addresses.remove(&(network.clone(), address));
        }
        for address in &report.addresses {
            self.addresses.insert((network.clone(), *address), report.id.clone());
        }
        self.started.push(format!("{} ({})", report.name, report.id));
        self.new.insert(report.id.clone(), record.clone());
        self.mutations.push(Mutation::Put(Record::Workload(record)));
    }

    fn identity(&mut self, network: &NetworkName, subject: Subject) -> IdentityId {
        if let Some(id) = self.world.networks[network].by_subject.get(&subject) {
            return *id;
        }
        let next = IdentityId(self.world.next_identity().0 + self.identities.len() as u32);
        let id = *self.identities.entry((network.clone(), subject.clone())).or_insert(next);
        if id == next {
            let (labels, accepts) = subject;
            let record = IdentityRecord { id, network: network.clone(), labels, accepts };
            self.mutations.push(Mutation::Put(Record::Identity(record)));
        }
        id
    }

    /// Forgets half of the identities that have no workload, the oldest first, where there are too many. The newest number of
    /// all stays: from it follows which was never used.
    fn forget_idle_identities(&mut self) {
        let newest = self.world.next_identity();
        let used: HashSet<IdentityId> = self.new.values().map(|record| record.identity).collect();
        for network in self.world.networks.values() {
            if network.identities.len() - network.links.identity_count() <= MAX_IDLE {
                continue;
            }
            let is_idle = |id: &&IdentityId| {
                network.hosts(**id).is_none() && !used.contains(*id) && id.0 + 1 != newest.0
            };
            let idle = network.identities.keys().filter(is_idle).take(MAX_IDLE / 2);
            self.mutations.extend(idle.map(|id| Mutation::Delete(RecordKey::Identity(*id))));
        }
    }

    /// What the audit log says of it.
    fn action(&self) -> String {
        let list = |verb: &str, names: &[String]| match names.len() {
            0 => String::new(),
            count if count > NAMED => format!("{verb} {count} workloads"),
            _ => format!("{verb} {}", names.join(", ")),
        };
        let parts = [list("started", &self.started), list("stopped", &self.stopped)];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// What policy sees of a workload: what its owner declared, what a trigger gave it, and what is verified.
fn labels(node: &NodeRecord, declared: &Labels, given: Option<&Given>) -> Result<Labels, BadLabel> {
    let labels = match given {
        Some(given) => declared.clone().with_all(&given.labels)?,
        None => declared.clone(),
    };
    match &node.site {
        Some(site) => labels.with_fact("site", site),
        None => Ok(labels),
    }
}

/// Gives workloads labels of a trigger, or takes them away.
pub fn give(world: &World, ids: &[(WorkloadId, Option<Given>)]) -> Vec<Mutation> {
    let mut batch = Batch::new(world);
    for (id, given) in ids {
        let Some(known) = batch.current(id).cloned() else { continue };
        let Some(node) = world.nodes.get(&known.node) else { continue };
        let Ok(labels) = labels(node, &known.declared, given.as_ref()) else { continue };
        let identity = batch.identity(&known.network, (labels, known.accepts.clone()));
        let record = WorkloadRecord { given: given.clone(), identity, ..known };
        batch.mutations.push(Mutation::Put(Record::Workload(record)));
    }
    batch.mutations
}
