//! A network's policy as it is decided by: what was written, with its named sets filled in.

use crate::{
    admission_rules::{AdmissionRule, Keys},
    routes::RouteRule,
};
use meshward_types::{
    Condition, Conduct, FlowTimeouts, Labels, Lasting, NetworkName, OnDeny, OnRevoke, PortSpec,
    Selector,
};
use serde::{Deserialize, Serialize};

/// The policy of one network, its named sets filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The network that it is for.
    pub network: NetworkName,
    /// Whether what is not allowed is dropped.
    #[serde(skip_serializing_if = "is_usual")]
    pub mode: Mode,
    /// What a workload may declare about who reaches it.
    #[serde(skip_serializing_if = "is_usual")]
    pub declarations: Declarations,
    /// What the sender of a packet is told that nothing allows, where no rule says otherwise.
    #[serde(skip_serializing_if = "is_usual")]
    pub on_deny: OnDeny,
    /// What a quarantined workload is told of what it sends.
    #[serde(skip_serializing_if = "is_usual")]
    pub on_quarantine: OnDeny,
    /// What the ends of a TCP connection are told that a change of policy or a quarantine cuts.
    #[serde(skip_serializing_if = "is_usual")]
    pub on_revoke: OnRevoke,
    /// For how long silent conversations are kept.
    #[serde(skip_serializing_if = "is_usual")]
    pub timeouts: FlowTimeouts,
    /// What may pass, and exceptions from that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// What no rule can override.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub guardrails: Vec<Rule>,
    /// What must come out, checked before the policy is accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<TestCase>,
    /// What happens by itself when something is seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<Trigger>,
    /// The keys that sign images.
    #[serde(skip_serializing_if = "Keys::is_empty")]
    pub keys: Keys,
    /// What workloads have to be to be let in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admission: Vec<AdmissionRule>,
    /// Which prefixes gateways may have behind them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteRule>,
    /// Who may be let in to what is quarantined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forensics: Vec<ForensicsRule>,
    /// Whom quarantines let in. Nobody writes these: they come with quarantines.
    #[serde(skip)]
    pub let_in: Vec<LetIn>,
}

/// Who may be let in to what is quarantined, by a quarantine that says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForensicsRule {
    /// Who, to whom and to which ports; it allows.
    #[serde(flatten)]
    pub rule: Rule,
    /// Whether that holds for what guardrails deny, too.
    #[serde(skip_serializing_if = "is_usual")]
    pub over_guardrails: bool,
}

/// Whom a quarantine lets in to what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetIn {
    /// Who, and to whom.
    pub rule: Rule,
    /// Whether an admin has said so: then the policy need not name them.
    pub by_admin: bool,
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether a policy is enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What is not allowed is dropped.
    #[default]
    Enforce,
    /// What rules and the default deny passes, and is counted. Guardrails and quarantines hold all
    /// the same.
    Observe,
}

/// What workloads may declare (`accept-from`) about who reaches them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Declarations {
    /// Less than the policy allows.
    #[default]
    Narrow,
    /// Also more: what no guardrail and no rule denies. It holds for what comes to the workload
    /// alone.
    Open,
}

/// One rule or guardrail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its name, unique in the policy.
    pub name: String,
    /// Who begins flows.
    pub from: Selector,
    /// With whom.
    pub to: Selector,
    /// What it allows; a rule has this or `deny`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<PortSpec>,
    /// What it denies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<PortSpec>,
    /// What it denies passes, and is counted.
    #[serde(skip_serializing_if = "is_usual")]
    pub observe: bool,
    /// What senders are told of what it denies, or, if it allows, of everything between the two
    /// that nothing allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_deny: Option<OnDeny>,
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
    /// None of it passes, and whoever tries is told.
    Reject,
}

/// What happens by itself when workloads try what they may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// Its name, unique in the policy.
    pub name: String,
    /// Whose flows are counted; everyone's if it is left out.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub watch: Selector,
    /// What has to be seen.
    pub when: Condition,
    /// What is done.
    pub then: Reaction,
    /// For how long; until somebody ends it if it is left out.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Lasting>,
    /// Whether a node quarantines by itself while it has no session with the coordinator.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub alone: bool,
}

/// What a trigger does with the workload that it has caught.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reaction {
    /// Cuts all its links.
    Quarantine,
    /// Gives it labels, so that other rules apply.
    Label(Labels),
    /// Tells this URL, with a POST of what was seen, as JSON.
    Webhook(String),
}

/// Which part of the policy a rule stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// `guardrails:`
    Guardrail,
    /// `rules:`
    Rule,
    /// Of a quarantine: whom it lets in to what it holds, as far as `forensics:` names them.
    LetIn,
    /// The same, of an admin, who need not name them.
    LetInByAdmin,
    /// `forensics:`: who may be let in to what is quarantined.
    Forensics {
        /// Whether what guardrails deny does not count.
        over_guardrails: bool,
    },
}

impl Policy {
    /// Default deny, and nothing else.
    pub fn deny_all(network: NetworkName) -> Self {
        Self {
            network,
            mode: Mode::default(),
            declarations: Declarations::default(),
            on_deny: OnDeny::default(),
            on_quarantine: OnDeny::default(),
            on_revoke: OnRevoke::default(),
            timeouts: FlowTimeouts::default(),
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

    /// How nodes are to treat conversations. `resets`: see [`Conduct`].
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

    /// The policy as YAML.
    ///
    /// # Errors
    /// If the YAML library fails.
    pub fn to_yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(self).map_err(|error| error.to_string())
    }

    /// Every rule and guardrail, with the part that it stands in; and while a quarantine lets
    /// somebody in, those that say whom.
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
