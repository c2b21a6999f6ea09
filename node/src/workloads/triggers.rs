//! Triggers: workloads that try again and again what policy denies them.

use super::{
    denied_attempts::Trigger,
    state::{State, Workload, Workloads},
};
use crate::{clock, workers::ServedEndpoint};
use meshward_datapath::WorkloadIndex;
use meshward_types::{Labels, NetworkName, WorkloadId, trigger::TriggerSpec};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tracing::{error, info, warn};

/// The interval at which denied attempts are counted.
const INTERVAL: Duration = Duration::from_millis(200);

impl Workloads {
    /// Counts what workloads are denied, for ever: a trigger that fires is reported to the
    /// coordinator, which decides. While it is away, a trigger may have the node quarantine the
    /// workload by itself.
    pub async fn watch_triggers(&self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let changed = {
                let mut state = self.state.lock();
                let mut changed = self.count_attempts(&mut state);
                changed.extend(self.end_local_quarantines(&mut state));
                for id in &changed {
                    if let Err(error) = self.keep(&state, id) {
                        error!("a local quarantine was not written down: {error:#}");
                    }
                }
                !changed.is_empty()
            };
            if changed {
                self.enforcement.notify_changed();
            }
        }
    }

    /// Returns the workloads that are quarantined by this node now.
    fn count_attempts(&self, state: &mut State) -> Vec<WorkloadId> {
        let mut quarantined = Vec::new();
        for (network, served) in self.enforcement.endpoints() {
            let denials = served.endpoint.take_denials();
            if denials.is_empty() {
                continue;
            }
            let now = clock::now();
            let by_index: HashMap<WorkloadIndex, WorkloadId> = of_endpoint(state, &served);
            let mut tried = HashSet::new();
            for denial in denials {
                if let Some(id) = by_index.get(&denial.workload) {
                    state.attempts.note(now, id, denial);
                    tried.insert(id.clone());
                }
            }
            let triggers: Vec<(String, TriggerSpec)> = self.enforcement.view(|view| {
                let all = view.triggers(&network);
                all.map(|(name, spec)| (name.to_owned(), spec.clone())).collect()
            });
            for id in tried {
                if self.check_triggers(state, &network, &id, &triggers) {
                    quarantined.push(id);
                }
            }
        }
        let State { attempts, attached, .. } = state;
        attempts.forget(clock::now(), |id| attached.contains_key(id));
        quarantined
    }

    /// Returns whether the workload is quarantined by this node now.
    fn check_triggers(
        &self,
        state: &mut State,
        network: &NetworkName,
        id: &WorkloadId,
        triggers: &[(String, TriggerSpec)],
    ) -> bool {
        let Some(labels) = self.labels_of(network, id) else { return false };
        let State { attempts, attached, .. } = state;
        let Some(workload) = attached.get_mut(id) else { return false };
        let mut is_quarantined = false;
        for (name, spec) in triggers {
            if !spec.watch.matches(&labels) {
                continue;
            }
            let trigger = Trigger { network, name, spec };
            let Some(fired) = attempts.fires(clock::now(), id, trigger) else {
                continue;
            };
            warn!(%network, workload = %id, trigger = name, flows = fired.denied_flows,
                ports = fired.distinct_ports, addresses = fired.distinct_addresses, "a trigger \
                    fires");
            if !self.link.report_fired(fired) && spec.alone {
                let until =
                    spec.seconds.and_then(|seconds| clock::unix_seconds().checked_add(seconds));
                workload.attachment.quarantined_until = Some(until.unwrap_or(u64::MAX));
                workload.served.endpoint.quarantine_locally(workload.index, true);
                is_quarantined = true;
            }
        }
        is_quarantined
    }

    /// Ends quarantines by this node alone whose time is over, or that the coordinator has taken
    /// over; returns their workloads.
    fn end_local_quarantines(&self, state: &mut State) -> Vec<WorkloadId> {
        let mut ended = Vec::new();
        for Workload { attachment, served, index, .. } in state.attached.values_mut() {
            let Some(until) = attachment.quarantined_until else { continue };
            let report = &attachment.report;
            let is_taken_over = self.enforcement.view(|view| {
                view.workload(&report.network, &report.id).is_some_and(|spec| spec.quarantined)
            });
            if until <= clock::unix_seconds() || is_taken_over {
                served.endpoint.quarantine_locally(*index, attachment.admitted_as.is_some());
                info!(workload = %report.id, is_taken_over, "this node does not quarantine the \
                    workload any more");
                ended.push(report.id.clone());
                attachment.quarantined_until = None;
            }
        }
        ended
    }

    /// Returns the labels that policy sees of a workload.
    fn labels_of(&self, network: &NetworkName, id: &WorkloadId) -> Option<Labels> {
        let standing = self.enforcement.standing(network, id);
        let identity = standing.spec.map(|spec| spec.identity).or(standing.vouched)?;
        self.enforcement
            .view(|view| view.identity(network, identity).map(|spec| spec.labels.clone()))
    }
}

fn of_endpoint(state: &State, served: &Arc<ServedEndpoint>) -> HashMap<WorkloadIndex, WorkloadId> {
    let own = state.attached.iter().filter(|(_, own)| Arc::ptr_eq(&own.served, served));
    own.map(|(id, own)| (own.index, id.clone())).collect()
}
