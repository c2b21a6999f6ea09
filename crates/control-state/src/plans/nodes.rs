//! Nodes: joining, moving, leaving.

use super::{
    networks::give_blocks,
    tokens::{self, Joining},
};
use crate::{
    Plan, Refusal,
    records::{ApprovedNodeRecord, EndpointRecord, Mutation, NodeRecord, Record, RecordKey},
    world::{KeyOwner, World, is_one_hosts},
};
use meshward_api_types::ApproveNode;
use meshward_control_proto::{EndpointReport, JoinRequest, relay::MAX_HOME_RELAYS};
use meshward_types::{
    Labels, NetworkName, NodeName, PublicKey,
    relay::{RelayId, RelayNumber, is_relayed},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// The most addresses that a node may give for one endpoint.
const MAX_CANDIDATES: usize = 16;

/// Makes a machine a node, and spends one use of its token.
///
/// A machine that asks again with the same key and name gets its answer again and spends nothing:
/// its first answer may have been lost.
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
        together(&request.labels, &approved.labels)?;
    }
    let mut node = NodeRecord {
        name: request.name.clone(),
        site: token.site.clone(),
        labels: request.labels.clone(),
        networks: token.networks.clone(),
        key: key.to_owned(),
        endpoints: Default::default(),
        blocks: Default::default(),
        problems: Default::default(),
        waiting: token.needs_approval && !world.approved_nodes.contains_key(&request.name),
        // Whoever joins may want to be forgotten sooner than the token says, not later.
        forget_after: [request.forget_after, token.forget_after].into_iter().flatten().min(),
    };
    give_all_blocks(world, &mut node);
    let waits = if node.waiting { ", and waits for approval" } else { "" };
    let site = node.site.clone();
    Ok(Plan::new(
        format!("node {} joined with token {}{waits}", node.name, token.id),
        vec![tokens::spend(token), Mutation::Put(Record::Node(node))],
        site,
    ))
}

fn give_all_blocks(world: &World, node: &mut NodeRecord) {
    for network in world.networks.values() {
        if !node.may_serve(&network.record.name) {
            continue;
        }
        let mut taken = world.taken_blocks(&network.record.name);
        give_blocks(node, &network.record, &mut taken);
    }
}

/// Approves a node by name, before or after it joins, and gives it labels.
pub fn approve(world: &World, name: &NodeName, wanted: &ApproveNode) -> Result<Plan<()>, Refusal> {
    let labels = &wanted.labels;
    labels
        .check_unreserved()
        .map_err(|error| Refusal::Invalid(error.to_string()).about("labels"))?;
    if let Some(node) = world.nodes.get(name) {
        together(&node.labels, labels).map_err(|refusal| refusal.about("labels"))?;
    }
    let record = ApprovedNodeRecord { name: name.clone(), labels: labels.clone() };
    if world.approved_nodes.get(name) == Some(&record) {
        return Ok(Plan::nothing(()));
    }
    let mut mutations = vec![Mutation::Put(Record::ApprovedNode(record))];
    if let Some(node) = world.nodes.get(name).filter(|node| node.waiting) {
        let mut node = NodeRecord { waiting: false, ..node.clone() };
        give_all_blocks(world, &mut node);
        mutations.push(Mutation::Put(Record::Node(node)));
    }
    Ok(Plan::new(format!("approved node {name} with labels {labels}"), mutations, ()))
}

/// The labels of a node: those that it joined with, and over them those that it was given.
pub fn labels(world: &World, node: &NodeRecord) -> Labels {
    let Some(approved) = world.approved_nodes.get(&node.name) else { return node.labels.clone() };
    // Checked when the node joins and when it is approved.
    together(&node.labels, &approved.labels).unwrap_or_else(|_| approved.labels.clone())
}

fn together(own: &Labels, given: &Labels) -> Result<Labels, Refusal> {
    own.clone().with_all(given).map_err(|error| Refusal::Invalid(error.to_string()))
}

/// Whether a node serves one of some networks, or should; of no networks: any node.
pub fn serves_any(world: &World, name: &NodeName, networks: &[NetworkName]) -> bool {
    let serves = |node: &NodeRecord| {
        node.blocks.keys().chain(node.problems.keys()).any(|network| networks.contains(network))
    };
    networks.is_empty() || world.nodes.get(name).is_some_and(serves)
}

