//! An attached workload on disk.
//!
//! The structures are converted field by field, other than those of the view: several fields have
//! other names and shapes in the file than in the daemon.

use crate::attachment::{Attachment, Findings, Origin, Owner, unhealthy_for};
use ipnet::IpNet;
use meshward_api_types::local::{Kubernetes, Pod};
use meshward_control_proto::{ImageSignatures, WorkloadReport};
use meshward_netns::NetnsId;
use meshward_runtime::state_files::StateFile;
use meshward_types::{
    AcceptFrom, Health, Labels, NetworkName, PublicKey, ServiceName, WorkloadId, WorkloadName,
    measurement::{Image, ImageSignature, Measurement, Repository, Sha256, SharingContainer},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

/// The file of an attached workload. Formats 1 and 2 differ in the number alone; format 3 has the
/// findings of health checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkloadFile {
    report: ReportEntry,
    netns: PathBuf,
    /// Device and inode number of the namespace.
    netns_id: Option<(u64, u64)>,
    owner: Option<OwnerEntry>,
    interface: String,
    /// [`Attachment::last_address`].
    #[serde(default)]
    seen_at: Option<SocketAddr>,
    /// [`Attachment::quarantined_until`].
    #[serde(default)]
    held_until: Option<u64>,
    #[serde(default)]
    origin: OriginEntry,
    #[serde(default = "yes")]
    measured: bool,
    /// [`Attachment::admitted_as`].
    #[serde(default)]
    let_in_as: Option<MeasurementEntry>,
    /// [`Attachment::findings`].
    #[serde(default)]
    findings: BTreeMap<ServiceName, HealthEntry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HealthEntry {
    Healthy,
    Unhealthy,
}

/// Workloads were always measured before the first release that could wait for it.
fn yes() -> bool {
    true
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ReportEntry {
    id: WorkloadId,
    network: NetworkName,
    name: WorkloadName,
    labels: Labels,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    prefixes: Vec<IpNet>,
    #[serde(default)]
    device: Option<PublicKey>,
    #[serde(default)]
    accepts: Vec<AcceptFrom>,
    #[serde(default)]
    measurement: Option<MeasurementEntry>,
    /// By the digests of images.
    #[serde(default)]
    signatures: Vec<(Sha256, Vec<SignatureEntry>)>,
    #[serde(default)]
    objection: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OwnerEntry {
    pid: u32,
    started: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OriginEntry {
    #[default]
    Local,
    Device,
    Route,
    Docker {
        endpoint: String,
    },
    Cni {
        container: String,
        asked: String,
        engine: Option<PathBuf>,
        pod: Option<PodEntry>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PodEntry {
    api: KubernetesEntry,
    namespace: String,
    name: String,
    #[serde(default)]
    uid: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KubernetesEntry {
    server: String,
    token_file: PathBuf,
    ca_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MeasurementEntry {
    runtime: String,
    images: Vec<ImageEntry>,
    config: Sha256,
    privileges: Vec<String>,
    #[serde(default)]
    sharing: Vec<SharingEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ImageEntry {
    repository: Option<Repository>,
    digest: Sha256,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SharingEntry {
    name: String,
    image: Option<ImageEntry>,
    config: Sha256,
    privileges: Vec<String>,
    #[serde(default)]
    objection: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SignatureEntry {
    payload: String,
    signature: String,
}

impl StateFile for WorkloadFile {
    const FORMAT: u32 = 3;
}

/// Implements the conversions in both directions between structures with the same fields, each
/// converted by `into`.
macro_rules! same_fields {
    ($entry:ident, $type:ident { $($field:ident),* }) => {
        impl From<$type> for $entry {
            fn from(value: $type) -> Self {
                let $type { $($field),* } = value;
                Self { $($field: $field.into()),* }
            }
        }
        impl From<$entry> for $type {
            fn from(entry: $entry) -> Self {
                let $entry { $($field),* } = entry;
                Self { $($field: $field.into()),* }
            }
        }
    };
}

same_fields!(OwnerEntry, Owner { pid, started });
same_fields!(ImageEntry, Image { repository, digest });
same_fields!(SignatureEntry, ImageSignature { payload, signature });
same_fields!(KubernetesEntry, Kubernetes { server, token_file, ca_file });
same_fields!(PodEntry, Pod { api, namespace, name, uid });

fn converted<A: Into<B>, B>(list: Vec<A>) -> Vec<B> {
    list.into_iter().map(Into::into).collect()
}

impl From<SharingContainer> for SharingEntry {
    fn from(container: SharingContainer) -> Self {
        let SharingContainer { name, image, config, privileges, objection } = container;
        Self { name, image: image.map(Into::into), config, privileges, objection }
    }
}

impl From<SharingEntry> for SharingContainer {
    fn from(entry: SharingEntry) -> Self {
        let SharingEntry { name, image, config, privileges, objection } = entry;
        Self { name, image: image.map(Into::into), config, privileges, objection }
    }
}

impl From<Measurement> for MeasurementEntry {
    fn from(measurement: Measurement) -> Self {
        let Measurement { runtime, images, config, privileges, sharing } = measurement;
        let (images, sharing) = (converted(images), converted(sharing));
        Self { runtime, images, config, privileges, sharing }
    }
}

impl From<MeasurementEntry> for Measurement {
    fn from(entry: MeasurementEntry) -> Self {
        let MeasurementEntry { runtime, images, config, privileges, sharing } = entry;
        let (images, sharing) = (converted(images), converted(sharing));
        Self { runtime, images, config, privileges, sharing }
    }
}

impl From<Health> for HealthEntry {
    fn from(health: Health) -> Self {
        match health {
            Health::Healthy => Self::Healthy,
            Health::Unhealthy => Self::Unhealthy,
        }
    }
}

impl From<HealthEntry> for Health {
    fn from(entry: HealthEntry) -> Self {
        match entry {
            HealthEntry::Healthy => Self::Healthy,
            HealthEntry::Unhealthy => Self::Unhealthy,
        }
    }
}

impl From<Origin> for OriginEntry {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Local => Self::Local,
            Origin::Device => Self::Device,
            Origin::Route => Self::Route,
            Origin::Docker { endpoint } => Self::Docker { endpoint },
            Origin::Cni { container, asked, engine, pod } => {
                Self::Cni { container, asked, engine, pod: pod.map(Into::into) }
            }
        }
    }
}

impl From<OriginEntry> for Origin {
    fn from(entry: OriginEntry) -> Self {
        match entry {
            OriginEntry::Local => Self::Local,
            OriginEntry::Device => Self::Device,
            OriginEntry::Route => Self::Route,
            OriginEntry::Docker { endpoint } => Self::Docker { endpoint },
            OriginEntry::Cni { container, asked, engine, pod } => {
                Self::Cni { container, asked, engine, pod: pod.map(Into::into) }
            }
        }
    }
}

impl From<WorkloadReport> for ReportEntry {
    fn from(report: WorkloadReport) -> Self {
        let WorkloadReport {
            id,
            network,
            name,
            labels,
            addresses,
            prefixes,
            device,
            accepts,
            measurement,
            signatures,
            objection,
            // The file has all findings.
            unhealthy: _,
        } = report;
        let measurement = measurement.map(|own| Arc::unwrap_or_clone(own).into());
        let signatures =
            signatures.into_iter().map(|own| (own.image, converted(own.signatures))).collect();
        Self {
            id,
            network,
            name,
            labels,
            addresses,
            prefixes,
            device,
            accepts,
            measurement,
            signatures,
            objection,
        }
    }
}

impl From<ReportEntry> for WorkloadReport {
    fn from(entry: ReportEntry) -> Self {
        let ReportEntry {
            id,
            network,
            name,
            labels,
            addresses,
            prefixes,
            device,
            accepts,
            measurement,
            signatures,
            objection,
        } = entry;
        let measurement = measurement.map(|own| Arc::new(own.into()));
        let signatures = signatures.into_iter();
        let signatures = signatures
            .map(|(image, all)| ImageSignatures { image, signatures: converted(all) })
            .collect();
        Self {
            id,
            network,
            name,
            labels,
            addresses,
            prefixes,
            device,
            accepts,
            measurement,
            signatures,
            objection,
            unhealthy: vec![],
        }
    }
}

impl From<&Attachment> for WorkloadFile {
    fn from(attachment: &Attachment) -> Self {
        let Attachment {
            report,
            netns,
            netns_id,
            owner,
            interface,
            last_address,
            quarantined_until,
            origin,
            measured,
            admitted_as,
            findings,
        } = attachment.clone();
        Self {
            report: report.into(),
            netns,
            netns_id: netns_id.map(|NetnsId { device, inode }| (device, inode)),
            owner: owner.map(Into::into),
            interface,
            seen_at: last_address,
            held_until: quarantined_until,
            origin: origin.into(),
            measured,
            let_in_as: admitted_as.map(|own| Arc::unwrap_or_clone(own).into()),
            findings: findings.into_iter().map(|(name, health)| (name, health.into())).collect(),
        }
    }
}

impl From<WorkloadFile> for Attachment {
    fn from(file: WorkloadFile) -> Self {
        let WorkloadFile {
            report,
            netns,
            netns_id,
            owner,
            interface,
            seen_at,
            held_until,
            origin,
            measured,
            let_in_as,
            findings,
        } = file;
        let findings: Findings =
            findings.into_iter().map(|(name, health)| (name, health.into())).collect();
        Self {
            report: WorkloadReport { unhealthy: unhealthy_for(&findings), ..report.into() },
            netns,
            netns_id: netns_id.map(|(device, inode)| NetnsId { device, inode }),
            owner: owner.map(Into::into),
            interface,
            last_address: seen_at,
            quarantined_until: held_until,
            origin: origin.into(),
            measured,
            admitted_as: let_in_as.map(|own| Arc::new(own.into())),
            findings,
        }
    }
}
