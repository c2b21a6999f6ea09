//! The links of a network: every ordered pair of identities that policy lets talk.
//!
//! Kept step by step: an identity that comes costs the pairs that its rules make with others, a rule that changes costs the
//! pairs that it selects. Nothing costs the square of the identities, unless a rule selects it.

use crate::{
    compile::{compile_matching, declared},
    decide::Tier,
    document::{Declarations, Mode, Policy, Rule},
    selecting::{Selected, Selecting},
};
use meshward_model::{AcceptFrom, Acl, IdentityId, Labels, PortSpec};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// The number of a rule in one [`Links`]; it is not used again.
type RuleId = u32;
type Pair = (IdentityId, IdentityId);

/// The links of one network under one policy.
#[derive(Debug, Clone)]
pub struct Links {
    policy: Arc<Policy>,
    rules: BTreeMap<RuleId, Placed>,
    by_name: HashMap<String, RuleId>,
    next_rule: RuleId,
    /// The rules that select labels, as the beginning and as the end of a flow.
    beginning: Selecting<RuleId>,
    ending: Selecting<RuleId>,
    identities: BTreeMap<IdentityId, Known>,
    by_labels: Selected<IdentityId>,
    /// The identities that declare who reaches them, by whom they name.
    accepting: Selecting<IdentityId>,
    from: HashMap<IdentityId, BTreeMap<IdentityId, Arc<Acl>>>,
    /// The identities that have a link *to* the key.
    into: HashMap<IdentityId, BTreeSet<IdentityId>>,
    acls: Compiled,
}

/// A rule in its place, and whom it selects.
#[derive(Debug, Clone)]
struct Placed {
    tier: Tier,
    rule: Arc<Rule>,
    from: BTreeSet<IdentityId>,
    to: BTreeSet<IdentityId>,
}

/// An identity and the rules that select it, in ascending order.
#[derive(Debug, Clone)]
struct Known {
    labels: Labels,
    accepts: Arc<[AcceptFrom]>,
    from: Vec<RuleId>,
    to: Vec<RuleId>,
}

/// The ACLs of sets of rules: many pairs are matched by the same ones.
#[derive(Debug, Clone, Default)]
struct Compiled(HashMap<Matched, Arc<Acl>>);

/// What an ACL is compiled from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Matched {
    rules: Vec<RuleId>,
    /// What the destination declares for the source; `None`: it declares nothing.
    declared: Option<Vec<PortSpec>>,
}

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
    policy: Arc<Policy>,
    removed: Vec<RuleId>,
    added: Vec<(RuleId, Placed)>,
    identities: HashMap<IdentityId, (Vec<RuleId>, Vec<RuleId>)>,
    /// The links that change.
    pub changes: Vec<LinkChange>,
}

impl Links {
    /// The links under `policy`, of no identities yet.
    pub fn new(policy: Arc<Policy>) -> Self {
        let nothing = Arc::new(Policy::deny_all(policy.network.clone()));
        let mut links = Self {
            policy: nothing,
            rules: BTreeMap::new(),
            by_name: HashMap::new(),
            next_rule: 0,
            beginning: Selecting::default(),
            ending: Selecting::default(),
            identities: BTreeMap::new(),
            by_labels: Selected::default(),
            accepting: Selecting::default(),
            from: HashMap::new(),
            into: HashMap::new(),
            acls: Compiled::default(),
        };
        links.take(links.step(policy));
        links
    }

