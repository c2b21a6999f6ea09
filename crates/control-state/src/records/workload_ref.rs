//! References to the records of workloads, admitted or refused.

use super::{
    forms::NoSignatures,
    record::Record,
    workload::{LabelOverride, RefusedRecord, ReportRecord, WorkloadRecord},
};
use ipnet::IpNet;
use meshward_types::{
    Labels, NetworkName, NodeName, PublicKey, ServiceName, WorkloadId, WorkloadName,
    measurement::Measurement,
};
use std::{collections::BTreeSet, net::IpAddr};

/// A reference to a workload's record.
#[derive(Debug, Clone, Copy)]
pub enum WorkloadRef<'a> {
    /// An admitted workload.
    Admitted(&'a WorkloadRecord),
    /// A refused workload.
    Refused(&'a RefusedRecord),
}

impl<'a> WorkloadRef<'a> {
    /// Returns the workload of a record; `None` for a record of another kind.
    pub fn of(record: &'a Record) -> Option<Self> {
        match record {
            Record::Workload(record) => Some(Self::Admitted(record)),
            Record::Refused(record) => Some(Self::Refused(record)),
            _ => None,
        }
    }

    /// Returns `true` if the record is the same.
    pub fn is(&self, record: &Record) -> bool {
        match (self, record) {
            (Self::Admitted(own), Record::Workload(other)) => *own == other,
            (Self::Refused(own), Record::Refused(other)) => *own == &**other,
            _ => false,
        }
    }

    /// Returns the workload's id.
    pub fn id(&self) -> &'a WorkloadId {
        match self {
            Self::Admitted(record) => &record.id,
            Self::Refused(record) => &record.report.id,
        }
    }

    /// Returns the network.
    pub fn network(&self) -> &'a NetworkName {
        match self {
            Self::Admitted(record) => &record.network,
            Self::Refused(record) => &record.report.network,
        }
    }

    /// Returns the node that runs it.
    pub fn node(&self) -> &'a NodeName {
        match self {
            Self::Admitted(record) => &record.node,
            Self::Refused(record) => &record.node,
        }
    }

    /// Returns the name that people use for it.
    pub fn name(&self) -> &'a WorkloadName {
        match self {
            Self::Admitted(record) => &record.name,
            Self::Refused(record) => &record.report.name,
        }
    }

    /// Returns the addresses.
    pub fn addresses(&self) -> &'a [IpAddr] {
        match self {
            Self::Admitted(record) => &record.addresses,
            Self::Refused(record) => &record.report.addresses,
        }
    }

    /// Returns the labels that a trigger gave it.
    pub fn label_override(&self) -> Option<&'a LabelOverride> {
        match self {
            Self::Admitted(record) => record.label_override.as_ref(),
            Self::Refused(record) => record.label_override.as_ref(),
        }
    }

    /// Returns the WireGuard key of a device.
    pub fn device(&self) -> Option<PublicKey> {
        match self {
            Self::Admitted(record) => record.device,
            Self::Refused(record) => record.report.device,
        }
    }

    /// Returns the labels that its owner declares.
    pub fn labels(&self) -> &'a Labels {
        match self {
            Self::Admitted(record) => &record.declared,
            Self::Refused(record) => &record.report.labels,
        }
    }

    /// Returns the node's measurement.
    pub fn measurement(&self) -> Option<&'a Measurement> {
        match self {
            Self::Admitted(record) => record.measurement.as_deref(),
            Self::Refused(record) => record.report.measurement.as_deref(),
        }
    }

    /// Returns the services whose health check of it fails.
    pub fn unhealthy(&self) -> Option<&'a BTreeSet<ServiceName>> {
        match self {
            Self::Admitted(record) => Some(&record.unhealthy),
            Self::Refused(_) => None,
        }
    }

    /// Returns the prefixes behind it.
    pub fn prefixes(&self) -> &'a [IpNet] {
        match self {
            Self::Admitted(record) => &record.prefixes,
            Self::Refused(record) => &record.report.prefixes,
        }
    }

    /// Returns its node's report.
    pub fn report(&self) -> ReportRecord {
        match self {
            Self::Refused(record) => record.report.clone(),
            Self::Admitted(record) => ReportRecord {
                id: record.id.clone(),
                network: record.network.clone(),
                name: record.name.clone(),
                labels: record.declared.clone(),
                addresses: record.addresses.clone(),
                prefixes: record.prefixes.clone(),
                device: record.device,
                accepts: record.accepts.clone(),
                measurement: record.measurement.clone(),
                signatures: NoSignatures,
                objection: None,
                unhealthy: record.unhealthy.clone(),
            },
        }
    }
}
