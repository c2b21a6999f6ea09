//! Records of workloads, their identities and images.

use ipnet::IpNet;
use meshward_control_proto::WorkloadReport;
use meshward_types::{
    AcceptFrom, IdentityId, Labels, NetworkName, NodeName, PublicKey, WorkloadId, WorkloadName,
    measurement::{ImageSignature, Measurement, Sha256},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRecord {
    pub id: WorkloadId,
    pub network: NetworkName,
    pub node: NodeName,
    pub name: WorkloadName,
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway's route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpNet>,
    /// Its WireGuard key, if it is a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PublicKey>,
    /// What its owner declared.
    pub declared: Labels,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<AcceptFrom>,
    /// What a trigger gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<LabelOverride>,
    /// What its node has measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement: Option<Arc<Measurement>>,
    pub identity: IdentityId,
}

/// A workload that is not let in. It has no identity, so no link of it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    pub node: NodeName,
    /// What its node said of it, without the signatures.
    pub report: WorkloadReport,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<LabelOverride>,
    /// Why.
    pub reasons: Vec<String>,
}

impl RefusedRecord {
    /// Why, in one sentence.
    pub fn reason(&self) -> String {
        self.reasons.join("; ")
    }
}

/// The signatures of an image that runs or ran somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub digest: Sha256,
    /// Those that are by keys of a network's policy: they prove themselves, whoever has found them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verified: BTreeMap<NetworkName, Vec<ImageSignature>>,
    /// The others, by the node that runs the image and has found them: a policy to come may have
    /// their keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reported: BTreeMap<NodeName, Vec<ImageSignature>>,
    /// What earlier versions kept, whoever had found it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<ImageSignature>,
}

impl ImageRecord {
    /// An image of which nothing is known.
    pub fn new(digest: Sha256) -> Self {
        Self { digest, verified: BTreeMap::new(), reported: BTreeMap::new(), signatures: vec![] }
    }

    /// The signatures that a network's policy is to look at, the verified ones first.
    pub fn for_network(&self, network: &NetworkName) -> impl Iterator<Item = &ImageSignature> {
        let verified = self.verified.get(network).into_iter().flatten();
        verified.chain(self.reported.values().flatten()).chain(&self.signatures)
    }
}

/// Labels that a workload was given by a trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelOverride {
    pub labels: Labels,
    /// Seconds since the epoch.
    pub until: Option<i64>,
}

/// A label set and its number, which is never used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    pub id: IdentityId,
    pub network: NetworkName,
    pub labels: Labels,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<AcceptFrom>,
}
