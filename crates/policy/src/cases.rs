//! The tests that a policy carries.

use crate::{
    budget::{Budget, Exhausted, steps},
    compile::compile_alike,
    decide::decide,
    document::Tier,
    document::{Expect, Policy, Rule, TestCase},
    matching::Deciding,
    selecting::Selecting,
};
use meshward_types::{PortRange, PortSpec};
use std::collections::HashSet;

/// A policy test that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy test {number} failed: from {from} to {to}, {port}: expected {expected}, but \
    {found}",
    from = test.from, to = test.to, port = test.port,
    expected = match test.expect {
        Expect::Allow => "allow",
        Expect::Deny => "deny",
        Expect::Reject => "reject",
    })]
pub struct TestFailure {
    /// The number in the document, from 1.
    pub number: usize,
    /// The test.
    pub test: TestCase,
    /// The actual verdict.
    pub found: String,
}

/// Runs the tests that the policy carries, within a budget. Each is decided only by the rules that
/// select its labels.
///
/// # Errors
/// [`Exhausted`] if there are more rules, ports and tests than can be run.
pub fn run_tests(policy: &Policy, budget: &Budget) -> Result<Vec<TestFailure>, Exhausted> {
    if policy.tests.is_empty() {
        return Ok(Vec::new());
    }
    let rules: Vec<(Tier, &Rule)> = policy.tiers().collect();
    let (mut beginning, mut ending) = (Selecting::default(), Selecting::default());
    for (at, (_, rule)) in rules.iter().enumerate() {
        budget.spend(rule.from.weight() + rule.to.weight())?;
        beginning.insert(at, &rule.from);
        ending.insert(at, &rule.to);
    }
    let mut failures = Vec::new();
    for (at, test) in policy.tests.iter().enumerate() {
        let begins = beginning.select_within(&test.from, budget)?;
        let ends: HashSet<usize> =
            ending.select_within(test.to.labels(), budget)?.into_iter().collect();
        let matching: Vec<_> =
            begins.iter().filter(|at| ends.contains(*at)).map(|at| rules[*at]).collect();
        let targets: usize = matching.iter().map(|(_, rule)| rule.target.outside().len()).sum();
        budget.spend(steps(targets))?;
        let speaks = |(_, rule): &(Tier, &Rule)| rule.speaks_of(test.to.outside());
        let matching: Vec<_> = matching.into_iter().filter(speaks).collect();
        let ports: usize = matching.iter().map(|(_, rule)| rule.ports().len()).sum();
        budget.spend(1 + steps(begins.len() + ends.len() + matching.len() + ports))?;
        failures.extend(run_test(policy, at + 1, test, matching));
    }
    Ok(failures)
}

fn run_test(
    policy: &Policy,
    number: usize,
    test: &TestCase,
    matching: Vec<(Tier, &Rule)>,
) -> Option<TestFailure> {
    let acl = compile_alike(policy, matching.clone(), None);
    let ports = test.ports();
    let passed = ports.iter().all(|port| match test.expect {
        Expect::Allow => acl.allows_all(*port),
        Expect::Deny => !acl.allows_some(*port),
        Expect::Reject => !acl.allows_some(*port) && acl.rejects_all(*port, policy.on_deny),
    });
    if passed {
        return None;
    }
    let single = match ports {
        [PortSpec { protocol: Some(protocol), ports: PortRange { first, last } }]
            if first == last || !protocol.has_ports() =>
        {
            Some((*protocol, *first))
        }
        _ => None,
    };
    let found = match single {
        Some((protocol, port)) => {
            let deciding = Deciding { mode: policy.mode, rules: matching, opened: Vec::new() };
            decide(&deciding, protocol, port, |_, _| true).to_string()
        }
        _ if acl.is_closed() => "nothing is allowed between them".to_owned(),
        _ => format!("what is allowed between them is: {acl}"),
    };
    Some(TestFailure { number, test: test.clone(), found })
}
