//! Policies: submitting, checking, comparing and going back.

use crate::Enforcement;
use meshward_types::{
    Labels, NetworkName, NodeName, PolicyFile, Revision, WorkloadId, schema::Time,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Policy to be checked or applied: all documents of a network together are its policy from then
/// on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitPolicy {
    /// The files; none removes the part that `scope` names.
    pub files: Vec<PolicyFile>,
    /// Whether the policies of networks that no file names are removed.
    #[serde(default)]
    pub prune: bool,
    /// Which files of one network are replaced; the others stay. Everything of the networks that
    /// are named, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<PolicyScope>,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether to ask the nodes how many live flows it would cut. Only with `dry_run`.
    #[serde(default)]
    pub count_cuts: bool,
    /// Whether both ends of every TCP connection that the policy does not allow any more get a
    /// reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

/// A part of the policy of one network. What it selects and nobody sends any more is removed.
/// Either `only` or `except`, or neither: then it is all files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyScope {
    /// The network.
    pub network: NetworkName,
    /// The files with these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub only: Vec<String>,
    /// All files but those with these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub except: Vec<String>,
    /// Whether it is refused if one of them is there already: somebody has written it.
    #[serde(default)]
    pub only_new: bool,
}

impl PolicyScope {
    /// Whether a file is among what is replaced.
    pub fn has(&self, file: &str) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == file);
        if self.only.is_empty() { !named(&self.except) } else { named(&self.only) }
    }
}

/// What became, or would become, of policies.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SubmitResult {
    /// The revision that they are part of; `None` for a dry run.
    pub revision: Option<Revision>,
    /// Network by network.
    pub networks: Vec<PolicyResult>,
    /// What is suspicious, though not wrong. Only with `dry_run`.
    pub findings: Vec<Finding>,
    /// Connected nodes that did not say which flows would be cut.
    pub nodes_silent: Vec<NodeName>,
    /// How far it is enforced; nothing for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,
}

/// What became, or would become, of the policy of a network.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyResult {
    /// The network.
    pub network: NetworkName,
    /// How many rules and guardrails it has.
    pub rules: usize,
    /// How many of its own tests passed.
    pub tests_passed: usize,
    /// Links that open, wholly or in part.
    pub opened: Vec<LinkChange>,
    /// Links that close, wholly or in part.
    pub closed: Vec<LinkChange>,
    /// How many more open than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_opened: usize,
    /// How many more close than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_closed: usize,
    /// Workloads that admission lets in now, and did not before.
    pub admitted: Vec<String>,
    /// Workloads that admission does not let in any more, and why.
    pub refused: Vec<String>,
    /// Live flows that would be cut, by the workload that began them.
    pub cuts: Vec<Cut>,
}

/// Something suspicious in a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// `FILE:LINE:COLUMN`.
    pub place: String,
    /// What, and how to mend it.
    pub text: String,
}

/// Live flows of a workload that would be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cut {
    /// The workload that began them.
    pub workload: WorkloadId,
    /// What people call it.
    pub name: String,
    /// How many.
    pub flows: usize,
}

/// A link that a policy changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkChange {
    /// Who may begin flows.
    pub from: Labels,
    /// With whom.
    pub to: Labels,
    /// What was allowed before, as text.
    pub before: String,
    /// What is allowed after, as text.
    pub after: String,
}

/// The policy of a network.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// The network.
    pub network: NetworkName,
    /// The revision that made it what it is.
    pub revision: Option<Revision>,
    /// The files as they were applied; none: default deny and nothing else.
    pub files: Vec<PolicyFile>,
}

/// One state of a network's policy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyRevision {
    /// The revision that made it.
    pub revision: Revision,
    /// When.
    #[schema(value_type = Time)]
    pub at: String,
    /// Who: `user:NAME`.
    pub actor: String,
    /// Why, as they said.
    pub why: Option<String>,
    /// From where.
    pub origin: Option<String>,
    /// How many files it has; none: it was removed.
    pub files: usize,
}

/// The links between two states of a network's policy, among the workloads of now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyDifference {
    /// The network.
    pub network: NetworkName,
    /// Links that open.
    pub opened: Vec<LinkChange>,
    /// Links that close.
    pub closed: Vec<LinkChange>,
    /// How many more open than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_opened: usize,
    /// How many more close than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_closed: usize,
}

/// A state to go back to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The policy is to be what it was at this revision.
    pub revision: Revision,
    /// Whether both ends of every TCP connection that it does not allow get a reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}
