//! Reclassification: workloads are admitted or refused again, by other labels, approvals or
//! policies.

use super::{
    admission::{AdmissionContext, AdmissionVerdict, ApprovalChange},
    admission_preview::PrecomputedVerdicts,
    batch::Batch,
};
use crate::{
    records::{LabelOverride, Mutation, NodeRecord, Record, WorkloadRef},
    world::{NetworkState, World},
};
use meshward_policy::Policy;
use meshward_types::WorkloadId;
use std::{collections::BTreeSet, sync::Arc};

/// A workload whose labels of a trigger change.
pub(super) struct OverrideChange {
    pub(super) workload: WorkloadId,
    /// The labels from now on, if any.
    pub(super) becomes: Option<LabelOverride>,
}

/// Gives workloads labels of a trigger, or removes them.
pub(super) fn override_labels(world: &World, changes: Vec<OverrideChange>) -> Vec<Mutation> {
    let mut batch = Batch::new(world);
    for OverrideChange { workload, becomes } in changes {
        let Some(known) = world.workload(&workload) else { continue };
        if let Some(node) = world.nodes.get(known.node()) {
            batch.classify(node, known.report(), becomes);
        }
    }
    batch.mutations
}

/// Classifies workloads again after a change of the approval of routes.
pub(super) fn reclassify_after(
    world: &World,
    ids: &[WorkloadId],
    approval: ApprovalChange<'_>,
) -> Vec<Mutation> {
    let mut batch = Batch::with_approval(world, approval);
    for known in ids.iter().filter_map(|id| world.workload(id)) {
        if let Some(node) = world.nodes.get(known.node()) {
            batch.classify(node, known.report(), known.label_override().cloned());
        }
    }
    batch.mutations
}

/// The effect of another policy on the workloads of a network.
#[derive(Default)]
pub(super) struct Reclassified {
    pub(super) mutations: Vec<Mutation>,
    /// The refused workloads that are admitted now.
    pub(super) admitted: Vec<String>,
    /// The workloads that are refused now, or for other reasons than before, with the reasons.
    pub(super) refused: Vec<String>,
}

/// Verdicts that were computed without the world's lock, and the workloads that may have changed
/// since.
#[derive(Clone, Copy)]
struct Known<'a> {
    verdicts: &'a PrecomputedVerdicts,
    changed: &'a BTreeSet<String>,
}

/// Classifies the workloads of a network again, by the policy that it is to have. `changed`: the
/// workloads that may have changed since the verdicts were computed, if that is known.
pub(super) fn reclassify_under(
    world: &World,
    network: &NetworkState,
    policy: &Arc<Policy>,
    precomputed: Option<&PrecomputedVerdicts>,
    changed: Option<&BTreeSet<String>>,
) -> Reclassified {
    if network.links.policy().admits_like(policy) {
        return Reclassified::default();
    }
    let mut batch = Batch::new(world);
    let mut context = AdmissionContext::of(policy.clone());
    let precomputed = precomputed.filter(|known| known.images == world.images.generation());
    if let Some(precomputed) = precomputed {
        context.signers.clone_from(&precomputed.signers);
    }
    batch.contexts.insert(network.record.name.clone(), context);
    let known = precomputed.zip(changed).map(|(verdicts, changed)| Known { verdicts, changed });
    let mut all: Vec<WorkloadRef> = match known {
        Some(known) => {
            let open = known.undecided(world, network);
            open.into_iter().filter_map(|id| network.workload(&id)).collect()
        }
        None => network.all_workloads().collect(),
    };
    all.sort_unstable_by(|a, b| a.id().cmp(b.id()));
    for workload in &all {
        let Some(node) = world.nodes.get(workload.node()) else { continue };
        let (report, label_override) = (workload.report(), workload.label_override().cloned());
        match known.and_then(|known| known.verdict(node, workload)) {
            Some(verdict) => batch.classify_by(verdict, node, report, label_override),
            None => batch.classify(node, report, label_override),
        }
    }
    let admitted = all.iter().filter(|workload| {
        let is_admitted = matches!(batch.new.get(workload.id()), Some(Record::Workload(_)));
        is_admitted && matches!(workload, WorkloadRef::Refused(_))
    });
    let admitted = admitted.map(|known| format!("{} ({})", known.name(), known.id())).collect();
    Reclassified { admitted, refused: batch.refused, mutations: batch.mutations }
}

impl Known<'_> {
    /// Returns the workloads that may not stay as they are: those with another verdict, those that
    /// have changed since, those of nodes that have moved to another site, and those with prefixes
    /// behind them, which depend on each other.
    fn undecided(self, world: &World, network: &NetworkState) -> BTreeSet<WorkloadId> {
        let Self { verdicts, changed } = self;
        let has_moved = |node: &&NodeRecord| verdicts.sites.get(&node.name) != Some(&node.site);
        let moved = world.nodes.values().filter(has_moved);
        let moved = moved.filter_map(|node| world.nodes.index(&node.name));
        let moved = moved.flat_map(|node| network.shared_workloads_on(node));
        let moved = moved.map(|shared| shared.workload().id().clone());
        let changed = changed.iter().filter_map(|id| id.parse().ok());
        let gateways = network.gateways().map(|known| known.id().clone());
        verdicts.changes.keys().cloned().chain(changed).chain(gateways).chain(moved).collect()
    }

    /// Returns the verdict of a workload, if nothing has changed on which it depends.
    fn verdict(self, node: &NodeRecord, workload: &WorkloadRef) -> Option<AdmissionVerdict> {
        let holds = workload.prefixes().is_empty()
            && !self.changed.contains(workload.id().as_str())
            && self.verdicts.sites.get(&node.name) == Some(&node.site);
        self.verdicts.changes.get(workload.id()).filter(|_| holds).cloned()
    }
}
