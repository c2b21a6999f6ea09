//! Conversions between records, messages of the wire and bodies of the API.

use super::{NetworkRecord, QuarantineRecord, ReportRecord, TargetRecord, forms::NoSignatures};
use meshward_api_types::{Network, Quarantine, QuarantineTarget};
use meshward_control_proto::WorkloadReport;

impl From<&NetworkRecord> for Network {
    fn from(record: &NetworkRecord) -> Self {
        let NetworkRecord { name, prefixes, block_v4, block_v6, mtu, service_blocks, resolver } =
            record.clone();
        Self { name, prefixes, block_v4, block_v6, mtu, service_blocks, resolver }
    }
}

impl From<&QuarantineRecord> for Quarantine {
    fn from(record: &QuarantineRecord) -> Self {
        let QuarantineRecord { id, target, allow_from, by_admin, reset, since, until, by, why } =
            record.clone();
        let TargetRecord { network, selector, workload } = target;
        let target = QuarantineTarget { network, selector, workload };
        Self { id, target, allow_from, by_admin, reset, since, until, by, why }
    }
}

impl From<&QuarantineTarget> for TargetRecord {
    fn from(target: &QuarantineTarget) -> Self {
        let QuarantineTarget { network, selector, workload } = target.clone();
        Self { network, selector, workload }
    }
}

/// Signatures are stored with the images, not with the report.
impl From<&WorkloadReport> for ReportRecord {
    fn from(report: &WorkloadReport) -> Self {
        Self {
            id: report.id.clone(),
            network: report.network.clone(),
            name: report.name.clone(),
            labels: report.labels.clone(),
            addresses: report.addresses.clone(),
            prefixes: report.prefixes.clone(),
            device: report.device,
            accepts: report.accepts.clone(),
            measurement: report.measurement.clone(),
            signatures: NoSignatures,
            objection: report.objection.clone(),
            unhealthy: report.unhealthy.iter().cloned().collect(),
        }
    }
}

/// The report as the node sent it, but for the signatures.
impl From<ReportRecord> for WorkloadReport {
    fn from(report: ReportRecord) -> Self {
        Self {
            id: report.id,
            network: report.network,
            name: report.name,
            labels: report.labels,
            addresses: report.addresses,
            prefixes: report.prefixes,
            device: report.device,
            accepts: report.accepts,
            measurement: report.measurement,
            signatures: vec![],
            objection: report.objection,
            unhealthy: report.unhealthy.into_iter().collect(),
        }
    }
}
