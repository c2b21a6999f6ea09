//! The quarantines in force, and what they isolate.

use crate::records::QuarantineRecord;
use meshward_types::{Labels, NetworkName, WorkloadId};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Deref,
};

/// The effect of all quarantines on a workload or an identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuarantineState {
    /// `true` if a quarantine isolates it.
    pub quarantined: bool,
    /// `true` if one of them resets the TCP connections that it cuts.
    pub reset: bool,
}

/// The quarantines by id.
#[derive(Debug, Default)]
pub struct Quarantines {
    all: BTreeMap<String, QuarantineRecord>,
    /// The ids of those that name a workload.
    by_workload: HashMap<WorkloadId, BTreeSet<String>>,
    /// The ids of those that name labels. They are few, and every identity is matched with each.
    by_labels: BTreeSet<String>,
}

impl Deref for Quarantines {
    type Target = BTreeMap<String, QuarantineRecord>;
    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Quarantines {
    /// Inserts or replaces a quarantine.
    pub(super) fn put(&mut self, record: QuarantineRecord) {
        self.remove(&record.id);
        match &record.target.workload {
            Some(workload) => {
                self.by_workload.entry(workload.clone()).or_default().insert(record.id.clone());
            }
            None => {
                self.by_labels.insert(record.id.clone());
            }
        }
        self.all.insert(record.id.clone(), record);
    }

    /// Removes a quarantine, and returns it.
    pub(super) fn remove(&mut self, id: &str) -> Option<QuarantineRecord> {
        let record = self.all.remove(id)?;
        self.by_labels.remove(id);
        if let Some(workload) = &record.target.workload
            && let Some(ids) = self.by_workload.get_mut(workload)
        {
            ids.remove(id);
            if ids.is_empty() {
                self.by_workload.remove(workload);
            }
        }
        Some(record)
    }

    /// Returns the quarantines that name labels.
    pub fn by_labels(&self) -> impl Iterator<Item = &QuarantineRecord> {
        self.by_labels.iter().filter_map(|id| self.all.get(id))
    }

    /// Returns the workloads that quarantines name.
    pub fn workloads(&self) -> impl Iterator<Item = &WorkloadId> {
        self.by_workload.keys()
    }

    /// Returns the effect of the quarantines that name a workload.
    pub fn state_of(&self, workload: &WorkloadId) -> QuarantineState {
        let Some(ids) = self.by_workload.get(workload) else { return QuarantineState::default() };
        let reset = ids.iter().filter_map(|id| self.all.get(id)).any(|quarantine| quarantine.reset);
        QuarantineState { quarantined: true, reset }
    }

    /// Returns the effect of the quarantines that name labels on an identity.
    pub fn state_of_labels(&self, network: &NetworkName, labels: &Labels) -> QuarantineState {
        let mut state = QuarantineState::default();
        for quarantine in self.all_of_labels(network, labels) {
            state = QuarantineState { quarantined: true, reset: state.reset || quarantine.reset };
        }
        state
    }

    /// Returns a quarantine that names a workload.
    pub fn of_workload(&self, workload: &WorkloadId) -> Option<&QuarantineRecord> {
        self.all.get(self.by_workload.get(workload)?.first()?)
    }

    /// Returns `true` if a quarantine that names a workload lets others reach it.
    pub fn lets_forensics_to(&self, workload: &WorkloadId) -> bool {
        let ids = self.by_workload.get(workload).into_iter().flatten();
        ids.filter_map(|id| self.all.get(id)).any(|quarantine| quarantine.allow_from.is_some())
    }

    /// Returns a quarantine that isolates workloads with these labels.
    pub fn of_labels(&self, network: &NetworkName, labels: &Labels) -> Option<&QuarantineRecord> {
        self.all_of_labels(network, labels).next()
    }

    fn all_of_labels<'s>(
        &'s self,
        network: &NetworkName,
        labels: &Labels,
    ) -> impl Iterator<Item = &'s QuarantineRecord> {
        self.by_labels().filter(move |quarantine| {
            let target = &quarantine.target;
            target.selector.as_ref().is_some_and(|selector| selector.matches(labels))
                && target.network.as_ref().is_none_or(|own| own == network)
        })
    }
}
