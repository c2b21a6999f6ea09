//! Steps: what another policy changes in the links.

use super::{
    acl_cache::{BothSides, RuleId},
    rules::Placed,
};
use crate::{
    budget::{Budget, Exhausted},
    document::Policy,
};
use meshward_types::{Acl, IdentityId};
use std::{collections::HashMap, sync::Arc};

/// A link that has opened, closed or become another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// Who begins flows.
    pub from: IdentityId,
    /// With whom.
    pub to: IdentityId,
    /// What was allowed; `None`: nothing.
    pub before: Option<Arc<Acl>>,
    /// What is allowed now.
    pub after: Option<Arc<Acl>>,
}

/// What another policy would change, worked out and not yet taken.
#[derive(Debug)]
pub struct PolicyStep {
    pub(super) policy: Arc<Policy>,
    /// The ground that it was worked out on.
    pub(super) generation: u64,
    pub(super) removed: Vec<RuleId>,
    pub(super) added: Vec<(RuleId, Placed)>,
    pub(super) identities: HashMap<IdentityId, BothSides>,
    /// The links that change.
    pub changes: Vec<LinkChange>,
}

impl PolicyStep {
    /// The policy that it leads to.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// What it was worked out on: see [`Ground::generation`].
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Why a step was not worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// It concerns too many pairs.
    #[error(
        "it concerns more than {0} pairs of label sets that run; select fewer with `from` and `to`"
    )]
    Pairs(usize),
    /// It takes too much work.
    #[error("{0}; write fewer rules and ports, or select fewer workloads with them")]
    Work(#[from] Exhausted),
}

/// How much may be worked out for one step.
#[derive(Debug)]
pub struct Bounds {
    /// The most pairs of identities that it may concern.
    pub pairs: usize,
    /// The work that it may take.
    pub budget: Budget,
}

impl Bounds {
    /// The bounds of a change that somebody asks for: 2 million pairs are some 200 MB while they
    /// are worked out.
    pub fn usual() -> Self {
        Self { pairs: 2_000_000, budget: Budget::of(Budget::PLAN) }
    }

    pub(super) fn none() -> Self {
        Self { pairs: usize::MAX, budget: Budget::unlimited() }
    }
}
