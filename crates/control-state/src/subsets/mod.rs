//! Subsets: which instances of a service each client's node is linked with.
//!
//! A node and an instance have a score that follows from their names (rendezvous hashing, Thaler
//! and Ravishankar 1998), and from their nearness, as far as the service prefers it: nearer pairs
//! have higher ones. A node takes the instances with its highest scores until they have the weight
//! of as many usual instances as its fan-out says; a quarter of that is for far instances, so that
//! there are some when the near ones are full or gone. An instance takes the nodes with its highest
//! scores, at most [`SLACK`] above the mean and one more: as nodes spread their connections over
//! their subsets by weight, and subsets weigh alike, an instance of twice the weight has twice the
//! connections. Instances that do not serve take none.
//!
//! As both sides rank a pair by one score, exactly one assignment has no pair that both would
//! rather have (a stable matching: Gale and Shapley 1962; unique where the ranking is common to
//! both). So subsets depend on who is there and not on the order in which they came: they are the
//! same after a restart and in every coordinator.
//!
//! A change costs a look at the limits of all, and then the pairs that it moves, each with one pass
//! over the scores of a node or an instance. Compared with consistent rings, fewer pairs move:
//! hardly any beyond those of an instance that goes, and one of each node's share for one that
//! comes.

mod limits;
mod matching;
mod members;
mod nearness;

use matching::{Matching, Part, Side};
use meshward_types::{Nearness, NodeName, Serving, Weight, WorkloadId};
use nearness::{Classes, Locality};
use std::collections::{BTreeSet, HashMap};

pub use limits::SLACK;

/// The subsets of one service. Changes take effect with [`Self::settle`].
#[derive(Debug, Default)]
pub struct Subsets {
    matching: Matching,
    clients: Roster<u32>,
    instances: Roster<WorkloadId>,
    /// The numbers of sites, from 1 on.
    sites: HashMap<String, u32>,
}

/// A client's node.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// The node's index.
    pub index: u32,
    /// The node's name.
    pub name: &'a NodeName,
    /// The node's site.
    pub site: Option<&'a str>,
    /// The number of usual instances that it is linked with.
    pub fan_out: usize,
}

/// An instance.
#[derive(Debug, Clone, Copy)]
pub struct Instance<'a> {
    /// The workload.
    pub id: &'a WorkloadId,
    /// The index of its node.
    pub node: u32,
    /// The node's site.
    pub site: Option<&'a str>,
    /// The weight, in proportion to which it gets connections.
    pub weight: Weight,
    /// The state that says whether new connections go to it.
    pub serving: Serving,
}

/// A node that is linked with an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Linked {
    /// The instance.
    pub instance: WorkloadId,
    /// The index of the client's node.
    pub client: u32,
}

/// The effect of changes on the subsets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// The pairs that were not linked before.
    pub gained: BTreeSet<Linked>,
    /// The pairs that are no longer linked.
    pub lost: BTreeSet<Linked>,
}

/// The members of one side, and their slots in the matching.
#[derive(Debug)]
struct Roster<K> {
    slots: HashMap<K, u32>,
    /// The keys by slot. A slot's last key stays until the slot is used again.
    keys: Vec<K>,
    free: Vec<u32>,
    /// Slots that become free when the matching settles.
    leaving: Vec<u32>,
}

impl<K> Default for Roster<K> {
    fn default() -> Self {
        Self { slots: HashMap::new(), keys: vec![], free: vec![], leaving: vec![] }
    }
}

impl<K: Clone + Eq + std::hash::Hash> Roster<K> {
    /// Returns the slot of a member that is added; `None` if it is there.
    fn enter(&mut self, key: &K) -> Option<u32> {
        if self.slots.contains_key(key) {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                self.keys[slot as usize] = key.clone();
                slot
            }
            None => {
                self.keys.push(key.clone());
                self.keys.len() as u32 - 1
            }
        };
        self.slots.insert(key.clone(), slot);
        Some(slot)
    }

    /// Returns the slot that a member had.
    fn leave(&mut self, key: &K) -> Option<u32> {
        let slot = self.slots.remove(key)?;
        self.leaving.push(slot);
        Some(slot)
    }
}

impl Subsets {
    /// Sets the kinds of nearness that the service prefers, the most preferred first.
    pub fn set_prefer(&mut self, prefer: &[Nearness]) {
        self.matching.set_classes(Classes::new(prefer));
    }

