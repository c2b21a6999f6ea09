//! The quarantines that stand, and whom they hold.

use crate::records::QuarantineRecord;
use meshward_types::{Labels, NetworkName, WorkloadId};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Deref,
};

/// Whether quarantines hold something, and reset the connections that they cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hold {
    pub quarantined: bool,
    pub reset: bool,
}

/// The quarantines by their ids.
#[derive(Debug, Default)]
pub struct Quarantines {
    all: BTreeMap<String, QuarantineRecord>,
    /// Those that name a workload.
    by_workload: HashMap<WorkloadId, BTreeSet<String>>,
    /// Those that name labels: asked about every identity, and few.
    selecting: BTreeSet<String>,
}

impl Deref for Quarantines {
    type Target = BTreeMap<String, QuarantineRecord>;
    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Quarantines {
    pub fn put(&mut self, record: QuarantineRecord) {
        self.remove(&record.id);
        match &record.target.workload {
            Some(workload) => {
                self.by_workload.entry(workload.clone()).or_default().insert(record.id.clone());
            }
            None => {
                self.selecting.insert(record.id.clone());
            }
        }
        self.all.insert(record.id.clone(), record);
    }

    pub fn remove(&mut self, id: &str) -> Option<QuarantineRecord> {
        let record = self.all.remove(id)?;
        self.selecting.remove(id);
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

    /// The quarantines that name labels.
    pub fn selecting(&self) -> impl Iterator<Item = &QuarantineRecord> {
        self.selecting.iter().filter_map(|id| self.all.get(id))
    }

    /// The workloads that are held by themselves.
    pub fn workloads(&self) -> impl Iterator<Item = &WorkloadId> {
        self.by_workload.keys()
    }

    /// Whether a workload is held by itself.
    pub fn holds(&self, workload: &WorkloadId) -> Hold {
        let Some(ids) = self.by_workload.get(workload) else { return Hold::default() };
        let reset = ids.iter().filter_map(|id| self.all.get(id)).any(|quarantine| quarantine.reset);
        Hold { quarantined: true, reset }
    }

    /// Whether what has these labels is held.
    pub fn holds_labels(&self, network: &NetworkName, labels: &Labels) -> Hold {
        let mut held = Hold::default();
        for quarantine in self.all_that_select(network, labels) {
            held = Hold { quarantined: true, reset: held.reset || quarantine.reset };
        }
        held
    }

    /// The quarantine that names a workload.
    pub fn of_workload(&self, workload: &WorkloadId) -> Option<&QuarantineRecord> {
        self.all.get(self.by_workload.get(workload)?.first()?)
    }

    /// Whether a quarantine that names a workload lets somebody in.
    pub fn lets_forensics_to(&self, workload: &WorkloadId) -> bool {
        let ids = self.by_workload.get(workload).into_iter().flatten();
        ids.filter_map(|id| self.all.get(id)).any(|quarantine| quarantine.allow_from.is_some())
    }

    /// The quarantine that selects labels.
    pub fn selects(&self, network: &NetworkName, labels: &Labels) -> Option<&QuarantineRecord> {
        self.all_that_select(network, labels).next()
    }

    fn all_that_select<'s>(
        &'s self,
        network: &NetworkName,
        labels: &Labels,
    ) -> impl Iterator<Item = &'s QuarantineRecord> {
        self.selecting().filter(move |quarantine| {
            let target = &quarantine.target;
            target.selector.as_ref().is_some_and(|selector| selector.matches(labels))
                && target.network.as_ref().is_none_or(|own| own == network)
        })
    }
}
