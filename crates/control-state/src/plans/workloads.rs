//! Workloads: nodes' reports of what they run, checked and turned into records.

use super::batch::Batch;
use crate::{
    Plan, Refusal,
    records::{Mutation, NodeRecord, RecordKey, ReportRecord},
    world::World,
};
use meshward_control_proto::WorkloadReport;
use meshward_types::{NodeName, WorkloadId};
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

    fn stop(&mut self, node: &NodeRecord, id: &WorkloadId) {
        let Some(known) = self.current(id).filter(|known| *known.node() == node.name) else {
            return;
        };
        let (network, name, addresses) =
            (known.network().clone(), known.name().clone(), known.addresses().to_vec());
        for address in addresses {
            self.addresses.remove(&(network.clone(), address));
        }
        self.devices.retain(|_, device| device != id);
        self.new.remove(id);
        self.gone.insert(id.clone());
        self.stopped.push(format!("{name} ({id})"));
        self.mutations.push(Mutation::Delete(RecordKey::Workload(id.clone())));
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
