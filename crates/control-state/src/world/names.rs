//! The owners of workloads' names in a network.
//!
//! The first identity whose workload takes a name owns it while one of its workloads has it: names
//! are no way to pass for somebody else. Workloads of other identities with that name wait for it.

use crate::records::WorkloadRecord;
use meshward_types::{IdentityId, WorkloadId, WorkloadName};
use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

/// The workloads that wait for a name, by identity.
type Waiting = BTreeMap<IdentityId, BTreeSet<WorkloadId>>;

/// The owners of workloads' names in a network.
#[derive(Debug, Default)]
pub struct Names {
    owners: HashMap<WorkloadName, NameOwner>,
    /// The workloads of other identities than the owner, by name.
    waiting: HashMap<WorkloadName, Waiting>,
}

/// The owner of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameOwner {
    /// The identity.
    pub identity: IdentityId,
    /// The number of its workloads with the name; at least 1.
    pub workloads: usize,
}

impl Names {
    /// Returns the owner of a name.
    pub fn owner(&self, name: &WorkloadName) -> Option<NameOwner> {
        self.owners.get(name).copied()
    }

    /// Returns the identities whose workloads wait for a name, in ascending order, with these.
    pub fn waiting(
        &self,
        name: &WorkloadName,
    ) -> impl Iterator<Item = (IdentityId, &BTreeSet<WorkloadId>)> {
        self.waiting.get(name).into_iter().flatten().map(|(identity, ids)| (*identity, ids))
    }

    /// Returns the workloads of an identity that wait for a name.
    pub fn waiting_of(
        &self,
        name: &WorkloadName,
        identity: IdentityId,
    ) -> impl Iterator<Item = &WorkloadId> {
        let all = self.waiting.get(name).and_then(|waiting| waiting.get(&identity));
        all.into_iter().flatten()
    }

    /// Adds an admitted workload.
    pub(super) fn add(&mut self, record: &WorkloadRecord) {
        if !record.owns_name {
            let waiting = self.waiting.entry(record.name.clone()).or_default();
            waiting.entry(record.identity).or_default().insert(record.id.clone());
            return;
        }
        let owner = NameOwner { identity: record.identity, workloads: 0 };
        let owner = self.owners.entry(record.name.clone()).or_insert(owner);
        *owner = NameOwner { identity: record.identity, workloads: owner.workloads + 1 };
    }

    /// Removes an admitted workload.
    pub(super) fn remove(&mut self, record: &WorkloadRecord) {
        if record.owns_name {
            let Entry::Occupied(mut owner) = self.owners.entry(record.name.clone()) else { return };
            owner.get_mut().workloads -= 1;
            if owner.get().workloads == 0 {
                owner.remove();
            }
            return;
        }
        let Entry::Occupied(mut waiting) = self.waiting.entry(record.name.clone()) else { return };
        if let Some(ids) = waiting.get_mut().get_mut(&record.identity) {
            ids.remove(&record.id);
            if ids.is_empty() {
                waiting.get_mut().remove(&record.identity);
            }
        }
        if waiting.get().is_empty() {
            waiting.remove();
        }
    }
}