    /// The policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Adds an identity: the links between it and those that are there. `accepts`: what it declares about who reaches it.
    pub fn insert(&mut self, id: IdentityId, labels: Labels, accepts: Arc<[AcceptFrom]>) -> Vec<LinkChange> {
        if self.identities.contains_key(&id) {
            return Vec::new();
        }
        let (from, to) = (self.beginning.select(&labels), self.ending.select(&labels));
        for (rules, side) in [(&from, Side::From), (&to, Side::To)] {
            for rule in rules {
                if let Some(placed) = self.rules.get_mut(rule) {
                    placed.side_mut(side).insert(id);
                }
            }
        }
        let mut matched: HashMap<Pair, Vec<RuleId>> = HashMap::new();
        for (rule, placed) in from.iter().filter_map(|rule| Some((*rule, self.rules.get(rule)?))) {
            placed.to.iter().for_each(|&to| matched.entry((id, to)).or_default().push(rule));
        }
        for (rule, placed) in to.iter().filter_map(|rule| Some((*rule, self.rules.get(rule)?))) {
            let others = placed.from.iter().filter(|&&from| from != id);
            others.for_each(|&from| matched.entry((from, id)).or_default().push(rule));
        }
        self.by_labels.insert(id, &labels);
        accepts.iter().for_each(|accept| self.accepting.insert(id, &accept.from));
        for other in self.beyond_rules(id, &labels, &accepts) {
            matched.entry((id, other)).or_default();
            matched.entry((other, id)).or_default();
        }
        self.identities.insert(id, Known { labels, accepts, from, to });
        let mut changes = Vec::new();
        for ((from, to), rules) in matched {
            let matched = Matched { rules, declared: self.declared(from, to) };
            let acl = self.acls.of(&self.policy, matched, |rule| self.rules.get(&rule));
            changes.extend(self.set((from, to), acl));
        }
        changes
    }

    /// The identities with which one may have links that no rule speaks of.
    fn beyond_rules(&self, id: IdentityId, labels: &Labels, accepts: &[AcceptFrom]) -> BTreeSet<IdentityId> {
        if self.policy.mode == Mode::Observe {
            return self.identities.keys().copied().chain([id]).collect();
        }
        if self.policy.declarations == Declarations::Narrow {
            return BTreeSet::new();
        }
        let named =
            accepts.iter().flat_map(|accept| self.by_labels.candidates(&accept.from, self.identities.keys()));
        named.chain(self.accepting.select(labels)).collect()
    }

    fn declared(&self, from: IdentityId, to: IdentityId) -> Option<Vec<PortSpec>> {
        declared(&self.identities.get(&to)?.accepts, &self.identities.get(&from)?.labels)
    }

    /// Removes an identity and its links.
    pub fn remove(&mut self, id: IdentityId) -> Vec<LinkChange> {
        let Some(known) = self.identities.remove(&id) else { return Vec::new() };
        self.by_labels.remove(id, &known.labels);
        known.accepts.iter().for_each(|accept| self.accepting.remove(id, &accept.from));
        for (rules, side) in [(&known.from, Side::From), (&known.to, Side::To)] {
            for rule in rules {
                if let Some(placed) = self.rules.get_mut(rule) {
                    placed.side_mut(side).remove(&id);
                }
            }
        }
        let leaving: Vec<Pair> = self.from.get(&id).into_iter().flatten().map(|(to, _)| (id, *to)).collect();
        let arriving: Vec<Pair> = self.into.get(&id).into_iter().flatten().map(|from| (*from, id)).collect();
        leaving.into_iter().chain(arriving).filter_map(|pair| self.set(pair, None)).collect()
    }

