//! Networks, and the blocks of nodes.

use crate::{
    Plan, Refusal,
    ipam::{check, default_block, free_block, overlap, resolver_address, service_block},
    records::{Mutation, NetworkRecord, NodeRecord, Record, RecordKey},
    world::World,
};
use ipnet::IpNet;
use meshward_api_types::{CreateNetwork, Network};
use meshward_types::NetworkName;
use std::collections::BTreeSet;

/// Creates a network, and assigns a block of it to every node that may serve it.
///
/// # Errors
/// Fails if a field of the body is invalid; the refusal names it.
pub fn create(world: &World, wanted: &CreateNetwork) -> Result<Plan<Network>, Refusal> {
    check_settings(wanted)?;
    if world.networks.contains_key(&wanted.name) {
        let text = format!("there is a network `{}` already", wanted.name);
        return Err(Refusal::Conflict(text).about("name"));
    }
    let (mut block_v4, mut block_v6) =
        (wanted.block_v4.unwrap_or(24), wanted.block_v6.unwrap_or(64));
    for &prefix in &wanted.prefixes {
        let (length, block, field) = match prefix {
            IpNet::V4(_) => (wanted.block_v4, &mut block_v4, "block_v4"),
            IpNet::V6(_) => (wanted.block_v6, &mut block_v6, "block_v6"),
        };
        *block = length.unwrap_or_else(|| default_block(prefix));
        let field = if length.is_some() { field } else { "prefixes" };
        check(prefix, *block).map_err(|text| Refusal::Invalid(text).about(field))?;
        check_overlap(world, prefix)?;
    }
    let mut network = NetworkRecord {
        name: wanted.name.clone(),
        prefixes: wanted.prefixes.clone(),
        block_v4,
        block_v6,
        mtu: wanted.mtu,
        service_blocks: vec![],
        resolver: vec![],
    };
    let mut assigned = BTreeSet::new();
    reserve_service_blocks(&mut network, &mut assigned);
    let mut mutations = vec![Mutation::Put(Record::Network(network.clone()))];
    for node in world.nodes.values().filter(|node| node.may_serve(&network.name)) {
        let mut node = node.clone();
        assign_blocks(&mut node, &network, &mut assigned);
        mutations.push(Mutation::Put(Record::Node(node)));
    }
    let action = format!("created network {}", network.name);
    Ok(Plan::new(action, mutations, Network::from(&network)))
}

/// Refuses settings that no network can have.
fn check_settings(wanted: &CreateNetwork) -> Result<(), Refusal> {
    let invalid = |text: String, field| Err(Refusal::Invalid(text).about(field));
    if wanted.prefixes.is_empty() {
        return invalid(
            "a network needs a prefix, such as 10.42.0.0/16 (`--cidr`)".into(),
            "prefixes",
        );
    }
    let v4 = wanted.prefixes.iter().filter(|prefix| matches!(prefix, IpNet::V4(_))).count();
    if v4 > 1 || wanted.prefixes.len() - v4 > 1 {
        return invalid(
            "a network has at most one prefix of each address family".into(),
            "prefixes",
        );
    }
    if !(1280..=9000).contains(&wanted.mtu) {
        let text = format!(
            "the MTU must be from 1280 (the least that IPv6 wants) to 9000, not {}",
            wanted.mtu
        );
        return invalid(text, "mtu");
    }
    Ok(())
}

/// Refuses a prefix that overlaps with one of another network.
fn check_overlap(world: &World, prefix: IpNet) -> Result<(), Refusal> {
    for other in world.networks.values() {
        if let Some(&clash) = other.record.prefixes.iter().find(|&&own| overlap(own, prefix)) {
            return Err(Refusal::Conflict(format!(
                "{prefix} overlaps {clash} of network `{}`; choose another range",
                other.record.name
            ))
            .about("prefixes"));
        }
    }
    Ok(())
}

