//! Rules of a policy, with the identities that they select.

use crate::document::{Rule, Tier};
use meshward_types::IdentityId;
use std::{collections::BTreeSet, sync::Arc};

/// A rule with its tier, and the identities that it selects.
#[derive(Debug, Clone)]
pub(super) struct RuleEntry {
    pub(super) tier: Tier,
    pub(super) rule: Arc<Rule>,
    pub(super) from: Arc<BTreeSet<IdentityId>>,
    pub(super) to: Arc<BTreeSet<IdentityId>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    From,
    To,
}

impl RuleEntry {
    pub(super) fn side(&self, side: Side) -> &Arc<BTreeSet<IdentityId>> {
        if side == Side::From { &self.from } else { &self.to }
    }

    pub(super) fn side_mut(&mut self, side: Side) -> &mut BTreeSet<IdentityId> {
        Arc::make_mut(if side == Side::From { &mut self.from } else { &mut self.to })
    }
}
