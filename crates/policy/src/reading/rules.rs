//! The named parts of a policy, each read as far as possible.

use super::{
    merge::Known,
    outside::Outside,
    problems::{SourceSpan, did_you_mean, span},
    reader::{Parts, Reader, Sets},
    services::{Naming, Services},
    tree::{Kind, Node},
};
use crate::{
    admission_rules::{AdmissionRule, ImagePattern, SigningKey},
    document::{ForensicsRule, Rule, TestCase, Trigger},
    egress_label::egress_gateways,
    routes::RouteRule,
    services::Service,
    target::{ServiceTarget, Target},
};
use ipnet::IpNet;
use meshward_types::{OnDeny, OutsideTarget, PortSpec, Selector, measurement::Sha256};
use std::collections::{BTreeMap, HashMap, hash_map::Entry};

impl Reader {
    /// Reads the name of a part, which must be unique.
    fn name(&mut self, parts: &Parts, named: &mut HashMap<String, SourceSpan>) -> Option<String> {
        let name = self.required::<String>(parts, "name")?;
        let at = parts.get("name").map_or(parts.at, |node| node.at);
        if !(1..=128).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            let shown: String = name.chars().take(128).collect();
            let text = format!("`{shown}` is not a rule name: use 1 to 128 printable characters");
            self.problem(parts.file, at, text);
        }
        match named.entry(name.clone()) {
            Entry::Vacant(free) => {
                free.insert(span(parts.file, at));
            }
            Entry::Occupied(taken) => {
                let text = format!(
                    "there is a `{name}` already, at {}; give each its own name, so that `meshctl \
                    explain` can tell them apart",
                    taken.get()
                );
                self.problem(parts.file, at, text);
            }
        }
        Some(name)
    }

    pub(super) fn rule(
        &mut self,
        file: &str,
        known: &Known,
        node: &Node,
        named: &mut HashMap<String, SourceSpan>,
    ) -> Option<Rule> {
        let sets = &known.sets;
        let parts = self.parts(
            file,
            "a rule",
            node,
            &["name", "from", "to", "allow", "deny", "observe", "on_deny"],
        )?;
        let name = self.name(&parts, named);
        let called = name.as_deref().unwrap_or_default();
        let is_written = |key| {
            parts
                .get(key)
                .is_some_and(|node| !matches!(&node.kind, Kind::List(items) if items.is_empty()))
        };
        let (allows, denies) = (is_written("allow"), is_written("deny"));
        let to = self.rule_target(&parts, known);
        let is_of_service =
            parts.get("to").is_some_and(|node| known.services.named_by(node).is_some());
        if allows == denies && (allows || !is_of_service) {
            let text = format!(
                "rule `{called}` must have either `allow` or `deny`, with at least one port; write \
                for instance `allow: [tcp/8080]`"
            );
            self.problem(file, node.at, text);
        }
        let observe = self.optional::<bool>(&parts, "observe").unwrap_or_default();
        if observe && !denies {
            let text = format!(
                "rule `{called}` allows: there is nothing to observe; `observe: true` goes with \
                `deny`, or `mode: observe` with the whole policy"
            );
            self.problem(file, node.at, text);
        }
        let on_deny = self.optional::<OnDeny>(&parts, "on_deny");
        let from = self.whom(&parts, sets, "from");
        let (allow, deny) = (self.ports(&parts, sets, "allow"), self.ports(&parts, sets, "deny"));
        let RuleTarget { to, outside, service } = to?;
        if !deny.is_empty() && outside.iter().any(|own| matches!(own, OutsideTarget::Dns(_))) {
            let text = "a rule cannot deny domain names, since nobody has to ask for a name before \
                        using its address: deny addresses, `to: { cidr: … }`";
            self.problem(file, parts.at, text);
        }
        let rule = Rule {
            name: name?,
            from: from?,
            to,
            target: if outside.is_empty() { Target::Labels } else { Target::Outside(outside) },
            allow,
            deny,
            observe,
            on_deny,
        };
        Some(match service {
            None => rule,
            Some(service) => self.about_service(&parts, service, rule),
        })
    }

    /// Reads the workloads at the other end of a rule: labels, the name of a selector, or a
    /// service.
    fn rule_target<'a>(&mut self, parts: &Parts, known: &'a Known) -> Option<RuleTarget<'a>> {
        let node = self.there(parts, "to")?;
        if let Some(Outside { parts: own, targets }) = self.outside(parts) {
            let via = self.whom_or_all(&own, &known.sets, "via")?;
            let to = egress_gateways(&via);
            return Some(RuleTarget { to, outside: targets, service: None });
        }
        match self.naming(parts.file, node, &known.services) {
            Naming::Labels => {
                let to = self.whom(parts, &known.sets, "to")?;
                Some(RuleTarget { to, outside: vec![], service: None })
            }
            Naming::Unknown => None,
            Naming::Service(service) => {
                let to = service.instances.clone();
                let is_counted = self.count(parts.file, node.at, to.weight());
                let outside = vec![];
                is_counted.then_some(RuleTarget { to, outside, service: Some(service) })
            }
        }
    }

    /// Turns the ports of a service that a rule names into those of its instances.
    fn about_service(&mut self, parts: &Parts, service: &Service, rule: Rule) -> Rule {
        let denies = !rule.deny.is_empty();
        let (key, ports) = if denies { ("deny", rule.deny) } else { ("allow", rule.allow) };
        let targets = self.service_targets(parts, key, service, &ports);
        let (allow, deny) = if denies { (vec![], targets) } else { (targets, vec![]) };
        let target = Target::Service(ServiceTarget { name: service.name.clone(), ports });
        Rule { target, allow, deny, ..rule }
    }

    pub(super) fn test(
        &mut self,
        file: &str,
        services: &Services,
        node: &Node,
    ) -> Option<TestCase> {
        let parts = self.parts(file, "a test", node, &["from", "to", "port", "expect"])?;
        let from = self.required(&parts, "from");
        let (port, expect) = (self.required(&parts, "port"), self.required(&parts, "expect"));
        let to = self.destination(&parts, services, port.unwrap_or(PortSpec::ANY));
        Some(TestCase { from: from?, to: to?, port: port?, expect: expect? })
    }

    pub(super) fn trigger(
        &mut self,
        file: &str,
        services: &Services,
        node: &Node,
        named: &mut HashMap<String, SourceSpan>,
    ) -> Option<Trigger> {
        let known = ["name", "watch", "when", "then", "for", "alone"];
        let parts = self.parts(file, "a trigger", node, &known)?;
        let name = self.name(&parts, named);
        let watch = self.optional(&parts, "watch").unwrap_or_default();
        let (when, then) = (self.required(&parts, "when"), self.required(&parts, "then"));
        let lasts = self.optional(&parts, "for");
        let alone = self.optional(&parts, "alone").unwrap_or_default();
        let trigger = Trigger { name: name?, watch, when: when?, then: then?, lasts, alone };
        if let Err(text) = check_trigger(&trigger, services) {
            self.problem(file, node.at, text);
        }
        Some(trigger)
    }

    pub(super) fn admission(
        &mut self,
        file: &str,
        (sets, keys): (&Sets, &BTreeMap<String, SigningKey>),
        node: &Node,
        named: &mut HashMap<String, SourceSpan>,
    ) -> Option<AdmissionRule> {
        let known = ["name", "for", "images", "signed_by", "config", "privileges", "shared"];
        let parts = self.parts(file, "an admission rule", node, &known)?;
        let name = self.name(&parts, named);
        let mut images = Vec::new();
        for (image, at) in self.texts(&parts, "images") {
            match image.parse::<ImagePattern>() {
                Ok(pattern) => images.push(pattern),
                Err(text) => self.problem(file, at, text),
            }
        }
        let signed_by = self.texts(&parts, "signed_by");
        for (key, at) in signed_by.iter().filter(|(key, _)| !keys.contains_key(*key)) {
            let mend = did_you_mean(key, keys.keys().map(String::as_str))
                .unwrap_or_else(|| "put its PEM text under `keys:`".into());
            self.problem(file, *at, format!("no key is called `{key}`; {mend}"));
        }
        let signed_by = signed_by.into_iter().map(|(key, _)| key.to_owned()).collect();
        let mut config = Vec::new();
        for item in self.list(&parts, "config") {
            config.extend(self.fitting::<Sha256>(file, item));
        }
        let privileges =
            self.texts(&parts, "privileges").into_iter().map(|(text, _)| text.to_owned()).collect();
        let who = self.whom_or_all(&parts, sets, "for")?;
        let shared = self.optional(&parts, "shared").unwrap_or_default();
        Some(AdmissionRule { name: name?, who, images, signed_by, config, privileges, shared })
    }

    pub(super) fn forensics(
        &mut self,
        file: &str,
        sets: &Sets,
        node: &Node,
        named: &mut HashMap<String, SourceSpan>,
    ) -> Option<ForensicsRule> {
        let known = ["name", "from", "to", "allow", "over_guardrails"];
        let parts = self.parts(file, "a rule of forensics", node, &known)?;
        let name = self.name(&parts, named);
        let from = self.whom(&parts, sets, "from");
        let to = self.whom_or_all(&parts, sets, "to");
        let allow = match self.list(&parts, "allow").is_empty() {
            true => vec![PortSpec::ANY],
            false => self.ports(&parts, sets, "allow"),
        };
        let over_guardrails = self.optional(&parts, "over_guardrails").unwrap_or_default();
        let rule = Rule::allowing(name?, from?, to?, allow);
        Some(ForensicsRule { rule, over_guardrails })
    }

    pub(super) fn route(
        &mut self,
        file: &str,
        sets: &Sets,
        node: &Node,
        named: &mut HashMap<String, SourceSpan>,
    ) -> Option<RouteRule> {
        let parts = self.parts(file, "a rule of routes", node, &["name", "for", "within"])?;
        let name = self.name(&parts, named);
        self.there(&parts, "within");
        let mut within = Vec::new();
        for (prefix, at) in self.texts(&parts, "within") {
            match prefix.parse::<IpNet>() {
                Ok(prefix) => within.push(prefix.trunc()),
                Err(_) => {
                    let text = format!("`{prefix}` is no prefix; write one such as 10.8.0.0/16");
                    self.problem(file, at, text);
                }
            }
        }
        let who = self.whom_or_all(&parts, sets, "for")?;
        Some(RouteRule { name: name?, who, within })
    }

    fn whom_or_all(&mut self, parts: &Parts, sets: &Sets, key: &str) -> Option<Selector> {
        match parts.get(key) {
            None => Some(Selector::default()),
            Some(_) => self.whom(parts, sets, key),
        }
    }

    /// Reads labels or the name of a selector.
    pub(super) fn whom(&mut self, parts: &Parts, sets: &Sets, key: &str) -> Option<Selector> {
        let node = self.there(parts, key)?;
        let selector = match &node.kind {
            Kind::Map(_) => self.fitting::<Selector>(parts.file, node)?,
            Kind::List(_) => {
                let text = "labels such as { app: web }, or the name of one of `selectors`, were \
                    expected here, not a list";
                self.problem(parts.file, node.at, text);
                return None;
            }
            Kind::Scalar { text: name, .. } => match sets.selectors.get(&**name) {
                Some(selector) => selector.clone(),
                None => {
                    let name: String = name.chars().take(80).collect();
                    let mend = did_you_mean(&name, sets.selectors.keys().map(String::as_str))
                        .unwrap_or_else(|| {
                            "name one under `selectors:`, or write labels such as { app: web }"
                                .into()
                        });
                    self.problem(
                        parts.file,
                        node.at,
                        format!("no selector is called `{name}`; {mend}"),
                    );
                    return None;
                }
            },
        };
        self.count(parts.file, node.at, selector.weight()).then_some(selector)
    }

    fn ports(&mut self, parts: &Parts, sets: &Sets, key: &str) -> Vec<PortSpec> {
        let mut ports = Vec::new();
        for (text, at) in self.texts(parts, key) {
            match (text.parse::<PortSpec>(), sets.ports.get(text)) {
                (Ok(port), _) if self.count(parts.file, at, 1) => ports.push(port),
                (Err(_), Some(set)) if self.count(parts.file, at, set.len() as u64) => {
                    ports.extend(set);
                }
                (Err(error), None) => {
                    let known = sets
                        .ports
                        .keys()
                        .map(String::as_str)
                        .chain(["tcp", "udp", "sctp", "icmp", "any"]);
                    let mend = did_you_mean(text.split('/').next().unwrap_or_default(), known);
                    let text = match mend {
                        Some(mend) => format!("{error}; {mend}"),
                        None => error.to_string(),
                    };
                    self.problem(parts.file, at, text);
                }
                _ => {}
            }
        }
        ports
    }
}

