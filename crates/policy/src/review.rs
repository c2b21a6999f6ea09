//! The review of a policy for what is suspicious though valid: rules without effect, and selectors
//! that match nothing.

use crate::{
    budget::{Budget, Exhausted, steps},
    document::Tier,
    document::{Action, Policy, Rule},
    links::LinkInputs,
    reading::{ParsedPolicy, Problem, did_you_mean},
};
use meshward_types::{Labels, OutsideTarget, PortSpec, Selector, selector::Requirement};
use std::collections::{BTreeMap, BTreeSet};

/// Reviews a policy by itself: rules that never decide because others do, and short timeouts.
pub fn review(parsed: &ParsedPolicy) -> Vec<Problem> {
    let mut found = short_timeouts(parsed);
    let done = find_covered(parsed, &Budget::of(Budget::REVIEW), &mut found);
    found.extend(done.err().map(|_| too_large(parsed)));
    found
}

fn short_timeouts(parsed: &ParsedPolicy) -> Vec<Problem> {
    let span = parsed.timeouts.as_ref().unwrap_or(&parsed.begin);
    let said = |text| Problem { span: span.clone(), text };
    parsed.policy.timeouts.warnings().map(said).collect()
}

fn too_large(parsed: &ParsedPolicy) -> Problem {
    let text = "the policy is too large to look at all of it for what is suspicious; this is what \
        was found";
    Problem { span: parsed.begin.clone(), text: text.into() }
}

fn find_covered(
    parsed: &ParsedPolicy,
    budget: &Budget,
    found: &mut Vec<Problem>,
) -> Result<(), Exhausted> {
    let rules: Vec<(Tier, &Rule)> = parsed.policy.tiers().collect();
    for (at, rule) in rules.iter().enumerate() {
        for (other_at, other) in rules.iter().enumerate().filter(|(other, _)| *other != at) {
            budget.spend(other.1.from.weight() + other.1.to.weight())?;
            if !covers(other.1, rule.1, budget)? {
                continue;
            }
            let same = other.1.action() == rule.1.action();
            let outranks = rank(*other) < rank(*rule);
            // Of two equal rules, the later one is reported.
            let first =
                rank(*other) == rank(*rule) && (!covers(rule.1, other.1, budget)? || other_at < at);
            let text = match (same, outranks, first) {
                (false, true, _) => {
                    format!("never has a say: `{}` decides all of it the other way", other.1.name)
                }
                (true, true, _) | (true, _, true) => {
                    format!("does nothing that `{}` does not do", other.1.name)
                }
                _ => continue,
            };
            let text = format!("rule `{}` {text}; remove one of them", rule.1.name);
            found.extend(problem(parsed, &rule.1.name, text));
            break;
        }
    }
    Ok(())
}

/// Reviews a policy against the existing workloads.
pub fn review_live(parsed: &ParsedPolicy, inputs: &LinkInputs) -> Vec<Problem> {
    let mut found = Vec::new();
    let budget = Budget::of(Budget::REVIEW);
    let done = find_unselected(parsed, inputs, &budget, &mut found)
        .and_then(|()| find_violations(parsed, inputs, &budget, &mut found));
    found.extend(done.err().map(|_| too_large(parsed)));
    found
}

fn find_unselected(
    parsed: &ParsedPolicy,
    inputs: &LinkInputs,
    budget: &Budget,
    found: &mut Vec<Problem>,
) -> Result<(), Exhausted> {
    let known = Known::of(inputs.identities().map(|(_, labels)| labels));
    for (_, rule) in parsed.policy.tiers() {
        for (side, selector) in [("from", &rule.from), ("to", &rule.to)] {
            if inputs.select_within(selector, budget)?.is_empty() {
                budget.spend(known.size())?;
                let mend =
                    known.mend(selector).unwrap_or_else(|| "nothing like it runs now".into());
                let text = format!(
                    "rule `{}`: `{side}` ({selector}) matches no workload: {mend}",
                    rule.name
                );
                found.extend(problem(parsed, &rule.name, text));
            }
        }
    }
    Ok(())
}

