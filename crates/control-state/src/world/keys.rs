//! The owners of WireGuard keys: a key has one owner in the mesh.

use meshward_types::{NodeName, PublicKey, WorkloadId};
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
};

/// The owner of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOwner {
    /// A node, with any number of its endpoints.
    Node(NodeName),
    /// A device.
    Device(WorkloadId),
}

impl fmt::Display for KeyOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Device(workload) => write!(f, "device {workload}"),
        }
    }
}

#[derive(Debug)]
struct Ownership {
    owner: KeyOwner,
    /// The number of the owner's records that have the key; at least 1.
    uses: usize,
}

/// The keys with their owners. The first owner of a key keeps it: plans refuse later claims.
#[derive(Debug, Default)]
pub struct Keys(HashMap<PublicKey, Ownership>);

impl Keys {
    /// Returns the owner of a key.
    pub fn owner(&self, key: &PublicKey) -> Option<&KeyOwner> {
        self.0.get(key).map(|known| &known.owner)
    }

    /// Returns the devices that have keys.
    pub fn devices(&self) -> impl Iterator<Item = &WorkloadId> {
        self.0.values().filter_map(|known| match &known.owner {
            KeyOwner::Device(workload) => Some(workload),
            KeyOwner::Node(_) => None,
        })
    }

    /// Adds a use of a key, unless it has another owner.
    pub fn add(&mut self, key: PublicKey, owner: &KeyOwner) {
        let new = || Ownership { owner: owner.clone(), uses: 0 };
        let known = self.0.entry(key).or_insert_with(new);
        if known.owner == *owner {
            known.uses += 1;
        }
    }

    /// Removes a use of a key, unless it has another owner.
    pub fn remove(&mut self, key: PublicKey, owner: &KeyOwner) {
        let Entry::Occupied(mut entry) = self.0.entry(key) else { return };
        let known = entry.get_mut();
        if known.owner == *owner {
            known.uses -= 1;
            if known.uses == 0 {
                entry.remove();
            }
        }
    }
}
