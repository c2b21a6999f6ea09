//! The YAML document of a network's policy.

use crate::decide::Tier;
use meshward_model::{Labels, NetworkName, PortSpec, Selector};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The most bytes of a policy's text.
pub const MAX_SOURCE: usize = 4 << 20;

/// Text that is not a policy.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BadPolicy {
    /// The text is too long.
    #[error("the policy has {0} bytes; at most {MAX_SOURCE} are taken")]
    TooLong(usize),
    /// It is not YAML of the language's form; the text says where.
    #[error("{0}")]
    Form(String),
    /// A rule must say exactly one of the two.
    #[error(
        "rule `{0}` must have either `allow` or `deny`, with at least one port; write for instance `allow: [tcp/8080]`"
    )]
    Action(String),
    /// Two rules have one name.
    #[error(
        "two rules are called `{0}`; give each its own name, so that `meshctl explain` can tell them apart"
    )]
    Twice(String),
    /// A rule's name is empty or too long.
    #[error("`{0}` is not a rule name: use 1 to 128 printable characters")]
    Name(String),
}

/// The policy of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The network that it is for.
    pub network: NetworkName,
    /// What may pass, and exceptions from that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// What no rule can override.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guardrails: Vec<Rule>,
    /// What must come out, checked before the policy is accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<TestCase>,
}

/// One rule or guardrail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name, unique in the policy.
    pub name: String,
    /// Who begins flows.
    pub from: Selector,
    /// With whom.
    pub to: Selector,
    /// What it allows; a rule has this or `deny`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<PortSpec>,
    /// What it denies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<PortSpec>,
}

/// What a rule does with the packets that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// They pass.
    Allow,
    /// They are dropped.
    Deny,
}

impl Rule {
    /// What the rule does.
    pub fn action(&self) -> Action {
        if self.deny.is_empty() { Action::Allow } else { Action::Deny }
    }

    /// The ports that it speaks of.
    pub fn ports(&self) -> &[PortSpec] {
        if self.deny.is_empty() { &self.allow } else { &self.deny }
    }
}

/// One expectation on the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestCase {
    /// The labels of who begins the flow.
    pub from: Labels,
    /// The labels of whom it is with.
    pub to: Labels,
    /// What is tried.
    pub port: PortSpec,
    /// What must come out, for all of `port`.
    pub expect: Expect,
}

/// An expected verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// All of it passes.
    Allow,
    /// None of it passes.
    Deny,
}

impl Policy {
    /// Default deny, and nothing else.
    pub fn deny_all(network: NetworkName) -> Self {
        Self { network, rules: Vec::new(), guardrails: Vec::new(), tests: Vec::new() }
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// [`BadPolicy`], with line and column where the YAML itself is at fault.
    pub fn parse(source: &str) -> Result<Self, BadPolicy> {
        if source.len() > MAX_SOURCE {
            return Err(BadPolicy::TooLong(source.len()));
        }
        let policy: Self =
            serde_saphyr::from_str(source).map_err(|error| BadPolicy::Form(error.to_string()))?;
        policy.check()?;
        Ok(policy)
    }

    /// Every rule and guardrail, with the part that it stands in.
    pub fn tiers(&self) -> impl Iterator<Item = (Tier, &Rule)> {
        let guardrails = self.guardrails.iter().map(|rule| (Tier::Guardrail, rule));
        guardrails.chain(self.rules.iter().map(|rule| (Tier::Rule, rule)))
    }

    fn check(&self) -> Result<(), BadPolicy> {
        let mut names = BTreeSet::new();
        for rule in self.rules.iter().chain(&self.guardrails) {
            if !(1..=128).contains(&rule.name.len()) || rule.name.chars().any(char::is_control) {
                return Err(BadPolicy::Name(rule.name.chars().take(128).collect()));
            }
            if rule.allow.is_empty() == rule.deny.is_empty() {
                return Err(BadPolicy::Action(rule.name.clone()));
            }
            if !names.insert(&rule.name) {
                return Err(BadPolicy::Twice(rule.name.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "
network: shop
rules:
  - name: web-to-api
    from: { app: web }
    to:   { app: api, env: { in: [prod, stage] } }
    allow: [tcp/8080, icmp]
guardrails:
  - name: dev-never-reaches-prod
    from: { env: dev }
    to:   { env: prod }
    deny: [any]
tests:
  - { from: { app: web }, to: { app: db }, port: tcp/5432, expect: deny }
";

    #[test]
    fn the_language_of_the_design_page_is_read() {
        let policy = Policy::parse(SHOP).unwrap();
        assert_eq!(policy.rules[0].allow.len(), 2);
        assert_eq!(policy.guardrails[0].action(), Action::Deny);
        assert_eq!(policy.tests[0].expect, Expect::Deny);
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        for (find, replace, says) in [
            ("tcp/8080", "tpc/8080", "no protocol is called `tpc`"),
            ("allow: [tcp/8080, icmp]", "alow: [tcp/8080]", "alow"),
            ("in: [prod, stage]", "in: []", "empty list"),
            ("expect: deny", "expect: maybe", "maybe"),
        ] {
            let error = Policy::parse(&SHOP.replace(find, replace)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("line"), "no place in: {error}");
        }
    }

    #[test]
    fn a_rule_does_one_thing_under_a_name_of_its_own() {
        let neither = SHOP.replace("    allow: [tcp/8080, icmp]\n", "");
        assert!(matches!(Policy::parse(&neither), Err(BadPolicy::Action(_))));
        let twice = SHOP.replace("dev-never-reaches-prod", "web-to-api");
        assert!(matches!(Policy::parse(&twice), Err(BadPolicy::Twice(_))));
    }

    #[test]
    fn hostile_yaml_is_refused() {
        let bomb = "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nnetwork: shop";
        assert!(Policy::parse(bomb).is_err());
        assert!(Policy::parse(&"[".repeat(100_000)).is_err());
        assert!(Policy::parse("").is_err());
    }
}