/// Finds rules that allow what a guardrail denies, between existing workloads.
fn find_violations(
    parsed: &ParsedPolicy,
    inputs: &LinkInputs,
    budget: &Budget,
    found: &mut Vec<Problem>,
) -> Result<(), Exhausted> {
    let Policy { rules, guardrails, .. } = &parsed.policy;
    let sides = |rule: &Rule| -> Result<[BTreeSet<_>; 2], Exhausted> {
        let select = |selector| Ok(inputs.select_within(selector, budget)?.into_iter().collect());
        Ok([select(&rule.from)?, select(&rule.to)?])
    };
    let mut denying = Vec::new();
    for rule in guardrails.iter().filter(|rule| rule.action() == Action::Deny) {
        denying.push((rule, sides(rule)?));
    }
    for rule in rules.iter().filter(|rule| rule.action() == Action::Allow) {
        let [from, to] = sides(rule)?;
        for (guardrail, [denied_from, denied_to]) in &denying {
            budget.spend(steps(rule.allow.len() * guardrail.deny.len()))?;
            budget.spend(steps(rule.target.outside().len() * guardrail.target.outside().len()))?;
            if !names_some(rule.target.outside(), guardrail.target.outside()) {
                continue;
            }
            if !rule
                .allow
                .iter()
                .any(|port| guardrail.deny.iter().any(|denied| meet(*port, *denied)))
            {
                continue;
            }
            budget
                .spend(steps(from.len().min(denied_from.len()) + to.len().min(denied_to.len())))?;
            let pair = from.intersection(denied_from).next().zip(to.intersection(denied_to).next());
            let Some((a, b)) = pair.and_then(|(a, b)| inputs.labels(*a).zip(inputs.labels(*b)))
            else {
                continue;
            };
            let text = format!(
                "rule `{}` allows what guardrail `{}` denies, for instance from {a} to {b}: the \
                guardrail decides",
                rule.name, guardrail.name
            );
            found.extend(problem(parsed, &rule.name, text));
        }
    }
    Ok(())
}

fn problem(parsed: &ParsedPolicy, name: &str, text: String) -> Option<Problem> {
    parsed.named.get(name).map(|span| Problem { span: span.clone(), text })
}

/// Returns the precedence of a rule: the smaller value decides first.
fn rank((tier, rule): (Tier, &Rule)) -> u8 {
    let tier = match tier {
        Tier::Guardrail => 0,
        Tier::Rule => 2,
        Tier::LetIn | Tier::LetInByAdmin | Tier::Forensics { .. } => 4,
    };
    tier + u8::from(rule.action() == Action::Allow)
}

/// Returns `true` if a rule matches everything that another matches.
fn covers(outer: &Rule, inner: &Rule, budget: &Budget) -> Result<bool, Exhausted> {
    if outer.observe != inner.observe
        || !implies(&inner.from, &outer.from)
        || !implies(&inner.to, &outer.to)
        || !names_all(outer.target.outside(), inner.target.outside())
    {
        return Ok(false);
    }
    budget.spend(steps(outer.ports().len() * inner.ports().len()))?;
    budget.spend(steps(outer.target.outside().len() * inner.target.outside().len()))?;
    let covered = |spec: &PortSpec| outer.ports().iter().any(|own| holds(*own, *spec));
    Ok(inner.ports().iter().all(covered))
}

/// Returns `true` if the addresses of a rule include all those of another.
fn names_all(outer: &[OutsideTarget], inner: &[OutsideTarget]) -> bool {
    let is_named = |target| outer.iter().any(|own| own.covers(target));
    outer.is_empty() || !inner.is_empty() && inner.iter().all(is_named)
}

/// Returns `true` if the addresses of two rules have one in common, as far as their text shows.
fn names_some(a: &[OutsideTarget], b: &[OutsideTarget]) -> bool {
    let meets = |one: &OutsideTarget| b.iter().any(|own| own.covers(one) || one.covers(own));
    a.is_empty() || b.is_empty() || a.iter().any(meets)
}

fn holds(outer: PortSpec, inner: PortSpec) -> bool {
    outer.protocol.is_none_or(|protocol| inner.protocol == Some(protocol))
        && outer.ports.first <= inner.ports.first
        && inner.ports.last <= outer.ports.last
}

fn meet(a: PortSpec, b: PortSpec) -> bool {
    let protocols = a.protocol.is_none() || b.protocol.is_none() || a.protocol == b.protocol;
    protocols && a.ports.first <= b.ports.last && b.ports.first <= a.ports.last
}

/// Returns `true` if `outer` matches everything that `inner` matches.
fn implies(inner: &Selector, outer: &Selector) -> bool {
    outer
        .requirements()
        .all(|(key, wanted)| inner.get(key).is_some_and(|known| narrower(known, wanted)))
}

fn narrower(known: &Requirement, wanted: &Requirement) -> bool {
    let within = |a: &[String], b: &[String]| a.iter().all(|value| b.contains(value));
    match (known, wanted) {
        (Requirement::In(a), Requirement::In(b)) => within(a, b),
        (Requirement::In(a), Requirement::Not(b)) => !a.iter().any(|value| b.contains(value)),
        (Requirement::Not(a), Requirement::Not(b)) => within(b, a),
        (Requirement::In(_) | Requirement::Exists, Requirement::Exists)
        | (Requirement::Missing, Requirement::Missing | Requirement::Not(_)) => true,
        _ => false,
    }
}