/// Reserves service blocks and resolver addresses for networks that an earlier release created.
pub fn reserve_blocks(world: &World) -> Plan<()> {
    let mut mutations = Vec::new();
    for network in world.networks.values() {
        let mut record = network.record.clone();
        if record.service_blocks.is_empty() {
            let mut assigned = world.assigned_blocks(&record.name);
            reserve_service_blocks(&mut record, &mut assigned);
        }
        if record != network.record {
            mutations.push(Mutation::Put(Record::Network(record)));
        }
    }
    let action = match mutations.len() {
        0 => String::new(),
        _ => "reserved addresses for services and name resolution".into(),
    };
    Plan::new(action, mutations, ())
}

/// Reserves a service block in each prefix that has none, and a resolver address in it. A prefix
/// whose blocks are all assigned gets neither.
pub(super) fn reserve_service_blocks(network: &mut NetworkRecord, assigned: &mut BTreeSet<IpNet>) {
    for prefix in network.prefixes.clone() {
        if network.service_blocks.iter().any(|block| prefix.contains(block)) {
            continue;
        }
        if let Some(block) = service_block(prefix, network.block_length(prefix), assigned) {
            assigned.insert(block);
            network.service_blocks.push(block);
            network.resolver.push(resolver_address(block));
        }
    }
}

/// Assigns a node its blocks of a network, or the problem because of which it has none.
pub(super) fn assign_blocks(
    node: &mut NodeRecord,
    network: &NetworkRecord,
    assigned: &mut BTreeSet<IpNet>,
) {
    let mut blocks = Vec::new();
    for &prefix in &network.prefixes {
        let length = network.block_length(prefix);
        let Some(block) = free_block(prefix, length, assigned) else {
            let problem = format!(
                "network {} is exhausted: every /{length} of {prefix} belongs to a node; remove a \
                node or make a wider network",
                network.name
            );
            node.problems.insert(network.name.clone(), problem);
            return;
        };
        blocks.push(block);
    }
    assigned.extend(&blocks);
    node.problems.remove(&network.name);
    node.blocks.insert(network.name.clone(), blocks);
}

/// Deletes a network without workloads.
///
/// # Errors
/// [`Refusal::Missing`] if there is no such network, [`Refusal::Conflict`] if it has workloads.
pub fn delete(world: &World, name: &NetworkName) -> Result<Plan<()>, Refusal> {
    let network = find(world, name)?;
    let workloads = network.all_workloads().count();
    if workloads > 0 {
        return Err(Refusal::Conflict(format!(
            "network `{name}` has {workloads} workloads; stop them first"
        )));
    }
    let mut mutations: Vec<Mutation> =
        network.identities.keys().map(|id| Mutation::Delete(RecordKey::Identity(*id))).collect();
    mutations.push(Mutation::Delete(RecordKey::Policy(name.clone())));
    let services = network.services.records();
    mutations.extend(services.map(|own| Mutation::Delete(Record::Service(own.clone()).key())));
    for node in world.nodes.values() {
        let mut node = node.clone();
        let had = [
            node.blocks.remove(name).is_some(),
            node.endpoints.remove(name).is_some(),
            node.problems.remove(name).is_some(),
        ];
        if had.contains(&true) {
            mutations.push(Mutation::Put(Record::Node(node)));
        }
    }
    mutations.push(Mutation::Delete(RecordKey::Network(name.clone())));
    Ok(Plan::new(format!("deleted network {name}"), mutations, ()))
}

/// Finds a network by its name.
///
/// # Errors
/// [`Refusal::Missing`].
pub fn find<'a>(
    world: &'a World,
    name: &NetworkName,
) -> Result<&'a crate::world::NetworkState, Refusal> {
    world.networks.get(name).ok_or_else(|| missing(name))
}

/// Returns the refusal for a network that does not exist.
pub fn missing(name: &NetworkName) -> Refusal {
    Refusal::Missing(format!("there is no network `{name}`; `meshctl network list` shows them"))
}
