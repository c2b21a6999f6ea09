//! The links, kept step by step.

use super::{
    acl_cache::{Compiled, Matched, Pair, RuleId},
    inputs::{Known, LinkInputs, next_generation},
    narrowed::Narrowed,
    rules::{RuleEntry, Side},
    step::{Bounds, LinkChange, PolicyStep},
};
use crate::{
    document::{Declarations, Mode, Policy},
    selecting::Selecting,
};
use meshward_types::{AcceptFrom, Acl, IdentityId, Labels, Selector, ServiceName};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// The links of one network under one policy.
#[derive(Debug, Clone)]
pub struct Links {
    inputs: LinkInputs,
    /// The rules that select labels, as the source and as the destination.
    beginning: Selecting<RuleId>,
    ending: Selecting<RuleId>,
    /// The identities with declarations, by the selectors in these.
    accepting: Selecting<IdentityId>,
    from: HashMap<IdentityId, BTreeMap<IdentityId, Arc<Acl>>>,
    /// The identities that have a link *to* the key.
    into: HashMap<IdentityId, BTreeSet<IdentityId>>,
    acls: Compiled,
    /// The links that rules about services alone open.
    narrowed: Narrowed,
}

impl Links {
    /// Creates the links under `policy`, without identities.
    pub fn new(policy: Arc<Policy>) -> Self {
        let mut links = Self {
            inputs: LinkInputs {
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
            narrowed: Narrowed::new(),
        };
        let step = links.step(policy);
        links.apply_step(&step);
        links
    }

    /// Returns the policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.inputs.policy
    }

    /// Returns the current basis of the links.
    pub fn inputs(&self) -> &LinkInputs {
        &self.inputs
    }

    /// Adds an identity, and returns the links between it and the others. `accepts` are its
    /// declarations.
    pub fn insert(
        &mut self,
        id: IdentityId,
        labels: Labels,
        accepts: Arc<[AcceptFrom]>,
    ) -> Vec<LinkChange> {
        if self.inputs.identities.contains_key(&id) {
            return Vec::new();
        }
        let (from, to) = (self.beginning.select(&labels), self.ending.select(&labels));
        if !from.is_empty() || !to.is_empty() {
            let entries = Arc::make_mut(&mut self.inputs.rules);
            for (selecting, side) in [(&from, Side::From), (&to, Side::To)] {
                for rule in selecting {
                    if let Some(entry) = entries.get_mut(rule) {
                        entry.side_mut(side).insert(id);
                    }
                }
            }
        }
        let rules = &self.inputs.rules;
        let mut matched: HashMap<Pair, Vec<RuleId>> = HashMap::new();
        for (rule, entry) in from.iter().filter_map(|rule| Some((*rule, rules.get(rule)?))) {
            entry.to.iter().for_each(|&to| matched.entry((id, to)).or_default().push(rule));
        }
        for (rule, entry) in to.iter().filter_map(|rule| Some((*rule, rules.get(rule)?))) {
            let others = entry.from.iter().filter(|&&from| from != id);
            others.for_each(|&from| matched.entry((from, id)).or_default().push(rule));
        }
        Arc::make_mut(&mut self.inputs.by_labels).insert(id, &labels);
        accepts.iter().for_each(|accept| self.accepting.insert(id, &accept.from));
        for other in self.beyond_rules(id, &labels, &accepts) {
            matched.entry((id, other)).or_default();
            matched.entry((other, id)).or_default();
        }
        let known = Known { labels, accepts, from, to };
        Arc::make_mut(&mut self.inputs.identities).insert(id, Arc::new(known));
        self.inputs.generation = next_generation();
        let mut changes = Vec::new();
        for ((from, to), rules) in matched {
            let services = self.inputs.opening_services((from, to), &rules);
            let matched = Matched { rules, declared: self.inputs.declared(from, to) };
            let acl =
                self.acls.of(&self.inputs.policy, matched, |rule| self.inputs.rules.get(&rule));
            if let Some(services) = services.filter(|_| acl.is_some()) {
                self.narrowed.insert((from, to), services);
            }
            changes.extend(self.set((from, to), acl));
        }
        changes
    }

    /// Returns the identities to which an identity may have links without any rule.
    fn beyond_rules(
        &self,
        id: IdentityId,
        labels: &Labels,
        accepts: &[AcceptFrom],
    ) -> BTreeSet<IdentityId> {
        let all = || self.inputs.identities.keys();
        if self.inputs.policy.mode == Mode::Observe {
            return all().copied().chain([id]).collect();
        }
        if self.inputs.policy.declarations == Declarations::Narrow {
            return BTreeSet::new();
        }
        let named =
            accepts.iter().flat_map(|accept| self.inputs.by_labels.candidates(&accept.from, all()));
        named.chain(self.accepting.select(labels)).collect()
    }

    /// Removes an identity and its links.
    pub fn remove(&mut self, id: IdentityId) -> Vec<LinkChange> {
        let Some(known) = Arc::make_mut(&mut self.inputs.identities).remove(&id) else {
            return Vec::new();
        };
        self.inputs.generation = next_generation();
        Arc::make_mut(&mut self.inputs.by_labels).remove(id, &known.labels);
        known.accepts.iter().for_each(|accept| self.accepting.remove(id, &accept.from));
        let entries = Arc::make_mut(&mut self.inputs.rules);
        for (rules, side) in [(&known.from, Side::From), (&known.to, Side::To)] {
            for rule in rules {
                if let Some(entry) = entries.get_mut(rule) {
                    entry.side_mut(side).remove(&id);
                }
            }
        }
        let leaving: Vec<Pair> =
            self.from.get(&id).into_iter().flatten().map(|(to, _)| (id, *to)).collect();
        let arriving: Vec<Pair> =
            self.into.get(&id).into_iter().flatten().map(|from| (*from, id)).collect();
        leaving.into_iter().chain(arriving).filter_map(|pair| self.set(pair, None)).collect()
    }

