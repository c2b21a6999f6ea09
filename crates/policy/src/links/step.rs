//! Steps: what another policy changes in the links.

use super::{
    acl_cache::{BothSides, RuleId},
    rules::RuleEntry,
};
use crate::{
    budget::{Budget, Exhausted},
    document::Policy,
};
use meshward_types::{Acl, IdentityId};
use std::{collections::HashMap, sync::Arc};

/// A link that was opened, closed or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// The identity that begins flows.
    pub from: IdentityId,
    /// The identity at the other end.
    pub to: IdentityId,
    /// The ACL before; `None` if nothing was allowed.
    pub before: Option<Arc<Acl>>,
    /// The ACL now; `None` if nothing is allowed.
    pub after: Option<Arc<Acl>>,
}

/// The effect of another policy, worked out but not applied.
#[derive(Debug)]
pub struct PolicyStep {
    pub(super) policy: Arc<Policy>,
    /// The state that it was worked out on.
    pub(super) generation: u64,
    pub(super) removed: Vec<RuleId>,
    pub(super) added: Vec<(RuleId, RuleEntry)>,
    pub(super) identities: HashMap<IdentityId, BothSides>,
    /// The links that change.
    pub changes: Vec<LinkChange>,
}

impl PolicyStep {
    /// Returns the policy that it leads to.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Returns the state that it was worked out on: see `LinkInputs::generation`.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// The reason why a step was not worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// The step concerns too many pairs of label sets.
    #[error(
        "it concerns more than {0} pairs of label sets that run; select fewer with `from` and `to`"
    )]
    Pairs(usize),
    /// The step exceeds the budget of work.
    #[error("{0}; write fewer rules and ports, or select fewer workloads with them")]
    Work(#[from] Exhausted),
}

/// Bounds on the work for one step.
#[derive(Debug)]
pub struct Bounds {
    /// The largest number of pairs of identities that it may concern.
    pub pairs: usize,
    /// The work that it may take.
    pub budget: Budget,
}

impl Bounds {
    /// Returns the bounds for a change on request: 2 million pairs take about 200 MB while they are
    /// worked out.
    pub fn usual() -> Self {
        Self { pairs: 2_000_000, budget: Budget::of(Budget::PLAN) }
    }

    pub(super) fn none() -> Self {
        Self { pairs: usize::MAX, budget: Budget::unlimited() }
    }
}
