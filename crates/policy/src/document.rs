//! A network's policy in the form that decisions use, with named sets filled in.

use crate::{
    admission_rules::{AdmissionRule, Keys},
    routes::RouteRule,
    services::{NoService, Service},
    target::{Destination, Target, via, write_target},
    written::write_dns,
};
use meshward_types::{
    Condition, Conduct, DnsSettings, FlowTimeouts, Labels, Lasting, NetworkName, OnDeny, OnRevoke,
    OutsideTarget, PortSpec, Selector, ServiceName,
};
use serde::{Deserialize, Serialize, Serializer};

/// The policy of one network, with named sets filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The network.
    pub network: NetworkName,
    /// Enforcement or observation.
    #[serde(skip_serializing_if = "is_usual")]
    pub mode: Mode,
    /// The effect of workloads' declarations (`accept-from`).
    #[serde(skip_serializing_if = "is_usual")]
    pub declarations: Declarations,
    /// The answer to packets that no rule allows, unless a rule says otherwise.
    #[serde(skip_serializing_if = "is_usual")]
    pub on_deny: OnDeny,
    /// The answer to packets of a quarantined workload.
    #[serde(skip_serializing_if = "is_usual")]
    pub on_quarantine: OnDeny,
    /// The treatment of TCP connections that a change of policy or a quarantine cuts.
    #[serde(skip_serializing_if = "is_usual")]
    pub on_revoke: OnRevoke,
    /// The timeouts of idle flows.
    #[serde(skip_serializing_if = "is_usual")]
    pub timeouts: FlowTimeouts,
    /// The settings of name resolution.
    #[serde(skip_serializing_if = "is_usual", serialize_with = "write_dns")]
    pub dns: DnsSettings,
    /// Names and virtual addresses in front of workloads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// Rules that allow or deny packets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Rules that no other rule can override.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub guardrails: Vec<Rule>,
    /// Expectations that are checked before the policy is accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<TestCase>,
    /// Reactions to what workloads try.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<Trigger>,
    /// The keys that sign images.
    #[serde(skip_serializing_if = "Keys::is_empty")]
    pub keys: Keys,
    /// Requirements on workloads that are to be admitted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admission: Vec<AdmissionRule>,
    /// Rules that approve the prefixes behind gateways.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteRule>,
    /// Rules that say who may reach quarantined workloads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forensics: Vec<ForensicsRule>,
    /// Exceptions of quarantines. They come with quarantines, never from policy files.
    #[serde(skip)]
    pub let_in: Vec<LetIn>,
}

/// A rule that says who may reach quarantined workloads, if a quarantine names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForensicsRule {
    /// The workloads and ports; it allows.
    #[serde(flatten)]
    pub rule: Rule,
    /// `true` if it applies to what guardrails deny as well.
    #[serde(skip_serializing_if = "is_usual")]
    pub over_guardrails: bool,
}

/// The workloads that a quarantine lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetIn {
    /// The workloads and ports.
    pub rule: Rule,
    /// `true` if an admin set it: then the policy need not name them.
    pub by_admin: bool,
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Enforcement or observation of a policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Denied packets are dropped.
    #[default]
    Enforce,
    /// Packets that a rule or the default denies pass, and are counted. Guardrails and quarantines
    /// are enforced.
    Observe,
}

/// The effect of workloads' declarations (`accept-from`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Declarations {
    /// They narrow what the policy allows.
    #[default]
    Narrow,
    /// They also open what no guardrail and no rule denies, for packets to the declaring workload.
    Open,
}

/// One rule or guardrail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The name, unique in the policy.
    pub name: String,
    /// The workloads that begin flows.
    pub from: Selector,
    /// The workloads at the other end: for a rule about a service, its instances; for one about
    /// addresses outside of the mesh, the egress gateways.
    pub to: Selector,
    /// The way in which the rule names what is at the other end.
    pub target: Target,
    /// The ports that it allows; a rule has either this or `deny`. For a rule about a service,
    /// those of its instances.
    pub allow: Vec<PortSpec>,
    /// The ports that it denies.
    pub deny: Vec<PortSpec>,
    /// `true` if the packets that it denies pass, and are counted.
    pub observe: bool,
    /// The answer to packets that it denies or, if it allows, to everything between the two that
    /// nothing allows.
    pub on_deny: Option<OnDeny>,
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WrittenRule::from(self).serialize(serializer)
    }
}

/// The effect of a rule on packets that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// They pass.
    Allow,
    /// They are dropped.
    Deny,
}

/// A rule as it is written.
#[derive(Serialize)]
struct WrittenRule<'a> {
    name: &'a str,
    from: &'a Selector,
    to: WrittenTarget<'a>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    allow: &'a [PortSpec],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    deny: &'a [PortSpec],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    observe: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_deny: Option<OnDeny>,
}

struct WrittenTarget<'a> {
    target: &'a Target,
    to: &'a Selector,
}

impl Serialize for WrittenTarget<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write_target(self.target, self.to, serializer)
    }
}

impl<'a> From<&'a Rule> for WrittenRule<'a> {
    fn from(rule: &'a Rule) -> Self {
        let Rule { name, from, to, target, allow, deny, observe, on_deny } = rule;
        // A rule about a service names the service's ports, not those of the instances.
        let (allow, deny): (&[PortSpec], &[PortSpec]) = match target {
            Target::Labels | Target::Outside(_) => (allow, deny),
            Target::Service(target) if deny.is_empty() => (&target.ports, &[]),
            Target::Service(target) => (&[], &target.ports),
        };
        Self {
            name,
            from,
            to: WrittenTarget { target, to },
            allow,
            deny,
            observe: *observe,
            on_deny: *on_deny,
        }
    }
}

