//! Triggers that have fired, and the end of quarantines and labels.

use super::{
    quarantines::{Hand, impose},
    reclassify::{OverrideChange, override_labels},
};
use crate::{
    Plan, Refusal,
    records::{LabelOverride, Mutation, RecordKey, WorkloadRecord},
    timestamp,
    world::World,
};
use meshward_api_types::{Impose, QuarantineTarget};
use meshward_control_proto::Fired;
use meshward_policy::{Reaction, Trigger};
use meshward_types::{Labels, NodeName};
use time::OffsetDateTime;

/// The work that is left after a trigger's plan was committed.
#[derive(Default)]
pub struct Done {
    /// The URL of the webhook to call.
    pub webhook: Option<String>,
}

/// A trigger's reaction: records to write, and its description for the audit log.
struct Reacted {
    mutations: Vec<Mutation>,
    action: String,
    done: Done,
}

/// A quarantine that a trigger imposes.
struct NewQuarantine<'a> {
    id: &'a str,
    /// The reason.
    finding: &'a str,
    now: OffsetDateTime,
}

/// Plans the reaction to a trigger that a node says has fired. A node is believed about its own
/// workloads only. `id` is the id of a new quarantine.
///
/// # Errors
/// Fails as [`impose`] does.
pub fn fire(
    world: &World,
    node: &NodeName,
    fired: &Fired,
    id: &str,
    now: OffsetDateTime,
) -> Result<Plan<Option<Done>>, Refusal> {
    let nothing = Plan::nothing(None);
    let Some(network) = world.networks.get(&fired.network) else { return Ok(nothing) };
    let Some(workload) = network.workloads.get(&fired.workload).filter(|known| known.node == *node)
    else {
        return Ok(nothing);
    };
    let trigger =
        network.links.policy().triggers.iter().find(|trigger| trigger.name == fired.trigger);
    let watches = |trigger: &&Trigger| {
        network.links.labels(workload.identity).is_some_and(|labels| trigger.watch.matches(labels))
    };
    let Some(trigger) = trigger.filter(watches) else { return Ok(nothing) };
    let finding = format!(
        "{} ({}) was denied {} flows to {} ports and {} addresses",
        workload.name,
        workload.id,
        fired.denied_flows,
        fired.distinct_ports,
        fired.distinct_addresses
    );
    let reacted = match &trigger.then {
        Reaction::Quarantine => {
            quarantine(world, trigger, workload, &NewQuarantine { id, finding: &finding, now })?
        }
        Reaction::Label(labels) => relabel(world, trigger, workload, labels, now),
        Reaction::Webhook(url) => Some(Reacted {
            mutations: vec![],
            action: format!("told {url}"),
            done: Done { webhook: Some(url.clone()) },
        }),
    };
    let Some(Reacted { mutations, action, done }) = reacted else { return Ok(nothing) };
    Ok(Plan::new(format!("{action}: {finding}"), mutations, Some(done)))
}

/// Returns the seconds for which a reaction lasts; `None` for ever.
fn seconds(trigger: &Trigger) -> Option<u64> {
    trigger.lasts.map(|span| span.0.as_secs().max(1))
}

/// Quarantines a workload, unless it is quarantined already.
fn quarantine(
    world: &World,
    trigger: &Trigger,
    workload: &WorkloadRecord,
    new: &NewQuarantine,
) -> Result<Option<Reacted>, Refusal> {
    if world.quarantines.of_workload(&workload.id).is_some() {
        return Ok(None);
    }
    let target =
        QuarantineTarget { network: None, selector: None, workload: Some(workload.id.clone()) };
    let wanted = Impose {
        target,
        allow_from: None,
        seconds: seconds(trigger),
        message: Some(new.finding.to_owned()),
        even_if_none: true,
        reset: false,
    };
    let by = format!("trigger:{}", trigger.name);
    let plan = impose(
        world,
        new.id,
        &wanted,
        &Hand { by: &by, networks: &[], admin: false, now: new.now },
    )?;
    Ok(Some(Reacted { mutations: plan.mutations, action: plan.action, done: Done::default() }))
}

/// Gives a workload labels, unless it has them already.
fn relabel(
    world: &World,
    trigger: &Trigger,
    workload: &WorkloadRecord,
    labels: &Labels,
    now: OffsetDateTime,
) -> Option<Reacted> {
    if workload.label_override.as_ref().is_some_and(|own| own.labels == *labels) {
        return None;
    }
    let until = seconds(trigger).map(|seconds| now.unix_timestamp() + seconds as i64);
    let becomes = Some(LabelOverride { labels: labels.clone(), until });
    let change = OverrideChange { workload: workload.id.clone(), becomes };
    Some(Reacted {
        mutations: override_labels(world, vec![change]),
        action: format!("gave {} the labels {labels}", workload.id),
        done: Done::default(),
    })
}

/// Ends the quarantines and the labels of triggers whose time is over.
pub fn expire(world: &World, now: OffsetDateTime) -> Plan<()> {
    // RFC 3339 in UTC, to the second: the order of the texts is that of the times.
    let text = timestamp(now);
    let over = world
        .quarantines
        .values()
        .filter(|quarantine| quarantine.until.as_ref().is_some_and(|until| *until <= text));
    let ended: Vec<String> = over.map(|quarantine| quarantine.id.clone()).collect();
    let over = world.overridden.iter().filter(|id| {
        let until = world.workload(id).and_then(|workload| workload.label_override()?.until);
        until.is_some_and(|until| until <= now.unix_timestamp())
    });
    let removed: Vec<OverrideChange> =
        over.map(|id| OverrideChange { workload: id.clone(), becomes: None }).collect();
    let mut actions = Vec::new();
    if !ended.is_empty() {
        actions.push(format!("the time of quarantine {} is over", ended.join(", ")));
    }
    if !removed.is_empty() {
        let ids: Vec<&str> = removed.iter().map(|change| change.workload.as_str()).collect();
        actions.push(format!("took back the labels of {}", ids.join(", ")));
    }
    let mut mutations: Vec<Mutation> =
        ended.into_iter().map(|id| Mutation::Delete(RecordKey::Quarantine(id))).collect();
    mutations.extend(override_labels(world, removed));
    Plan::new(actions.join("; "), mutations, ())
}
