//! The links of a network: every ordered pair of identities that policy lets talk.
//!
//! Kept step by step: an identity that comes costs the pairs that its rules make with others, a
//! rule that changes costs the pairs that it selects. Nothing costs the square of the identities,
//! unless a rule selects it.

use crate::{
    budget::{Budget, Exhausted, steps},
    compile::{compile_matching, declared},
    decide::Tier,
    document::{Declarations, Mode, Policy, Rule},
    selecting::{Selected, Selecting},
};
use meshward_types::{AcceptFrom, Acl, IdentityId, Labels, PortSpec, Selector};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The number of a rule in one [`Links`]; it is not used again.
type RuleId = u32;
type Pair = (IdentityId, IdentityId);
/// The rules that select an identity, as the beginning and as the end of a flow.
type BothSides = (Vec<RuleId>, Vec<RuleId>);

/// The links of one network under one policy.
#[derive(Debug, Clone)]
pub struct Links {
    ground: Ground,
    /// The rules that select labels, as the beginning and as the end of a flow.
    beginning: Selecting<RuleId>,
    ending: Selecting<RuleId>,
    /// The identities that declare who reaches them, by whom they name.
    accepting: Selecting<IdentityId>,
    from: HashMap<IdentityId, BTreeMap<IdentityId, Arc<Acl>>>,
    /// The identities that have a link *to* the key.
    into: HashMap<IdentityId, BTreeSet<IdentityId>>,
    acls: Compiled,
}

/// What links follow from: the policy, and the identities with the rules that select them.
///
/// A clone costs a few counters, whatever it holds, and is not changed any more: what takes long is
/// worked out on one, beside the links that go on changing.
#[derive(Debug, Clone)]
pub struct Ground {
    policy: Arc<Policy>,
    rules: Arc<BTreeMap<RuleId, Placed>>,
    next_rule: RuleId,
    identities: Arc<BTreeMap<IdentityId, Arc<Known>>>,
    by_labels: Arc<Selected<IdentityId>>,
    /// A number that stands for what it is: another after each change, and no other links have it.
    generation: u64,
}

fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A rule in its place, and whom it selects.
#[derive(Debug, Clone)]
struct Placed {
    tier: Tier,
    rule: Arc<Rule>,
    from: Arc<BTreeSet<IdentityId>>,
    to: Arc<BTreeSet<IdentityId>>,
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
    /// The ground that it was worked out on.
    generation: u64,
    removed: Vec<RuleId>,
    added: Vec<(RuleId, Placed)>,
    identities: HashMap<IdentityId, BothSides>,
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

    fn none() -> Self {
        Self { pairs: usize::MAX, budget: Budget::unlimited() }
    }
}

impl Links {
    /// The links under `policy`, of no identities yet.
    pub fn new(policy: Arc<Policy>) -> Self {
        let mut links = Self {
            ground: Ground {
                policy: Arc::new(Policy::deny_all(policy.network.clone())),
                rules: Arc::default(),
                next_rule: 0,
                identities: Arc::default(),
                by_labels: Arc::default(),
                generation: next_generation(),
            },
            beginning: Selecting::default(),
            ending: Selecting::default(),
            accepting: Selecting::default(),
            from: HashMap::new(),
            into: HashMap::new(),
            acls: Compiled::default(),
        };
        let step = links.step(policy);
        links.apply_step(&step);
        links
    }

