//! The merge of all documents of a network into one policy.

use super::value::value;
use super::{
    parsed::ParsedPolicy,
    problems::span,
    reader::{Document, Parts, Reader, Sets},
    services::Services,
    tree::At,
};
use crate::{admission_rules::SigningKey, document::Policy};
use meshward_types::{FlowTimeouts, NetworkName, PortSpec, Selector};
use std::collections::{BTreeMap, HashMap};

/// The parts of a network's policy that other parts name.
pub(super) struct Known {
    pub(super) sets: Sets,
    pub(super) keys: BTreeMap<String, SigningKey>,
    pub(super) services: Services,
}

impl Reader {
    pub(super) fn merge(
        &mut self,
        network: NetworkName,
        documents: &[Document<'_>],
    ) -> ParsedPolicy {
        let sets = self.sets(documents);
        let keys = self.keys(documents);
        let services = self.services(documents, &sets);
        let known = Known { sets, keys, services };
        let begin = documents.first().map(|document| span(document.file, document.begin));
        let mut parsed = ParsedPolicy {
            policy: Policy::deny_all(network),
            named: HashMap::new(),
            services: BTreeMap::new(),
            tests: Vec::new(),
            timeouts: None,
            begin: begin.unwrap_or_else(|| span("policy", At::START)),
            files: documents.iter().map(|document| document.file.to_owned()).collect(),
        };
        let (mut mode, mut declarations) = (None, None);
        let (mut on_deny, mut on_quarantine, mut on_revoke) = (None, None, None);
        let (mut timeouts, mut dns) = (None, None);
        for document in documents {
            let parts = document.parts();
            self.once(&parts, "mode", &mut mode);
            self.once(&parts, "declarations", &mut declarations);
            self.once(&parts, "on_deny", &mut on_deny);
            self.once(&parts, "on_quarantine", &mut on_quarantine);
            self.once(&parts, "on_revoke", &mut on_revoke);
            self.once(&parts, "timeouts", &mut timeouts);
            self.dns(&parts, &mut dns);
            self.check_timeouts(&parts, &mut parsed);
            self.merge_parts(&parts, &known, &mut parsed);
        }
        parsed.policy.keys = known.keys;
        parsed.policy.services = known.services.all;
        parsed.services = known.services.spans;
        parsed.policy.dns = dns.unwrap_or_default();
        parsed.policy.mode = mode.unwrap_or_default();
        parsed.policy.declarations = declarations.unwrap_or_default();
        parsed.policy.on_deny = on_deny.unwrap_or_default();
        parsed.policy.on_quarantine = on_quarantine.unwrap_or_default();
        parsed.policy.on_revoke = on_revoke.unwrap_or_default();
        parsed.policy.timeouts = timeouts.unwrap_or_default();
        parsed
    }

    pub(super) fn merge_parts(&mut self, parts: &Parts, known: &Known, parsed: &mut ParsedPolicy) {
        let Known { sets, keys, services } = known;
        let ParsedPolicy { policy, named, tests, .. } = parsed;
        for node in self.list(parts, "rules") {
            policy.rules.extend(self.rule(parts.file, known, node, named));
        }
        for node in self.list(parts, "guardrails") {
            policy.guardrails.extend(self.rule(parts.file, known, node, named));
        }
        for node in self.list(parts, "tests") {
            if let Some(test) = self.test(parts.file, services, node) {
                tests.push(span(parts.file, node.at));
                policy.tests.push(test);
            }
        }
        for node in self.list(parts, "triggers") {
            policy.triggers.extend(self.trigger(parts.file, services, node, named));
        }
        for node in self.list(parts, "admission") {
            policy.admission.extend(self.admission(parts.file, (sets, keys), node, named));
        }
        for node in self.list(parts, "forensics") {
            policy.forensics.extend(self.forensics(parts.file, sets, node, named));
        }
        for node in self.list(parts, "routes") {
            policy.routes.extend(self.route(parts.file, sets, node, named));
        }
    }

    pub(super) fn check_timeouts(&mut self, parts: &Parts, parsed: &mut ParsedPolicy) {
        let Some(node) = parts.get("timeouts") else { return };
        parsed.timeouts = Some(span(parts.file, node.at));
        // What cannot be read is reported elsewhere.
        let Ok(timeouts) = value::<FlowTimeouts>(node) else { return };
        if let Err(text) = timeouts.check() {
            self.problem(parts.file, node.at, text);
        }
    }

    pub(super) fn sets(&mut self, documents: &[Document<'_>]) -> Sets {
        let mut sets = Sets::default();
        for document in documents {
            let parts = document.parts();
            for (name, node, at) in self.named(&parts, "ports") {
                let Some(ports) = self.fitting::<Vec<PortSpec>>(parts.file, node) else { continue };
                let before = sets.ports.insert(name.to_owned(), ports.clone());
                if before.is_some_and(|before| before != ports) {
                    let text =
                        format!("another document of this network has other ports under `{name}`");
                    self.problem(parts.file, at, text);
                }
            }
            for (name, node, at) in self.named(&parts, "selectors") {
                let Some(selector) = self.fitting::<Selector>(parts.file, node) else { continue };
                let before = sets.selectors.insert(name.to_owned(), selector.clone());
                if before.is_some_and(|before| before != selector) {
                    let text = format!(
                        "another document of this network has another selector under `{name}`"
                    );
                    self.problem(parts.file, at, text);
                }
            }
        }
        sets
    }

    pub(super) fn keys(&mut self, documents: &[Document<'_>]) -> BTreeMap<String, SigningKey> {
        let mut keys = BTreeMap::new();
        for document in documents {
            let parts = document.parts();
            for (name, node, _) in self.named(&parts, "keys") {
                let Some(pem) = self.fitting::<String>(parts.file, node) else { continue };
                match pem.parse::<SigningKey>() {
                    Ok(key) => {
                        if keys
                            .insert(name.to_owned(), key.clone())
                            .is_some_and(|before| before != key)
                        {
                            let text = format!(
                                "another document of this network has another key under `{name}`"
                            );
                            self.problem(parts.file, node.at, text);
                        }
                    }
                    Err(text) => self.problem(parts.file, node.at, format!("key `{name}`: {text}")),
                }
            }
        }
        keys
    }
}
