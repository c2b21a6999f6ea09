//! The verdict on one packet, decided as a reader of the YAML would.

use crate::document::{Action, Policy, Rule};
use meshward_model::{Labels, Protocol};
use std::fmt;

/// Which part of the policy a rule stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// `guardrails:`
    Guardrail,
    /// `rules:`
    Rule,
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason<'a> {
    /// This rule.
    Rule(Tier, &'a Rule),
    /// No rule spoke.
    Default,
}

/// A verdict and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether the packet may pass.
    pub allowed: bool,
    /// What decided.
    pub reason: Reason<'a>,
}

impl Policy {
    /// The verdict on a packet that would begin a flow from `from` to port `port` of `to`.
    pub fn decide(&self, from: &Labels, to: &Labels, protocol: Protocol, port: u16) -> Decision<'_> {
        let tiers = [(Tier::Guardrail, &self.guardrails), (Tier::Rule, &self.rules)];
        for (tier, rules) in tiers {
            for action in [Action::Deny, Action::Allow] {
                let speaks = |rule: &&Rule| {
                    rule.action() == action
                        && rule.from.matches(from)
                        && rule.to.matches(to)
                        && rule.ports().iter().any(|spec| spec.matches(protocol, port))
                };
                if let Some(rule) = rules.iter().find(speaks) {
                    let allowed = action == Action::Allow;
                    return Decision { allowed, reason: Reason::Rule(tier, rule) };
                }
            }
        }
        Decision { allowed: false, reason: Reason::Default }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Rule(tier, rule) = self else {
            return write!(f, "default deny: no rule speaks of it");
        };
        let tier = match tier {
            Tier::Guardrail => "guardrail",
            Tier::Rule => "rule",
        };
        let action = match rule.action() {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let ports: Vec<String> = rule.ports().iter().map(ToString::to_string).collect();
        write!(f, "{tier} `{}`: {action} {} from {} to {}", rule.name, ports.join(", "), rule.from, rule.to)
    }
}
