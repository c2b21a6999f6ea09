//! The findings of health checks: kept, enforced and reported.

use super::state::{State, Workloads, unknown};
use crate::{
    attachment::{Findings, unhealthy_for},
    refusal::Refusal,
};
use meshward_api_types::local::LocalCheck;
use meshward_control_proto::FromNode;
use meshward_types::{Health, ServiceName, WorkloadId};
use std::{collections::BTreeMap, mem};
use tracing::warn;

impl Workloads {
    /// Notes the findings about a workload, by service, and the checks that they follow from. They
    /// are in force when this returns; the coordinator is told of changes, now or when the next
    /// session begins.
    pub(crate) fn note_findings(
        &self,
        id: &WorkloadId,
        findings: Findings,
        checks: Vec<LocalCheck>,
    ) {
        let mut state = self.state.lock();
        let Some(workload) = state.attached.get_mut(id) else { return };
        workload.checks = checks;
        let attachment = &mut workload.attachment;
        self.enforcement.set_findings(&attachment.report.network, id, &findings);
        if attachment.findings == findings {
            return;
        }
        let after = unhealthy_for(&findings);
        attachment.findings = findings;
        let before = mem::replace(&mut attachment.report.unhealthy, after.clone());
        self.keep_findings(&state, id);
        let tell = |service: &ServiceName, health| {
            let (workload, service) = (id.clone(), service.clone());
            self.link.send(FromNode::Health { workload, service, health });
        };
        for service in before.iter().filter(|service| !after.contains(service)) {
            tell(service, Health::Healthy);
        }
        for service in after.iter().filter(|service| !before.contains(service)) {
            tell(service, Health::Unhealthy);
        }
    }

    fn keep_findings(&self, state: &State, id: &WorkloadId) {
        if let Err(error) = self.keep(state, id) {
            warn!(
                workload = %id,
                "the findings of its health checks were not written down: {error:#}"
            );
        }
    }

    /// Checks that a workload is attached.
    ///
    /// # Errors
    /// [`Refusal::Missing`] if it is not.
    pub(crate) fn check_attached(&self, id: &WorkloadId) -> Result<(), Refusal> {
        let is_there = self.state.lock().attached.contains_key(id);
        if is_there { Ok(()) } else { Err(unknown(id)) }
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
