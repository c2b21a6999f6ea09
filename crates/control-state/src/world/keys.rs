//! Whose a WireGuard key is: a key has one owner in the mesh.

use meshward_types::{NodeName, PublicKey, WorkloadId};
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
};

/// The owner of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOwner {
    /// A node; which of its endpoints has it does not matter.
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

/// The keys, each with its owner and how many places the owner has it in. Who had it first, has it:
/// plans refuse later claims.
#[derive(Debug, Default)]
pub struct Keys(HashMap<PublicKey, (KeyOwner, usize)>);

impl Keys {
    /// Whose a key is.
    pub fn owner(&self, key: &PublicKey) -> Option<&KeyOwner> {
        self.0.get(key).map(|(owner, _)| owner)
    }

    /// The devices that have keys.
    pub fn devices(&self) -> impl Iterator<Item = &WorkloadId> {
        self.0.values().filter_map(|(owner, _)| match owner {
            KeyOwner::Device(workload) => Some(workload),
            KeyOwner::Node(_) => None,
        })
    }

    pub fn note(&mut self, key: PublicKey, owner: &KeyOwner) {
        let (known, count) = self.0.entry(key).or_insert_with(|| (owner.clone(), 0));
        if known == owner {
            *count += 1;
        }
    }

    pub fn forget(&mut self, key: PublicKey, owner: &KeyOwner) {
        let Entry::Occupied(mut entry) = self.0.entry(key) else { return };
        let (known, count) = entry.get_mut();
        if known == owner {
            *count -= 1;
            if *count == 0 {
                entry.remove();
            }
        }
    }
}
