//! Previews of admission: the verdicts of a policy that is not in force yet, computed without the
//! world's lock, for the workloads of some nodes at a time.

use crate::{
    plans::admission::{AdmissionCheck, AdmissionVerdict},
    records::WorkloadRef,
    world::{SharedWorkload, World},
};
use ipnet::IpNet;
use meshward_policy::Policy;
use meshward_types::{
    Labels, NetworkName, NodeName, Revision, WorkloadId,
    measurement::{Image, ImageSignature, Measurement, Sha256},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// The number of nodes whose workloads are copied at a time.
const NODES: usize = 8;

/// The effect that a policy would have on the workloads of a network.
#[derive(Debug, Default)]
pub struct AdmissionPreview {
    /// The refused workloads that would be admitted.
    pub admitted: Vec<String>,
    /// The workloads that would be refused, or for other reasons, with the reasons.
    pub refused: Vec<String>,
    /// The verdicts, for the plan.
    pub precomputed: PrecomputedVerdicts,
}

/// Verdicts that were computed without the world's lock. A plan uses those that still hold.
#[derive(Debug, Default)]
pub struct PrecomputedVerdicts {
    /// The signers of images, so that every signature is checked once.
    pub signers: HashMap<Image, Vec<String>>,
    /// The generation of the signatures: see [`crate::world::World::images`].
    pub images: u64,
    /// The revision at which the verdicts were computed, or an earlier one.
    pub since: Revision,
    /// The sites of the nodes whose workloads were evaluated.
    pub sites: BTreeMap<NodeName, Option<String>>,
    /// The workloads whose labels or reasons change.
    pub changes: HashMap<WorkloadId, AdmissionVerdict>,
}

/// A workload to be evaluated.
struct Case {
    shared: SharedWorkload,
    unapproved: Vec<IpNet>,
    /// The labels by which policy knows it now, if it is admitted.
    labels: Option<Labels>,
}

/// Calls a function with the world, under its lock. The function has to be short.
type WithWorld<'a> = &'a dyn Fn(&mut dyn FnMut(&World));

/// Evaluates a policy for all workloads of a network.
pub fn preview_admission(
    with_world: WithWorld<'_>,
    name: &NetworkName,
    policy: &Arc<Policy>,
) -> AdmissionPreview {
    let (mut nodes, mut precomputed) = (Vec::new(), PrecomputedVerdicts::default());
    with_world(&mut |world| {
        nodes = world.nodes.keys().cloned().collect();
        (precomputed.images, precomputed.since) = (world.images.generation(), world.revision);
    });
    let mut preview = AdmissionPreview { precomputed, ..AdmissionPreview::default() };
    let names_node = policy.speaks_of_nodes();
    for some in nodes.chunks(NODES) {
        let mut copied = Copied::default();
        with_world(&mut |world| {
            copied = Copied::of(world, name, some, &mut preview.precomputed);
        });
        for case in &copied.cases {
            preview.evaluate(case, policy, names_node, &copied.signatures);
        }
    }
    preview.admitted.sort_unstable();
    preview.refused.sort_unstable();
    preview
}

type Signatures = HashMap<Sha256, Vec<ImageSignature>>;

/// Workloads, and the signatures of their images, copied from the world.
#[derive(Default)]
struct Copied {
    cases: Vec<Case>,
    /// The signatures of images whose signers are not known yet.
    signatures: Signatures,
}

impl Copied {
    /// Copies the workloads of some nodes.
    fn of(
        world: &World,
        name: &NetworkName,
        nodes: &[NodeName],
        precomputed: &mut PrecomputedVerdicts,
    ) -> Self {
        let mut copied = Self::default();
        let Some(network) = world.networks.get(name) else { return copied };
        for node in nodes.iter().filter_map(|node| world.nodes.get(node)) {
            let Some(index) = world.nodes.index(&node.name) else { continue };
            precomputed.sites.insert(node.name.clone(), node.site.clone());
            for shared in network.shared_workloads_on(index) {
                let workload = shared.workload();
                let images = workload.measurement().into_iter().flat_map(Measurement::all_images);
                for image in images.filter(|image| !precomputed.signers.contains_key(*image)) {
                    let kept = || world.images.signatures(&image.digest, name).cloned().collect();
                    copied.signatures.entry(image.digest).or_insert_with(kept);
                }
                let labels = match workload {
                    WorkloadRef::Admitted(record) => network.identities.get(&record.identity),
                    WorkloadRef::Refused(_) => None,
                };
                let labels = labels.map(|identity| identity.labels.clone());
                let unapproved = world.unapproved(node, name, workload.prefixes(), None);
                copied.cases.push(Case { shared, unapproved, labels });
            }
        }
        copied
    }
}

impl AdmissionPreview {
    /// Evaluates a policy for a workload, and keeps the verdict if it is another than that in
    /// force.
    fn evaluate(
        &mut self,
        case: &Case,
        policy: &Policy,
        names_node: bool,
        signatures: &Signatures,
    ) {
        let workload = case.shared.workload();
        let PrecomputedVerdicts { signers, sites, changes, .. } = &mut self.precomputed;
        let site = sites.get(workload.node()).and_then(Option::as_deref);
        let (node, unapproved) = (workload.node(), &case.unapproved[..]);
        let check = AdmissionCheck { policy, names_node, node, site, unapproved };
        let verdict = check.evaluate(&workload.report(), workload.label_override(), |image| {
            let find = || {
                let signatures = signatures.get(&image.digest).map_or(&[][..], Vec::as_slice);
                policy.signers(image, signatures.iter())
            };
            signers.entry(image.clone()).or_insert_with(find).clone()
        });
        let before = match workload {
            WorkloadRef::Admitted(_) => &[],
            WorkloadRef::Refused(record) => &record.reasons[..],
        };
        let reasons = &verdict.reasons;
        let keeps_labels = case.labels.as_ref() == Some(&verdict.labels);
        if reasons == before && (!reasons.is_empty() || keeps_labels) {
            return;
        }
        let name = || format!("{} ({})", workload.name(), workload.id());
        match reasons.as_slice() {
            same if same == before => {}
            [] => self.admitted.push(name()),
            reasons => self.refused.push(format!("{}: {}", name(), reasons.join("; "))),
        }
        changes.insert(workload.id().clone(), verdict);
    }
}
