//! Triggers that have fired, and what they did that has had its time.

use super::{
    quarantines::{Hand, impose},
    reclassify::override_labels,
};
use crate::{
    Plan, Refusal,
    records::{LabelOverride, Mutation, RecordKey},
    timestamp,
    world::World,
};
use meshward_api_types::{Impose, QuarantineTarget};
use meshward_control_proto::Fired;
use meshward_policy::{Reaction, Trigger};
use meshward_types::{NodeName, WorkloadId};
use time::OffsetDateTime;

/// What is left to do once a trigger's plan is stored.
#[derive(Default)]
pub struct Done {
    /// Whom to tell.
    pub webhook: Option<String>,
}

/// Works out what a trigger does about what a node has seen. The node's word counts for its own
/// workloads only.
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
    let watched = |trigger: &&Trigger| {
        network.links.labels(workload.identity).is_some_and(|labels| trigger.watch.matches(labels))
    };
    let Some(trigger) = trigger.filter(watched) else { return Ok(nothing) };
    let by = format!("trigger:{}", trigger.name);
    let seen = format!(
        "{} ({}) was denied {} flows to {} ports and {} addresses",
        workload.name,
        workload.id,
        fired.denied_flows,
        fired.distinct_ports,
        fired.distinct_addresses
    );
    let seconds = trigger.lasts.map(|span| span.0.as_secs().max(1));
    let mut done = Done::default();
    let (mutations, what) = match &trigger.then {
        Reaction::Quarantine => {
            let target = QuarantineTarget {
                network: None,
                selector: None,
                workload: Some(workload.id.clone()),
            };
            if world.quarantines.of_workload(&workload.id).is_some() {
                return Ok(nothing);
            }
            let wanted = Impose {
                target,
                allow_from: None,
                seconds,
                message: Some(seen.clone()),
                even_if_none: true,
                reset: false,
            };
            let plan =
                impose(world, id, &wanted, &Hand { by: &by, networks: &[], admin: false, now })?;
            (plan.mutations, plan.action)
        }
        Reaction::Label(labels) => {
            let until = seconds.map(|seconds| now.unix_timestamp() + seconds as i64);
            if workload.label_override.as_ref().is_some_and(|given| given.labels == *labels) {
                return Ok(nothing);
            }
            let given = LabelOverride { labels: labels.clone(), until };
            (
                override_labels(world, &[(workload.id.clone(), Some(given))]),
                format!("gave {} the labels {labels}", workload.id),
            )
        }
        Reaction::Webhook(url) => {
            done.webhook = Some(url.clone());
            (vec![], format!("told {url}"))
        }
    };
    Ok(Plan::new(format!("{what}: {seen}"), mutations, Some(done)))
}

/// Ends what has had its time: quarantines, and labels that a trigger gave.
pub fn expire(world: &World, now: OffsetDateTime) -> Plan<()> {
    // RFC 3339 in UTC, to the second: the order of the texts is that of the times.
    let text = timestamp(now);
    let over = world
        .quarantines
        .values()
        .filter(|quarantine| quarantine.until.as_ref().is_some_and(|until| *until <= text));
    let ended: Vec<String> = over.map(|quarantine| quarantine.id.clone()).collect();
    let given = world.overridden.iter().filter(|id| {
        let until = world.standing(id).and_then(|workload| workload.label_override()?.until);
        until.is_some_and(|until| until <= now.unix_timestamp())
    });
    let given: Vec<(WorkloadId, Option<LabelOverride>)> =
        given.map(|id| (id.clone(), None)).collect();
    let mut said = Vec::new();
    if !ended.is_empty() {
        said.push(format!("the time of quarantine {} is over", ended.join(", ")));
    }
    if !given.is_empty() {
        let ids: Vec<&str> = given.iter().map(|(id, _)| id.as_str()).collect();
        said.push(format!("took back the labels of {}", ids.join(", ")));
    }
    let mut mutations: Vec<Mutation> =
        ended.into_iter().map(|id| Mutation::Delete(RecordKey::Quarantine(id))).collect();
    mutations.extend(override_labels(world, &given));
    Plan::new(said.join("; "), mutations, ())
}
