//! The beginning and the end of drains.

use super::{deltas::Deltas, state::World};
use crate::records::{DrainRecord, DrainTarget};
use meshward_types::WorkloadId;

impl World {
    /// Begins a drain.
    pub(super) fn put_drain(&mut self, record: DrainRecord, deltas: &mut Deltas) {
        let target = record.target.clone();
        self.drains.put(record);
        self.update_drained(&target, deltas);
    }

    /// Ends a drain.
    pub(super) fn remove_drain(&mut self, target: &DrainTarget, deltas: &mut Deltas) {
        self.drains.remove(target);
        self.update_drained(target, deltas);
    }

    fn update_drained(&mut self, target: &DrainTarget, deltas: &mut Deltas) {
        let ids: Vec<WorkloadId> = match target {
            DrainTarget::Workload(id) => vec![id.clone()],
            DrainTarget::Node(node) => {
                self.workloads_on(node).map(|record| record.id.clone()).collect()
            }
        };
        for id in ids {
            let Some(network) = self.workload_networks.get(&id).cloned() else { continue };
            self.with_builder(&network, deltas, |builder| builder.workload_state_changed(&id));
        }
    }
}
