//! The workloads as people are shown them.

use super::state::{Workload, Workloads};
use crate::{attachment::Attachment, enforcement::Standing};
use meshward_api_types::{
    Measured,
    local::{LocalWorkload, State as WorkloadState},
};
use meshward_types::WorkloadId;

/// The reason for which a workload is closed that is something else than when it was admitted.
const NOT_READMITTED: &str = "something else is in its network namespace than when it was let in, \
    and the coordinator is away, which would have to judge that";

impl Workloads {
    /// Returns all workloads.
    pub fn all(&self) -> Vec<LocalWorkload> {
        let state = self.state.lock();
        state.attached.values().map(|workload| self.show(workload)).collect()
    }

    /// Returns a workload that satisfies a condition, and how it is attached.
    pub(crate) fn find(
        &self,
        is: impl Fn(&Attachment) -> bool,
    ) -> Option<(LocalWorkload, Attachment)> {
        let state = self.state.lock();
        let found = state.attached.values().find(|workload| is(&workload.attachment))?;
        Some((self.show(found), found.attachment.clone()))
    }

    /// Returns the workloads that satisfy a condition, as they are attached.
    pub(crate) fn find_all(
        &self,
        is: impl Fn(&Attachment) -> bool,
    ) -> Vec<(WorkloadId, Attachment)> {
        let state = self.state.lock();
        let found = state.attached.iter().filter(|(_, workload)| is(&workload.attachment));
        found.map(|(id, workload)| (id.clone(), workload.attachment.clone())).collect()
    }

    pub(super) fn show(&self, workload: &Workload) -> LocalWorkload {
        let report = &workload.attachment.report;
        let standing = self.enforcement.standing(&report.network, &report.id);
        let shown = show(&workload.attachment, standing, workload.refused.as_deref());
        LocalWorkload { checks: workload.checks.clone(), ..shown }
    }
}

/// A workload as it is shown. `refused`: the coordinator's reason for refusing the report itself.
pub(super) fn show(
    attachment: &Attachment,
    standing: Standing,
    refused: Option<&str>,
) -> LocalWorkload {
    let Attachment { report, netns, interface, .. } = attachment;
    let Standing { spec, refusal, vouched, is_identity_quarantined } = standing;
    let not_readmitted = attachment.admitted_as.as_ref().map(|_| NOT_READMITTED);
    let refusal = refusal.as_deref().or(refused).or(not_readmitted);
    let state = match (refusal, spec) {
        (Some(reason), _) => WorkloadState::Refused(reason.to_owned()),
        _ if !attachment.measured => WorkloadState::Unmeasured,
        _ if attachment.quarantined_until.is_some() => WorkloadState::Quarantined,
        (None, Some(spec)) if spec.quarantined || is_identity_quarantined => {
            WorkloadState::Quarantined
        }
        (None, Some(_)) => WorkloadState::Open,
        (None, None) if is_identity_quarantined => WorkloadState::Quarantined,
        (None, None) if vouched.is_some() => WorkloadState::Vouched,
        (None, None) => WorkloadState::Waiting,
    };
    LocalWorkload {
        id: report.id.clone(),
        name: report.name.clone(),
        network: report.network.clone(),
        labels: report.labels.clone(),
        addresses: report.addresses.clone(),
        prefixes: report.prefixes.clone(),
        interface: interface.clone(),
        netns: netns.clone(),
        measured: report.measurement.as_deref().map(Measured::from),
        checks: vec![],
        state,
    }
}
