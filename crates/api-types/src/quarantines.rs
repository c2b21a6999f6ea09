//! Quarantines.

use meshward_types::{NetworkName, NodeName, Revision, Selector, WorkloadId, schema::Time};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to isolate: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuarantineTarget {
    /// The network; every network if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// The workloads with these labels, those that start later included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// One workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadId>,
}

/// A quarantine to be imposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Impose {
    /// What to isolate.
    #[serde(flatten)]
    pub target: QuarantineTarget,
    /// Who may still reach it, whatever rules say, but for what guardrails deny. Unless an admin
    /// imposes it: of those whom the policy names under `forensics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Selector>,
    /// For how many seconds; until it is released if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub seconds: Option<u64>,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether it is imposed even if it selects no workload now: for those that start later.
    /// Otherwise that is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub even_if_none: bool,
    /// Whether both ends of every TCP connection that it cuts get a reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

/// A quarantine that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quarantine {
    /// Its id.
    pub id: String,
    /// What it isolates.
    #[serde(flatten)]
    pub target: QuarantineTarget,
    /// Who may still reach it, but for what guardrails deny.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Selector>,
    /// Whether an admin has imposed it: otherwise `allow_from` lets in whom the policy names under
    /// `forensics`, and nobody else.
    #[serde(default)]
    pub by_admin: bool,
    /// Whether both ends of every TCP connection that it cuts get a reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// Since when.
    #[schema(value_type = Time)]
    pub since: String,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub until: Option<String>,
    /// Who imposed it: `user:NAME` or `trigger:NAME`.
    #[serde(default)]
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a quarantine or a release did.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuarantineResult {
    /// The revision that it is part of.
    pub revision: Revision,
    /// The workloads that it changed.
    pub workloads: Vec<WorkloadId>,
    /// How far it is enforced.
    #[serde(flatten)]
    pub enforcement: Enforcement,
}

/// How far a change is enforced, when the answer is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enforcement {
    /// Nodes that must enforce it.
    pub nodes: usize,
    /// Nodes that have said that they do.
    pub nodes_enforcing: usize,
    /// The others. They enforce it before anything else, once they are heard again.
    #[serde(default)]
    pub nodes_silent: Vec<SilentNode>,
}

/// A node that has not said that it enforces a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SilentNode {
    /// Which.
    pub node: NodeName,
    /// Whether it has a session all the same.
    pub connected: bool,
    /// When it was heard last; nothing if it has not been since the coordinator's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub since: Option<String>,
    /// Nodes whose workloads have links with its workloads.
    pub peers: usize,
    /// Those of them that enforce the change: nothing that it denies passes between them and the
    /// node, whatever the node does.
    pub peers_enforcing: usize,
}
