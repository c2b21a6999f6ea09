//! Narrowed links: those that rules about services alone open. Their nodes need to know a subset of
//! the instances only.

use super::{
    acl_cache::{Pair, RuleId, common},
    inputs::LinkInputs,
};
use crate::document::{Action, Declarations, Mode, Tier};
use meshward_types::{FanOut, ServiceName};
use std::collections::{BTreeSet, HashMap};

/// The links that rules about services alone open, with these services.
pub(super) type Narrowed = HashMap<Pair, BTreeSet<ServiceName>>;

impl LinkInputs {
    /// Returns the services whose rules open a link, given the rules that match it; `None` if
    /// anything else opens it, or all instances of one of the services are wanted.
    pub(super) fn opening_services(
        &self,
        (from, to): Pair,
        rules: &[RuleId],
    ) -> Option<BTreeSet<ServiceName>> {
        let policy = &self.policy;
        if policy.services.is_empty() || policy.mode == Mode::Observe {
            return None;
        }
        if policy.declarations == Declarations::Open && self.declared(from, to).is_some() {
            return None;
        }
        let mut services = BTreeSet::new();
        for entry in rules.iter().filter_map(|rule| self.rules.get(rule)) {
            match (entry.tier, entry.rule.action()) {
                (Tier::Rule | Tier::Guardrail, Action::Deny) => {}
                (Tier::Rule | Tier::Guardrail, Action::Allow) => {
                    services.insert(entry.rule.target.service()?.clone());
                }
                // Exceptions of quarantines open it.
                _ => return None,
            }
        }
        let is_narrow = |name| policy.service(name).is_some_and(|own| own.fan_out != FanOut::All);
        (!services.is_empty() && services.iter().all(is_narrow)).then_some(services)
    }

    /// Returns the links among these that rules about services alone open.
    pub(super) fn narrowed(&self, is_open: impl Fn(Pair) -> bool) -> Narrowed {
        let mut narrowed = Narrowed::new();
        if self.policy.services.is_empty() {
            return narrowed;
        }
        let named = self.rules.values().filter(|entry| entry.rule.target.service().is_some());
        for entry in named {
            for (from, to) in
                entry.from.iter().flat_map(|from| entry.to.iter().map(|to| (*from, *to)))
            {
                let pair = (from, to);
                if narrowed.contains_key(&pair) || !is_open(pair) {
                    continue;
                }
                let (Some(begins), Some(ends)) =
                    (self.identities.get(&from), self.identities.get(&to))
                else {
                    continue;
                };
                if let Some(services) = self.opening_services(pair, &common(&begins.from, &ends.to))
                {
                    narrowed.insert(pair, services);
                }
            }
        }
        narrowed
    }
}

#[cfg(test)]
mod tests;