    /// Adds a client's node, or changes it.
    pub fn put_client(&mut self, client: Client) {
        let Client { index, name, site, fan_out } = client;
        if let Some(slot) = self.clients.enter(&index) {
            self.matching.add(Side::Clients, slot, hash("client", name.as_str()));
        }
        let (slot, locality) = (self.clients.slots[&index], self.locality(index, site));
        self.matching.set_locality(Side::Clients, slot, locality);
        self.matching.set_fan_out(slot, fan_out);
    }

    /// Removes a client's node.
    pub fn remove_client(&mut self, client: u32) {
        if let Some(slot) = self.clients.leave(&client) {
            self.matching.remove(Side::Clients, slot);
        }
    }

    /// Adds an instance, or changes it.
    pub fn put_instance(&mut self, instance: Instance) {
        let Instance { id, node, site, weight, serving } = instance;
        if let Some(slot) = self.instances.enter(id) {
            self.matching.add(Side::Instances, slot, hash("instance", id.as_str()));
        }
        let (slot, locality) = (self.instances.slots[id], self.locality(node, site));
        self.matching.set_locality(Side::Instances, slot, locality);
        self.matching.set_part(slot, Part { weight, serving });
    }

    fn locality(&mut self, node: u32, site: Option<&str>) -> Locality {
        let next = self.sites.len() as u32 + 1;
        let number = |site: &str| *self.sites.entry(site.to_owned()).or_insert(next);
        Locality { node, site: site.map_or(0, number) }
    }

    /// Removes an instance.
    pub fn remove_instance(&mut self, id: &WorkloadId) {
        if let Some(slot) = self.instances.leave(id) {
            self.matching.remove(Side::Instances, slot);
        }
    }

    /// Makes the subsets that follow from the clients and the instances, and returns the difference
    /// from those of before.
    pub fn settle(&mut self) -> Moves {
        let (mut gained, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for (pair, is_gained) in self.matching.settle() {
            let linked = Linked {
                instance: self.instances.keys[pair.instance as usize].clone(),
                client: self.clients.keys[pair.client as usize],
            };
            match is_gained {
                true => gained.insert(linked),
                false => lost.insert(linked),
            };
        }
        self.clients.free.append(&mut self.clients.leaving);
        self.instances.free.append(&mut self.instances.leaving);
        // Somebody who went and came back meanwhile has another slot.
        Moves {
            gained: gained.difference(&lost).cloned().collect(),
            lost: lost.difference(&gained).cloned().collect(),
        }
    }

    /// Returns the subset of a client's node.
    pub fn of(&self, client: u32) -> impl Iterator<Item = &WorkloadId> {
        let slot = self.clients.slots.get(&client);
        let linked = slot.into_iter().flat_map(|slot| self.matching.linked(Side::Clients, *slot));
        linked.map(|slot| &self.instances.keys[slot as usize])
    }

    /// Returns the nodes that are linked with an instance.
    pub fn clients_of(&self, instance: &WorkloadId) -> impl Iterator<Item = u32> {
        let slot = self.instances.slots.get(instance);
        let linked = slot.into_iter().flat_map(|slot| self.matching.linked(Side::Instances, *slot));
        linked.map(|slot| self.clients.keys[slot as usize])
    }

    /// Returns `true` if a client's node is linked with an instance.
    pub fn links(&self, client: u32, instance: &WorkloadId) -> bool {
        let (client, instance) =
            (self.clients.slots.get(&client), self.instances.slots.get(instance));
        client.zip(instance).is_some_and(|(client, instance)| {
            self.matching.linked(Side::Clients, *client).any(|slot| slot == *instance)
        })
    }

    /// Returns all instances.
    pub fn instances(&self) -> impl Iterator<Item = &WorkloadId> {
        self.instances.slots.keys()
    }

    /// Returns `true` if a workload is among the instances.
    pub fn has_instance(&self, id: &WorkloadId) -> bool {
        self.instances.slots.contains_key(id)
    }

    /// Returns all clients' nodes.
    pub fn clients(&self) -> impl Iterator<Item = u32> {
        self.clients.slots.keys().copied()
    }

    /// Returns the number of instances that serve.
    pub fn serving_count(&self) -> usize {
        self.matching.serving().len()
    }

    /// Returns `true` if a node is among the clients.
    pub fn has_client(&self, client: u32) -> bool {
        self.clients.slots.contains_key(&client)
    }
}

/// Returns the hash of a name, the same in every version: FNV-1a with a finalizer that spreads it.
fn hash(side: &str, name: &str) -> u64 {
    let bytes = side.bytes().chain([0]).chain(name.bytes());
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    nearness::mix(fnv)
}

#[cfg(test)]
mod tests;
