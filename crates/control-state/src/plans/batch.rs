//! A batch: workloads that are planned together, by what admission makes of each.

use super::{
    admission::{AdmissionCheck, AdmissionContext, AdmissionVerdict, ApprovalChange},
    name_claims::NameClaims,
};
use crate::{
    records::{
        IdentityRecord, ImageRecord, LabelOverride, Mutation, NodeRecord, Record, RecordKey,
        RefusedRecord, ReportRecord, WorkloadRecord, WorkloadRef,
    },
    world::{NetworkState, Subject, World},
};
use ipnet::IpNet;
use meshward_types::{
    IdentityId, Labels, NetworkName, PublicKey, ServiceName, WorkloadId, WorkloadName,
    measurement::Sha256,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

/// The largest number of workloads that a line of the audit log names one by one.
const MAX_NAMED: usize = 8;

/// The largest number of identities without a workload that a network keeps. A workload that comes
/// back soon gets its number again, and labels that never come back do not pile up.
const MAX_IDLE: usize = 1024;

/// The largest number of images without a workload whose signatures are kept.
const MAX_IDLE_IMAGES: usize = 1024;

/// Workloads that are planned together: the world, and the changes to it.
pub(super) struct Batch<'a> {
    pub(super) world: &'a World,
    pub(super) mutations: Vec<Mutation>,
    /// Names of workloads for the audit log: those that were admitted.
    pub(super) started: Vec<String>,
    /// Names of workloads that have stopped.
    pub(super) stopped: Vec<String>,
    /// Names of workloads that were refused, with the reasons.
    pub(super) refused: Vec<String>,
    /// The workloads that have stopped.
    pub(super) gone: HashSet<WorkloadId>,
    /// The records of workloads that have started or changed.
    pub(super) new: HashMap<WorkloadId, Record>,
    /// The new identities.
    identities: HashMap<(NetworkName, Subject), IdentityId>,
    /// The addresses of new workloads.
    pub(super) addresses: HashMap<(NetworkName, IpAddr), WorkloadId>,
    /// The new workloads that have prefixes behind them.
    new_routes: BTreeSet<WorkloadId>,
    /// The keys of new devices.
    pub(super) devices: HashMap<PublicKey, WorkloadId>,
    /// The images with new signatures.
    pub(super) images: HashMap<Sha256, ImageRecord>,
    /// The admission of each network.
    pub(super) contexts: HashMap<NetworkName, AdmissionContext>,
    approval: Option<ApprovalChange<'a>>,
    /// The claims to names that the changes concern.
    pub(super) names: HashMap<(NetworkName, WorkloadName), NameClaims>,
    /// Names of workloads whose health checks have another finding.
    pub(super) checked: Vec<String>,
}

impl<'a> Batch<'a> {
    /// Makes an empty batch.
    pub(super) fn new(world: &'a World) -> Self {
        Self {
            world,
            mutations: vec![],
            started: vec![],
            stopped: vec![],
            refused: vec![],
            gone: HashSet::new(),
            new: HashMap::new(),
            identities: HashMap::new(),
            addresses: HashMap::new(),
            new_routes: BTreeSet::new(),
            devices: HashMap::new(),
            images: HashMap::new(),
            contexts: HashMap::new(),
            approval: None,
            names: HashMap::new(),
            checked: vec![],
        }
    }

    /// Makes an empty batch, in which the approval of routes changes.
    pub(super) fn with_approval(world: &'a World, approval: ApprovalChange<'a>) -> Self {
        Self { approval: Some(approval), ..Self::new(world) }
    }