    /// What another policy would change. Rules that stay as they are cost nothing.
    pub fn step(&self, policy: Arc<Policy>) -> PolicyStep {
        let wanted: HashMap<&str, (Tier, &Rule)> =
            policy.tiers().map(|(tier, rule)| (rule.name.as_str(), (tier, rule))).collect();
        let stays =
            |placed: &Placed| wanted.get(placed.rule.name.as_str()) == Some(&(placed.tier, &*placed.rule));
        let removed: Vec<RuleId> =
            self.rules.iter().filter(|(_, placed)| !stays(placed)).map(|(id, _)| *id).collect();
        let is_new = |(_, rule): &(Tier, &Rule)| {
            let known = self.by_name.get(&rule.name).and_then(|id| self.rules.get(id));
            !known.is_some_and(stays)
        };
        let place = |(id, (tier, rule)): (RuleId, (Tier, &Rule))| {
            let select = |selector| self.select(selector).into_iter().collect();
            let (from, to) = (select(&rule.from), select(&rule.to));
            (id, Placed { tier, from, to, rule: Arc::new(rule.clone()) })
        };
        let added: Vec<(RuleId, Placed)> =
            (self.next_rule..).zip(policy.tiers().filter(is_new)).map(place).collect();

        let mut identities = HashMap::new();
        let mut pairs: HashSet<Pair> = HashSet::new();
        let gone = removed.iter().filter_map(|id| Some((*id, self.rules.get(id)?)));
        for (rule, placed) in gone.chain(added.iter().map(|(id, placed)| (*id, placed))) {
            let adds = rule >= self.next_rule;
            for side in [Side::From, Side::To] {
                for id in placed.side(side) {
                    let known = &self.identities[id];
                    let rules =
                        identities.entry(*id).or_insert_with(|| (known.from.clone(), known.to.clone()));
                    let rules = if side == Side::From { &mut rules.0 } else { &mut rules.1 };
                    // New numbers are greater than all before: the order holds.
                    if adds { rules.push(rule) } else { rules.retain(|own| *own != rule) }
                }
            }
            pairs.extend(placed.from.iter().flat_map(|from| placed.to.iter().map(move |to| (*from, *to))));
        }
        if (policy.mode, policy.declarations) != (self.policy.mode, self.policy.declarations) {
            let all = self.identities.keys();
            pairs.extend(all.clone().flat_map(|from| all.clone().map(move |to| (*from, *to))));
        }
        let known = |id: RuleId| match id.checked_sub(self.next_rule) {
            Some(at) => added.get(at as usize).map(|(_, placed)| placed),
            None => self.rules.get(&id),
        };
        let mut acls = Compiled::default();
        let mut changes = Vec::new();
        for (from, to) in pairs {
            let begins = identities.get(&from).map_or(&self.identities[&from].from, |(begins, _)| begins);
            let ends = identities.get(&to).map_or(&self.identities[&to].to, |(_, ends)| ends);
            let matched = Matched { rules: common(begins, ends), declared: self.declared(from, to) };
            let after = acls.of(&policy, matched, known);
            let before = self.acl(from, to);
            if before.map(|acl| &**acl) != after.as_deref() {
                changes.push(LinkChange { from, to, before: before.cloned(), after });
            }
        }
        PolicyStep { policy, removed, added, identities, changes }
    }

    /// Takes a step that was worked out on these links.
    pub fn take(&mut self, step: PolicyStep) -> Vec<LinkChange> {
        for id in step.removed {
            let Some(placed) = self.rules.remove(&id) else { continue };
            self.by_name.remove(&placed.rule.name);
            self.beginning.remove(id, &placed.rule.from);
            self.ending.remove(id, &placed.rule.to);
        }
        for (id, placed) in step.added {
            self.by_name.insert(placed.rule.name.clone(), id);
            self.beginning.insert(id, &placed.rule.from);
            self.ending.insert(id, &placed.rule.to);
            self.rules.insert(id, placed);
            self.next_rule = id + 1;
        }
        for (id, (from, to)) in step.identities {
            if let Some(known) = self.identities.get_mut(&id) {
                (known.from, known.to) = (from, to);
            }
        }
        for change in &step.changes {
            self.set((change.from, change.to), change.after.clone());
        }
        if (step.policy.mode, step.policy.declarations) != (self.policy.mode, self.policy.declarations) {
            self.acls = Compiled::default();
        }
        self.acls.forget(|rule| self.rules.contains_key(&rule));
        self.policy = step.policy;
        step.changes
    }

    fn set(&mut self, (from, to): Pair, acl: Option<Arc<Acl>>) -> Option<LinkChange> {
        let before = match &acl {
            Some(acl) => {
                self.into.entry(to).or_default().insert(from);
                self.from.entry(from).or_default().insert(to, acl.clone())
            }
            None => {
                remove_from(&mut self.into, to, |set| {
                    set.remove(&from);
                    set.is_empty()
                });
                let mut before = None;
                remove_from(&mut self.from, from, |map| {
                    before = map.remove(&to);
                    map.is_empty()
                });
                before
            }
        };
        (before != acl).then_some(LinkChange { from, to, before, after: acl })
    }

