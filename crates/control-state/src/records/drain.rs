//! Records of drains.

use meshward_types::{NodeName, WorkloadId};
use serde::{Deserialize, Serialize};

/// A workload, or all workloads of a node, that get no new connections through services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// The workload or the node.
    pub target: DrainTarget,
    /// The time at which it began, in RFC 3339.
    pub since: String,
    /// The author: `user:NAME`.
    pub by: String,
    /// The author's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The workloads that are drained.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainTarget {
    /// A single one.
    Workload(WorkloadId),
    /// All of a node.
    Node(NodeName),
}