    /// Returns a workload as it is after the changes.
    pub(super) fn current(&self, id: &WorkloadId) -> Option<WorkloadRef<'_>> {
        match self.new.get(id) {
            Some(new) => WorkloadRef::of(new),
            None if self.gone.contains(id) => None,
            None => self.world.workload(id),
        }
    }

    /// Returns the workloads that have a prefix behind them, after the changes.
    pub(super) fn behind<'b>(
        &'b self,
        network: &'b NetworkState,
        prefix: &'b IpNet,
    ) -> impl Iterator<Item = WorkloadRef<'b>> {
        let unchanged = network.behind(prefix).filter(|known| !self.has_changed(known.id()));
        let new = self.new_routes.iter().filter_map(|id| WorkloadRef::of(self.new.get(id)?));
        let new = new.filter(move |known| *known.network() == network.record.name);
        unchanged.chain(new.filter(|known| known.prefixes().contains(prefix)))
    }

    /// Returns `true` if a workload has changed.
    pub(super) fn has_changed(&self, id: &WorkloadId) -> bool {
        self.gone.contains(id) || self.new.contains_key(id)
    }

    /// Adds a workload as admitted or refused, by the policy of its network.
    pub(super) fn classify(
        &mut self,
        node: &NodeRecord,
        report: ReportRecord,
        label_override: Option<LabelOverride>,
    ) {
        let verdict = self.evaluate(node, &report, label_override.as_ref());
        self.classify_by(verdict, node, report, label_override);
    }

    /// Evaluates the policy of a workload's network.
    fn evaluate(
        &mut self,
        node: &NodeRecord,
        report: &ReportRecord,
        label_override: Option<&LabelOverride>,
    ) -> AdmissionVerdict {
        let Self { world, images, contexts, approval, .. } = self;
        let context = contexts
            .entry(report.network.clone())
            .or_insert_with(|| AdmissionContext::in_force(world, &report.network));
        let AdmissionContext { policy, names_node, signers } = context;
        let network = &report.network;
        let check = AdmissionCheck {
            policy,
            names_node: *names_node,
            node: &node.name,
            site: node.site.as_deref(),
            unapproved: &world.unapproved(node, network, &report.prefixes, *approval),
        };
        check.evaluate(report, label_override, |image| {
            let find = || {
                let known = images.get(&image.digest).or_else(|| world.images.get(&image.digest));
                policy
                    .signers(image, known.into_iter().flat_map(|known| known.for_network(network)))
            };
            signers.entry(image.clone()).or_insert_with(find).clone()
        })
    }

    /// Adds a workload as admitted or refused, by a verdict.
    pub(super) fn classify_by(
        &mut self,
        verdict: AdmissionVerdict,
        node: &NodeRecord,
        report: ReportRecord,
        label_override: Option<LabelOverride>,
    ) {
        let AdmissionVerdict { labels, mut reasons } = verdict;
        if reasons.is_empty() {
            reasons = self.prefix_conflicts(node, &report);
        }
        let node = node.name.clone();
        let record = if reasons.is_empty() {
            let subject = Subject { labels, accepts: report.accepts.clone() };
            let known = self.current(&report.id).and_then(|known| known.unhealthy());
            let is_kept = |service: &ServiceName| {
                known.is_some_and(|known| known.contains(service))
                    || self.is_checked(&report.network, &subject.labels, service)
            };
            let unhealthy = report.unhealthy.into_iter().filter(is_kept).collect();
            let identity = self.identity(&report.network, subject);
            let mut record = WorkloadRecord {
                id: report.id,
                network: report.network,
                node,
                name: report.name,
                addresses: report.addresses,
                prefixes: report.prefixes,
                device: report.device,
                declared: report.labels,
                accepts: report.accepts,
                label_override,
                measurement: report.measurement,
                identity,
                owns_name: false,
                unhealthy,
            };
            record.owns_name = self.claim_name(&record);
            self.free_name(&record.id, Some(&record.name));
            Record::Workload(record)
        } else {
            self.free_name(&report.id, None);
            // It is an instance of nothing.
            let report = ReportRecord { unhealthy: BTreeSet::new(), ..report };
            Record::Refused(Box::new(RefusedRecord { node, report, label_override, reasons }))
        };
        self.put(record);
    }

    /// Adds the record of a workload, unless it is the same as before.
    fn put(&mut self, record: Record) {
        let Some(workload) = WorkloadRef::of(&record) else { return };
        let (id, network) = (workload.id().clone(), workload.network().clone());
        let known = self.current(&id);
        if known.is_some_and(|known| known.is(&record)) {
            return;
        }
        for address in known.map(|known| known.addresses().to_vec()).unwrap_or_default() {
            self.addresses.remove(&(network.clone(), address));
        }
        for address in workload.addresses() {
            self.addresses.insert((network.clone(), *address), id.clone());
        }
        if let Some(key) = workload.device() {
            self.devices.insert(key, id.clone());
        }
        match workload.prefixes().is_empty() {
            true => self.new_routes.remove(&id),
            false => self.new_routes.insert(id.clone()),
        };
        let name = format!("{} ({id})", workload.name());
        match workload {
            WorkloadRef::Admitted(_) => self.started.push(name),
            WorkloadRef::Refused(record) => {
                self.refused.push(format!("{name}: {}", record.reason()));
            }
        }
        self.new.insert(id, record.clone());
        self.mutations.push(Mutation::Put(record));
    }

    /// Returns the identity of a subject, a new one if there is none.
    fn identity(&mut self, network: &NetworkName, subject: Subject) -> IdentityId {
        if let Some(id) = self.world.networks[network].by_subject.get(&subject) {
            return *id;
        }
        let next = IdentityId(self.world.next_identity().0 + self.identities.len() as u32);
        let id = *self.identities.entry((network.clone(), subject.clone())).or_insert(next);
        if id == next {
            let Subject { labels, accepts } = subject;
            let record = IdentityRecord { id, network: network.clone(), labels, accepts };
            self.mutations.push(Mutation::Put(Record::Identity(record)));
        }
        id
    }

    /// Returns the labels of an identity, which may be new.
    pub(super) fn labels_of(&self, network: &NetworkName, id: IdentityId) -> Option<&Labels> {
        let known = self.world.networks.get(network)?.identities.get(&id);
        known.map(|record| &record.labels).or_else(|| {
            let mut new = self.identities.iter();
            new.find(|(_, new)| **new == id).map(|((_, subject), _)| &subject.labels)
        })
    }

    /// Returns `true` if a service checks the health of workloads with these labels. A node's
    /// findings for others are not kept.
    pub(super) fn is_checked(
        &self,
        network: &NetworkName,
        labels: &Labels,
        service: &ServiceName,
    ) -> bool {
        let in_force = || Some(self.world.networks.get(network)?.links.policy());
        let policy = self.contexts.get(network).map(|context| &context.policy);
        let service = policy.or_else(in_force).and_then(|policy| policy.service(service));
        service.is_some_and(|own| own.health.is_some() && own.instances.matches(labels))
    }

    /// Deletes the oldest identities without a workload where there are too many. The newest of
    /// all stays, since it shows which numbers have been used.
    pub(super) fn delete_idle_identities(&mut self) {
        let next = self.world.next_identity();
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
                network.hosts(**id).is_none() && !used.contains(*id) && id.0 + 1 != next.0
            };
            let idle = network.identities.keys().filter(is_idle).take(MAX_IDLE / 2);
            self.mutations.extend(idle.map(|id| Mutation::Delete(RecordKey::Identity(*id))));
        }
    }

    /// Deletes the signatures of images without a workload where there are too many.
    pub(super) fn delete_idle_images(&mut self) {
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

    /// Returns the line of the audit log.
    pub(super) fn action(&self) -> String {
        let list = |verb: &str, names: &[String]| match names.len() {
            0 => String::new(),
            count if count > MAX_NAMED => format!("{verb} {count} workloads"),
            _ => format!("{verb} {}", names.join(", ")),
        };
        let parts = [
            list("started", &self.started),
            list("stopped", &self.stopped),
            list("refused", &self.refused),
            list("found", &self.checked),
        ];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    }
}