/// The labels of all workloads.
struct Known<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Known<'a> {
    fn of(all: impl Iterator<Item = &'a Labels>) -> Self {
        let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (key, value) in all.flat_map(Labels::iter) {
            known.entry(key.as_str()).or_default().insert(value);
        }
        Self(known)
    }

    /// Returns the number of words.
    fn size(&self) -> u64 {
        1 + self.0.values().map(BTreeSet::len).sum::<usize>() as u64
    }

    /// Returns the word of a selector that no workload has, with a similar one.
    fn mend(&self, selector: &Selector) -> Option<String> {
        selector.requirements().find_map(|(key, requirement)| {
            let meant =
                |mend: Option<String>| mend.map(|mend| format!("; {mend}")).unwrap_or_default();
            let Some(values) = self.0.get(key.as_str()) else {
                let needed = matches!(requirement, Requirement::In(_) | Requirement::Exists);
                let mend = did_you_mean(key.as_str(), self.0.keys().copied());
                return needed.then(|| format!("unknown label key `{key}`{}", meant(mend)));
            };
            let Requirement::In(wanted) = requirement else { return None };
            let unknown = wanted.iter().find(|value| !values.contains(value.as_str()))?;
            Some(format!(
                "no workload has {key}={unknown}{}",
                meant(did_you_mean(unknown, values.iter().copied()))
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::read;
    use meshward_types::{IdentityId, PolicyFile};
    use std::sync::Arc;

    fn parsed(rules: &str) -> ParsedPolicy {
        let text = format!("network: shop\n{rules}");
        read(&[PolicyFile { name: "shop.yaml".into(), text }]).unwrap().remove(0)
    }

    fn said(problems: &[Problem]) -> String {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn rules_that_do_nothing_are_named() {
        let policy = parsed(
            "rules:
  - { name: wide, from: { app: { in: [web, shop] } }, to: {}, allow: [tcp] }
  - { name: narrow, from: { app: web }, to: { app: api }, allow: [tcp/80] }
  - { name: other, from: { app: web }, to: { app: api }, allow: [udp/80] }
  - { name: dead, from: { env: dev, app: web }, to: { env: prod }, allow: [any] }
guardrails:
  - { name: wall, from: { env: dev }, to: { env: prod }, deny: [any] }
",
        );
        let said = said(&review(&policy));
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(
            said.contains("shop.yaml:4:13: rule `narrow` does nothing that `wide` does not do"),
            "{said}"
        );
        assert!(
            said.contains("rule `dead` never has a say: `wall` decides all of it the other way"),
            "{said}"
        );
    }

    #[test]
    fn timeouts_that_are_shorter_than_rfcs_ask_for_are_named() {
        let said = said(&review(&parsed(
            "timeouts: { udp: 10s, tcp_established: 24h, icmp: 30s }\nrules: []",
        )));
        assert!(said.contains("shop.yaml:2:") && said.contains("`udp: 10s`"), "{said}");
        assert!(said.contains("RFC 4787 asks for, 2m") && said.contains("`icmp: 30s`"), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
    }

    #[test]
    fn of_two_that_are_alike_one_is_too_much() {
        let rule = |name: &str| {
            format!("  - {{ name: {name}, from: {{ app: web }}, to: {{}}, allow: [tcp/80] }}\n")
        };
        let policy = parsed(&format!("rules:\n{}{}", rule("a"), rule("b")));
        let said = said(&review(&policy));
        assert!(
            said.contains("rule `b` does nothing that `a`") && said.lines().count() == 1,
            "{said}"
        );
    }

    #[test]
    fn selectors_that_match_nothing_are_mended() {
        let policy = parsed(
            "rules:
  - { name: a, from: { ap: web }, to: { app: api }, allow: [tcp/80] }
  - { name: b, from: { app: wep }, to: { app: api, env: dev }, allow: [tcp/80] }
guardrails:
  - { name: wall, from: { app: web }, to: { env: prod }, deny: [tcp/1-100] }
",
        );
        let mut links = crate::links::Links::new(Arc::new(policy.policy.clone()));
        for (id, labels) in ["app=web,env=prod", "app=api,env=prod"].into_iter().enumerate() {
            links.insert(IdentityId(id as u32), labels.parse().unwrap(), Arc::new([]));
        }
        let said = said(&review_live(&policy, links.inputs()));
        assert!(said.contains("unknown label key `ap`; did you mean `app`?"), "{said}");
        assert!(said.contains("no workload has app=wep; did you mean `web`?"), "{said}");
        assert!(said.contains("no workload has env=dev"), "{said}");
        assert_eq!(said.lines().count(), 3, "{said}");
        let policy = parsed(
            "rules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]
guardrails: [{ name: wall, from: {}, to: { env: prod }, deny: [tcp/1-100] }]",
        );
        let found = review_live(&policy, links.inputs());
        assert!(found[0].text.contains("allows what guardrail `wall` denies"), "{}", found[0]);
    }
}
