//! Addresses outside of the mesh, as rules name them, and the decision about packets to them.
//!
//! Such packets leave by an egress gateway. The ACL of the link to its identity has every rule that
//! speaks of the two, because it depends on the address which of them count.

use crate::{
    acl_entry::{AclEntry, Verdict, holds},
    conduct::OnDeny,
    dns::DomainName,
    ports::Protocol,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// Returns `true` if a prefix is a default one, such as egress gateways advertise: everything of
/// its family.
pub fn is_default(prefix: &IpNet) -> bool {
    prefix.prefix_len() == 0
}

/// Domain names that a rule names: `api.example.com`, `*.example.com`, or `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NamePattern {
    /// One name.
    Exactly(DomainName),
    /// Names with one or more labels before this suffix.
    Below(DomainName),
    /// Every name.
    Any,
}

impl NamePattern {
    /// Returns `true` if it names a domain name.
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exactly(own) => own == name,
            Self::Below(suffix) => name
                .as_str()
                .strip_suffix(suffix.as_str())
                .is_some_and(|labels| labels.len() > 1 && labels.ends_with('.')),
            Self::Any => true,
        }
    }
}

impl FromStr for NamePattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = |name: &str| {
            name.parse().map_err(|_| {
                let text: String = text.chars().take(80).collect();
                format!(
                    "`{text}` is no domain name: write one such as api.example.com, or \
                    *.example.com for all names below it"
                )
            })
        };
        match text.strip_prefix("*.") {
            _ if text == "*" => Ok(Self::Any),
            Some(suffix) => read(suffix).map(Self::Below),
            None => read(text).map(Self::Exactly),
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> String {
        pattern.to_string()
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(name) => write!(f, "{name}"),
            Self::Below(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Addresses outside of the mesh: as text, a prefix, an address, or domain names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OutsideTarget {
    /// Those of a prefix.
    Cidr(IpNet),
    /// Those that these domain names had when the flow began.
    Dns(NamePattern),
}

impl OutsideTarget {
    /// Returns `true` if it includes an address. Which addresses a domain name has is not known
    /// here: it includes none.
    pub fn includes(&self, address: IpAddr) -> bool {
        match self {
            Self::Cidr(prefix) => prefix.contains(&address),
            Self::Dns(_) => false,
        }
    }

    /// Returns `true` if it includes everything that another one names.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cidr(own), Self::Cidr(other)) => own.contains(other),
            (Self::Dns(own), Self::Dns(NamePattern::Exactly(name))) => own.matches(name),
            (Self::Dns(own), Self::Dns(other)) => own == other || *own == NamePattern::Any,
            _ => false,
        }
    }
}

impl FromStr for OutsideTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let prefix = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match prefix {
            Ok(prefix) => Ok(Self::Cidr(prefix.trunc())),
            Err(_) => text.parse().map(Self::Dns),
        }
    }
}

impl TryFrom<String> for OutsideTarget {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<OutsideTarget> for String {
    fn from(target: OutsideTarget) -> String {
        target.to_string()
    }
}

impl fmt::Display for OutsideTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(prefix) => write!(f, "{prefix}"),
            Self::Dns(pattern) => write!(f, "{pattern}"),
        }
    }
}

/// The part of a policy that a rule belongs to, in the order in which they decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precedence {
    /// `guardrails:`
    Guardrail,
    /// `rules:`
    Rule,
}

/// The effect of a rule on the packets that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// They pass.
    Allow,
    /// They are dropped.
    Deny,
    /// They would be dropped, and pass as observed ones.
    Observe,
}

/// A rule about the packets from an identity to what is behind a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OutsideRule {
    /// The addresses; all that are behind the gateway if it is empty.
    pub targets: Vec<OutsideTarget>,
    /// The part of the policy that it belongs to.
    pub precedence: Precedence,
    /// The effect.
    pub effect: Effect,
    /// The destination ports, sorted and merged.
    pub ports: Vec<AclEntry>,
    /// The answer to packets that it denies or, if it allows, to everything between the two that
    /// nothing allows.
    pub on_deny: Option<OnDeny>,
}

/// The rules about packets from an identity to what is behind a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outside {
    /// The rules, in any order.
    pub rules: Vec<OutsideRule>,
    /// `true` if packets that no rule speaks of pass as observed ones.
    pub observes: bool,
}

