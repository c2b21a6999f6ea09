//! The basis of links: the policy, and the identities with the rules that select them.

use super::{
    acl_cache::{BothSides, Compiled, Matched, Pair, RuleId, common},
    rules::{RuleEntry, Side},
    step::{Bounds, LinkChange, PolicyStep, TooMuch},
};
use crate::{
    budget::{Budget, Exhausted, steps},
    document::{Policy, Rule, Tier},
    matching::declared,
    selecting::Selected,
};
use meshward_types::{AcceptFrom, Acl, IdentityId, Labels, PortSpec, Selector};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The basis of links: the policy, and the identities with the rules that select them.
///
/// A clone costs a few reference counts, whatever its size, and never changes: expensive work uses
/// a clone while the links go on changing.
#[derive(Debug, Clone)]
pub struct LinkInputs {
    pub(super) policy: Arc<Policy>,
    pub(super) rules: Arc<BTreeMap<RuleId, RuleEntry>>,
    pub(super) next_rule: RuleId,
    pub(super) identities: Arc<BTreeMap<IdentityId, Arc<Known>>>,
    pub(super) by_labels: Arc<Selected<IdentityId>>,
    /// A number that identifies this state: it changes with each change, and no other links have
    /// it.
    pub(super) generation: u64,
}

pub(super) fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An identity and the rules that select it, in ascending order.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) labels: Labels,
    pub(super) accepts: Arc<[AcceptFrom]>,
    pub(super) from: Vec<RuleId>,
    pub(super) to: Vec<RuleId>,
}

impl LinkInputs {
    /// Returns the policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Returns the identities.
    pub fn identities(&self) -> impl Iterator<Item = (IdentityId, &Labels)> {
        self.identities.iter().map(|(id, known)| (*id, &known.labels))
    }

    /// Returns the declarations of an identity.
    pub fn accepts(&self, id: IdentityId) -> &[AcceptFrom] {
        self.identities.get(&id).map_or(&[], |known| &known.accepts)
    }

    /// Returns the labels of an identity.
    pub fn labels(&self, id: IdentityId) -> Option<&Labels> {
        self.identities.get(&id).map(|known| &known.labels)
    }

    /// Returns the identities that a selector matches.
    pub fn select(&self, selector: &Selector) -> Vec<IdentityId> {
        let candidates = self.by_labels.candidates(selector, self.identities.keys());
        let matches =
            |id: &IdentityId| self.labels(*id).is_some_and(|labels| selector.matches(labels));
        candidates.into_iter().filter(matches).collect()
    }

