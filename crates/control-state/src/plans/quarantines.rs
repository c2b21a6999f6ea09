//! Quarantines: cutting every link of workloads at once.

use super::{credentials::covers, networks::find};
use crate::{
    Plan, Refusal,
    records::{Mutation, QuarantineRecord, Record, RecordKey, TargetRecord},
    timestamp,
    world::World,
};
use meshward_api_types::{Impose, QuarantineTarget};
use meshward_types::{NetworkName, Selector, WorkloadId, selector::Requirement};
use std::{collections::BTreeSet, fmt::Write};
use time::OffsetDateTime;

/// The longest duration of a quarantine, in seconds.
const MAX_SECONDS: u64 = 365 * 24 * 3600;

/// The largest edit distance at which another label is proposed.
const MOST_WRONG: usize = 3;

/// The author of a quarantine or a release, and the time.
pub struct Hand<'a> {
    /// `user:NAME` or `trigger:NAME`.
    pub by: &'a str,
    /// The networks in which the author may do it; empty for all.
    pub networks: &'a [NetworkName],
    /// `true` for an admin, who may let in workloads that the policy does not name.
    pub admin: bool,
    /// The time.
    pub now: OffsetDateTime,
}

/// Isolates the workloads of a target, those that start later included. `id` is the id of a new
/// quarantine. The outcome has the workloads that it isolates now.
///
/// # Errors
/// [`Refusal::Forbidden`] if the author may not do it; [`Refusal::Invalid`] if the target is
/// malformed or selects no workload; [`Refusal::Missing`] if it does not exist.
pub fn impose(
    world: &World,
    id: &str,
    wanted: &Impose,
    hand: &Hand,
) -> Result<Plan<Vec<WorkloadId>>, Refusal> {
    let target = &TargetRecord::from(&wanted.target);
    check_scope(world, target, hand)?;
    check(world, target)?;
    if wanted.seconds.is_some_and(|seconds| !(1..=MAX_SECONDS).contains(&seconds)) {
        return Err(Refusal::Invalid("a quarantine can last from one second to 365 days".into()));
    }
    check_forensics(world, wanted, hand)?;
    let workloads = workloads_of(world, target);
    if workloads.is_empty() && !wanted.even_if_none {
        return Err(Refusal::Invalid(selects_nothing(world, target)));
    }
    let until =
        wanted.seconds.map(|seconds| timestamp(hand.now + time::Duration::seconds(seconds as i64)));
    let standing = world.quarantines.values().find(|standing| standing.target == *target);
    let by_admin = hand.admin && wanted.allow_from.is_some();
    let same = |standing: &QuarantineRecord| {
        standing.allow_from == wanted.allow_from
            && standing.until == until
            && standing.by_admin == by_admin
            && standing.reset == wanted.reset
    };
    if standing.is_some_and(same) {
        return Ok(Plan::nothing(workloads));
    }
    let record = QuarantineRecord {
        id: standing.map_or(id, |standing| &standing.id).to_owned(),
        target: target.clone(),
        allow_from: wanted.allow_from.clone(),
        by_admin,
        reset: wanted.reset,
        since: standing.map_or_else(|| timestamp(hand.now), |standing| standing.since.clone()),
        until,
        by: hand.by.to_owned(),
        why: wanted.message.clone(),
    };
    let mut action = format!("quarantined {}", describe(target));
    if let Some(selector) = &record.allow_from {
        // Writing to a string has no way to fail.
        let _ = write!(action, ", but for `{selector}`");
    }
    if record.reset {
        action.push_str(", with resets");
    }
    if let Some(until) = &record.until {
        let _ = write!(action, ", until {until}");
    }
    Ok(Plan::new(action, vec![Mutation::Put(Record::Quarantine(record))], workloads))
}

/// Ends the quarantine with exactly this target. The outcome has the workloads that it isolated.
///
/// # Errors
/// [`Refusal::Missing`] if there is none, [`Refusal::Forbidden`] if the author may not do it.
pub fn release(
    world: &World,
    target: &QuarantineTarget,
    hand: &Hand,
) -> Result<Plan<Vec<WorkloadId>>, Refusal> {
    let target = &TargetRecord::from(target);
    check_scope(world, target, hand)?;
    let standing = world.quarantines.values().find(|standing| standing.target == *target);
    let Some(standing) = standing else {
        let mut text = format!("no quarantine holds exactly {}", describe(target));
        // What is outside of the scope is not told.
        let known = world.quarantines.values();
        for other in known.filter(|other| check_scope(world, &other.target, hand).is_ok()) {
            let _ = write!(text, "; {} holds {}", other.id, describe(&other.target));
        }
        return Err(Refusal::Missing(text));
    };
    Ok(Plan::new(
        format!("released {}", describe(target)),
        vec![Mutation::Delete(RecordKey::Quarantine(standing.id.clone()))],
        workloads_of(world, target),
    ))
}