impl Outside {
    /// Decides about a packet that would begin a flow. `is_at`: `true` if the packet's destination
    /// is one of a target's.
    pub fn verdict(
        &self,
        protocol: Protocol,
        port: u16,
        is_at: impl Fn(&OutsideTarget) -> bool,
    ) -> Verdict {
        let speaking = || {
            let of_port = self.rules.iter().filter(|rule| holds(&rule.ports, protocol, port));
            of_port.filter(|rule| rule.targets.is_empty() || rule.targets.iter().any(&is_at))
        };
        // A denial goes before an allowance of the same precedence.
        let first = |rule: &&OutsideRule| (rule.precedence, rule.effect == Effect::Allow);
        let allows = |rule: &OutsideRule| rule.effect == Effect::Allow;
        if speaking().min_by_key(first).is_some_and(allows) {
            return Verdict::Allowed;
        }
        match speaking().filter(|rule| rule.effect != Effect::Observe).min_by_key(first) {
            Some(rule) if allows(rule) => Verdict::Observed,
            None if self.observes => Verdict::Observed,
            _ => Verdict::Denied,
        }
    }

    /// Returns `true` if it has a rule that lets anything pass.
    pub fn is_open(&self) -> bool {
        self.observes || self.rules.iter().any(|rule| rule.effect != Effect::Deny)
    }

    /// Returns the domain names that rules name.
    pub fn patterns(&self) -> impl Iterator<Item = &NamePattern> {
        let targets = self.rules.iter().flat_map(|rule| &rule.targets);
        targets.filter_map(|target| match target {
            OutsideTarget::Dns(pattern) => Some(pattern),
            OutsideTarget::Cidr(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::PortRange;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_stands_for_one_or_more_leading_labels() {
        let pattern: NamePattern = "*.S3.example.com.".parse().unwrap();
        assert!(pattern.matches(&name("a.s3.example.com")));
        assert!(pattern.matches(&name("b.a.s3.example.com")));
        assert!(!pattern.matches(&name("s3.example.com")));
        assert!(!pattern.matches(&name("as3.example.com")));
        let exact: NamePattern = "Api.Example.com".parse().unwrap();
        assert!(exact.matches(&name("api.example.com")));
        assert!(!exact.matches(&name("x.api.example.com")));
        assert!("*".parse::<NamePattern>().unwrap().matches(&name("com")));
        for text in ["", "*.", "a.*.com", "*a.com", "**.com", "192.0.2.1/32"] {
            let said = text.parse::<NamePattern>().unwrap_err();
            assert!(said.contains("*.example.com for all names below it"), "{said}");
        }
        for text in ["api.example.com", "*.example.com", "*"] {
            assert_eq!(text.parse::<NamePattern>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn of_the_rules_that_name_an_address_the_first_of_the_order_decides() {
        let https =
            vec![AclEntry { protocol: Protocol::Tcp, ports: PortRange { first: 443, last: 443 } }];
        let rule = |target: &str, precedence, effect| OutsideRule {
            targets: match target {
                "" => vec![],
                _ => vec![OutsideTarget::Cidr(target.parse().unwrap())],
            },
            precedence,
            effect,
            ports: https.clone(),
            on_deny: None,
        };
        let mut outside = Outside {
            rules: vec![
                rule("192.0.2.0/24", Precedence::Rule, Effect::Allow),
                rule("192.0.2.8/29", Precedence::Rule, Effect::Deny),
                rule("192.0.2.9/32", Precedence::Guardrail, Effect::Allow),
            ],
            observes: false,
        };
        let verdict = |outside: &Outside, address: &str| {
            let address: IpAddr = address.parse().unwrap();
            outside.verdict(Protocol::Tcp, 443, |target| target.includes(address))
        };
        assert_eq!(verdict(&outside, "192.0.2.1"), Verdict::Allowed);
        assert_eq!(verdict(&outside, "192.0.2.8"), Verdict::Denied);
        assert_eq!(verdict(&outside, "192.0.2.9"), Verdict::Allowed);
        assert_eq!(verdict(&outside, "198.51.100.1"), Verdict::Denied);
        let all = |_: &OutsideTarget| true;
        assert_eq!(outside.verdict(Protocol::Tcp, 80, all), Verdict::Denied);
        outside.rules[1].effect = Effect::Observe;
        assert_eq!(verdict(&outside, "192.0.2.8"), Verdict::Observed);
        outside.rules.push(rule("", Precedence::Guardrail, Effect::Deny));
        assert_eq!(verdict(&outside, "192.0.2.1"), Verdict::Denied);
        outside.rules.clear();
        outside.observes = true;
        assert_eq!(verdict(&outside, "198.51.100.1"), Verdict::Observed);
    }
}
