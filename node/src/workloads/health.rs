//! The findings of health checks: kept, enforced and reported.

use super::state::{State, Workloads};
use meshward_api_types::local::LocalCheck;
use meshward_control_proto::FromNode;
use meshward_types::{Health, WorkloadId};
use std::collections::BTreeMap;
use tracing::warn;

impl Workloads {
    /// Notes the finding about a workload and the checks that it follows from. `None`: there is
    /// none. It is in force when this returns; the coordinator is told of a change, now or when the
    /// next session begins.
    pub(crate) fn note_health(
        &self,
        id: &WorkloadId,
        health: Option<Health>,
        checks: Vec<LocalCheck>,
    ) {
        let mut state = self.state.lock();
        let Some(workload) = state.attached.get_mut(id) else { return };
        workload.checks = checks;
        let attachment = &mut workload.attachment;
        let network = attachment.report.network.clone();
        self.enforcement.set_health(&network, id, health);
        if attachment.health == health {
            return;
        }
        attachment.health = health;
        let health = health.unwrap_or_default();
        let is_changed = attachment.report.health != health;
        attachment.report.health = health;
        self.keep_health(&state, id);
        if is_changed {
            self.link.send(FromNode::Health { workload: id.clone(), health });
        }
    }

    fn keep_health(&self, state: &State, id: &WorkloadId) {
        if let Err(error) = self.keep(state, id) {
            warn!(workload = %id, "the finding of its health checks was not written down: {error:#}");
        }
    }

    /// Counts a probe.
    pub(crate) fn count_probe(&self, kind: &'static str, outcome: &'static str) {
        *self.probes.lock().entry((kind, outcome)).or_default() += 1;
    }

    /// Returns the numbers of probes so far, by their kind and outcome.
    pub(crate) fn probes(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.probes.lock().clone()
    }
}