    /// The policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.ground.policy
    }

    /// What the links follow from, as it is now.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Adds an identity: the links between it and those that are there. `accepts`: what it declares
    /// about who reaches it.
    pub fn insert(
        &mut self,
        id: IdentityId,
        labels: Labels,
        accepts: Arc<[AcceptFrom]>,
    ) -> Vec<LinkChange> {
        if self.ground.identities.contains_key(&id) {
            return Vec::new();
        }
        let (from, to) = (self.beginning.select(&labels), self.ending.select(&labels));
        if !from.is_empty() || !to.is_empty() {
            let rules = Arc::make_mut(&mut self.ground.rules);
            for (selecting, side) in [(&from, Side::From), (&to, Side::To)] {
                for rule in selecting {
                    if let Some(placed) = rules.get_mut(rule) {
                        placed.side_mut(side).insert(id);
                    }
                }
            }
        }
        let rules = &self.ground.rules;
        let mut matched: HashMap<Pair, Vec<RuleId>> = HashMap::new();
        for (rule, placed) in from.iter().filter_map(|rule| Some((*rule, rules.get(rule)?))) {
            placed.to.iter().for_each(|&to| matched.entry((id, to)).or_default().push(rule));
        }
        for (rule, placed) in to.iter().filter_map(|rule| Some((*rule, rules.get(rule)?))) {
            let others = placed.from.iter().filter(|&&from| from != id);
            others.for_each(|&from| matched.entry((from, id)).or_default().push(rule));
        }
        Arc::make_mut(&mut self.ground.by_labels).insert(id, &labels);
        accepts.iter().for_each(|accept| self.accepting.insert(id, &accept.from));
        for other in self.beyond_rules(id, &labels, &accepts) {
            matched.entry((id, other)).or_default();
            matched.entry((other, id)).or_default();
        }
        let known = Known { labels, accepts, from, to };
        Arc::make_mut(&mut self.ground.identities).insert(id, Arc::new(known));
        self.ground.generation = next_generation();
        let mut changes = Vec::new();
        for ((from, to), rules) in matched {
            let matched = Matched { rules, declared: self.ground.declared(from, to) };
            let acl =
                self.acls.of(&self.ground.policy, matched, |rule| self.ground.rules.get(&rule));
            changes.extend(self.set((from, to), acl));
        }
        changes
    }

    /// The identities with which one may have links that no rule speaks of.
    fn beyond_rules(
        &self,
        id: IdentityId,
        labels: &Labels,
        accepts: &[AcceptFrom],
    ) -> BTreeSet<IdentityId> {
        let all = || self.ground.identities.keys();
        if self.ground.policy.mode == Mode::Observe {
            return all().copied().chain([id]).collect();
        }
        if self.ground.policy.declarations == Declarations::Narrow {
            return BTreeSet::new();
        }
        let named =
            accepts.iter().flat_map(|accept| self.ground.by_labels.candidates(&accept.from, all()));
        named.chain(self.accepting.select(labels)).collect()
    }

    /// Removes an identity and its links.
    pub fn remove(&mut self, id: IdentityId) -> Vec<LinkChange> {
        let Some(known) = Arc::make_mut(&mut self.ground.identities).remove(&id) else {
            return Vec::new();
        };
        self.ground.generation = next_generation();
        Arc::make_mut(&mut self.ground.by_labels).remove(id, &known.labels);
        known.accepts.iter().for_each(|accept| self.accepting.remove(id, &accept.from));
        let placed = Arc::make_mut(&mut self.ground.rules);
        for (rules, side) in [(&known.from, Side::From), (&known.to, Side::To)] {
            for rule in rules {
                if let Some(placed) = placed.get_mut(rule) {
                    placed.side_mut(side).remove(&id);
                }
            }
        }
        let leaving: Vec<Pair> =
            self.from.get(&id).into_iter().flatten().map(|(to, _)| (id, *to)).collect();
        let arriving: Vec<Pair> =
            self.into.get(&id).into_iter().flatten().map(|from| (*from, id)).collect();
        leaving.into_iter().chain(arriving).filter_map(|pair| self.set(pair, None)).collect()
    }

    /// What another policy would change. Rules that stay as they are cost nothing. Without bounds:
    /// for a policy that was planned within them.
    pub fn step(&self, policy: Arc<Policy>) -> PolicyStep {
        let before = |from, to| self.acl(from, to).cloned();
        self.ground
            .step_from(policy, &Bounds::none(), before)
            .expect("without bounds nothing is too much")
    }

    /// Whether a step was worked out on these links as they are now.
    pub fn is_ground_of(&self, step: &PolicyStep) -> bool {
        self.ground.generation == step.generation
    }

    /// Applies a step that was worked out on these links as they are now.
    pub fn apply_step(&mut self, step: &PolicyStep) {
        debug_assert!(self.is_ground_of(step), "a step goes from where it was worked out");
        for placed in step.removed.iter().filter_map(|id| Some((*id, self.ground.rules.get(id)?))) {
            let (id, Placed { rule, .. }) = placed;
            self.beginning.remove(id, &rule.from);
            self.ending.remove(id, &rule.to);
        }
        for (id, placed) in &step.added {
            self.beginning.insert(*id, &placed.rule.from);
            self.ending.insert(*id, &placed.rule.to);
        }
        let settings = |policy: &Policy| (policy.mode, policy.declarations);
        if settings(&step.policy) != settings(&self.ground.policy) {
            self.acls = Compiled::default();
        }
        self.ground.apply_step(step);
        for change in &step.changes {
            self.set((change.from, change.to), change.after.clone());
        }
        self.acls.forget(|rule| self.ground.rules.contains_key(&rule));
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
        self.ground.identities()
    }

    /// What an identity declares about who reaches it.
    pub fn accepts(&self, id: IdentityId) -> &[AcceptFrom] {
        self.ground.accepts(id)
    }

    /// How many identities have been inserted.
    pub fn identity_count(&self) -> usize {
        self.ground.identities.len()
    }

    /// The labels of an identity.
    pub fn labels(&self, id: IdentityId) -> Option<&Labels> {
        self.ground.labels(id)
    }

    /// The identities that a selector selects.
    pub fn select(&self, selector: &Selector) -> Vec<IdentityId> {
        self.ground.select(selector)
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

impl Ground {
    /// The policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The identities.
    pub fn identities(&self) -> impl Iterator<Item = (IdentityId, &Labels)> {
        self.identities.iter().map(|(id, known)| (*id, &known.labels))
    }

    /// What an identity declares about who reaches it.
    pub fn accepts(&self, id: IdentityId) -> &[AcceptFrom] {
        self.identities.get(&id).map_or(&[], |known| &known.accepts)
    }

    /// The labels of an identity.
    pub fn labels(&self, id: IdentityId) -> Option<&Labels> {
        self.identities.get(&id).map(|known| &known.labels)
    }

    /// The identities that a selector selects.
    pub fn select(&self, selector: &Selector) -> Vec<IdentityId> {
        let candidates = self.by_labels.candidates(selector, self.identities.keys());
        let matches =
            |id: &IdentityId| self.labels(*id).is_some_and(|labels| selector.matches(labels));
        candidates.into_iter().filter(matches).collect()
    }

    /// The same, within a budget.
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

    /// The number that stands for it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What changes between two policies, whatever the one of now is.
    ///
    /// # Errors
    /// [`TooMuch`].
    pub fn between(
        &self,
        before: Arc<Policy>,
        after: Arc<Policy>,
        bounds: &Bounds,
    ) -> Result<PolicyStep, TooMuch> {
        let mut ground = self.clone();
        ground.apply_step(&self.step(before, bounds)?);
        ground.step(after, bounds)
    }

    fn apply_step(&mut self, step: &PolicyStep) {
        let rules = Arc::make_mut(&mut self.rules);
        for id in &step.removed {
            rules.remove(id);
        }
        for (id, placed) in &step.added {
            rules.insert(*id, placed.clone());
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

    fn declared(&self, from: IdentityId, to: IdentityId) -> Option<Vec<PortSpec>> {
        declared(&self.identities.get(&to)?.accepts, &self.identities.get(&from)?.labels)
    }

    /// What another policy would change, within bounds.
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

    /// `before`: the ACL of a link as it is.
    fn step_from(
        &self,
        policy: Arc<Policy>,
        bounds: &Bounds,
        mut before: impl FnMut(IdentityId, IdentityId) -> Option<Arc<Acl>>,
    ) -> Result<PolicyStep, TooMuch> {
        let Moved { removed, added } = self.moved(&policy, &bounds.budget)?;
        // What comes to whom; those from whom something goes stand here, too.
        let mut comes: HashMap<IdentityId, BothSides> = HashMap::new();
        let mut pairs: HashSet<Pair> = HashSet::new();
        let gone = removed.iter().filter_map(|id| Some((*id, self.rules.get(id)?)));
        for (rule, placed) in gone.chain(added.iter().map(|(id, placed)| (*id, placed))) {
            let adds = rule >= self.next_rule;
            bounds.budget.spend(steps(placed.from.len() + placed.to.len()))?;
            for side in [Side::From, Side::To] {
                for id in &**placed.side(side) {
                    let (from, to) = comes.entry(*id).or_default();
                    if adds {
                        if side == Side::From { from.push(rule) } else { to.push(rule) }
                    }
                }
            }
            for from in &*placed.from {
                bounds.budget.spend(steps(placed.to.len()))?;
                pairs.extend(placed.to.iter().map(|to| (*from, *to)));
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
            Some(at) => added.get(at as usize).map(|(_, placed)| placed),
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
            let ports = ports.map(|placed| 1 + placed.rule.ports().len()).sum::<usize>();
            bounds.budget.spend(1 + steps(ports + begins.len().min(ends.len())))?;
            let after = acls.of(&policy, matched, known);
            let before = before(from, to);
            if before != after {
                changes.push(LinkChange { from, to, before, after });
            }
        }
        Ok(PolicyStep { policy, generation: self.generation, removed, added, identities, changes })
    }

    /// The rules that select identities, after some have gone and others have come.
    fn rules_after(
        &self,
        comes: HashMap<IdentityId, BothSides>,
        removed: &[RuleId],
        budget: &Budget,
    ) -> Result<HashMap<IdentityId, BothSides>, Exhausted> {
        let removed: HashSet<RuleId> = removed.iter().copied().collect();
        // New numbers are greater than all before: the order holds.
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

    /// The rules that go and those that come, with whom they select.
    fn moved(&self, policy: &Policy, budget: &Budget) -> Result<Moved, Exhausted> {
        let wanted: HashMap<(Tier, &str), &Rule> =
            policy.tiers().map(|(tier, rule)| ((tier, rule.name.as_str()), rule)).collect();
        let (mut removed, mut staying) = (Vec::new(), HashSet::new());
        for (id, placed) in &*self.rules {
            let name = (placed.tier, placed.rule.name.as_str());
            match wanted.get(&name) == Some(&&*placed.rule) && staying.insert(name) {
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
            added.push((id, Placed { tier, from, to, rule: Arc::new(rule.clone()) }));
        }
        Ok(Moved { removed, added })
    }
}

/// The rules by which two policies differ.
struct Moved {
    removed: Vec<RuleId>,
    added: Vec<(RuleId, Placed)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    From,
    To,
}

impl Placed {
    fn side(&self, side: Side) -> &Arc<BTreeSet<IdentityId>> {
        if side == Side::From { &self.from } else { &self.to }
    }

    fn side_mut(&mut self, side: Side) -> &mut BTreeSet<IdentityId> {
        Arc::make_mut(if side == Side::From { &mut self.from } else { &mut self.to })
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
