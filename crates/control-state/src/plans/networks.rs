//! Networks and the blocks that nodes get of them.

use crate::{
    Plan, Refusal,
    ipam::{check, default_block, free_block, overlap},
    records::{Mutation, NetworkRecord, NodeRecord, Record, RecordKey},
    world::World,
};
use ipnet::IpNet;
use meshward_api_types::{CreateNetwork, Network};
use meshward_types::NetworkName;
use std::collections::BTreeSet;

/// Makes a network, and a block of it for every node that may serve it.
pub fn create(world: &World, wanted: &CreateNetwork) -> Result<Plan<Network>, Refusal> {
    let invalid = |text: String, field| Err(Refusal::Invalid(text).about(field));
    if wanted.prefixes.is_empty() {
        return invalid(
            "a network needs a prefix, such as 10.42.0.0/16 (`--cidr`)".into(),
            "prefixes",
        );
    }
    for v4 in [true, false] {
        if wanted.prefixes.iter().filter(|p| matches!(p, IpNet::V4(_)) == v4).count() > 1 {
            return invalid(
                "a network has at most one prefix of each address family".into(),
                "prefixes",
            );
        }
    }
    if !(1280..=9000).contains(&wanted.mtu) {
        let text = format!(
            "the MTU must be from 1280 (the least that IPv6 wants) to 9000, not {}",
            wanted.mtu
        );
        return invalid(text, "mtu");
    }
    if world.networks.contains_key(&wanted.name) {
        let text = format!("there is a network `{}` already", wanted.name);
        return Err(Refusal::Conflict(text).about("name"));
    }
    let (mut block_v4, mut block_v6) =
        (wanted.block_v4.unwrap_or(24), wanted.block_v6.unwrap_or(64));
    for &prefix in &wanted.prefixes {
        let (given, block, field) = match prefix {
            IpNet::V4(_) => (wanted.block_v4, &mut block_v4, "block_v4"),
            IpNet::V6(_) => (wanted.block_v6, &mut block_v6, "block_v6"),
        };
        *block = given.unwrap_or_else(|| default_block(prefix));
        let field = if given.is_some() { field } else { "prefixes" };
        check(prefix, *block).map_err(|text| Refusal::Invalid(text).about(field))?;
        for other in world.networks.values() {
            if let Some(&clash) = other.record.prefixes.iter().find(|&&own| overlap(own, prefix)) {
                return Err(Refusal::Conflict(format!(
                    "{prefix} overlaps {clash} of network `{}`; choose another range",
                    other.record.name
                ))
                .about("prefixes"));
            }
        }
    }
    let network = NetworkRecord {
        name: wanted.name.clone(),
        prefixes: wanted.prefixes.clone(),
        block_v4,
        block_v6,
        mtu: wanted.mtu,
    };
    let mut mutations = vec![Mutation::Put(Record::Network(network.clone()))];
    let mut taken = BTreeSet::new();
    for node in world.nodes.values().filter(|node| node.may_serve(&network.name)) {
        let mut node = node.clone();
        give_blocks(&mut node, &network, &mut taken);
        mutations.push(Mutation::Put(Record::Node(node)));
    }
    let action = format!("created network {}", network.name);
    Ok(Plan::new(action, mutations, Network::from(&network)))
}

/// Gives a node its blocks of a network, or notes why it gets none.
pub fn give_blocks(node: &mut NodeRecord, network: &NetworkRecord, taken: &mut BTreeSet<IpNet>) {
    let mut blocks = Vec::new();
    for &prefix in &network.prefixes {
        let length =
            if matches!(prefix, IpNet::V4(_)) { network.block_v4 } else { network.block_v6 };
        let Some(block) = free_block(prefix, length, taken) else {
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
    taken.extend(&blocks);
    node.problems.remove(&network.name);
    node.blocks.insert(network.name.clone(), blocks);
}

/// Deletes a network that nobody uses.
pub fn delete(world: &World, name: &NetworkName) -> Result<Plan<()>, Refusal> {
    let network = find(world, name)?;
    let workloads = network.all_standing().count();
    if workloads > 0 {
        return Err(Refusal::Conflict(format!(
            "network `{name}` has {workloads} workloads; stop them first"
        )));
    }
    let mut mutations: Vec<Mutation> =
        network.identities.keys().map(|id| Mutation::Delete(RecordKey::Identity(*id))).collect();
    mutations.push(Mutation::Delete(RecordKey::Policy(name.clone())));
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

/// A network by its name.
pub fn find<'a>(
    world: &'a World,
    name: &NetworkName,
) -> Result<&'a crate::world::NetworkState, Refusal> {
    world.networks.get(name).ok_or_else(|| missing(name))
}

/// That there is no such network.
pub fn missing(name: &NetworkName) -> Refusal {
    Refusal::Missing(format!("there is no network `{name}`; `meshctl network list` shows them"))
}