    /// Works out the effect of another policy, without bounds, for a policy that was planned within
    /// them. Unchanged rules cost nothing.
    ///
    /// # Panics
    /// Never fails: a step without bounds succeeds.
    pub fn step(&self, policy: Arc<Policy>) -> PolicyStep {
        let before = |from, to| self.acl(from, to).cloned();
        self.inputs
            .step_from(policy, &Bounds::none(), before)
            .expect("without bounds nothing is too much")
    }

    /// Returns `true` if a step was worked out on the current state of these links.
    pub fn are_inputs_of(&self, step: &PolicyStep) -> bool {
        self.inputs.generation == step.generation
    }

    /// Applies a step that was worked out on the current state of these links.
    pub fn apply_step(&mut self, step: &PolicyStep) {
        debug_assert!(self.are_inputs_of(step), "a step goes from where it was worked out");
        for entry in step.removed.iter().filter_map(|id| Some((*id, self.inputs.rules.get(id)?))) {
            let (id, RuleEntry { rule, .. }) = entry;
            self.beginning.remove(id, &rule.from);
            self.ending.remove(id, &rule.to);
        }
        for (id, entry) in &step.added {
            self.beginning.insert(*id, &entry.rule.from);
            self.ending.insert(*id, &entry.rule.to);
        }
        let settings = |policy: &Policy| (policy.mode, policy.declarations);
        if settings(&step.policy) != settings(&self.inputs.policy) {
            self.acls = Compiled::default();
        }
        self.inputs.apply_step(step);
        for change in &step.changes {
            self.set((change.from, change.to), change.after.clone());
        }
        self.acls.forget(|rule| self.inputs.rules.contains_key(&rule));
        let narrowed = self.inputs.narrowed(|(from, to)| self.acl(from, to).is_some());
        self.narrowed = narrowed;
    }

    fn set(&mut self, (from, to): Pair, acl: Option<Arc<Acl>>) -> Option<LinkChange> {
        let before = match &acl {
            Some(acl) => {
                self.into.entry(to).or_default().insert(from);
                self.from.entry(from).or_default().insert(to, acl.clone())
            }
            None => {
                self.narrowed.remove(&(from, to));
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

    /// Returns the identities that were added.
    pub fn identities(&self) -> impl Iterator<Item = (IdentityId, &Labels)> {
        self.inputs.identities()
    }

    /// Returns the declarations of an identity.
    pub fn accepts(&self, id: IdentityId) -> &[AcceptFrom] {
        self.inputs.accepts(id)
    }

    /// Returns the number of identities.
    pub fn identity_count(&self) -> usize {
        self.inputs.identities.len()
    }

    /// Returns the labels of an identity.
    pub fn labels(&self, id: IdentityId) -> Option<&Labels> {
        self.inputs.labels(id)
    }

    /// Returns the identities that a selector matches.
    pub fn select(&self, selector: &Selector) -> Vec<IdentityId> {
        self.inputs.select(selector)
    }

    /// Returns the ACL of a link; `None` if there is none.
    pub fn acl(&self, from: IdentityId, to: IdentityId) -> Option<&Arc<Acl>> {
        self.from.get(&from)?.get(&to)
    }

    /// Returns the services whose rules alone open a link; `None` if there is no link, or anything
    /// else opens it, too.
    pub fn narrowed(&self, from: IdentityId, to: IdentityId) -> Option<&BTreeSet<ServiceName>> {
        self.narrowed.get(&(from, to))
    }

    /// Returns the links that rules about services alone open: from, to, and these services.
    pub fn all_narrowed(
        &self,
    ) -> impl Iterator<Item = (IdentityId, IdentityId, &BTreeSet<ServiceName>)> {
        self.narrowed.iter().map(|((from, to), services)| (*from, *to, services))
    }

    /// Returns `true` if a link between two identities, in either direction, is open and not
    /// narrowed: each needs to know all workloads of the other.
    pub fn are_widely_linked(&self, a: IdentityId, b: IdentityId) -> bool {
        let is_wide = |from, to| self.acl(from, to).is_some() && self.narrowed(from, to).is_none();
        is_wide(a, b) || is_wide(b, a)
    }

    /// Returns the links that begin at an identity.
    pub fn leaving(&self, id: IdentityId) -> impl Iterator<Item = (IdentityId, &Arc<Acl>)> {
        self.from.get(&id).into_iter().flatten().map(|(to, acl)| (*to, acl))
    }

    /// Returns the links that end at an identity.
    pub fn arriving(&self, id: IdentityId) -> impl Iterator<Item = (IdentityId, &Arc<Acl>)> {
        let from = self.into.get(&id).into_iter().flatten();
        from.filter_map(move |&from| Some((from, self.acl(from, id)?)))
    }

    /// Returns the identities with a link to or from this one.
    pub fn neighbours(&self, id: IdentityId) -> BTreeSet<IdentityId> {
        let leaving = self.leaving(id).map(|(to, _)| to);
        leaving.chain(self.into.get(&id).into_iter().flatten().copied()).collect()
    }

    /// Returns every link.
    pub fn all(&self) -> impl Iterator<Item = (IdentityId, IdentityId, &Arc<Acl>)> {
        self.from.iter().flat_map(|(from, to)| to.iter().map(|(to, acl)| (*from, *to, acl)))
    }

    /// Returns the number of links.
    pub fn count(&self) -> usize {
        self.from.values().map(BTreeMap::len).sum()
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
