//! Nodes: joining, approval and removal.

use super::{
    batch::Batch,
    networks::assign_blocks,
    tokens::{self, Joining},
};
use crate::{
    Plan, Refusal,
    records::{ApprovedNodeRecord, DrainTarget, Mutation, NodeRecord, Record, RecordKey},
    world::World,
};
use meshward_api_types::ApproveNode;
use meshward_control_proto::JoinRequest;
use meshward_types::{Labels, NetworkName, NodeName};
use std::collections::BTreeMap;

/// Makes a machine a node, and spends one use of its token. A machine that asks again with the same
/// key and name gets the same answer and spends nothing, since the first answer may have been lost.
/// The outcome is the site that its token gives it.
///
/// # Errors
/// Fails if the token or the request is invalid; the refusal says what is wrong.
pub fn join(
    world: &World,
    request: &JoinRequest,
    key: &str,
    now: i64,
) -> Result<Plan<Option<String>>, Refusal> {
    let known = world.nodes.get(&request.name).map(|node| (node.key.as_str(), node.site.clone()));
    let token = match tokens::join(world, request, key, known, now)? {
        Joining::Again(site) => return Ok(Plan::nothing(site)),
        Joining::New(token) => token,
    };
    tokens::check_forget_after(request.forget_after)?;
    request.labels.check_unreserved().map_err(|error| Refusal::Invalid(error.to_string()))?;
    check_certificate_key(world, &request.name, key)?;
    if let Some(approved) = world.approved_nodes.get(&request.name) {
        merge(&request.labels, &approved.labels)?;
    }
    let mut node = NodeRecord {
        name: request.name.clone(),
        site: token.site.clone(),
        labels: request.labels.clone(),
        networks: token.networks.clone(),
        key: key.to_owned(),
        endpoints: BTreeMap::new(),
        blocks: BTreeMap::new(),
        problems: BTreeMap::new(),
        waiting: token.needs_approval && !world.approved_nodes.contains_key(&request.name),
        // A node may ask to be removed sooner than its token says, not later.
        forget_after: [request.forget_after, token.forget_after].into_iter().flatten().min(),
    };
    assign_all_blocks(world, &mut node);
    let waits = if node.waiting { ", and waits for approval" } else { "" };
    let site = node.site.clone();
    Ok(Plan::new(
        format!("node {} joined with token {}{waits}", node.name, token.id),
        vec![tokens::spend(token), Mutation::Put(Record::Node(node))],
        site,
    ))
}

fn assign_all_blocks(world: &World, node: &mut NodeRecord) {
    for network in world.networks.values() {
        if !node.may_serve(&network.record.name) {
            continue;
        }
        let mut assigned = world.assigned_blocks(&network.record.name);
        assign_blocks(node, &network.record, &mut assigned);
    }
}

/// Approves a node by name, before or after it joins, and gives it labels.
///
/// # Errors
/// [`Refusal::Invalid`] if it may not have these labels.
pub fn approve(world: &World, name: &NodeName, wanted: &ApproveNode) -> Result<Plan<()>, Refusal> {
    let labels = &wanted.labels;
    labels
        .check_unreserved()
        .map_err(|error| Refusal::Invalid(error.to_string()).about("labels"))?;
    if let Some(node) = world.nodes.get(name) {
        merge(&node.labels, labels).map_err(|refusal| refusal.about("labels"))?;
    }
    let record = ApprovedNodeRecord { name: name.clone(), labels: labels.clone() };
    if world.approved_nodes.get(name) == Some(&record) {
        return Ok(Plan::nothing(()));
    }
    let mut mutations = vec![Mutation::Put(Record::ApprovedNode(record))];
    if let Some(node) = world.nodes.get(name).filter(|node| node.waiting) {
        let mut node = NodeRecord { waiting: false, ..node.clone() };
        assign_all_blocks(world, &mut node);
        mutations.push(Mutation::Put(Record::Node(node)));
    }
    Ok(Plan::new(format!("approved node {name} with labels {labels}"), mutations, ()))
}

/// Returns the labels of a node: those that it joined with, and those that it was approved with,
/// which take precedence.
pub fn labels(world: &World, node: &NodeRecord) -> Labels {
    let Some(approved) = world.approved_nodes.get(&node.name) else { return node.labels.clone() };
    // Checked when the node joins and when it is approved.
    merge(&node.labels, &approved.labels).unwrap_or_else(|_| approved.labels.clone())
}

fn merge(own: &Labels, approved: &Labels) -> Result<Labels, Refusal> {
    own.clone().with_all(approved).map_err(|error| Refusal::Invalid(error.to_string()))
}

