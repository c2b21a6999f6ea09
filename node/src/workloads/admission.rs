//! Admission as far as it is this node's: vouching while the coordinator is away, and closing what
//! has become something else meanwhile.

use super::state::{AdmissionKey, State, Workload, Workloads};
use crate::{attachment::Attachment, enforcement::Decision};
use meshward_control_proto::WorkloadReport;
use meshward_types::{Labels, WorkloadId, measurement::Measurement};
use std::sync::Arc;
use tracing::warn;

/// The largest number of kinds of admitted workloads that are remembered for when the coordinator
/// is away.
const REMEMBERED: usize = 4096;

fn admission_key(report: &WorkloadReport) -> AdmissionKey {
    (
        report.network.clone(),
        report.labels.clone(),
        report.accepts.clone(),
        report.measurement.clone(),
    )
}

impl Workloads {
    /// Vouches for workloads whose label set this node knows and on which the coordinator has not
    /// decided: for one, or for all.
    pub fn vouch_for_undecided(&self, only: Option<&WorkloadId>) {
        let state = self.state.lock();
        match only {
            Some(id) => {
                state.attached.get(id).into_iter().for_each(|own| self.vouch(&state, own));
            }
            None => state.attached.values().for_each(|own| self.vouch(&state, own)),
        }
    }

    fn vouch(&self, state: &State, workload: &Workload) {
        let report = &workload.attachment.report;
        let (network, id) = (&report.network, &report.id);
        let is_known = workload.attachment.measured && report.objection.is_none();
        if workload.refused.is_some() || !is_known {
            return;
        }
        let like = state.admitted.get(&admission_key(report)).copied();
        self.enforcement.vouch(network, id, |view| {
            let like = like.filter(|identity| view.identity(network, *identity).is_some());
            // What admission has to judge, this node does not: it can only let in what is like what
            // was admitted.
            let is_judged = report.measurement.is_some()
                || view.network(network).is_none_or(|spec| spec.admission);
            like.or_else(|| {
                let labels = self.with_site(report.labels.clone()).filter(|_| !is_judged)?;
                view.identity_of(network, &labels, &report.accepts)
            })
        });
    }

    /// Remembers the coordinator's decisions on workloads; enforcement has ended the vouching for
    /// them.
    pub(super) fn note_decisions(&self, decisions: &[(WorkloadId, Decision)]) {
        let mut state = self.state.lock();
        for (id, decision) in decisions {
            note_decision(&mut state, id, *decision);
        }
    }

    /// Remembers the view's decision on a workload that was just restored.
    pub(super) fn note_known_decision(&self, state: &mut State, id: &WorkloadId) {
        let Some(Workload { attachment, .. }) = state.attached.get(id) else { return };
        if let Some(decision) = self.enforcement.decision(&attachment.report.network, id) {
            note_decision(state, id, decision);
        }
    }

    /// Notes that the coordinator refuses a workload's report: it stays closed.
    pub fn refuse(&self, id: &WorkloadId, reason: String) {
        warn!(workload = %id, "refused: {reason}");
        let mut state = self.state.lock();
        if let Some(workload) = state.attached.get_mut(id) {
            workload.refused = Some(reason);
            self.enforcement.vouch(&workload.attachment.report.network, id, |_| None);
        }
        drop(state);
        self.enforcement.notify_changed();
    }

    /// The labels as the coordinator would have them: with the node's site.
    fn with_site(&self, labels: Labels) -> Option<Labels> {
        match &self.membership.site {
            Some(site) => labels.with_fact("site", site).ok(),
            None => Some(labels),
        }
    }

    /// Closes a workload that is something else than when it was admitted, while the coordinator is
    /// away which would have to judge that; and opens it again when it is as it was. `before`: the
    /// last measurement.
    pub(super) fn close_unadmitted(
        &self,
        state: &mut State,
        id: &WorkloadId,
        before: Option<Arc<Measurement>>,
    ) {
        let Some(workload) = state.attached.get_mut(id) else { return };
        let Attachment { report, quarantined_until, admitted_as, .. } = &mut workload.attachment;
        let (judges, is_admitted) = self.enforcement.view(|view| {
            let judges = view.network(&report.network).is_none_or(|spec| spec.admission);
            (judges, view.workload(&report.network, id).is_some())
        });
        if self.link.has_session() || !judges || !is_admitted {
            return;
        }
        let known = admitted_as.take().or(before);
        *admitted_as = known.filter(|known| Some(known) != report.measurement.as_ref());
        let is_held = admitted_as.is_some() || quarantined_until.is_some();
        workload.served.endpoint.quarantine_locally(workload.index, is_held);
        if admitted_as.is_some() {
            warn!(workload = %id, "it is something else than when it was let in, and the \
                coordinator is away: it is closed until that is judged");
        }
    }

    /// Leaves the workloads to the coordinator, which is there, that were closed until it judges
    /// them.
    pub(super) fn release_unadmitted(&self) {
        let mut state = self.state.lock();
        let mut changed = Vec::new();
        for (id, workload) in &mut state.attached {
            let Attachment { quarantined_until, admitted_as, .. } = &mut workload.attachment;
            if admitted_as.take().is_none() {
                continue;
            }
            workload
                .served
                .endpoint
                .quarantine_locally(workload.index, quarantined_until.is_some());
            changed.push(id.clone());
        }
        for id in changed {
            if let Err(error) = self.keep(&state, &id) {
                warn!(workload = %id, "it was not written down who judges it: {error:#}");
            }
        }
    }
}

fn note_decision(state: &mut State, id: &WorkloadId, decision: Decision) {
    let Some(workload) = state.attached.get_mut(id) else { return };
    if workload.attachment.admitted_as.is_some() {
        return;
    }
    let key = admission_key(&workload.attachment.report);
    match decision {
        Decision::Admitted(identity) => {
            workload.refused = None;
            if state.admitted.len() >= REMEMBERED {
                state.admitted.clear();
            }
            state.admitted.insert(key, identity);
        }
        Decision::Refused => {
            state.admitted.remove(&key);
        }
    }
}