/// Refuses `allow_from` of an author who is no admin, unless the policy names somebody under
/// `forensics`.
fn check_forensics(world: &World, wanted: &Impose, hand: &Hand) -> Result<(), Refusal> {
    if hand.admin || wanted.allow_from.is_none() {
        return Ok(());
    }
    let target = &wanted.target;
    let own = target.workload.as_ref().and_then(|id| world.workload_networks.get(id));
    let own = own.or(target.network.as_ref());
    let mut concerned =
        world.networks.iter().filter(|(name, _)| own.is_none_or(|own| own == *name));
    if concerned.any(|(_, network)| !network.links.policy().forensics.is_empty()) {
        return Ok(());
    }
    let network = own.map(|name| format!(" of network `{name}`")).unwrap_or_default();
    let text = format!(
        "the policy{network} names nobody who may be let in to what is quarantined: leave \
        `--allow-from` out now, and have an admin name them under `forensics:`"
    );
    Err(Refusal::Forbidden(text).about("allow_from"))
}

fn check(world: &World, target: &TargetRecord) -> Result<(), Refusal> {
    if let Some(network) = &target.network {
        find(world, network)?;
    }
    match (&target.selector, &target.workload) {
        (Some(_), None) => {}
        (None, Some(id)) if world.workload_networks.contains_key(id) => {}
        (None, Some(id)) => return Err(no_workload(id)),
        _ => {
            return Err(Refusal::Invalid(
                "name either a `selector` or a `workload`, not both or neither".into(),
            ));
        }
    }
    Ok(())
}

fn no_workload(id: &WorkloadId) -> Refusal {
    Refusal::Missing(format!("there is no workload `{id}`; `meshctl workloads` shows them"))
}

/// Refuses a target outside the author's networks. It gets the same answer as one that does not
/// exist, so that nobody learns by asking what exists elsewhere.
fn check_scope(world: &World, target: &TargetRecord, hand: &Hand) -> Result<(), Refusal> {
    if hand.networks.is_empty() {
        return Ok(());
    }
    if let Some(network) = target.network.as_ref().filter(|network| !covers(hand.networks, network))
    {
        return Err(Refusal::Forbidden(format!(
            "this credential has no say in network `{network}`"
        )));
    }
    match (&target.workload, &target.network) {
        (Some(id), _) => {
            let own = world.workload_networks.get(id).filter(|own| covers(hand.networks, own));
            own.map(drop).ok_or_else(|| no_workload(id))
        }
        (None, Some(_)) => Ok(()),
        (None, None) => Err(Refusal::Forbidden(
            "this credential has a say in some networks only: name one with `--network`".into(),
        )),
    }
}

/// Returns the error for a target that selects no workload, with a proposal.
fn selects_nothing(world: &World, target: &TargetRecord) -> String {
    let mut text = format!("{} selects no workload now", describe(target));
    let meant = target.selector.as_ref().and_then(|selector| likely(world, target, selector));
    match meant {
        Some(meant) => drop(write!(text, "; did you mean {meant}?")),
        None => text.push('.'),
    }
    text + " To hold workloads that start later all the same, say so: `--even-if-none` \
        (`even_if_none`)"
}

/// Returns the requirement that is nearest to one which no workload fulfils.
fn likely(world: &World, target: &TargetRecord, selector: &Selector) -> Option<String> {
    let networks = world.networks.values();
    let networks = networks
        .filter(|network| target.network.as_ref().is_none_or(|own| *own == network.record.name));
    let labels =
        networks.flat_map(|network| network.identities.values()).flat_map(|own| own.labels.iter());
    let labels: BTreeSet<(&str, &str)> = labels.map(|(key, value)| (key.as_str(), value)).collect();
    let wanted = selector.requirements().flat_map(|(key, requirement)| match requirement {
        Requirement::In(values) => {
            values.iter().map(|value| (key.as_str(), value.as_str())).collect()
        }
        Requirement::Exists => vec![(key.as_str(), "")],
        Requirement::Not(_) | Requirement::Missing => vec![],
    });
    let mut unknown = wanted.filter(|(key, value)| {
        !labels.iter().any(|known| known.0 == *key && (value.is_empty() || known.1 == *value))
    });
    let nearest = |(key, value): (&str, &str)| {
        let written = |(key, own): &(&str, &str)| match value.is_empty() {
            true => (*key).to_owned(),
            false => format!("{key}={own}"),
        };
        let given = written(&(key, value));
        let near = labels.iter().map(|known| {
            let known = written(known);
            (strsim::damerau_levenshtein(&given, &known), known)
        });
        near.min()
            .filter(|(distance, _)| *distance <= MOST_WRONG.min(given.len() / 2))
            .map(|(_, known)| known)
    };
    unknown.find_map(nearest).map(|meant| format!("`{meant}`"))
}

fn workloads_of(world: &World, target: &TargetRecord) -> Vec<WorkloadId> {
    world.targeted(target).into_iter().map(|workload| workload.id.clone()).collect()
}

fn describe(target: &TargetRecord) -> String {
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
