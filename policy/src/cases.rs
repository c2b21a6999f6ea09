//! The tests that a policy carries.

use crate::{
    compile::compile,
    document::{Expect, Policy, TestCase},
};

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
    let acl = compile(policy, &test.from, &test.to, &[]);
    let passed = match test.expect {
        Expect::Allow => acl.allows_all(test.port),
        Expect::Deny => !acl.allows_some(test.port),
    };
    if passed {
        return None;
    }
    let found = match test.port.protocol {
        Some(protocol) if test.port.ports.first == test.port.ports.last || !protocol.has_ports() => {
            policy.decide(&test.from, &test.to, &[], protocol, test.port.ports.first).reason.to_string()
        }
        _ if acl.is_empty() => "nothing is allowed between them".to_owned(),
        _ => format!("what is allowed between them is: {acl}"),
    };
    Some(TestFailure { number, test: test.clone(), found })
}
