//! Workloads: what nodes say that they run, checked against what they may.

use crate::{
    mesh::{Plan, Refusal},
    plans::{policies::Warmed, routes::check_prefix},
    records::{
        ApprovalRecord, Given, IdentityRecord, ImageRecord, Mutation, NodeRecord, Record, RecordKey,
        RefusedRecord, Standing, WorkloadRecord,
    },
    world::{NetworkState, Subject, World},
};
use ipnet::IpNet;
use meshward_model::{
    AcceptFrom, IdentityId, Labels, NetworkName, NodeName, WorkloadId,
    control::WorkloadReport,
    measurement::{Image, ImageSignature, MAX_SIGNATURES, MAX_SIGNED, Sha256},
};
use meshward_policy::{Candidate, Policy};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// The workloads of a report that cannot be taken as they are, and why. One that admission does not let in is taken: it is
/// kept as refused, and its node is told so with everything else.
pub type Refused = Vec<(WorkloadId, String)>;

/// The most workloads that the audit log names one by one.
const NAMED: usize = 8;

/// The most identities without a workload that a network keeps: what comes back soon has its number again, and labels that
/// are never seen again do not pile up.
const MAX_IDLE: usize = 1024;

/// The most prefixes of one route.
const MAX_PREFIXES: usize = 64;

/// The most images whose signatures are kept, though nothing runs that was started from them.
const MAX_IDLE_IMAGES: usize = 1024;

/// What a node says.
#[derive(Debug, Clone)]
pub enum Report {
    /// All that it runs: what is not named has stopped while it was away.
    All(Vec<WorkloadReport>),
    /// A workload has started, or is other than it was.
    Started(Box<WorkloadReport>),
    /// A workload has stopped.
    Stopped(WorkloadId),
}

/// Takes what nodes say, each in its order.
pub fn take(world: &World, reports: &[(&NodeName, &[Report])]) -> Plan<Vec<Result<Refused, Refusal>>> {
    let mut batch = Batch::new(world);
    let outcome = reports.iter().map(|(node, reports)| batch.take(node, reports)).collect();
    if !batch.mutations.is_empty() {
        batch.forget_idle_identities();
        batch.forget_idle_images();
    }
    Plan { action: batch.action(), mutations: batch.mutations, outcome }
}

/// Reports that are planned together: the world, and on top of it what they change.
struct Batch<'a> {
    world: &'a World,
    mutations: Vec<Mutation>,
    started: Vec<String>,
    stopped: Vec<String>,
    turned_away: Vec<String>,
    /// Workloads that have stopped, and those that have started.
    gone: HashSet<WorkloadId>,
    new: HashMap<WorkloadId, Record>,
    identities: HashMap<(NetworkName, Subject), IdentityId>,
    addresses: HashMap<(NetworkName, IpAddr), WorkloadId>,
    /// Signatures that are new.
    images: HashMap<Sha256, Vec<ImageSignature>>,
    /// By what workloads of a network are judged.
    courts: HashMap<NetworkName, Court>,
    /// An approval that comes or goes with the same plan.
    approval: Option<(&'a ApprovalRecord, bool)>,
}

/// A network's policy, and what it has said of images.
struct Court {
    policy: Arc<Policy>,
    names_node: bool,
    signers: HashMap<Image, Vec<String>>,
}

impl Court {
    /// That of the policy that stands.
    fn standing(network: &NetworkState) -> Self {
        let policy = network.links.policy().clone();
        Self { names_node: network.names_node, policy, signers: HashMap::new() }
    }

    fn of(policy: Arc<Policy>) -> Self {
        Self { names_node: policy.speaks_of_nodes(), policy, signers: HashMap::new() }
    }
}

/// The prefixes of a report that nobody has approved by hand. `approval`: one that comes or goes with the same plan.
pub(super) fn unapproved(
    world: &World,
    node: &NodeRecord,
    report: &WorkloadReport,
    approval: Option<(&ApprovalRecord, bool)>,
) -> Vec<IpNet> {
    let is_open = |prefix: &&IpNet| {
        let record =
            ApprovalRecord { network: report.network.clone(), node: node.name.clone(), prefix: **prefix };
        match approval {
            Some((changed, approved)) if *changed == record => !approved,
            _ => !world.approvals.contains(&record),
        }
    };
    report.prefixes.iter().filter(is_open).copied().collect()
}