    /// Returns the identities that a selector matches, within a budget.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn select_within(
        &self,
        selector: &Selector,
        budget: &Budget,
    ) -> Result<Vec<IdentityId>, Exhausted> {
        let candidates = self.by_labels.candidates(selector, self.identities.keys());
        budget.spend(1 + steps(candidates.len()) * selector.weight())?;
        let matches =
            |id: &IdentityId| self.labels(*id).is_some_and(|labels| selector.matches(labels));
        Ok(candidates.into_iter().filter(matches).collect())
    }

    /// Returns the number that identifies this state.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Works out the differences between two policies, whatever the current one is.
    ///
    /// # Errors
    /// [`TooMuch`].
    pub fn between(
        &self,
        before: Arc<Policy>,
        after: Arc<Policy>,
        bounds: &Bounds,
    ) -> Result<PolicyStep, TooMuch> {
        let mut inputs = self.clone();
        inputs.apply_step(&self.step(before, bounds)?);
        inputs.step(after, bounds)
    }

    pub(super) fn apply_step(&mut self, step: &PolicyStep) {
        let rules = Arc::make_mut(&mut self.rules);
        for id in &step.removed {
            rules.remove(id);
        }
        for (id, entry) in &step.added {
            rules.insert(*id, entry.clone());
            self.next_rule = id + 1;
        }
        let identities = Arc::make_mut(&mut self.identities);
        for (id, (from, to)) in &step.identities {
            if let Some(known) = identities.get_mut(id) {
                let known = Arc::make_mut(known);
                known.from.clone_from(from);
                known.to.clone_from(to);
            }
        }
        self.policy = step.policy.clone();
        self.generation = next_generation();
    }

    pub(super) fn declared(&self, from: IdentityId, to: IdentityId) -> Option<Vec<PortSpec>> {
        declared(&self.identities.get(&to)?.accepts, &self.identities.get(&from)?.labels)
    }

    /// Works out the effect of another policy, within bounds.
    ///
    /// # Errors
    /// [`TooMuch`].
    pub fn step(&self, policy: Arc<Policy>, bounds: &Bounds) -> Result<PolicyStep, TooMuch> {
        let (mut acls, no_rules) = (Compiled::default(), Vec::new());
        let before = |from, to| {
            let rules = |id| self.identities.get(&id);
            let begins = rules(from).map_or(&no_rules, |known| &known.from);
            let ends = rules(to).map_or(&no_rules, |known| &known.to);
            let matched =
                Matched { rules: common(begins, ends), declared: self.declared(from, to) };
            acls.of(&self.policy, matched, |rule| self.rules.get(&rule))
        };
        self.step_from(policy, bounds, before)
    }

    /// Works out a step. `before` returns the current ACL of a link.
    pub(super) fn step_from(
        &self,
        policy: Arc<Policy>,
        bounds: &Bounds,
        mut before: impl FnMut(IdentityId, IdentityId) -> Option<Arc<Acl>>,
    ) -> Result<PolicyStep, TooMuch> {
        let Moved { removed, added } = self.moved(&policy, &bounds.budget)?;
        // New rules by identity; identities that only lose rules have an entry, too.
        let mut comes: HashMap<IdentityId, BothSides> = HashMap::new();
        let mut pairs: HashSet<Pair> = HashSet::new();
        let gone = removed.iter().filter_map(|id| Some((*id, self.rules.get(id)?)));
        for (rule, entry) in gone.chain(added.iter().map(|(id, entry)| (*id, entry))) {
            let adds = rule >= self.next_rule;
            bounds.budget.spend(steps(entry.from.len() + entry.to.len()))?;
            for side in [Side::From, Side::To] {
                for id in &**entry.side(side) {
                    let (from, to) = comes.entry(*id).or_default();
                    if adds {
                        if side == Side::From { from.push(rule) } else { to.push(rule) }
                    }
                }
            }
            for from in &*entry.from {
                bounds.budget.spend(steps(entry.to.len()))?;
                pairs.extend(entry.to.iter().map(|to| (*from, *to)));
                if pairs.len() > bounds.pairs {
                    return Err(TooMuch::Pairs(bounds.pairs));
                }
            }
        }
        let identities = self.rules_after(comes, &removed, &bounds.budget)?;
        if (policy.mode, policy.declarations) != (self.policy.mode, self.policy.declarations) {
            if self.identities.len().saturating_pow(2) > bounds.pairs {
                return Err(TooMuch::Pairs(bounds.pairs));
            }
            let all = self.identities.keys();
            pairs.extend(all.clone().flat_map(|from| all.clone().map(move |to| (*from, *to))));
        }
        let known = |id: RuleId| match id.checked_sub(self.next_rule) {
            Some(at) => added.get(at as usize).map(|(_, entry)| entry),
            None => self.rules.get(&id),
        };
        let mut acls = Compiled::default();
        let mut changes = Vec::new();
        for (from, to) in pairs {
            let begins =
                identities.get(&from).map_or(&self.identities[&from].from, |(begins, _)| begins);
            let ends = identities.get(&to).map_or(&self.identities[&to].to, |(_, ends)| ends);
            let matched =
                Matched { rules: common(begins, ends), declared: self.declared(from, to) };
            let ports = matched.rules.iter().filter_map(|rule| known(*rule));
            let ports = ports.map(|entry| 1 + entry.rule.ports().len()).sum::<usize>();
            bounds.budget.spend(1 + steps(ports + begins.len().min(ends.len())))?;
            let after = acls.of(&policy, matched, known);
            let before = before(from, to);
            if before != after {
                changes.push(LinkChange { from, to, before, after });
            }
        }
        Ok(PolicyStep { policy, generation: self.generation, removed, added, identities, changes })
    }

    /// Returns the rules that select identities after some were removed and others added.
    pub(super) fn rules_after(
        &self,
        comes: HashMap<IdentityId, BothSides>,
        removed: &[RuleId],
        budget: &Budget,
    ) -> Result<HashMap<IdentityId, BothSides>, Exhausted> {
        let removed: HashSet<RuleId> = removed.iter().copied().collect();
        // New numbers are greater than all before, so the order holds.
        let after = |before: &[RuleId], comes: Vec<RuleId>| {
            before.iter().copied().filter(|rule| !removed.contains(rule)).chain(comes).collect()
        };
        let mut all = HashMap::new();
        for (id, (from, to)) in comes {
            let known = &self.identities[&id];
            budget.spend(steps(known.from.len() + known.to.len()))?;
            all.insert(id, (after(&known.from, from), after(&known.to, to)));
        }
        Ok(all)
    }

    /// Returns the removed and the added rules, with the identities that they select.
    fn moved(&self, policy: &Policy, budget: &Budget) -> Result<Moved, Exhausted> {
        let wanted: HashMap<(Tier, &str), &Rule> =
            policy.tiers().map(|(tier, rule)| ((tier, rule.name.as_str()), rule)).collect();
        let (mut removed, mut staying) = (Vec::new(), HashSet::new());
        for (id, entry) in &*self.rules {
            let name = (entry.tier, entry.rule.name.as_str());
            match wanted.get(&name) == Some(&&*entry.rule) && staying.insert(name) {
                true => {}
                false => removed.push(*id),
            }
        }
        let mut added = Vec::new();
        let new =
            policy.tiers().filter(|(tier, rule)| !staying.contains(&(*tier, rule.name.as_str())));
        for (id, (tier, rule)) in (self.next_rule..).zip(new) {
            let select = |selector| {
                let selected = self.select_within(selector, budget)?;
                Ok::<_, Exhausted>(Arc::new(selected.into_iter().collect()))
            };
            let (from, to) = (select(&rule.from)?, select(&rule.to)?);
            added.push((id, RuleEntry { tier, from, to, rule: Arc::new(rule.clone()) }));
        }
        Ok(Moved { removed, added })
    }
}

/// The rules by which two policies differ.
struct Moved {
    removed: Vec<RuleId>,
    added: Vec<(RuleId, RuleEntry)>,
}
