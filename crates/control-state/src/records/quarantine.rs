//! Records of quarantines.

use meshward_types::{NetworkName, Selector, WorkloadId};
use serde::{Deserialize, Serialize};

/// A quarantine in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRecord {
    /// The quarantine's id, chosen at random.
    pub id: String,
    /// The workloads that it isolates.
    #[serde(flatten)]
    pub target: TargetRecord,
    /// The workloads that may still reach the isolated ones, except where guardrails deny it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Selector>,
    /// `true` if an admin imposed it. Otherwise `allow_from` admits only workloads that the policy
    /// names under `forensics`.
    #[serde(default)]
    pub by_admin: bool,
    /// `true` if both ends of every TCP connection that it cuts get a reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// The time at which it was imposed, in RFC 3339.
    pub since: String,
    /// The time at which it ends, in RFC 3339; `None` if somebody has to release it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// The author: `user:NAME` or `trigger:NAME`.
    #[serde(default)]
    pub by: String,
    /// The author's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The workloads that a quarantine isolates: those that a selector selects, or a single one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// The network; `None` for every network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// The labels of the workloads, those that start later included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The single workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadId>,
}