/// Whether a node is there, or is approved and expected.
pub fn is_known(world: &World, name: &NodeName) -> bool {
    world.nodes.contains_key(name) || world.approved_nodes.contains_key(name)
}

/// Removes a node, its workloads and its approval.
pub fn remove(world: &World, name: &NodeName) -> Result<Plan<()>, Refusal> {
    if !is_known(world, name) {
        return Err(Refusal::Missing(format!(
            "there is no node `{name}`; `meshctl nodes` shows them"
        )));
    }
    let mut mutations: Vec<Mutation> = world
        .workload_ids_on(name)
        .into_iter()
        .map(|id| Mutation::Delete(RecordKey::Workload(id)))
        .collect();
    let approvals = world.approvals.iter().filter(|approval| approval.node == *name);
    mutations
        .extend(approvals.map(|approval| Mutation::Delete(RecordKey::Approval(approval.clone()))));
    if world.approved_nodes.contains_key(name) {
        mutations.push(Mutation::Delete(RecordKey::ApprovedNode(name.clone())));
    }
    if world.nodes.contains_key(name) {
        mutations.push(Mutation::Delete(RecordKey::Node(name.clone())));
    }
    Ok(Plan::new(format!("removed node {name}"), mutations, ()))
}

/// Removes ephemeral nodes that have not been seen for their time. `unseen` gives for how many
/// seconds a node has not been.
pub fn forget(
    world: &World,
    unseen: impl Fn(&NodeName) -> u64,
) -> Result<Plan<Vec<NodeName>>, Refusal> {
    let is_due =
        |node: &&NodeRecord| node.forget_after.is_some_and(|after| unseen(&node.name) >= after);
    let due: Vec<NodeName> =
        world.nodes.values().filter(is_due).map(|node| node.name.clone()).collect();
    let mut mutations = Vec::new();
    for name in &due {
        mutations.extend(remove(world, name)?.mutations);
    }
    let names: Vec<&str> = due.iter().map(NodeName::as_str).collect();
    let action = match names.is_empty() {
        true => String::new(),
        false => format!("removed {}, ephemeral and not seen any more", names.join(", ")),
    };
    Ok(Plan::new(action, mutations, due))
}

/// An endpoint whose key belongs to somebody else: what was known of it stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedEndpoint {
    pub network: NetworkName,
    pub key: PublicKey,
    /// Why, and how to mend it.
    pub reason: String,
}

/// From where the session of a node comes, if it has one.
pub type SeenAt<'a> = &'a dyn Fn(&NodeName) -> Option<IpAddr>;

