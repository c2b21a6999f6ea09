//! The ACLs by sets of rules, since many pairs match the same ones.

use super::rules::RuleEntry;
use crate::{
    compile::compile_matching,
    document::{Mode, Policy},
};
use meshward_types::{Acl, IdentityId, PortSpec};
use std::{collections::HashMap, sync::Arc};

/// The number of a rule in one `Links`, never reused.
pub(super) type RuleId = u32;
pub(super) type Pair = (IdentityId, IdentityId);
/// The rules that select an identity, as the source and as the destination.
pub(super) type BothSides = (Vec<RuleId>, Vec<RuleId>);

/// The ACLs by sets of rules, since many pairs match the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Compiled(pub(super) HashMap<Matched, Arc<Acl>>);

/// The input of the compiler for a pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Matched {
    pub(super) rules: Vec<RuleId>,
    /// The ports that the destination declares for the source; `None` without a declaration.
    pub(super) declared: Option<Vec<PortSpec>>,
}

impl Compiled {
    /// Returns the ACL; `None` if it lets nothing pass.
    pub(super) fn of<'a>(
        &mut self,
        policy: &Policy,
        matched: Matched,
        known: impl Fn(RuleId) -> Option<&'a RuleEntry>,
    ) -> Option<Arc<Acl>> {
        let is_open = policy.mode == Mode::Observe || matched.declared.is_some();
        if matched.rules.is_empty() && !is_open {
            return None;
        }
        let acl = self.0.entry(matched).or_insert_with_key(|matched| {
            let entries = matched
                .rules
                .iter()
                .filter_map(|id| known(*id))
                .map(|entry| (entry.tier, &*entry.rule));
            Arc::new(compile_matching(policy, entries.collect(), matched.declared.clone()))
        });
        (!acl.is_empty()).then(|| acl.clone())
    }

    /// Removes the sets with a rule that no longer exists.
    pub(super) fn forget(&mut self, is_there: impl Fn(RuleId) -> bool) {
        self.0.retain(|matched, _| matched.rules.iter().all(|rule| is_there(*rule)));
    }
}

/// Returns the common elements of two sorted lists.
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
