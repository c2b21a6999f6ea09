//! Workloads: what nodes say that they run, checked against what they may.

use super::{
    admission::{AdmissionContext, Judge, unapproved},
    prefixes::check_prefix,
};
use crate::{
    Plan, Refusal, records::ApprovalRecord, records::IdentityRecord, records::ImageRecord,
    records::LabelOverride, records::Mutation, records::NodeRecord, records::Record,
    records::RecordKey, records::RefusedRecord, records::ReportRecord, records::Standing,
    records::WorkloadRecord, world::KeyOwner, world::NetworkState, world::Subject, world::World,
};
use ipnet::IpNet;
use meshward_control_proto::WorkloadReport;
use meshward_policy::Policy;
use meshward_types::{
    AcceptFrom, IdentityId, Labels, NetworkName, NodeName, PublicKey, WorkloadId,
    measurement::{ImageSignature, MAX_SIGNATURES, MAX_SIGNED, Sha256},
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// The workloads of a report that cannot be taken as they are, and why. One that admission does not
/// let in is taken: it is kept as refused, and its node is told so with everything else.
pub type Refused = Vec<(WorkloadId, String)>;

/// The most workloads that the audit log names one by one.
const NAMED: usize = 8;

/// The most identities without a workload that a network keeps: what comes back soon has its number
/// again, and labels that are never seen again do not pile up.
const MAX_IDLE: usize = 1024;

/// The most prefixes of one route.
const MAX_PREFIXES: usize = 64;

/// The most images whose signatures are kept, though nothing runs that was started from them.
const MAX_IDLE_IMAGES: usize = 1024;

/// The most nodes of which signatures of one image are kept that no key of a policy has made.
const MAX_REPORTERS: usize = 4;

/// The most signatures that are checked of one report, times the keys.
const MAX_CHECKS: usize = 128;

fn is_small(signature: &ImageSignature) -> bool {
    signature.payload.len() <= MAX_SIGNED && signature.signature.len() <= MAX_SIGNED
}

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
pub fn plan_reports(
    world: &World,
    reports: &[(&NodeName, &[Report])],
) -> Plan<Vec<Result<Refused, Refusal>>> {
    let mut batch = Batch::new(world);
    let outcome = reports.iter().map(|(node, reports)| batch.take(node, reports)).collect();
    if !batch.mutations.is_empty() {
        batch.forget_idle_identities();
        batch.forget_idle_images();
    }
    Plan::new(batch.action(), batch.mutations, outcome)
}

/// Reports that are planned together: the world, and on top of it what they change.
pub(super) struct Batch<'a> {
    pub(super) world: &'a World,
    pub(super) mutations: Vec<Mutation>,
    pub(super) started: Vec<String>,
    pub(super) stopped: Vec<String>,
    pub(super) turned_away: Vec<String>,
    /// Workloads that have stopped, and those that have started.
    pub(super) gone: HashSet<WorkloadId>,
    pub(super) new: HashMap<WorkloadId, Record>,
    pub(super) identities: HashMap<(NetworkName, Subject), IdentityId>,
    pub(super) addresses: HashMap<(NetworkName, IpAddr), WorkloadId>,
    /// Those of the new ones that have prefixes behind them.
    pub(super) new_routes: BTreeSet<WorkloadId>,
    /// Keys of devices that are new.
    pub(super) devices: HashMap<PublicKey, WorkloadId>,
    /// Signatures that are new.
    pub(super) images: HashMap<Sha256, ImageRecord>,
    /// By what workloads of a network are judged.
    pub(super) contexts: HashMap<NetworkName, AdmissionContext>,
    /// An approval that comes or goes with the same plan.
    pub(super) approval: Option<(&'a ApprovalRecord, bool)>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(world: &'a World) -> Self {
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
            new_routes: BTreeSet::new(),
            devices: HashMap::new(),
            images: HashMap::new(),
            contexts: HashMap::new(),
            approval: None,
        }
    }

    fn take(&mut self, node: &NodeName, reports: &[Report]) -> Result<Refused, Refusal> {
        let node =
            self.world.nodes.get(node).ok_or_else(|| {
                Refusal::Missing(format!("node `{node}` was removed from the mesh"))
            })?;
        let mut refused = Refused::new();
        for report in reports {
            match report {
                Report::Started(report) => self.start(node, report, &mut refused),
                Report::Stopped(id) => self.stop(node, id),
                Report::All(reports) => {
                    let named: BTreeSet<&WorkloadId> =
                        reports.iter().map(|report| &report.id).collect();
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
        let Some(known) = self.current(id).filter(|known| *known.node() == node.name) else {
            return;
        };
        let (network, name, addresses) =
            (known.network().clone(), known.name().clone(), known.addresses().to_vec());
        for address in addresses {
            self.addresses.remove(&(network.clone(), address));
        }
        self.devices.retain(|_, device| device != id);
        self.new.remove(id);
        self.gone.insert(id.clone());
        self.stopped.push(format!("{name} ({id})"));
        self.mutations.push(Mutation::Delete(RecordKey::Workload(id.clone())));
    }

    fn start(&mut self, node: &NodeRecord, report: &WorkloadReport, refused: &mut Refused) {
        if let Err(reason) = self.check(node, report) {
            return refused.push((report.id.clone(), reason));
        }
        self.note_signatures(node, report);
        let given = self.current(&report.id).and_then(|known| known.label_override().cloned());
        self.reclassify(node, ReportRecord::from(report), given);
    }

    /// Whether a node may say this.
    fn check(&self, node: &NodeRecord, report: &WorkloadReport) -> Result<(), String> {
        let network = &report.network;
        let state =
            self.world.networks.get(network).ok_or(format!("there is no network `{network}`"))?;
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
        self.check_device(report)?;
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
            check_prefix(self.world, &report.network, prefix)
                .map_err(|refusal| refusal.to_string())?;
            let mut others = self.behind(network, prefix).filter(|known| known.id() != &report.id);
            if let Some(other) = others.find(|known| *known.node() == node.name) {
                return Err(format!(
                    "{prefix} is behind this node already, as workload {}",
                    other.id()
                ));
            }
        }
        Ok(())
    }

    /// The workloads that have a prefix behind them, after what was taken.
    fn behind<'b>(
        &'b self,
        network: &'b NetworkState,
        prefix: &'b IpNet,
    ) -> impl Iterator<Item = Standing<'b>> {
        let stays = network.behind(prefix).filter(|known| !self.touched(known.id()));
        let new = self.new_routes.iter().filter_map(|id| Standing::of(self.new.get(id)?));
        let new = new.filter(move |known| *known.network() == network.record.name);
        stays.chain(new.filter(|known| known.prefixes().contains(prefix)))
    }

    /// Whether a workload is another now than in the world.
    fn touched(&self, id: &WorkloadId) -> bool {
        self.gone.contains(id) || self.new.contains_key(id)
    }

    /// Whether the key of a device is nobody else's, and neither is its name.
    fn check_device(&self, report: &WorkloadReport) -> Result<(), String> {
        let Some(key) = &report.device else { return Ok(()) };
        let free = |owner: &&KeyOwner| match owner {
            KeyOwner::Device(id) => *id != report.id && !self.gone.contains(id),
            KeyOwner::Node(_) => true,
        };
        if let Some(owner) = self.world.keys.owner(key).filter(free) {
            return Err(format!(
                "the key {key} belongs to {owner}; make another pair of keys for this device"
            ));
        }
        if let Some(id) = self.devices.get(key).filter(|id| **id != report.id) {
            return Err(format!(
                "the key {key} belongs to device {id}; make another pair of keys for this device"
            ));
        }
        let named = |known: &Standing| {
            *known.id() != report.id
                && known.device().is_some()
                && (known.network(), known.name()) == (&report.network, &report.name)
        };
        let stays = self.world.keys.devices().filter(|id| !self.touched(id));
        let stays = stays.filter_map(|id| self.world.standing(id));
        let new = self.devices.values().filter_map(|id| Standing::of(self.new.get(id)?));
        match stays.chain(new).find(named) {
            Some(other) => {
                Err(format!("there is a device `{}` already, {}", report.name, other.id()))
            }
            None => Ok(()),
        }
    }

    /// Why the prefixes of a workload that would be let in belong to another one that is: all
    /// gateways of a prefix give it the same labels. Who is let in first, has it.
    fn taken_prefixes(&self, node: &NodeRecord, report: &ReportRecord) -> Vec<String> {
        let Some(network) = self.world.networks.get(&report.network) else { return vec![] };
        let admitted = |known: &Standing| matches!(known, Standing::Admitted(_));
        let taken = |prefix: &IpNet| {
            let other = self.behind(network, prefix).filter(admitted).find(|known| {
                known.id() != &report.id
                    && *known.node() != node.name
                    && *known.labels() != report.labels
            })?;
            Some(format!(
                "{prefix} is behind node {} with other labels ({}): all gateways of a prefix give \
                it the same",
                other.node(),
                other.labels()
            ))
        };
        report.prefixes.iter().filter_map(taken).collect()
    }

    /// Keeps the signatures that a node has found of the images of a workload. What a key of the
    /// network's policy has made is kept for all of its nodes; the rest as this node's word, in a
    /// place of its own: nobody's junk takes another's.
    fn note_signatures(&mut self, node: &NodeRecord, report: &WorkloadReport) {
        let (world, network) = (self.world, &report.network);
        let Some(policy) = world.networks.get(network).map(|network| network.links.policy()) else {
            return;
        };
        let mut checks = MAX_CHECKS;
        let measured = report.measurement.iter().flat_map(|measured| measured.all_images());
        for image in measured {
            let found = report.signatures.iter().filter(|(digest, _)| *digest == image.digest);
            let found = found
                .flat_map(|(_, signatures)| signatures)
                .filter(|signature| is_small(signature));
            let known = self.images.get(&image.digest).or_else(|| world.images.get(&image.digest));
            let mut record = known.cloned().unwrap_or_else(|| ImageRecord::new(image.digest));
            let before = record.clone();
            let mut others = Vec::new();
            for signature in found.take(MAX_SIGNATURES) {
                let verified = record.verified.get(network);
                if verified.is_some_and(|verified| verified.contains(signature)) {
                    continue;
                }
                let full = verified.is_some_and(|verified| verified.len() >= MAX_SIGNATURES);
                let cost = policy.keys.len();
                if !full && checks > 0 && policy.verifies(image, signature) {
                    record.verified.entry(network.clone()).or_default().push(signature.clone());
                } else {
                    others.push(signature.clone());
                }
                checks = checks.saturating_sub(cost);
            }
            if others.is_empty() {
                record.reported.remove(&node.name);
            } else if record.reported.contains_key(&node.name)
                || record.reported.len() < MAX_REPORTERS
            {
                record.reported.insert(node.name.clone(), others);
            }
            if record != before {
                self.images.insert(image.digest, record.clone());
                // What was said of it was said without these.
                self.contexts.clear();
                self.mutations.push(Mutation::Put(Record::Image(record)));
            }
        }
    }

    /// Judges a workload.
    fn judge(
        &mut self,
        node: &NodeRecord,
        report: &ReportRecord,
        given: Option<&LabelOverride>,
    ) -> (Labels, Vec<String>) {
        let Self { world, images, contexts, approval, .. } = self;
        let context = contexts.entry(report.network.clone()).or_insert_with(|| {
            let network = world.networks.get(&report.network);
            match network {
                Some(network) => AdmissionContext::standing(network),
                None => AdmissionContext::of(Arc::new(Policy::deny_all(report.network.clone()))),
            }
        });
        let AdmissionContext { policy, names_node, signers } = context;
        let unapproved = unapproved(world, node, &report.network, &report.prefixes, *approval);
        let judge = Judge {
            policy,
            names_node: *names_node,
            node: &node.name,
            site: node.site.as_deref(),
            unapproved: &unapproved,
        };
        judge.judge(report, given, |image| {
            let look = || {
                let known = images.get(&image.digest).or_else(|| world.images.get(&image.digest));
                policy.signers(
                    image,
                    known.into_iter().flat_map(|known| known.for_network(&report.network)),
                )
            };
            signers.entry(image.clone()).or_insert_with(look).clone()
        })
    }

    /// Judges a workload, and puts it where it belongs.
    pub(super) fn reclassify(
        &mut self,
        node: &NodeRecord,
        report: ReportRecord,
        given: Option<LabelOverride>,
    ) {
        let verdict = self.judge(node, &report, given.as_ref());
        self.reclassify_as(node, report, given, verdict);
    }

    /// Puts a workload where it belongs by its labels, and by why it is not let in.
    pub(super) fn reclassify_as(
        &mut self,
        node: &NodeRecord,
        report: ReportRecord,
        given: Option<LabelOverride>,
        (labels, mut reasons): (Labels, Vec<String>),
    ) {
        if reasons.is_empty() {
            reasons = self.taken_prefixes(node, &report);
        }
        let (network, id) = (report.network.clone(), report.id.clone());
        let (called, addresses) = (format!("{} ({id})", report.name), report.addresses.clone());
        let (device, is_route) = (report.device, !report.prefixes.is_empty());
        let refused = !reasons.is_empty();
        let record = if refused {
            Record::Refused(Box::new(RefusedRecord {
                node: node.name.clone(),
                report,
                label_override: given,
                reasons: reasons.clone(),
            }))
        } else {
            let identity = self.identity(&network, (labels, report.accepts.clone()));
            let ReportRecord {
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
                label_override: given,
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
        if let Some(key) = device {
            self.devices.insert(key, id.clone());
        }
        match is_route {
            true => self.new_routes.insert(id.clone()),
            false => self.new_routes.remove(&id),
        };
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

    /// Forgets half of the identities that have no workload, the oldest first, where there are too
    /// many. The newest number of all stays: from it follows which was never used.
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
        let idle = images
            .idle()
            .filter(|digest| !self.images.contains_key(*digest))
            .take(MAX_IDLE_IMAGES / 2);
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
