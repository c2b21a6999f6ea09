//! The ACLs of sets of rules: many pairs are matched by the same ones.

use super::rules::Placed;
use crate::{
    compile::compile_matching,
    document::{Mode, Policy},
};
use meshward_types::{Acl, IdentityId, PortSpec};
use std::{collections::HashMap, sync::Arc};

/// The number of a rule in one [`Links`]; it is not used again.
pub(super) type RuleId = u32;
pub(super) type Pair = (IdentityId, IdentityId);
/// The rules that select an identity, as the beginning and as the end of a flow.
pub(super) type BothSides = (Vec<RuleId>, Vec<RuleId>);

/// The ACLs of sets of rules: many pairs are matched by the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Compiled(pub(super) HashMap<Matched, Arc<Acl>>);

/// What an ACL is compiled from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Matched {
    pub(super) rules: Vec<RuleId>,
    /// What the destination declares for the source; `None`: it declares nothing.
    pub(super) declared: Option<Vec<PortSpec>>,
}

impl Compiled {
    /// The ACL; `None` if it lets nothing pass.
    pub(super) fn of<'a>(
        &mut self,
        policy: &Policy,
        matched: Matched,
        known: impl Fn(RuleId) -> Option<&'a Placed>,
    ) -> Option<Arc<Acl>> {
        let is_open = policy.mode == Mode::Observe || matched.declared.is_some();
        if matched.rules.is_empty() && !is_open {
            return None;
        }
        let acl = self.0.entry(matched).or_insert_with_key(|matched| {
            let placed = matched
                .rules
                .iter()
                .filter_map(|id| known(*id))
                .map(|placed| (placed.tier, &*placed.rule));
            Arc::new(compile_matching(policy, placed.collect(), matched.declared.clone()))
        });
        (!acl.is_empty()).then(|| acl.clone())
    }

    /// Forgets the sets that have a rule which is not there any more.
    pub(super) fn forget(&mut self, is_there: impl Fn(RuleId) -> bool) {
        self.0.retain(|matched, _| matched.rules.iter().all(|rule| is_there(*rule)));
    }
}

/// What stands in both of two sorted lists.
pub(super) fn common(a: &[RuleId], b: &[RuleId]) -> Vec<RuleId> {
    let (a, b) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let (mut at, mut both) = (0, Vec::new());
    for rule in a {
        at += b[at..].partition_point(|other| other < rule);
        if b.get(at) == Some(rule) {
            both.push(*rule);
        }
    }
    both
}
