//! Quarantines.

use meshward_types::{NetworkName, NodeName, Revision, Selector, WorkloadId, schema::Time};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The target: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuarantineTarget {
    /// The network. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// The workloads with these labels, later ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// One workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadId>,
}

/// A quarantine to be imposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Impose {
    /// The target.
    #[serde(flatten)]
    pub target: QuarantineTarget,
    /// Clients that may still reach the workloads, whatever rules say, except where guardrails deny
    /// it. Unless an admin imposes the quarantine, only clients that the policy lists under
    /// `forensics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Selector>,
    /// The duration in seconds. Default: until it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub seconds: Option<u64>,
    /// The reason, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `true` to quarantine even if no workload matches now, for those that start later. Otherwise
    /// that is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub even_if_none: bool,
    /// `true` to reset both ends of every TCP connection that the quarantine cuts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

/// A quarantine in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quarantine {
    /// The id.
    pub id: String,
    /// The target.
    #[serde(flatten)]
    pub target: QuarantineTarget,
    /// Clients that may still reach the workloads, except where guardrails deny it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Selector>,
    /// `true` if an admin has imposed it. Otherwise `allow_from` admits only clients that the
    /// policy lists under `forensics`.
    #[serde(default)]
    pub by_admin: bool,
    /// `true` to reset both ends of every TCP connection that the quarantine cuts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// The time at which it began.
    #[schema(value_type = Time)]
    pub since: String,
    /// The time at which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub until: Option<String>,
    /// The actor that imposed it: `user:NAME` or `trigger:NAME`.
    #[serde(default)]
    pub by: String,
    /// The reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The result of a quarantine or a release.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuarantineResult {
    /// The revision of the change.
    pub revision: Revision,
    /// The workloads that it affects.
    pub workloads: Vec<WorkloadId>,
    /// The enforcement.
    #[serde(flatten)]
    pub enforcement: Enforcement,
}

/// The enforcement of a change at the time of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enforcement {
    /// The number of nodes that must enforce it.
    pub nodes: usize,
    /// The number of nodes that have acknowledged it.
    pub nodes_enforcing: usize,
    /// The other nodes. They enforce the change first when they reconnect.
    #[serde(default)]
    pub nodes_silent: Vec<SilentNode>,
}

/// A node that has not acknowledged a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SilentNode {
    /// The workload.
    pub node: NodeName,
    /// `true` if the node has a session.
    pub connected: bool,
    /// The time of the last contact; null if there was none since the coordinator's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub since: Option<String>,
    /// The number of nodes whose workloads have links with its workloads.
    pub peers: usize,
    /// The peers that enforce the change. Nothing that it denies passes between them and the node,
    /// whatever the node does.
    pub peers_enforcing: usize,
}
