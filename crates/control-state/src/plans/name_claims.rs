//! The claims to a name, after the changes of a batch.

use crate::{
    records::WorkloadRecord,
    world::{NameOwner, Names},
};
use meshward_types::{IdentityId, WorkloadId, WorkloadName};
use std::collections::BTreeSet;

/// The claims to a name after the changes of a batch: what differs from the world.
#[derive(Debug, Clone, Default)]
pub(super) struct NameClaims {
    owner: Option<IdentityId>,
    /// The number of the owner's workloads with the name.
    workloads: usize,
    /// The workloads that have begun to wait, with their identities.
    joined: BTreeSet<(IdentityId, WorkloadId)>,
    /// The workloads that wait no longer.
    left: BTreeSet<(IdentityId, WorkloadId)>,
}

impl NameClaims {
    /// Makes the claims that the world has.
    pub(super) fn of(owner: Option<NameOwner>) -> Self {
        Self {
            owner: owner.map(|owner| owner.identity),
            workloads: owner.map_or(0, |owner| owner.workloads),
            ..Self::default()
        }
    }

    /// Returns the identity that owns the name.
    pub(super) fn owner(&self) -> Option<IdentityId> {
        self.owner
    }

    /// Removes a workload.
    pub(super) fn remove(&mut self, record: &WorkloadRecord) {
        if record.owns_name {
            self.workloads = self.workloads.saturating_sub(1);
            if self.workloads == 0 {
                self.owner = None;
            }
            return;
        }
        let waiting = (record.identity, record.id.clone());
        self.joined.remove(&waiting);
        self.left.insert(waiting);
    }

    /// Adds a workload. Returns `true` if it may have the name.
    pub(super) fn add(&mut self, id: &WorkloadId, identity: IdentityId) -> bool {
        if self.owner.is_some_and(|owner| owner != identity) {
            let waiting = (identity, id.clone());
            self.left.remove(&waiting);
            self.joined.insert(waiting);
            return false;
        }
        self.owner = Some(identity);
        self.workloads += 1;
        true
    }

    /// Returns the first identity with a workload that waits.
    pub(super) fn first_waiting(&self, names: &Names, name: &WorkloadName) -> Option<IdentityId> {
        let waits = |(identity, ids): &(IdentityId, &BTreeSet<WorkloadId>)| {
            ids.iter().any(|id| !self.left.contains(&(*identity, id.clone())))
        };
        let known = names.waiting(name).find(waits).map(|(identity, _)| identity);
        let joined = self.joined.first().map(|(identity, _)| *identity);
        [known, joined].into_iter().flatten().min()
    }

    /// Returns the workloads of an identity that wait.
    pub(super) fn waiting_of(
        &self,
        names: &Names,
        name: &WorkloadName,
        identity: IdentityId,
    ) -> BTreeSet<WorkloadId> {
        let waits = |id: &&WorkloadId| !self.left.contains(&(identity, (*id).clone()));
        let known = names.waiting_of(name, identity).filter(waits).cloned();
        let own = |(other, id): &(IdentityId, WorkloadId)| (*other == identity).then(|| id.clone());
        known.chain(self.joined.iter().filter_map(own)).collect()
    }
}
