//! The links of a network: every ordered pair of identities that policy lets talk.

use crate::{
    compile::{compile, compile_matching},
    document::{Expect, Policy, Rule, TestCase},
};
use meshward_model::{Acl, IdentityId, Labels};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The links of one network under one policy, kept up to date identity by identity.
#[derive(Debug, Clone)]
pub struct Links {
    policy: Policy,
    identities: BTreeMap<IdentityId, Matches>,
    from: HashMap<IdentityId, BTreeMap<IdentityId, Acl>>,
    /// The identities that have a link *to* the key.
    into: HashMap<IdentityId, BTreeSet<IdentityId>>,
}

/// Which rules select an identity, by their place in the policy.
#[derive(Debug, Clone)]
struct Matches {
    labels: Labels,
    rules: Sides,
    guardrails: Sides,
}

#[derive(Debug, Clone)]
struct Sides {
    from: Vec<usize>,
    to: Vec<usize>,
}

impl Sides {
    fn of(rules: &[Rule], labels: &Labels) -> Self {
        let places = |matches: &dyn Fn(&Rule) -> bool| {
            rules.iter().enumerate().filter(|(_, rule)| matches(rule)).map(|(at, _)| at).collect()
        };
        Self { from: places(&|rule| rule.from.matches(labels)), to: places(&|rule| rule.to.matches(labels)) }
    }
}

impl Links {
    /// The links under `policy`, of no identities yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, identities: BTreeMap::new(), from: HashMap::new(), into: HashMap::new() }
    }

    /// The same identities under another policy.
    pub fn with_policy(&self, policy: Policy) -> Self {
        let mut links = Self::new(policy);
        for (&id, matches) in &self.identities {
            links.insert(id, matches.labels.clone());
        }
        links
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Adds an identity, and the links between it and those that are there.
    pub fn insert(&mut self, id: IdentityId, labels: Labels) {
        if self.identities.contains_key(&id) {
            return;
        }
        let matches = Matches {
            rules: Sides::of(&self.policy.rules, &labels),
            guardrails: Sides::of(&self.policy.guardrails, &labels),
            labels,
        };
        self.identities.insert(id, matches);
        let found: Vec<_> = self
            .identities
            .keys()
            .flat_map(|&other| [(id, other), (other, id)])
            .filter_map(|(from, to)| Some(((from, to), self.compile_pair(from, to)?)))
            .collect();
        for ((from, to), acl) in found {
            self.from.entry(from).or_default().insert(to, acl);
            self.into.entry(to).or_default().insert(from);
        }
    }

    /// Removes an identity and its links.
    pub fn remove(&mut self, id: IdentityId) {
        self.identities.remove(&id);
        for to in self.from.remove(&id).unwrap_or_default().keys() {
            self.into.get_mut(to).map(|from| from.remove(&id));
        }
        for from in self.into.remove(&id).unwrap_or_default() {
            self.from.get_mut(&from).map(|to| to.remove(&id));
        }
    }

    fn compile_pair(&self, from: IdentityId, to: IdentityId) -> Option<Acl> {
        let (a, b) = (self.identities.get(&from)?, self.identities.get(&to)?);
        let rules = common(&self.policy.rules, &a.rules.from, &b.rules.to);
        let guardrails = common(&self.policy.guardrails, &a.guardrails.from, &b.guardrails.to);
        if rules.is_empty() && guardrails.is_empty() {
            return None;
        }
        let acl = compile_matching(guardrails, rules);
        (!acl.is_empty()).then_some(acl)
    }

    /// The identities that have been inserted.
    pub fn identities(&self) -> impl Iterator<Item = (IdentityId, &Labels)> {
        self.identities.iter().map(|(id, matches)| (*id, &matches.labels))
    }

    /// The labels of an identity.
    pub fn labels(&self, id: IdentityId) -> Option<&Labels> {
        self.identities.get(&id).map(|matches| &matches.labels)
    }

    /// The ACL of a link; `None` where there is none.
    pub fn acl(&self, from: IdentityId, to: IdentityId) -> Option<&Acl> {
        self.from.get(&from)?.get(&to)
    }

    /// The links that begin at an identity.
    pub fn leaving(&self, id: IdentityId) -> impl Iterator<Item = (IdentityId, &Acl)> {
        self.from.get(&id).into_iter().flatten().map(|(to, acl)| (*to, acl))
    }

    /// The links that end at an identity.
    pub fn arriving(&self, id: IdentityId) -> impl Iterator<Item = (IdentityId, &Acl)> {
        let from = self.into.get(&id).into_iter().flatten();
        from.filter_map(move |&from| Some((from, self.acl(from, id)?)))
    }

    /// The identities with a link to or from this one.
    pub fn neighbours(&self, id: IdentityId) -> BTreeSet<IdentityId> {
        let leaving = self.leaving(id).map(|(to, _)| to);
        leaving.chain(self.arriving(id).map(|(from, _)| from)).collect()
    }

    /// Every link.
    pub fn all(&self) -> impl Iterator<Item = (IdentityId, IdentityId, &Acl)> {
        self.from.iter().flat_map(|(from, to)| to.iter().map(|(to, acl)| (*from, *to, acl)))
    }
}

/// The rules whose places stand in both sorted lists.
fn common<'a>(rules: &'a [Rule], from: &[usize], to: &[usize]) -> Vec<&'a Rule> {
    let (mut a, mut b, mut both) = (0, 0, Vec::new());
    while let (Some(left), Some(right)) = (from.get(a), to.get(b)) {
        match left.cmp(right) {
            std::cmp::Ordering::Less => a += 1,
            std::cmp::Ordering::Greater => b += 1,
            std::cmp::Ordering::Equal => {
                both.push(&rules[*left]);
                (a, b) = (a + 1, b + 1);
            }
        }
    }
    both
}

/// A policy test that did not come out as expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy test {number} failed: from {from} to {to}, {port}: expected {expected}, but {found}",
    from = test.from, to = test.to, port = test.port,
    expected = match test.expect { Expect::Allow => "allow", Expect::Deny => "deny" })]
pub struct TestFailure {
    /// Its place in the document, from 1.
    pub number: usize,
    /// The test.
    pub test: TestCase,
    /// What came out instead.
    pub found: String,
}

/// Runs the tests that the policy carries.
pub fn run_tests(policy: &Policy) -> Vec<TestFailure> {
    policy.tests.iter().enumerate().filter_map(|(at, test)| run_test(policy, at + 1, test)).collect()
}

fn run_test(policy: &Policy, number: usize, test: &TestCase) -> Option<TestFailure> {
    let acl = compile(policy, &test.from, &test.to);
    let passed = match test.expect {
        Expect::Allow => acl.allows_all(test.port),
        Expect::Deny => !acl.allows_some(test.port),
    };
    if passed {
        return None;
    }
    let found = match test.port.protocol {
        Some(protocol) if test.port.ports.first == test.port.ports.last || !protocol.has_ports() => {
            policy.decide(&test.from, &test.to, protocol, test.port.ports.first).reason.to_string()
        }
        _ if acl.is_empty() => "nothing is allowed between them".to_owned(),
        _ => format!("what is allowed between them is: {acl}"),
    };
    Some(TestFailure { number, test: test.clone(), found })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
