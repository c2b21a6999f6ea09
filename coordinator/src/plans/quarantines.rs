//! Quarantines: cutting every link of a workload, now.

use super::networks::find;
use crate::{
    mesh::{Plan, Refusal},
    records::{Mutation, Record, RecordKey},
    world::World,
};
use meshward_model::{
    WorkloadId,
    api::{Quarantine, QuarantineTarget},
};
use std::fmt::Write;

/// Isolates what `target` names, from now on and for those that start later.
pub fn impose(
    world: &World,
    id: &str,
    target: &QuarantineTarget,
    since: &str,
) -> Result<Plan<Vec<WorkloadId>>, Refusal> {
    check(world, target)?;
    let workloads = held_by(world, target);
    if world.quarantines.values().any(|standing| standing.target == *target) {
        return Ok(Plan { mutations: vec![], action: String::new(), outcome: workloads });
    }
    let record = Quarantine { id: id.to_owned(), target: target.clone(), since: since.to_owned() };
    Ok(Plan {
        mutations: vec![Mutation::Put(Record::Quarantine(record))],
        action: format!("quarantined {}", describe(target)),
        outcome: workloads,
    })
}

/// Ends the quarantine of what `target` names.
pub fn release(world: &World, target: &QuarantineTarget) -> Result<Plan<Vec<WorkloadId>>, Refusal> {
    let standing = world.quarantines.values().find(|standing| standing.target == *target);
    let Some(standing) = standing else {
        let mut text = format!("no quarantine holds exactly {}", describe(target));
        for other in world.quarantines.values() {
            // Writing to a string has no way to fail.
            let _ = write!(text, "; {} holds {}", other.id, describe(&other.target));
        }
        return Err(Refusal::Missing(text));
    };
    Ok(Plan {
        mutations: vec![Mutation::Delete(RecordKey::Quarantine(standing.id.clone()))],
        action: format!("released {}", describe(target)),
        outcome: held_by(world, target),
    })
}

fn check(world: &World, target: &QuarantineTarget) -> Result<(), Refusal> {
    if let Some(network) = &target.network {
        find(world, network)?;
    }
    match (&target.selector, &target.workload) {
        (Some(_), None) => Ok(()),
        (None, Some(id)) if world.workload_networks.contains_key(id) => Ok(()),
        (None, Some(id)) => {
            Err(Refusal::Missing(format!("there is no workload `{id}`; `meshctl workloads` shows them")))
        }
        _ => Err(Refusal::Invalid("name either a `selector` or a `workload`, not both or neither".into())),
    }
}

fn held_by(world: &World, target: &QuarantineTarget) -> Vec<WorkloadId> {
    world.targeted(target).into_iter().map(|workload| workload.id.clone()).collect()
}

fn describe(target: &QuarantineTarget) -> String {
    let what = match (&target.selector, &target.workload) {
        (Some(selector), _) => format!("`{selector}`"),
        (None, Some(workload)) => format!("workload {workload}"),
        (None, None) => "nothing".to_owned(),
    };
    match &target.network {
        Some(network) => format!("{what} in network {network}"),
        None => what,
    }
}
