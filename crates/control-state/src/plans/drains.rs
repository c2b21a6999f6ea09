//! Drains: workloads and nodes are taken out of the choice of instances, and put back.

use super::nodes;
use crate::{
    Plan, Refusal,
    records::{DrainRecord, DrainTarget, Mutation, Record, RecordKey, WorkloadRecord},
    timestamp,
    world::World,
};
use meshward_types::{NetworkName, WorkloadId};
use time::OffsetDateTime;

/// The author of a drain, with the networks in which the author may change workloads; empty for all.
#[derive(Debug, Clone, Copy)]
pub struct DrainAuthor<'a> {
    /// The author: `user:NAME`.
    pub by: &'a str,
    /// The networks.
    pub networks: &'a [NetworkName],
    /// The reason.
    pub why: Option<&'a str>,
    /// The time.
    pub now: OffsetDateTime,
}

/// Drains a workload or a node. The outcome has the workloads that are drained.
///
/// # Errors
/// [`Refusal::Missing`] if there is no such workload or node, [`Refusal::Forbidden`] if the author may
/// not drain all of it.
pub fn drain(
    world: &World,
    target: &DrainTarget,
    author: &DrainAuthor,
) -> Result<Plan<Vec<WorkloadId>>, Refusal> {
    let drained = targeted(world, target, author.networks)?;
    if world.drains.get(target).is_some() {
        return Ok(Plan::nothing(drained));
    }
    let record = DrainRecord {
        target: target.clone(),
        since: timestamp(author.now),
        by: author.by.to_owned(),
        why: author.why.map(str::to_owned),
    };
    let action = format!("drained {}", named(target));
    Ok(Plan::new(action, vec![Mutation::Put(Record::Drain(record))], drained))
}

/// Ends the drain of a workload or a node. The outcome has the workloads that get new connections
/// again.
///
/// # Errors
/// As [`drain`] does; [`Refusal::Conflict`] if a workload is drained with its node.
pub fn undrain(
    world: &World,
    target: &DrainTarget,
    networks: &[NetworkName],
) -> Result<Plan<Vec<WorkloadId>>, Refusal> {
    let drained = targeted(world, target, networks)?;
    if world.drains.get(target).is_some() {
        let action = format!("ended the drain of {}", named(target));
        return Ok(Plan::new(
            action,
            vec![Mutation::Delete(RecordKey::Drain(target.clone()))],
            drained,
        ));
    }
    let by_node = drained.iter().find_map(|id| {
        let record = admitted(world, id)?;
        world.drains.of(record).map(|_| &record.node)
    });
    match by_node {
        Some(node) => Err(Refusal::Conflict(format!(
            "node {node} is drained, with all of its workloads: `meshctl undrain --node {node}`"
        ))),
        None => Ok(Plan::nothing(vec![])),
    }
}

fn named(target: &DrainTarget) -> String {
    match target {
        DrainTarget::Workload(id) => format!("workload {id}"),
        DrainTarget::Node(node) => format!("node {node}"),
    }
}

fn admitted<'a>(world: &'a World, id: &WorkloadId) -> Option<&'a WorkloadRecord> {
    let network = world.networks.get(world.workload_networks.get(id)?)?;
    network.workloads.get(id).map(|record| &**record)
}

/// Returns the workloads of a target.
///
/// # Errors
/// As [`drain`] does.
pub fn targeted(
    world: &World,
    target: &DrainTarget,
    networks: &[NetworkName],
) -> Result<Vec<WorkloadId>, Refusal> {
    let is_own = |network: &NetworkName| super::credentials::covers(networks, network);
    match target {
        DrainTarget::Workload(id) => match admitted(world, id) {
            Some(record) if is_own(&record.network) => Ok(vec![id.clone()]),
            _ => Err(Refusal::Missing(format!(
                "there is no admitted workload `{id}`; `meshctl workloads` shows them"
            ))),
        },
        DrainTarget::Node(node) => {
            if !nodes::serves_any(world, node, networks) || !world.nodes.contains_key(node) {
                return Err(nodes::missing(node));
            }
            let mut drained: Vec<WorkloadId> = Vec::new();
            for record in world.workloads_on(node) {
                if !is_own(&record.network) {
                    return Err(Refusal::Forbidden(format!(
                        "node {node} runs workloads of network {}, in which this credential has \
                        no say: drain its workloads one by one",
                        record.network
                    )));
                }
                drained.push(record.id.clone());
            }
            drained.sort_unstable();
            Ok(drained)
        }
    }
}
