//! Checks of submitted policies: their own tests, and rules that look like mistakes.

use super::basis::Basis;
use crate::Refusal;
use meshward_api_types::{Finding, PolicyScope};
use meshward_policy::{
    Budget, NetworkPolicy, ParsedPolicy, TestFailure, review, review_live, run_tests,
};
use meshward_types::PolicyFile;

/// Runs the tests of a policy. Returns those that fail, each with its location.
///
/// # Errors
/// Fails if the tests would exceed the budget.
pub(super) fn test_failures(
    parsed: &ParsedPolicy,
    budget: &Budget,
) -> Result<Vec<String>, Refusal> {
    let failures = run_tests(&parsed.policy, budget).map_err(|error| {
        let text = format!(
            "{}: the policy's tests are too many for its rules: {error}; write fewer tests, or \
            rules that select less",
            parsed.begin
        );
        Refusal::Invalid(text)
    })?;
    let location = |failure: TestFailure| match parsed.tests.get(failure.number - 1) {
        Some(span) => format!("{span}: {failure}"),
        None => failure.to_string(),
    };
    Ok(failures.into_iter().map(location).collect())
}

/// Returns suspicious rules of policies, by themselves and among the current workloads.
pub(super) fn findings(basis: &Basis, all: &[ParsedPolicy]) -> Vec<Finding> {
    let mut problems = Vec::new();
    for parsed in all {
        problems.extend(review(parsed));
        if let Some(network) = basis.networks.get(&parsed.policy.network) {
            problems.extend(review_live(parsed, &network.inputs));
        }
    }
    problems.sort();
    problems
        .into_iter()
        .map(|problem| Finding { location: problem.span.to_string(), text: problem.text })
        .collect()
}

/// Refuses files about other networks than that of the scope. Files that stay may be about others.
///
/// # Errors
/// Fails with the location of the first that is.
pub(super) fn check_scope(
    own: &NetworkPolicy,
    files: &[PolicyFile],
    scope: &PolicyScope,
) -> Result<(), Refusal> {
    match own.others.iter().find(|(span, _)| files.iter().any(|file| file.name == span.file)) {
        None => Ok(()),
        Some((span, name)) => {
            let scope = &scope.network;
            let text =
                format!("{span}: this is about network {name}, and the scope is network {scope}");
            Err(Refusal::Invalid(text))
        }
    }
}
