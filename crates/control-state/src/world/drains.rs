//! The drains in force: workloads that get no new connections through services.

use crate::records::{DrainRecord, DrainTarget, WorkloadRecord};
use std::{collections::BTreeMap, sync::Arc};

/// The drains in force.
#[derive(Debug, Clone, Default)]
pub struct Drains(Arc<BTreeMap<DrainTarget, DrainRecord>>);

impl Drains {
    /// Returns a drain.
    pub fn get(&self, target: &DrainTarget) -> Option<&DrainRecord> {
        self.0.get(target)
    }

    /// Returns every drain.
    pub fn all(&self) -> impl Iterator<Item = &DrainRecord> {
        self.0.values()
    }

    /// Inserts a drain.
    pub(super) fn put(&mut self, record: DrainRecord) {
        Arc::make_mut(&mut self.0).insert(record.target.clone(), record);
    }

    /// Removes a drain.
    pub(super) fn remove(&mut self, target: &DrainTarget) {
        Arc::make_mut(&mut self.0).remove(target);
    }

    /// Returns the drain of a workload, by its id or its node.
    pub fn of(&self, record: &WorkloadRecord) -> Option<&DrainRecord> {
        if self.0.is_empty() {
            return None;
        }
        let by_id = self.get(&DrainTarget::Workload(record.id.clone()));
        by_id.or_else(|| self.get(&DrainTarget::Node(record.node.clone())))
    }
}
