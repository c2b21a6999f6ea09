//! The ownership of workloads' names: see [`Names`](crate::world::Names).

use super::{batch::Batch, name_claims::NameClaims};
use crate::records::{Mutation, Record, WorkloadRecord, WorkloadRef};
use meshward_types::{NetworkName, WorkloadId, WorkloadName};

impl Batch<'_> {
    fn claims(&mut self, network: &NetworkName, name: &WorkloadName) -> &mut NameClaims {
        let world = self.world;
        self.names.entry((network.clone(), name.clone())).or_insert_with(|| {
            let owner = world.networks.get(network).and_then(|known| known.names.owner(name));
            NameClaims::of(owner)
        })
    }

    /// Gives a workload that is admitted its name, if nobody else has it. Returns `true` if so.
    pub(super) fn claim_name(&mut self, record: &WorkloadRecord) -> bool {
        let before = self.admitted(&record.id);
        let claims = self.claims(&record.network, &record.name);
        if let Some(before) = before.filter(|before| before.name == record.name) {
            claims.remove(&before);
        }
        let was_free = claims.owner().is_none();
        let owns = claims.add(&record.id, record.identity);
        if was_free {
            self.pass_on(&record.network, &record.name);
        }
        owns
    }

    /// Frees the name that a workload has had, unless it keeps the name. The first of those that
    /// wait for it gets it.
    pub(super) fn free_name(&mut self, id: &WorkloadId, keeps: Option<&WorkloadName>) {
        let Some(before) = self.admitted(id).filter(|before| Some(&before.name) != keeps) else {
            return;
        };
        let claims = self.claims(&before.network, &before.name);
        claims.remove(&before);
        if claims.owner().is_none() {
            self.pass_on(&before.network, &before.name);
        }
    }

    /// Gives a name to all workloads of its new owner that wait for it; if nobody has it, to those
    /// of the first identity that waits.
    fn pass_on(&mut self, network: &NetworkName, name: &WorkloadName) {
        let Some(known) = self.world.networks.get(network) else { return };
        let claims = self.claims(network, name);
        let heir = claims.owner().or_else(|| claims.first_waiting(&known.names, name));
        let Some(heir) = heir else { return };
        let waiting = claims.waiting_of(&known.names, name, heir);
        for mut record in waiting.iter().filter_map(|id| self.admitted(id)).collect::<Vec<_>>() {
            let claims = self.claims(network, name);
            claims.remove(&record);
            record.owns_name = claims.add(&record.id, heir);
            let id = record.id.clone();
            let record = Record::Workload(record);
            self.new.insert(id, record.clone());
            self.mutations.push(Mutation::Put(record));
        }
    }

    /// Returns the record of a workload that is admitted.
    fn admitted(&self, id: &WorkloadId) -> Option<WorkloadRecord> {
        match self.current(id)? {
            WorkloadRef::Admitted(record) => Some(record.clone()),
            WorkloadRef::Refused(_) => None,
        }
    }
}
