//! Workloads: nodes' reports of what they run, checked and turned into records.

use super::batch::Batch;
use crate::{
    Plan, Refusal,
    records::{DrainTarget, Mutation, NodeRecord, Record, RecordKey, ReportRecord, WorkloadRef},
    world::World,
};
use meshward_control_proto::WorkloadReport;
use meshward_types::{Health, NodeName, ServiceName, WorkloadId};
use std::collections::BTreeSet;

/// A workload of a report that was rejected: nothing is stored of it. A workload that admission
/// refuses is stored as refused, and its node learns that by its view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedReport {
    /// The workload.
    pub workload: WorkloadId,
    /// The reason, and how to fix it.
    pub reason: String,
}

/// A node's report.
#[derive(Debug, Clone)]
pub enum Report {
    /// All workloads of the node. Others that it had have stopped while it had no session.
    All(Vec<WorkloadReport>),
    /// A workload has started or changed.
    Started(Box<WorkloadReport>),
    /// A workload has stopped.
    Stopped(WorkloadId),
    /// A service's health check of a workload has another finding.
    Health(WorkloadId, ServiceName, Health),
}

/// Plans the reports of nodes, each node's in their order. The outcome has the rejected workloads
/// of each node, or the reason for rejecting all of its reports.
pub fn plan_reports(
    world: &World,
    reports: &[(&NodeName, &[Report])],
) -> Plan<Vec<Result<Vec<RejectedReport>, Refusal>>> {
    let mut batch = Batch::new(world);
    let outcome = reports.iter().map(|(node, reports)| batch.add(node, reports)).collect();
    if !batch.mutations.is_empty() {
        batch.delete_idle_identities();
        batch.delete_idle_images();
    }
    Plan::new(batch.action(), batch.mutations, outcome)
}

impl Batch<'_> {
    /// Adds the reports of a node. Returns the rejected workloads.
    fn add(&mut self, node: &NodeName, reports: &[Report]) -> Result<Vec<RejectedReport>, Refusal> {
        let node =
            self.world.nodes.get(node).ok_or_else(|| {
                Refusal::Missing(format!("node `{node}` was removed from the mesh"))
            })?;
        let mut rejected = vec![];
        for report in reports {
            match report {
                Report::Started(report) => rejected.extend(self.start(node, report).err()),
                Report::Stopped(id) => self.stop(node, id),
                Report::Health(id, service, health) => {
                    self.set_health(node, id, (service, *health));
                }
                Report::All(reports) => {
                    let named: BTreeSet<&WorkloadId> =
                        reports.iter().map(|report| &report.id).collect();
                    for id in self.world.workload_ids_on(&node.name) {
                        if !named.contains(&id) {
                            self.stop(node, &id);
                        }
                    }
                    for report in reports {
                        rejected.extend(self.start(node, report).err());
                    }
                }
            }
        }
        Ok(rejected)
    }

    /// Removes a workload of a node.
    pub(super) fn stop(&mut self, node: &NodeRecord, id: &WorkloadId) {
        self.remove(&node.name, id);
    }

    /// Stores the finding of a service's health check.
    fn set_health(
        &mut self,
        node: &NodeRecord,
        id: &WorkloadId,
        (service, health): (&ServiceName, Health),
    ) {
        let Some(WorkloadRef::Admitted(known)) = self.current(id) else { return };
        let mut record = known.clone();
        let is_changed = match health {
            Health::Healthy => record.unhealthy.remove(service),
            Health::Unhealthy => record.unhealthy.insert(service.clone()),
        };
        let is_checked = || {
            let labels = self.labels_of(&record.network, record.identity);
            health == Health::Healthy
                || labels.is_some_and(|own| self.is_checked(&record.network, own, service))
        };
        if record.node != node.name || !is_changed || !is_checked() {
            return;
        }
        let finding = if health == Health::Unhealthy { "unhealthy" } else { "healthy" };
        self.checked.push(format!("{} ({id}) {finding} for {service}", record.name));
        self.new.insert(id.clone(), Record::Workload(record.clone()));
        self.mutations.push(Mutation::Put(Record::Workload(record)));
    }

    /// Removes a workload of a node, with its drain, and frees its name.
    pub(super) fn remove(&mut self, node: &NodeName, id: &WorkloadId) {
        let Some(known) = self.current(id).filter(|known| known.node() == node) else {
            return;
        };
        let (network, name, addresses) =
            (known.network().clone(), known.name().clone(), known.addresses().to_vec());
        for address in addresses {
            self.addresses.remove(&(network.clone(), address));
        }
        self.devices.retain(|_, device| device != id);
        self.stopped.push(format!("{name} ({id})"));
        self.mutations.push(Mutation::Delete(RecordKey::Workload(id.clone())));
        let drain = DrainTarget::Workload(id.clone());
        if self.world.drains.get(&drain).is_some() {
            self.mutations.push(Mutation::Delete(RecordKey::Drain(drain)));
        }
        self.free_name(id, None);
        self.new.remove(id);
        self.gone.insert(id.clone());
    }

    fn start(&mut self, node: &NodeRecord, report: &WorkloadReport) -> Result<(), RejectedReport> {
        self.check(node, report)
            .map_err(|reason| RejectedReport { workload: report.id.clone(), reason })?;
        self.store_signatures(node, report);
        let label_override =
            self.current(&report.id).and_then(|known| known.label_override().cloned());
        self.classify(node, ReportRecord::from(report), label_override);
        Ok(())
    }
}