    /// The identities that have been inserted.
    pub fn identities(&self) -> impl Iterator<Item = (IdentityId, &Labels)> {
        self.identities.iter().map(|(id, known)| (*id, &known.labels))
    }

    /// What an identity declares about who reaches it.
    pub fn accepts(&self, id: IdentityId) -> &[AcceptFrom] {
        self.identities.get(&id).map_or(&[], |known| &known.accepts)
    }

    /// How many identities have been inserted.
    pub fn identity_count(&self) -> usize {
        self.identities.len()
    }

    /// The labels of an identity.
    pub fn labels(&self, id: IdentityId) -> Option<&Labels> {
        self.identities.get(&id).map(|known| &known.labels)
    }

    /// The identities that a selector selects.
    pub fn select(&self, selector: &meshward_model::Selector) -> Vec<IdentityId> {
        let candidates = self.by_labels.candidates(selector, self.identities.keys());
        let matches = |id: &IdentityId| self.labels(*id).is_some_and(|labels| selector.matches(labels));
        candidates.into_iter().filter(matches).collect()
    }

    /// The ACL of a link; `None` where there is none.
    pub fn acl(&self, from: IdentityId, to: IdentityId) -> Option<&Arc<Acl>> {
        self.from.get(&from)?.get(&to)
    }

    /// The links that begin at an identity.
    pub fn leaving(&self, id: IdentityId) -> impl Iterator<Item = (IdentityId, &Arc<Acl>)> {
        self.from.get(&id).into_iter().flatten().map(|(to, acl)| (*to, acl))
    }

    /// The links that end at an identity.
    pub fn arriving(&self, id: IdentityId) -> impl Iterator<Item = (IdentityId, &Arc<Acl>)> {
        let from = self.into.get(&id).into_iter().flatten();
        from.filter_map(move |&from| Some((from, self.acl(from, id)?)))
    }

    /// The identities with a link to or from this one.
    pub fn neighbours(&self, id: IdentityId) -> BTreeSet<IdentityId> {
        let leaving = self.leaving(id).map(|(to, _)| to);
        leaving.chain(self.into.get(&id).into_iter().flatten().copied()).collect()
    }

    /// Every link.
    pub fn all(&self) -> impl Iterator<Item = (IdentityId, IdentityId, &Arc<Acl>)> {
        self.from.iter().flat_map(|(from, to)| to.iter().map(|(to, acl)| (*from, *to, acl)))
    }

    /// How many links there are.
    pub fn count(&self) -> usize {
        self.from.values().map(BTreeMap::len).sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    From,
    To,
}

impl Placed {
    fn side(&self, side: Side) -> &BTreeSet<IdentityId> {
        if side == Side::From { &self.from } else { &self.to }
    }

    fn side_mut(&mut self, side: Side) -> &mut BTreeSet<IdentityId> {
        if side == Side::From { &mut self.from } else { &mut self.to }
    }
}

impl Compiled {
    /// The ACL; `None` if it lets nothing pass.
    fn of<'a>(
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
            let placed =
                matched.rules.iter().filter_map(|id| known(*id)).map(|placed| (placed.tier, &*placed.rule));
            Arc::new(compile_matching(policy, placed.collect(), matched.declared.clone()))
        });
        (!acl.is_empty()).then(|| acl.clone())
    }

    /// Forgets the sets that have a rule which is not there any more.
    fn forget(&mut self, is_there: impl Fn(RuleId) -> bool) {
        self.0.retain(|matched, _| matched.rules.iter().all(|rule| is_there(*rule)));
    }
}

fn remove_from<T>(
    map: &mut HashMap<IdentityId, T>,
    key: IdentityId,
    becomes_empty: impl FnOnce(&mut T) -> bool,
) {
    if map.get_mut(&key).is_some_and(becomes_empty) {
        map.remove(&key);
    }
}

/// What stands in both of two sorted lists.
fn common(a: &[RuleId], b: &[RuleId]) -> Vec<RuleId> {
    let (mut at, mut both) = (0, Vec::new());
    for rule in a {
        at += b[at..].partition_point(|other| other < rule);
        if b.get(at) == Some(rule) {
            both.push(*rule);
        }
    }
    both
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