/// The workloads at the other end of a rule, or what is behind them.
struct RuleTarget<'a> {
    to: Selector,
    outside: Vec<OutsideTarget>,
    service: Option<&'a Service>,
}

fn check_trigger(trigger: &Trigger, services: &Services) -> Result<(), String> {
    use crate::document::Reaction;
    let name = &trigger.name;
    if let Err(text) = trigger.when.check() {
        return Err(format!("trigger `{name}`: {text}"));
    }
    if let Some(service) = &trigger.when.desired {
        if !services.all.iter().any(|known| known.name == *service) {
            let known = services.all.iter().map(|known| known.name.as_str());
            let mend = did_you_mean(service.as_str(), known);
            let mend = mend.unwrap_or_else(|| "write it under `services:`".into());
            return Err(format!("trigger `{name}`: there is no service `{service}`; {mend}"));
        }
        if !matches!(trigger.then, Reaction::Webhook(_)) || !trigger.watch.is_empty() {
            return Err(format!(
                "trigger `{name}`: what a service would need can be told to a webhook, and is of no \
                workload: write `then: {{ webhook: URL }}`, and leave out `watch`"
            ));
        }
    }
    match &trigger.then {
        Reaction::Label(labels) if labels.is_empty() => {
            Err(format!("trigger `{name}` gives no label"))
        }
        Reaction::Label(labels) => {
            labels.check_unreserved().map_err(|error| format!("trigger `{name}`: {error}"))
        }
        Reaction::Webhook(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
            Err(format!("trigger `{name}`: `{url}` is no URL; begin with http:// or https://"))
        }
        _ if trigger.alone && trigger.then != Reaction::Quarantine => Err(format!(
            "trigger `{name}`: a node alone can quarantine and nothing else; leave out `alone`"
        )),
        _ => Ok(()),
    }
}
