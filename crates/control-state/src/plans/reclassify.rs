//! Reclassifying: workloads that are there are judged anew, under other labels, approvals or
//! policies.

use super::{admission::AdmissionContext, prejudging::Warmed, workloads::Batch};
use crate::{
    records::{ApprovalRecord, LabelOverride, Mutation, NodeRecord, Record, Standing},
    world::{NetworkState, World},
};
use meshward_policy::Policy;
use meshward_types::{Labels, WorkloadId};
use std::{collections::BTreeSet, sync::Arc};

/// Gives workloads labels of a trigger, or takes them away.
pub fn override_labels(
    world: &World,
    ids: &[(WorkloadId, Option<LabelOverride>)],
) -> Vec<Mutation> {
    let mut batch = Batch::new(world);
    for (id, given) in ids {
        let Some((node, report)) = world
            .standing(id)
            .and_then(|known| Some((world.nodes.get(known.node())?, known.report())))
        else {
            continue;
        };
        batch.reclassify(node, report, given.clone());
    }
    batch.mutations
}

/// Judges workloads anew, where an approval comes or goes with the same plan.
pub fn reclassify_all(
    world: &World,
    ids: &[WorkloadId],
    approval: Option<(&ApprovalRecord, bool)>,
) -> Vec<Mutation> {
    let mut batch = Batch { approval, ..Batch::new(world) };
    for known in ids.iter().filter_map(|id| world.standing(id)) {
        if let Some(node) = world.nodes.get(known.node()) {
            batch.reclassify(node, known.report(), known.label_override().cloned());
        }
    }
    batch.mutations
}

/// What another policy makes of the workloads of a network.
#[derive(Default)]
pub struct Reclassified {
    pub mutations: Vec<Mutation>,
    /// Those that are let in now, and were not.
    pub admitted: Vec<String>,
    /// Those that are not let in any more, and why; and those that are refused for other reasons
    /// than before.
    pub refused: Vec<String>,
}

/// Judges the workloads of a network anew, by the policy that it is to have. `warmed`: what was
/// found of them beside the world; `touched`: those that may have changed since, if that is known.
pub fn reclassify_under(
    world: &World,
    network: &NetworkState,
    policy: &Arc<Policy>,
    warmed: Option<&Warmed>,
    touched: Option<&BTreeSet<String>>,
) -> Reclassified {
    if network.links.policy().admits_like(policy) {
        return Reclassified::default();
    }
    let mut batch = Batch::new(world);
    let mut context = AdmissionContext::of(policy.clone());
    let warmed = warmed.filter(|warmed| warmed.images == world.images.generation());
    if let Some(warmed) = warmed {
        context.signers.clone_from(&warmed.signers);
    }
    batch.contexts.insert(network.record.name.clone(), context);
    let mut all: Vec<Standing> = match warmed.zip(touched) {
        Some((warmed, touched)) => {
            let open = to_judge(world, network, warmed, touched);
            open.into_iter().filter_map(|id| network.standing(&id)).collect()
        }
        None => network.all_standing().collect(),
    };
    all.sort_unstable_by(|a, b| a.id().cmp(b.id()));
    for known in &all {
        let Some(node) = world.nodes.get(known.node()) else { continue };
        let (report, given) = (known.report(), known.label_override().cloned());
        match warmed.zip(touched).and_then(|found| verdict(found, node, known)) {
            Some(verdict) => batch.reclassify_as(node, report, given, verdict),
            None => batch.reclassify(node, report, given),
        }
    }
    let admitted = all.iter().filter(|known| {
        let moved = matches!(batch.new.get(known.id()), Some(Record::Workload(_)));
        moved && matches!(known, Standing::Refused(_))
    });
    let admitted = admitted.map(|known| format!("{} ({})", known.name(), known.id())).collect();
    Reclassified { admitted, refused: batch.turned_away, mutations: batch.mutations }
}

/// The workloads of which it is not known that they stay as they are: those that were found to
/// move, those that have changed since, those of nodes that are at another site, and those with
/// prefixes behind them, of which who comes first has them.
fn to_judge(
    world: &World,
    network: &NetworkState,
    warmed: &Warmed,
    touched: &BTreeSet<String>,
) -> BTreeSet<WorkloadId> {
    let moved = |node: &&NodeRecord| warmed.sites.get(&node.name) != Some(&node.site);
    let elsewhere =
        world.nodes.values().filter(moved).filter_map(|node| world.nodes.index(&node.name));
    let elsewhere = elsewhere.flat_map(|node| network.shared_on(node));
    let elsewhere = elsewhere.map(|shared| shared.standing().id().clone());
    let changed = touched.iter().filter_map(|id| id.parse().ok());
    let gateways = network.gateways().map(|known| known.id().clone());
    warmed.moving.keys().cloned().chain(changed).chain(gateways).chain(elsewhere).collect()
}

/// What was found of a workload beside the world, if nothing that it hangs on has changed since.
fn verdict(
    (warmed, touched): (&Warmed, &BTreeSet<String>),
    node: &NodeRecord,
    known: &Standing,
) -> Option<(Labels, Vec<String>)> {
    let same = known.prefixes().is_empty()
        && !touched.contains(known.id().as_str())
        && warmed.sites.get(&node.name) == Some(&node.site);
    warmed.moving.get(known.id()).filter(|_| same).cloned()
}
