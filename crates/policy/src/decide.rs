//! The verdict on one packet, decided as a reader of the YAML would.

use crate::{
    document::{Action, Declarations, Mode, Policy, Rule, Tier},
    matching::{Deciding, declared, is_lifted},
    target::Target,
};
use meshward_types::{AcceptFrom, Labels, OutsideTarget, PortSpec, Protocol, Verdict};
use std::fmt;

/// The reason of a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason<'a> {
    /// This rule.
    Rule(Tier, &'a Rule),
    /// The destination's declaration, which opened the port or left it out.
    Declaration,
    /// No rule applies.
    Default,
}

/// A verdict and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The verdict.
    pub verdict: Verdict,
    /// The reason; for an observed packet, that of the denial.
    pub reason: Reason<'a>,
}

/// A packet that would begin a flow.
#[derive(Debug, Clone, Copy)]
pub struct NewFlow<'a> {
    /// The labels of the sender.
    pub from: &'a Labels,
    /// The labels of the destination.
    pub to: &'a Labels,
    /// The address or name outside of the mesh that it is to, if the destination is the egress
    /// gateway there.
    pub outside: Option<&'a OutsideTarget>,
    /// The declarations of the destination.
    pub accepts: &'a [AcceptFrom],
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; 0 where the protocol has none.
    pub port: u16,
}

impl Policy {
    /// Decides about a packet that would begin a flow.
    pub fn decide(&self, flow: &NewFlow<'_>) -> Decision<'_> {
        let NewFlow { from, to, outside, accepts, protocol, port } = *flow;
        let declared = declared(accepts, from);
        // What a gateway declares, it declares for all addresses behind it.
        let outside = outside.filter(|_| declared.is_none());
        let names = |ports: &Vec<PortSpec>| ports.iter().any(|spec| spec.matches(protocol, port));
        if declared.as_ref().is_some_and(|ports| !names(ports)) {
            return Decision { verdict: Verdict::Denied, reason: Reason::Declaration };
        }
        let opened =
            declared.filter(|_| self.declarations == Declarations::Open).unwrap_or_default();
        let matching = self.tiers().filter(|(_, rule)| {
            rule.from.matches(from) && rule.to.matches(to) && rule.speaks_of(outside)
        });
        let deciding = Deciding { mode: self.mode, rules: matching.collect(), opened };
        let reason = decide(&deciding, protocol, port, |_, _| true);
        Decision { verdict: verdict(&deciding, protocol, port), reason }
    }
}

/// Returns the verdict: a denied packet passes, observed, if enforced rules alone would not deny
/// it.
pub(crate) fn verdict(deciding: &Deciding, protocol: Protocol, port: u16) -> Verdict {
    if decide(deciding, protocol, port, |_, _| true).allows() {
        return Verdict::Allowed;
    }
    let observes = deciding.mode == Mode::Observe;
    let firm = |tier: Tier, rule: &Rule| !is_lifted(deciding.mode, tier, rule);
    let reason = decide(deciding, protocol, port, firm);
    if reason.allows() || (observes && reason == Reason::Default) {
        Verdict::Observed
    } else {
        Verdict::Denied
    }
}

/// Returns the reason for the decision of the rules that `counts` selects: a guardrail's deny, then
/// its allow, then a rule's deny, then its allow.
pub(crate) fn decide<'a>(
    deciding: &Deciding<'a>,
    protocol: Protocol,
    port: u16,
    counts: impl Fn(Tier, &Rule) -> bool,
) -> Reason<'a> {
    for tier in [Tier::Guardrail, Tier::Rule] {
        for action in [Action::Deny, Action::Allow] {
            let speaks = |(own, rule): &&(Tier, &Rule)| {
                *own == tier
                    && rule.action() == action
                    && rule.ports().iter().any(|spec| spec.matches(protocol, port))
                    && counts(tier, rule)
            };
            if let Some((tier, rule)) = deciding.rules.iter().find(speaks) {
                return Reason::Rule(*tier, rule);
            }
        }
    }
    match deciding.opened.iter().any(|spec| spec.matches(protocol, port)) {
        true => Reason::Declaration,
        false => Reason::Default,
    }
}

impl Reason<'_> {
    /// Returns `true` if the packet passes for this reason, given that [`decide`] found it: there,
    /// a declaration only opens ports.
    fn allows(&self) -> bool {
        match self {
            Self::Rule(_, rule) => rule.action() == Action::Allow,
            Self::Declaration => true,
            Self::Default => false,
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tier, rule) = match self {
            Self::Rule(tier, rule) => (tier, rule),
            Self::Declaration => return write!(f, "what the destination declares (accept-from)"),
            Self::Default => return write!(f, "default deny: no rule speaks of it"),
        };
        let tier = match tier {
            Tier::Guardrail => "guardrail",
            Tier::Rule => "rule",
            Tier::LetIn | Tier::LetInByAdmin | Tier::Forensics { .. } => "forensics",
        };
        let action = match rule.action() {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let ports: Vec<String> = rule.ports().iter().map(ToString::to_string).collect();
        let Rule { name, from, to, .. } = rule;
        write!(f, "{tier} `{name}`: {action} {} from {from} to ", ports.join(", "))?;
        match &rule.target {
            Target::Labels => write!(f, "{to}"),
            Target::Service(service) => write!(f, "{to} (service {})", service.name),
            Target::Outside(targets) => {
                let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
                write!(f, "{} by {to}", targets.join(", "))
            }
        }
    }
}