impl Rule {
    /// Creates a rule that allows ports between workloads.
    pub fn allowing(name: String, from: Selector, to: Selector, allow: Vec<PortSpec>) -> Self {
        Self {
            name,
            from,
            to,
            target: Target::Labels,
            allow,
            deny: vec![],
            observe: false,
            on_deny: None,
        }
    }

    /// Returns the effect of the rule.
    pub fn action(&self) -> Action {
        if self.deny.is_empty() { Action::Allow } else { Action::Deny }
    }

    /// Returns the ports that it allows or denies.
    pub fn ports(&self) -> &[PortSpec] {
        if self.deny.is_empty() { &self.allow } else { &self.deny }
    }

    /// Returns the selector of the egress gateways of a rule about addresses outside of the mesh,
    /// as it is written.
    pub fn via(&self) -> Selector {
        via(&self.to)
    }

    /// Returns `true` if it speaks of a flow between workloads that it selects. `outside`: the
    /// address or name outside of the mesh that the flow is to, if it is to one.
    pub(crate) fn speaks_of(&self, outside: Option<&OutsideTarget>) -> bool {
        let own = self.target.outside();
        let is_named = |target| own.iter().any(|own| own.covers(target));
        own.is_empty() || outside.is_some_and(is_named)
    }
}

/// A policy test: one expectation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TestCase {
    /// The labels of the workload that begins the flow.
    pub from: Labels,
    /// The workload at the other end.
    pub to: Destination,
    /// The protocol and ports.
    pub port: PortSpec,
    /// The expected verdict for all of `port`.
    pub expect: Expect,
}

impl TestCase {
    /// Returns the ports of the workload at the other end.
    pub(crate) fn ports(&self) -> &[PortSpec] {
        match &self.to {
            Destination::Labels(_) | Destination::Outside { .. } => {
                std::slice::from_ref(&self.port)
            }
            Destination::Service { targets, .. } => targets,
        }
    }
}

/// An expected verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// All of it passes.
    Allow,
    /// None of it passes.
    Deny,
    /// None of it passes, and the sender gets an answer.
    Reject,
}

/// A reaction to what workloads try and must not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// The name, unique in the policy.
    pub name: String,
    /// The workloads whose flows are counted; all if it is left out.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub watch: Selector,
    /// The condition.
    pub when: Condition,
    /// The reaction.
    pub then: Reaction,
    /// The duration; without it, until somebody ends it.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Lasting>,
    /// `true` if a node quarantines by itself while it has no session with the coordinator.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub alone: bool,
}

/// The reaction to a workload that meets a trigger's condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reaction {
    /// Cuts all its links.
    Quarantine,
    /// Gives it labels, so that other rules apply.
    Label(Labels),
    /// Sends a POST request to this URL, with what was seen as JSON.
    Webhook(String),
}

/// The part of a policy that a rule belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// `guardrails:`
    Guardrail,
    /// `rules:`
    Rule,
    /// An exception of a quarantine, as far as `forensics:` names it.
    LetIn,
    /// An exception that an admin set, which `forensics:` need not name.
    LetInByAdmin,
    /// `forensics:`, the workloads that may reach quarantined ones.
    Forensics {
        /// `true` if it applies to what guardrails deny as well.
        over_guardrails: bool,
    },
}

impl Policy {
    /// Returns a policy that denies everything.
    pub fn deny_all(network: NetworkName) -> Self {
        Self {
            network,
            mode: Mode::default(),
            declarations: Declarations::default(),
            on_deny: OnDeny::default(),
            on_quarantine: OnDeny::default(),
            on_revoke: OnRevoke::default(),
            timeouts: FlowTimeouts::default(),
            dns: DnsSettings::default(),
            services: Vec::new(),
            rules: Vec::new(),
            guardrails: Vec::new(),
            tests: Vec::new(),
            triggers: Vec::new(),
            keys: Keys::new(),
            admission: Vec::new(),
            routes: Vec::new(),
            forensics: Vec::new(),
            let_in: Vec::new(),
        }
    }

    /// Returns a service.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|service| service.name == *name)
    }

    /// Returns a service.
    ///
    /// # Errors
    /// Says which services there are, if it is none of them.
    pub fn find_service(&self, name: &ServiceName) -> Result<&Service, NoService> {
        let missing = || NoService::new(name, &self.network, &self.services);
        self.service(name).ok_or_else(missing)
    }

    /// Returns the treatment of conversations for nodes. `resets`: see [`Conduct`].
    pub fn conduct(&self, resets: u64) -> Conduct {
        let Self { on_deny, on_quarantine, on_revoke, .. } = *self;
        Conduct {
            on_deny,
            on_quarantine,
            on_revoke,
            timeouts: Conduct::timeouts_of(&self.timeouts),
            resets,
        }
    }

    /// Formats the policy as YAML.
    ///
    /// # Errors
    /// Fails if the YAML library fails.
    pub fn to_yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(self).map_err(|error| error.to_string())
    }

    /// Returns every rule and guardrail with its tier and, during quarantines with exceptions, the
    /// rules about those.
    pub fn tiers(&self) -> impl Iterator<Item = (Tier, &Rule)> {
        let guardrails = self.guardrails.iter().map(|rule| (Tier::Guardrail, rule));
        let rules = self.rules.iter().map(|rule| (Tier::Rule, rule));
        let let_in = self.let_in.iter().map(|one| {
            let tier = if one.by_admin { Tier::LetInByAdmin } else { Tier::LetIn };
            (tier, &one.rule)
        });
        let named = self.forensics.iter().filter(|_| !self.let_in.is_empty());
        let named =
            named.map(|own| (Tier::Forensics { over_guardrails: own.over_guardrails }, &own.rule));
        guardrails.chain(rules).chain(let_in).chain(named)
    }
}
