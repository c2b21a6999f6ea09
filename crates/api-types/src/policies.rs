//! Policies: submission, check, comparison and rollback.

use crate::Enforcement;
use meshward_types::{
    Labels, NetworkName, NodeName, PolicyFile, Revision, WorkloadId, schema::Time,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A policy to check or apply. All documents of a network together become its policy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitPolicy {
    /// The files; none: remove the part that `scope` names.
    pub files: Vec<PolicyFile>,
    /// `true` to remove the policies of networks that no file names.
    #[serde(default)]
    pub prune: bool,
    /// The files of one network to replace; the others stay. Default: all files of the networks
    /// that are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<PolicyScope>,
    /// The reason, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `true` to ask the nodes how many live flows it would cut. Only with `dry_run`.
    #[serde(default)]
    pub count_cuts: bool,
    /// `true` to reset both ends of every TCP connection that the policy no longer allows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

/// A part of the policy of one network: the files in `only`, or all except those in `except`, or
/// all files. Files in this part that the request does not contain are removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyScope {
    /// The network.
    pub network: NetworkName,
    /// The files with these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub only: Vec<String>,
    /// All files except those with these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub except: Vec<String>,
    /// `true` to refuse the request if one of these files exists already.
    #[serde(default)]
    pub only_new: bool,
}

impl PolicyScope {
    /// Returns whether a file is in the part that is replaced.
    pub fn has(&self, file: &str) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == file);
        if self.only.is_empty() { !named(&self.except) } else { named(&self.only) }
    }
}

/// The result of applying policies, or of a dry run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SubmitResult {
    /// The revision of the change; null for a dry run.
    pub revision: Option<Revision>,
    /// The results by network.
    pub networks: Vec<PolicyResult>,
    /// Warnings. Only with `dry_run`.
    pub findings: Vec<Finding>,
    /// Connected nodes that did not report which flows would be cut.
    pub nodes_silent: Vec<NodeName>,
    /// The enforcement; null for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,
}

/// The result for the policy of a network.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyResult {
    /// The network.
    pub network: NetworkName,
    /// The number of rules and guardrails.
    pub rules: usize,
    /// The number of its tests that passed.
    pub tests_passed: usize,
    /// Links that open, in whole or in part.
    pub opened: Vec<LinkChange>,
    /// Links that close, in whole or in part.
    pub closed: Vec<LinkChange>,
    /// The number of further links that open and are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_opened: usize,
    /// The number of further links that close and are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_closed: usize,
    /// Workloads that are admitted now, and were not before.
    pub admitted: Vec<String>,
    /// Workloads that would no longer be admitted, with the reasons.
    pub refused: Vec<String>,
    /// The live flows that would be cut, by the workload that began them.
    pub cuts: Vec<Cut>,
}

/// A warning about a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// `FILE:LINE:COLUMN`.
    pub location: String,
    /// The warning, and how to fix it.
    pub text: String,
}

/// Live flows of a workload that would be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cut {
    /// The workload that began the flows.
    pub workload: WorkloadId,
    /// The name.
    pub name: String,
    /// The number of flows.
    pub flows: usize,
}

/// A link that a policy changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkChange {
    /// The client.
    pub from: Labels,
    /// The server.
    pub to: Labels,
    /// The ACL before the change, as text.
    pub before: String,
    /// The ACL after the change, as text.
    pub after: String,
}

/// The policy of a network.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// The network.
    pub network: NetworkName,
    /// The revision of its last change.
    pub revision: Option<Revision>,
    /// The files as they were applied; none: deny by default.
    pub files: Vec<PolicyFile>,
}

/// A revision of a network's policy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyRevision {
    /// The revision that created it.
    pub revision: Revision,
    /// The time.
    #[schema(value_type = Time)]
    pub at: String,
    /// The actor: `user:NAME`.
    pub actor: String,
    /// The reason that they gave.
    pub why: Option<String>,
    /// The source address.
    pub origin: Option<String>,
    /// The number of files; 0 if the policy was removed.
    pub files: usize,
}

/// The links that change between two revisions of a network's policy, among the current workloads.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyDifference {
    /// The network.
    pub network: NetworkName,
    /// The links that open.
    pub opened: Vec<LinkChange>,
    /// The links that close.
    pub closed: Vec<LinkChange>,
    /// The number of further links that open and are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_opened: usize,
    /// The number of further links that close and are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_closed: usize,
}

/// A state to roll back to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The revision whose policy is applied again.
    pub revision: Revision,
    /// `true` to reset both ends of every TCP connection that the policy does not allow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// The reason, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}
