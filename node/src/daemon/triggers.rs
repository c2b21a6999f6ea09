//! Watching for what triggers wait for.

use super::{Node, State, Workload, seconds_now};
use crate::clock;
use meshward_control_proto::{FromNode, Resource, ResourceKey, ViewReplica};
use meshward_datapath::WorkloadIndex;
use meshward_types::{Labels, WorkloadId};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tracing::{error, info, warn};

/// How often what workloads are denied is counted.
const WATCH: Duration = Duration::from_millis(200);
/// The most that triggers have caught and that waits for a session.
const MAX_UNSAID: usize = 1024;

impl Node {
    /// Counts what workloads are denied, for ever: what triggers wait for is said to the
    /// coordinator, which decides. While it is away, a trigger may have the node hold the workload
    /// by itself.
    pub async fn watch_triggers(&self) {
        loop {
            tokio::time::sleep(WATCH).await;
            let mut state = self.state.lock().await;
            let mut changed = self.count_attempts(&mut state);
            changed.extend(self.end_holds(&mut state));
            for id in &changed {
                if let Err(error) = self.keep_workload(&state, id) {
                    error!("what this node holds was not written down: {error:#}");
                }
            }
            drop(state);
            if !changed.is_empty() {
                self.admission.notify_waiters();
            }
        }
    }

    /// Gives the workloads that are held now.
    fn count_attempts(&self, state: &mut State) -> Vec<WorkloadId> {
        let now = clock::now();
        let State { view, endpoints, workloads, session, attempts, unsaid, .. } = state;
        let mut held = Vec::new();
        for (network, running) in endpoints.iter() {
            let triggers: Vec<_> = view.triggers(network).collect();
            let endpoint = &running.served.endpoint;
            let indices: HashMap<WorkloadIndex, &WorkloadId> = workloads
                .iter()
                .filter(|(_, workload)| workload.attachment.report.network == *network)
                .map(|(id, workload)| (workload.index, id))
                .collect();
            let mut tried = HashSet::new();
            for denial in endpoint.take_denials() {
                if let Some(id) = indices.get(&denial.workload) {
                    attempts.note(now, id, denial);
                    tried.insert((*id).clone());
                }
            }
            for id in tried {
                let Some(workload) = workloads.get_mut(&id) else { continue };
                let labels = labels_of(view, workload);
                for (name, spec) in &triggers {
                    if !labels.is_some_and(|labels| spec.watch.matches(labels)) {
                        continue;
                    }
                    let Some(fired) = attempts.fires(now, network, &id, name, spec) else {
                        continue;
                    };
                    warn!(%network, workload = %id, trigger = name, flows = fired.denied_flows,
                        ports = fired.distinct_ports, addresses = fired.distinct_addresses, "a trigger fires");
                    match session {
                        Some(session) => {
                            let _ = session.send(FromNode::Fired(fired));
                        }
                        None => {
                            if spec.alone {
                                let until = spec
                                    .seconds
                                    .and_then(|seconds| seconds_now().checked_add(seconds));
                                workload.attachment.held_until = Some(until.unwrap_or(u64::MAX));
                                endpoint.quarantine_locally(workload.index, true);
                                held.push(id.clone());
                            }
                            if unsaid.len() < MAX_UNSAID {
                                unsaid.push(fired);
                            }
                        }
                    }
                }
            }
        }
        attempts.forget(now, |id| workloads.contains_key(id));
        held
    }

    /// Lets go what was held by this node alone: its time is over, or the coordinator holds it now.
    fn end_holds(&self, state: &mut State) -> Vec<WorkloadId> {
        let State { view, endpoints, workloads, .. } = state;
        let mut freed = Vec::new();
        for workload in workloads.values_mut() {
            let Some(until) = workload.attachment.held_until else { continue };
            let report = &workload.attachment.report;
            let taken_over =
                view.workload(&report.network, &report.id).is_some_and(|spec| spec.quarantined);
            if (until <= seconds_now() || taken_over)
                && let Some(running) = endpoints.get(&report.network)
            {
                running
                    .served
                    .endpoint
                    .quarantine_locally(workload.index, workload.attachment.let_in_as.is_some());
                info!(workload = %report.id, taken_over, "this node does not hold the workload any more");
                freed.push(report.id.clone());
                workload.attachment.held_until = None;
            }
        }
        freed
    }
}

/// What policy sees of a workload.
fn labels_of<'a>(view: &'a ViewReplica, workload: &Workload) -> Option<&'a Labels> {
    let report = &workload.attachment.report;
    let spec = view.workload(&report.network, &report.id);
    let identity = spec.map(|spec| spec.identity).or(workload.vouched)?;
    match view.resources.get(&ResourceKey::Identity(report.network.clone(), identity)) {
        Some(Resource::Identity(spec)) => Some(&spec.labels),
        _ => None,
    }
}