/// By what a workload is judged.
pub(super) struct Judge<'a> {
    pub policy: &'a Policy,
    pub names_node: bool,
    pub node: &'a NodeName,
    pub site: Option<&'a str>,
    pub unapproved: &'a [IpNet],
}

impl Judge<'_> {
    /// The labels, the verified ones included, and why it is not let in, if it is not. `signers`: who has signed an image.
    pub fn judge(
        &self,
        report: &WorkloadReport,
        given: Option<&Given>,
        signers: impl FnMut(&Image) -> Vec<String>,
    ) -> (Labels, Vec<String>) {
        let labels = match given {
            Some(given) => report.labels.clone().with_all(&given.labels),
            None => Ok(report.labels.clone()),
        };
        let judged = labels.and_then(|labels| {
            let candidate = Candidate {
                labels: &labels,
                site: self.site,
                node: self.node,
                measurement: report.measurement.as_deref(),
                prefixes: self.unapproved,
            };
            self.policy.judge(&candidate, self.names_node, signers)
        });
        let (labels, mut reasons) = match judged {
            Ok(judged) => (judged.labels, judged.reasons),
            Err(error) => (report.labels.clone(), vec![error.to_string()]),
        };
        reasons.extend(report.objection.clone());
        (labels, reasons)
    }
}

