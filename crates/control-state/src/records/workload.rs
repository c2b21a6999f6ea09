//! Records of workloads, their identities and images.

use super::{form, forms::NoSignatures};
use ipnet::IpNet;
use meshward_types::{
    AcceptFrom, IdentityId, Labels, NetworkName, NodeName, PublicKey, ServiceName, WorkloadId,
    WorkloadName,
    measurement::{ImageSignature, Measurement, Sha256},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// An admitted workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    /// The workload's id.
    pub id: WorkloadId,
    /// The workload's network.
    pub network: NetworkName,
    /// The node that runs it.
    pub node: NodeName,
    /// The name that people use for it.
    pub name: WorkloadName,
    /// The addresses that it has from the node's blocks.
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is the route of a gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpNet>,
    /// The WireGuard key of a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PublicKey>,
    /// The labels that its owner declares.
    pub declared: Labels,
    /// The workloads that its owner lets reach it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<AcceptFrom>,
    /// Labels that a trigger gave it.
    #[serde(rename = "given", default, skip_serializing_if = "Option::is_none")]
    pub label_override: Option<LabelOverride>,
    /// The node's measurement; `None` for a process without a container runtime.
    #[serde(default, with = "form", skip_serializing_if = "Option::is_none")]
    pub measurement: Option<Arc<Measurement>>,
    /// The identity of its labels, verified ones and the trigger's included.
    pub identity: IdentityId,
    /// `true` if its identity owns its name in the network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub owns_name: bool,
    /// The services whose health check of it fails.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unhealthy: BTreeSet<ServiceName>,
}

impl WorkloadRecord {
    /// Returns `true` if another record of the workload differs in what services and names have of
    /// it alone.
    pub fn is_same_flow_end(&self, other: &Self) -> bool {
        let Self { owns_name, ref unhealthy, .. } = *other;
        Self { owns_name, unhealthy: unhealthy.clone(), ..self.clone() } == *other
    }
}

/// A workload that admission refuses. It has no identity, and so no link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    /// The node that runs it.
    pub node: NodeName,
    /// The node's report.
    pub report: ReportRecord,
    /// Labels that a trigger gave it.
    #[serde(rename = "given", default, skip_serializing_if = "Option::is_none")]
    pub label_override: Option<LabelOverride>,
    /// The reasons for refusing it, at least one.
    pub reasons: Vec<String>,
}

impl RefusedRecord {
    /// Returns the reasons as one text.
    pub fn reason(&self) -> String {
        self.reasons.join("; ")
    }
}

/// A node's report of a workload, without the signatures of its images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRecord {
    /// The workload's id.
    pub id: WorkloadId,
    /// The workload's network.
    pub network: NetworkName,
    /// The name that people use for it.
    pub name: WorkloadName,
    /// The labels that its owner declares.
    pub labels: Labels,
    /// The addresses that it has from the node's blocks.
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is the route of a gateway.
    #[serde(default)]
    pub prefixes: Vec<IpNet>,
    /// The WireGuard key of a device.
    #[serde(default)]
    pub device: Option<PublicKey>,
    /// The workloads that its owner lets reach it.
    #[serde(default)]
    pub accepts: Vec<AcceptFrom>,
    /// The node's measurement; `None` for a process without a container runtime.
    #[serde(default, with = "form")]
    pub measurement: Option<Arc<Measurement>>,
    /// An empty list, which version 0.1.0 wants to find.
    #[serde(default)]
    pub signatures: NoSignatures,
    /// The reason for refusing it under any policy: a configuration that the node could not
    /// understand.
    #[serde(default)]
    pub objection: Option<String>,
    /// The services whose health check of it fails. None of a refused workload: nothing is stored.
    #[serde(skip)]
    pub unhealthy: BTreeSet<ServiceName>,
}

/// The signatures of an image that a workload was started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The digest of the image.
    pub digest: Sha256,
    /// Signatures by keys of a network's policy, by network. They prove themselves, whichever node
    /// found them.
    #[serde(default, with = "form", skip_serializing_if = "BTreeMap::is_empty")]
    pub verified: BTreeMap<NetworkName, Vec<ImageSignature>>,
    /// The other signatures, by the node that runs the image and found them: a later policy may
    /// have their keys.
    #[serde(default, with = "form", skip_serializing_if = "BTreeMap::is_empty")]
    pub reported: BTreeMap<NodeName, Vec<ImageSignature>>,
    /// Signatures that were stored before it was known which node had found them.
    #[serde(default, with = "form", skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<ImageSignature>,
}

impl ImageRecord {
    /// Makes a record of an image without signatures.
    pub fn new(digest: Sha256) -> Self {
        Self { digest, verified: BTreeMap::new(), reported: BTreeMap::new(), signatures: vec![] }
    }

    /// Returns the signatures that a network's policy is to check, the verified ones first.
    pub fn for_network(&self, network: &NetworkName) -> impl Iterator<Item = &ImageSignature> {
        let verified = self.verified.get(network).into_iter().flatten();
        verified.chain(self.reported.values().flatten()).chain(&self.signatures)
    }
}

/// Labels that a trigger gave a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelOverride {
    /// Labels that take precedence over the declared ones.
    pub labels: Labels,
    /// The time at which they end, in seconds since the Unix epoch; `None` for never.
    pub until: Option<i64>,
}

/// A label set and its number, which is never used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    /// The number.
    pub id: IdentityId,
    /// The network.
    pub network: NetworkName,
    /// The labels, verified ones included.
    pub labels: Labels,
    /// The workloads that the owners of its workloads let reach them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<AcceptFrom>,
}
