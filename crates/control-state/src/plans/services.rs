//! The virtual addresses of services: a service gets them when the network's policy names it, and
//! keeps them until it no longer does.

use super::networks::reserve_service_blocks;
use crate::{
    Refusal,
    ipam::{host_numbers, nth_address, service_block},
    records::{Mutation, NetworkRecord, Record, ServiceRecord},
    world::{NetworkState, World},
};
use ipnet::IpNet;
use meshward_policy::Policy;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

/// The changes of virtual addresses that a policy needs.
#[derive(Debug, Default)]
pub(super) struct AddressChanges {
    /// The records to write before the policy.
    pub(super) assigned: Vec<Mutation>,
    /// The records to delete after the policy.
    pub(super) freed: Vec<Mutation>,
}

/// Plans the virtual addresses of the services of a network under a policy.
///
/// # Errors
/// [`Refusal::Conflict`] if no address is free in any of the network's prefixes.
pub(super) fn plan_addresses(
    world: &World,
    network: &NetworkState,
    policy: &Policy,
) -> Result<AddressChanges, Refusal> {
    let mut changes = AddressChanges::default();
    let is_gone = |record: &&ServiceRecord| policy.service(&record.name).is_none();
    let gone = network.services.records().filter(is_gone);
    changes.freed = gone.map(|own| Mutation::Delete(Record::Service(own.clone()).key())).collect();
    let families = network.record.prefixes.len();
    let is_complete = |known: Option<&ServiceRecord>| {
        known.is_some_and(|known| known.addresses.len() == families)
    };
    if policy.services.iter().all(|own| is_complete(network.services.record(&own.name))) {
        return Ok(changes);
    }
    let mut pool = AddressPool::of(world, network);
    for service in &policy.services {
        let known = network.services.record(&service.name);
        if is_complete(known) {
            continue;
        }
        let before = known.map(|known| known.addresses.clone()).unwrap_or_default();
        let addresses = pool.complete(before.clone());
        if addresses.is_empty() {
            return Err(exhausted(&pool.network));
        }
        if addresses != before {
            let record = ServiceRecord {
                network: network.record.name.clone(),
                name: service.name.clone(),
                addresses,
            };
            changes.assigned.push(Mutation::Put(Record::Service(record)));
        }
    }
    if pool.network != network.record {
        changes.assigned.insert(0, Mutation::Put(Record::Network(pool.network)));
    }
    Ok(changes)
}

fn exhausted(network: &NetworkRecord) -> Refusal {
    let blocks = network.prefixes.iter().map(|prefix| {
        let length = network.block_length(*prefix);
        format!("every /{length} of {prefix}")
    });
    Refusal::Conflict(format!(
        "network {} has no addresses left for services: {} belongs to a node or is full; remove a \
        node, or make a wider network",
        network.name,
        blocks.collect::<Vec<_>>().join(" and ")
    ))
}

/// The free virtual addresses of a network.
struct AddressPool {
    /// The network, with the service blocks that were reserved.
    network: NetworkRecord,
    /// The blocks of nodes and services.
    assigned: BTreeSet<IpNet>,
    taken: HashSet<IpAddr>,
    /// The numbers below which all addresses of a block are taken.
    cursors: HashMap<IpNet, u32>,
}

impl AddressPool {
    fn of(world: &World, network: &NetworkState) -> Self {
        let mut record = network.record.clone();
        let mut assigned = world.assigned_blocks(&record.name);
        reserve_service_blocks(&mut record, &mut assigned);
        let taken = network.services.records().flat_map(|own| &own.addresses);
        let taken = taken.chain(&record.resolver).copied().collect();
        Self { network: record, assigned, taken, cursors: HashMap::new() }
    }

    /// Adds an address of each prefix in which a service has none.
    fn complete(&mut self, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        for prefix in self.network.prefixes.clone() {
            if !addresses.iter().any(|address| prefix.contains(address)) {
                addresses.extend(self.take(prefix));
            }
        }
        addresses
    }

    /// Takes the lowest free address of a prefix, from a further block if the others are full.
    fn take(&mut self, prefix: IpNet) -> Option<IpAddr> {
        let own = |block: &&IpNet| prefix.contains(*block);
        let blocks: Vec<IpNet> = self.network.service_blocks.iter().filter(own).copied().collect();
        if let Some(address) = blocks.into_iter().find_map(|block| self.take_from(block)) {
            return Some(address);
        }
        let length = self.network.block_length(prefix);
        let block = service_block(prefix, length, &self.assigned)?;
        self.assigned.insert(block);
        self.network.service_blocks.push(block);
        self.take_from(block)
    }

    fn take_from(&mut self, block: IpNet) -> Option<IpAddr> {
        let numbers = host_numbers(block);
        let from = self.cursors.get(&block).copied().unwrap_or(*numbers.start());
        let is_free = |number: &u32| !self.taken.contains(&nth_address(block, *number));
        let number = (from..=*numbers.end()).find(is_free);
        // One past the end, if there is none: the next search is short.
        self.cursors.insert(block, number.unwrap_or(*numbers.end()).saturating_add(1));
        let address = nth_address(block, number?);
        self.taken.insert(address);
        Some(address)
    }
}