impl<'a> Batch<'a> {
    fn new(world: &'a World) -> Self {
        Self {
            world,
            mutations: vec![],
            started: vec![],
            stopped: vec![],
            turned_away: vec![],
            gone: HashSet::new(),
            new: HashMap::new(),
            identities: HashMap::new(),
            addresses: HashMap::new(),
            images: HashMap::new(),
            courts: HashMap::new(),
            approval: None,
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
                    let known = self.world.workload_ids_on(&node.name).into_iter();
                    known.filter(|id| !named.contains(id)).for_each(|id| self.stop(node, &id));
                    reports.iter().for_each(|report| self.start(node, report, &mut refused));
                }
            }
        }
        Ok(refused)
    }

    /// A workload as it is after what was taken.
    fn current(&self, id: &WorkloadId) -> Option<Standing<'_>> {
        match self.new.get(id) {
            Some(new) => Standing::of(new),
            None if self.gone.contains(id) => None,
            None => self.world.standing(id),
        }
    }

    fn stop(&mut self, node: &NodeRecord, id: &WorkloadId) {
        let Some(known) = self.current(id).filter(|known| *known.node() == node.name) else { return };
        let (network, name, addresses) =
            (known.network().clone(), known.name().clone(), known.addresses().to_vec());
        for address in addresses {
            self.addresses.remove(&(network.clone(), address));
        }
        self.new.remove(id);
        self.gone.insert(id.clone());
        self.stopped.push(format!("{name} ({id})"));
        self.mutations.push(Mutation::Delete(RecordKey::Workload(id.clone())));
    }

    fn start(&mut self, node: &NodeRecord, report: &WorkloadReport, refused: &mut Refused) {
        if let Err(reason) = self.check(node, report) {
            return refused.push((report.id.clone(), reason));
        }
        self.note_signatures(&report.signatures);
        let given = self.current(&report.id).and_then(|known| known.given().cloned());
        self.settle(node, WorkloadReport { signatures: vec![], ..report.clone() }, given);
    }

    /// Whether a node may say this.
    fn check(&self, node: &NodeRecord, report: &WorkloadReport) -> Result<(), String> {
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
        if known.is_some_and(|known| known.network() != network) {
            return Err(format!("workload id {} is used in another network", report.id));
        }
        if known.is_some_and(|known| *known.node() != node.name) {
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
        self.check_prefixes(node, state, report)?;
        report.labels.check_unreserved().map_err(|error| error.to_string())?;
        AcceptFrom::check_count(&report.accepts).map_err(|error| error.to_string())?;
        match &report.measurement {
            Some(measured) => measured.check(),
            None => Ok(()),
        }
    }

    /// Whether a node may say that these prefixes are behind it.
    fn check_prefixes(
        &self,
        node: &NodeRecord,
        network: &NetworkState,
        report: &WorkloadReport,
    ) -> Result<(), String> {
        if report.prefixes.len() > MAX_PREFIXES {
            return Err(format!("a route has at most {MAX_PREFIXES} prefixes; make several of it"));
        }
        for prefix in &report.prefixes {
            check_prefix(self.world, &report.network, prefix).map_err(|refusal| refusal.to_string())?;
            let other = network.all_standing().find(|known| {
                known.id() != &report.id
                    && !self.gone.contains(known.id())
                    && known.prefixes().contains(prefix)
                    && (*known.node() == node.name || known.report().labels != report.labels)
            });
            match other {
                Some(other) if *other.node() == node.name => {
                    return Err(format!("{prefix} is behind this node already, as workload {}", other.id()));
                }
                Some(other) => {
                    return Err(format!(
                        "{prefix} is behind node {} with other labels ({}): all gateways of a prefix give it the same",
                        other.node(),
                        other.report().labels
                    ));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Keeps signatures that are not known yet.
    fn note_signatures(&mut self, found: &[(Sha256, Vec<ImageSignature>)]) {
        for (digest, signatures) in found {
            let before = self.images.get(digest).map_or(self.world.images.signatures(digest), Vec::as_slice);
            let is_new = |signature: &&ImageSignature| {
                !before.contains(signature)
                    && signature.payload.len() <= MAX_SIGNED
                    && signature.signature.len() <= MAX_SIGNED
            };
            let new: Vec<ImageSignature> = signatures.iter().filter(is_new).cloned().collect();
            if new.is_empty() || before.len() >= MAX_SIGNATURES {
                continue;
            }
            let mut all = [before, &new].concat();
            all.truncate(MAX_SIGNATURES);
            self.images.insert(*digest, all.clone());
            // What was said of them was said without these.
            self.courts.clear();
            self.mutations
                .push(Mutation::Put(Record::Image(ImageRecord { digest: *digest, signatures: all })));
        }
    }

    /// Judges a workload.
    fn judge(
        &mut self,
        node: &NodeRecord,
        report: &WorkloadReport,
        given: Option<&Given>,
    ) -> (Labels, Vec<String>) {
        let Self { world, images, courts, approval, .. } = self;
        let court = courts.entry(report.network.clone()).or_insert_with(|| {
            let network = world.networks.get(&report.network);
            match network {
                Some(network) => Court::standing(network),
                None => Court::of(Arc::new(Policy::deny_all(report.network.clone()))),
            }
        });
        let Court { policy, names_node, signers } = court;
        let unapproved = unapproved(world, node, report, *approval);
        let judge = Judge {
            policy,
            names_node: *names_node,
            node: &node.name,
            site: node.site.as_deref(),
            unapproved: &unapproved,
        };
        judge.judge(report, given, |image| {
            let look = || {
                let signatures = images.get(&image.digest).map(Vec::as_slice);
                policy.signers(image, signatures.unwrap_or(world.images.signatures(&image.digest)))
            };
            signers.entry(image.clone()).or_insert_with(look).clone()
        })
    }

    /// Judges a workload, and puts it where it belongs.
    fn settle(&mut self, node: &NodeRecord, report: WorkloadReport, given: Option<Given>) {
        let (labels, reasons) = self.judge(node, &report, given.as_ref());
        let (network, id) = (report.network.clone(), report.id.clone());
        let (called, addresses) = (format!("{} ({id})", report.name), report.addresses.clone());
        let refused = !reasons.is_empty();
        let record = if refused {
            Record::Refused(Box::new(RefusedRecord {
                node: node.name.clone(),
                report,
                given,
                reasons: reasons.clone(),
            }))
        } else {
            let identity = self.identity(&network, (labels, report.accepts.clone()));
            let WorkloadReport {
                id,
                network,
                name,
                labels: declared,
                addresses,
                prefixes,
                device,
                accepts,
                measurement,
                ..
            } = report;
            let node = node.name.clone();
            Record::Workload(WorkloadRecord {
                id,
                network,
                node,
                name,
                addresses,
                prefixes,
                device,
                declared,
                accepts,
                given,
                measurement,
                identity,
            })
        };
        let known = self.current(&id);
        if known.is_some_and(|known| known.is(&record)) {
            return;
        }
        for address in known.map(|known| known.addresses().to_vec()).unwrap_or_default() {
            self.addresses.remove(&(network.clone(), address));
        }
        for address in addresses {
            self.addresses.insert((network.clone(), address), id.clone());
        }
        match refused {
            true => self.turned_away.push(format!("{called}: {}", reasons.join("; "))),
            false => self.started.push(called),
        }
        self.new.insert(id, record.clone());
        self.mutations.push(Mutation::Put(record));
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
        let admitted = |record: &Record| match record {
            Record::Workload(record) => Some(record.identity),
            _ => None,
        };
        let used: HashSet<IdentityId> = self.new.values().filter_map(admitted).collect();
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

    /// Forgets signatures of images that nothing runs, where there are too many.
    fn forget_idle_images(&mut self) {
        let images = &self.world.images;
        if images.len() <= images.used() + MAX_IDLE_IMAGES {
            return;
        }
        let idle =
            images.idle().filter(|digest| !self.images.contains_key(*digest)).take(MAX_IDLE_IMAGES / 2);
        self.mutations.extend(idle.map(|digest| Mutation::Delete(RecordKey::Image(*digest))));
    }

    /// What the audit log says of it.
    fn action(&self) -> String {
        let list = |verb: &str, names: &[String]| match names.len() {
            0 => String::new(),
            count if count > NAMED => format!("{verb} {count} workloads"),
            _ => format!("{verb} {}", names.join(", ")),
        };
        let parts = [
            list("started", &self.started),
            list("stopped", &self.stopped),
            list("refused", &self.turned_away),
        ];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// Gives workloads labels of a trigger, or takes them away.
pub fn give(world: &World, ids: &[(WorkloadId, Option<Given>)]) -> Vec<Mutation> {
    let mut batch = Batch::new(world);
    for (id, given) in ids {
        let Some((node, report)) =
            world.standing(id).and_then(|known| Some((world.nodes.get(known.node())?, known.report())))
        else {
            continue;
        };
        batch.settle(node, report, given.clone());
    }
    batch.mutations
}

/// Judges workloads anew, where an approval comes or goes with the same plan.
pub fn settle_again(
    world: &World,
    ids: &[WorkloadId],
    approval: Option<(&ApprovalRecord, bool)>,
) -> Vec<Mutation> {
    let mut batch = Batch { approval, ..Batch::new(world) };
    for known in ids.iter().filter_map(|id| world.standing(id)) {
        if let Some(node) = world.nodes.get(known.node()) {
            batch.settle(node, known.report(), known.given().cloned());
        }
    }
    batch.mutations
}

/// What another policy makes of the workloads of a network.
#[derive(Default)]
pub struct Rejudged {
    pub mutations: Vec<Mutation>,
    /// Those that are let in now, and were not.
    pub admitted: Vec<String>,
    /// Those that are not let in any more, and why; and those that are refused for other reasons than before.
    pub refused: Vec<String>,
}

/// Judges the workloads of a network anew, by the policy that it is to have. `warmed`: what it says of images.
pub fn rejudge(
    world: &World,
    network: &NetworkState,
    policy: &Arc<Policy>,
    warmed: Option<&Warmed>,
) -> Rejudged {
    if network.links.policy().admits_like(policy) {
        return Rejudged::default();
    }
    let mut batch = Batch::new(world);
    let mut court = Court::of(policy.clone());
    if let Some(warmed) = warmed.filter(|warmed| warmed.images == world.images.generation()) {
        court.signers.clone_from(&warmed.signers);
    }
    batch.courts.insert(network.record.name.clone(), court);
    let mut all: Vec<Standing> = network.all_standing().collect();
    all.sort_unstable_by(|a, b| a.id().cmp(b.id()));
    for known in &all {
        if let Some(node) = world.nodes.get(known.node()) {
            batch.settle(node, known.report(), known.given().cloned());
        }
    }
    let admitted = all.iter().filter(|known| {
        let moved = matches!(batch.new.get(known.id()), Some(Record::Workload(_)));
        moved && matches!(known, Standing::Refused(_))
    });
    let admitted = admitted.map(|known| format!("{} ({})", known.name(), known.id())).collect();
    Rejudged { admitted, refused: batch.turned_away, mutations: batch.mutations }
}