/// Notes where a node's endpoints are. `seen` is the address that its session comes from, `others`
/// those of others. A key that has an owner stays with it: such endpoints are given, and are in the
/// audit log, but for those in `known`. A public address is that of the node whose session comes
/// from it, if one does: others' claims on it are left out.
pub fn set_endpoints(
    world: &World,
    name: &NodeName,
    reports: &[EndpointReport],
    seen: IpAddr,
    others: SeenAt,
    known: &BTreeSet<PublicKey>,
) -> Result<Plan<Vec<RefusedEndpoint>>, Refusal> {
    let seen = seen.to_canonical();
    let seen_at = |node: &NodeName| others(node).map(|seen| seen.to_canonical());
    let mut node = find(world, name)?.clone();
    let before = node.clone();
    let (mut refused, mut outdone) = (Vec::new(), BTreeMap::new());
    for report in reports {
        if !node.blocks.contains_key(&report.network) {
            continue;
        }
        let owner = world.keys.owner(&report.public_key);
        if let Some(owner) = owner.filter(|owner| **owner != KeyOwner::Node(name.clone())) {
            let (network, key) = (report.network.clone(), report.public_key);
            let reason = format!(
                "the WireGuard key {key} belongs to {owner}, which keeps it: give this node \
                another key with `meshctl keys rotate --node {name}`"
            );
            refused.push(RefusedEndpoint { network, key, reason });
            continue;
        }
        let mut candidates = candidates(report, seen);
        candidates.retain(|address| {
            let claimants =
                world.addresses.claimants(address).iter().filter(|other| *other != name);
            if address.ip() == seen && is_one_hosts(seen) {
                let false_ones = claimants.filter(|other| seen_at(other) != Some(seen));
                false_ones.for_each(|other| give_up(world, other, address, &mut outdone));
                return true;
            }
            !claimants.into_iter().any(|other| seen_at(other) == Some(address.ip()))
        });
        // By a relay it can be reached whatever is between.
        let known = |number: &&RelayNumber| {
            **number == RelayNumber::COORDINATOR
                || world.relays.values().any(|relay| relay.number == number.0)
        };
        let mut homes: Vec<RelayNumber> =
            report.relays.iter().filter(known).take(MAX_HOME_RELAYS).copied().collect();
        if homes.is_empty() {
            homes.push(RelayNumber::COORDINATOR);
        }
        candidates.extend(homes.into_iter().map(|home| RelayId::of(name).address(home)));
        let had = node.endpoints.get(&report.network);
        let previous_key = had.and_then(|had| match had.public_key == report.public_key {
            true => had.previous_key,
            false => Some(had.public_key),
        });
        let record = EndpointRecord { public_key: report.public_key, candidates, previous_key };
        node.endpoints.insert(report.network.clone(), record);
    }
    let mut actions = Vec::new();
    let mut mutations = Vec::new();
    if node != before {
        mutations.push(Mutation::Put(Record::Node(node)));
        actions.push(format!("node {name} told where its endpoints are"));
    }
    for (other, record) in outdone {
        mutations.push(Mutation::Put(Record::Node(record)));
        actions.push(format!(
            "node {other} is not where node {name} is: it had claimed an address of that"
        ));
    }
    let new = refused.iter().filter(|endpoint| !known.contains(&endpoint.key));
    actions.extend(new.map(|endpoint| {
        let RefusedEndpoint { network, reason, .. } = endpoint;
        format!("refused an endpoint of node {name} in network {network}: {reason}")
    }));
    Ok(Plan::new(actions.join("; "), mutations, refused))
}

/// Has a node give up its claim on an address.
fn give_up(
    world: &World,
    name: &NodeName,
    address: &SocketAddr,
    outdone: &mut BTreeMap<NodeName, NodeRecord>,
) {
    let Some(known) = world.nodes.get(name) else { return };
    let record = outdone.entry(name.clone()).or_insert_with(|| known.clone());
    for endpoint in record.endpoints.values_mut() {
        endpoint.candidates.retain(|candidate| candidate != address);
    }
}

/// Where to try, the best guess first: what the operator says; what STUN servers see; what the
/// coordinator sees, which is what routing made of the node's address; what the node's interfaces
/// say.
fn candidates(report: &EndpointReport, seen: IpAddr) -> Vec<SocketAddr> {
    let guess = SocketAddr::new(seen, report.port);
    let guess = (report.advertised.is_empty() && !seen.is_loopback()).then_some(guess);
    let said = report.advertised.iter().chain(&report.reflexive).copied();
    let all = said.chain(guess).chain(report.interfaces.iter().copied());
    let mut candidates: Vec<SocketAddr> = Vec::new();
    for candidate in all.filter(is_usable) {
        if candidates.len() < MAX_CANDIDATES && !candidates.contains(&candidate) {
            candidates.push(candidate);
        }
    }
    candidates
}

/// Refuses a certificate's key that is that of another member.
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

/// Notes the key of a renewed certificate.
pub fn set_key(world: &World, name: &NodeName, key: &str) -> Result<Plan<()>, Refusal> {
    let mut node = find(world, name)?.clone();
    if node.key == key {
        return Ok(Plan::nothing(()));
    }
    check_certificate_key(world, name, key)?;
    node.key = key.to_owned();
    Ok(Plan::new(
        format!("node {name} has a new certificate key"),
        vec![Mutation::Put(Record::Node(node))],
        (),
    ))
}

fn find<'a>(world: &'a World, name: &NodeName) -> Result<&'a NodeRecord, Refusal> {
    world
        .nodes
        .get(name)
        .ok_or_else(|| Refusal::Missing(format!("node `{name}` was removed from the mesh")))
}

fn is_usable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    !is_relayed(address) && address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}