/// Returns `true` if a node serves one of these networks, or should; for no networks, any node
/// does.
pub fn serves_any(world: &World, name: &NodeName, networks: &[NetworkName]) -> bool {
    let serves = |node: &NodeRecord| {
        node.blocks.keys().chain(node.problems.keys()).any(|network| networks.contains(network))
    };
    networks.is_empty() || world.nodes.get(name).is_some_and(serves)
}

/// Returns `true` if a node has joined or is approved.
pub fn is_known(world: &World, name: &NodeName) -> bool {
    world.nodes.contains_key(name) || world.approved_nodes.contains_key(name)
}

/// Removes a node, its workloads and its approval.
///
/// # Errors
/// [`Refusal::Missing`] if there is no such node.
pub fn remove(world: &World, name: &NodeName) -> Result<Plan<()>, Refusal> {
    if !is_known(world, name) {
        return Err(missing(name));
    }
    let mut batch = Batch::new(world);
    remove_within(&mut batch, name);
    Ok(Plan::new(format!("removed node {name}"), batch.mutations, ()))
}

/// Returns the refusal for a node that does not exist.
pub(super) fn missing(name: &NodeName) -> Refusal {
    Refusal::Missing(format!("there is no node `{name}`; `meshctl nodes` shows them"))
}

/// Removes a node, its workloads, its drain and its approval.
fn remove_within(batch: &mut Batch, name: &NodeName) {
    let world = batch.world;
    for id in world.workload_ids_on(name) {
        batch.remove(name, &id);
    }
    let mutations = &mut batch.mutations;
    let approvals = world.approvals.iter().filter(|approval| approval.node == *name);
    mutations
        .extend(approvals.map(|approval| Mutation::Delete(RecordKey::Approval(approval.clone()))));
    if world.approved_nodes.contains_key(name) {
        mutations.push(Mutation::Delete(RecordKey::ApprovedNode(name.clone())));
    }
    if world.nodes.contains_key(name) {
        mutations.push(Mutation::Delete(RecordKey::Node(name.clone())));
    }
    let drain = DrainTarget::Node(name.clone());
    if world.drains.get(&drain).is_some() {
        mutations.push(Mutation::Delete(RecordKey::Drain(drain)));
    }
}

/// Removes ephemeral nodes that had no session for their time. `unseen` returns the seconds since a
/// node's last session.
pub fn forget(world: &World, unseen: impl Fn(&NodeName) -> u64) -> Plan<Vec<NodeName>> {
    let is_due =
        |node: &&NodeRecord| node.forget_after.is_some_and(|after| unseen(&node.name) >= after);
    let due: Vec<NodeName> =
        world.nodes.values().filter(is_due).map(|node| node.name.clone()).collect();
    let mut batch = Batch::new(world);
    for name in &due {
        remove_within(&mut batch, name);
    }
    let names: Vec<&str> = due.iter().map(NodeName::as_str).collect();
    let action = match names.is_empty() {
        true => String::new(),
        false => format!("removed {}, ephemeral and not seen any more", names.join(", ")),
    };
    Plan::new(action, batch.mutations, due)
}

/// Refuses a certificate's key that another member has.
///
/// # Errors
/// [`Refusal::Conflict`].
pub fn check_certificate_key(world: &World, name: &NodeName, key: &str) -> Result<(), Refusal> {
    let node = world.nodes.values().find(|node| node.key == key && node.name != *name);
    let relay = world.relays.values().find(|relay| relay.key == key && relay.name != *name);
    match node.map(|node| &node.name).or(relay.map(|relay| &relay.name)) {
        None => Ok(()),
        Some(owner) => Err(Refusal::Conflict(format!(
            "the key of this certificate is that of {owner}: join as a new machine, with a folder \
            of its own for its data"
        ))),
    }
}

/// Stores the key of a renewed certificate.
///
/// # Errors
/// [`Refusal::Missing`] if the node was removed, [`Refusal::Conflict`] if another member has the
/// key.
pub fn set_key(world: &World, name: &NodeName, key: &str) -> Result<Plan<()>, Refusal> {
    let mut node = find_member(world, name)?.clone();
    if node.key == key {
        return Ok(Plan::nothing(()));
    }
    check_certificate_key(world, name, key)?;
    key.clone_into(&mut node.key);
    Ok(Plan::new(
        format!("node {name} has a new certificate key"),
        vec![Mutation::Put(Record::Node(node))],
        (),
    ))
}

/// Finds a node that is a member.
pub(super) fn find_member<'a>(
    world: &'a World,
    name: &NodeName,
) -> Result<&'a NodeRecord, Refusal> {
    world
        .nodes
        .get(name)
        .ok_or_else(|| Refusal::Missing(format!("node `{name}` was removed from the mesh")))
}
