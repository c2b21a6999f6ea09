//! The reader: reads fields of documents, and gathers what is wrong with them.

use super::{
    problems::{BadPolicy, Problem, span},
    tree::{At, Kind, Node},
    value::{unknown, value},
};
use meshward_types::{NetworkName, PortSpec, Selector};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The largest number of ports and label values in all rules, counting named sets at each use.
const MAX_NAMED: u64 = 1_000_000;

/// The largest number of mistakes that are reported.
const MAX_PROBLEMS: usize = 1000;

/// A document of one network.
pub(super) struct Document<'a> {
    pub(super) file: &'a str,
    pub(super) begin: At,
    pub(super) fields: Vec<(Node, Node)>,
}

/// The keys that a document may have.
pub(super) const PARTS: &[&str] = &[
    "network",
    "mode",
    "declarations",
    "on_deny",
    "on_quarantine",
    "on_revoke",
    "timeouts",
    "dns",
    "ports",
    "selectors",
    "services",
    "rules",
    "guardrails",
    "tests",
    "triggers",
    "keys",
    "admission",
    "routes",
    "forensics",
];

/// The entries of a map.
pub(super) struct Parts<'a> {
    pub(super) file: &'a str,
    /// The description of its kind in messages.
    pub(super) what: &'a str,
    pub(super) at: At,
    pub(super) entries: &'a [(Node, Node)],
}

impl<'a> Parts<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        let found = self.entries.iter().find(|(own, _)| own.text() == Some(key));
        found.map(|(_, value)| value).filter(|value| !value.is_nothing())
    }
}

/// Refuses names of sets that could be a port or a protocol.
pub(super) fn check_set_name(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !(1..=63).contains(&text.len()) || !text.chars().all(allowed) {
        let shown: String = text.chars().take(80).collect();
        return Err(format!(
            "`{shown}` cannot name a set: use 1 to 63 letters, digits, `-` and `_`"
        ));
    }
    if text.parse::<PortSpec>().is_ok() {
        return Err(format!("`{text}` is a protocol, and cannot name a set of ports"));
    }
    Ok(())
}

/// The named sets of a policy.
#[derive(Default)]
pub(super) struct Sets {
    pub(super) ports: BTreeMap<String, Vec<PortSpec>>,
    pub(super) selectors: BTreeMap<String, Selector>,
}

#[derive(Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
    /// The number of ports and label values so far.
    pub(super) named: u64,
}

impl Reader {
    pub(super) fn done<T>(mut self, read: T) -> Result<T, BadPolicy> {
        self.problems.sort();
        self.problems.dedup();
        self.problems.truncate(MAX_PROBLEMS);
        if self.problems.is_empty() { Ok(read) } else { Err(BadPolicy(self.problems)) }
    }

    pub(super) fn problem(&mut self, file: &str, at: At, text: impl Into<String>) {
        // A few more than are reported, since they are sorted first.
        if self.problems.len() < 2 * MAX_PROBLEMS {
            self.problems.push(Problem { span: span(file, at), text: text.into() });
        }
    }

    /// Reads the network of a document and its entries.
    pub(super) fn document<'a>(
        &mut self,
        file: &'a str,
        root: Node,
    ) -> Option<(NetworkName, Document<'a>)> {
        let at = root.at;
        let Kind::Map(fields) = root.kind else {
            let text =
                format!("a policy begins with `network: NAME`; {} stands here", root.called());
            self.problem(file, at, text);
            return None;
        };
        let parts = Parts { file, what: "a policy", at, entries: &fields };
        self.check_known(&parts, PARTS);
        let network = self.required::<NetworkName>(&parts, "network");
        let begin = parts.get("network").map_or(at, |node| node.at);
        network.map(|network| (network, Document { file, begin, fields }))
    }

    pub(super) fn check_known(&mut self, parts: &Parts, known: &[&str]) {
        for (key, _) in parts.entries {
            let text = key.text().unwrap_or_default();
            if !known.contains(&text) {
                self.problem(parts.file, key.at, unknown(text, known));
            }
        }
    }

    /// Reads a map with known keys.
    pub(super) fn parts<'a>(
        &mut self,
        file: &'a str,
        what: &'a str,
        node: &'a Node,
        known: &[&str],
    ) -> Option<Parts<'a>> {
        let Kind::Map(entries) = &node.kind else {
            let keys: Vec<String> = known.iter().map(|key| format!("`{key}`")).collect();
            let text = format!(
                "{what} is written with {}; {} stands here",
                keys.join(", "),
                node.called()
            );
            self.problem(file, node.at, text);
            return None;
        };
        let parts = Parts { file, what, at: node.at, entries };
        self.check_known(&parts, known);
        Some(parts)
    }

    pub(super) fn optional<'a, T: Deserialize<'a>>(
        &mut self,
        parts: &Parts<'a>,
        key: &str,
    ) -> Option<T> {
        let node = parts.get(key)?;
        match value(node) {
            Ok(value) => Some(value),
            Err(misfit) => {
                self.problem(parts.file, misfit.at.unwrap_or(node.at), misfit.text);
                None
            }
        }
    }

    pub(super) fn required<'a, T: Deserialize<'a>>(
        &mut self,
        parts: &Parts<'a>,
        key: &str,
    ) -> Option<T> {
        self.there(parts, key)?;
        self.optional(parts, key)
    }

    pub(super) fn there<'a>(&mut self, parts: &Parts<'a>, key: &str) -> Option<&'a Node> {
        let node = parts.get(key);
        if node.is_none() {
            self.problem(parts.file, parts.at, format!("`{key}` is missing in {}", parts.what));
        }
        node
    }

    /// Returns the items of a list; none if the list is left out.
    pub(super) fn list<'a>(&mut self, parts: &Parts<'a>, key: &str) -> &'a [Node] {
        match parts.get(key) {
            None => &[],
            Some(Node { kind: Kind::List(items), .. }) => items,
            Some(node) => {
                let text = format!("`{key}` is a list; {} stands here", node.called());
                self.problem(parts.file, node.at, text);
                &[]
            }
        }
    }

    /// Returns the items of a list as texts with their spans.
    pub(super) fn texts<'a>(&mut self, parts: &Parts<'a>, key: &str) -> Vec<(&'a str, At)> {
        let items = self.list(parts, key);
        let mut texts = Vec::new();
        for item in items {
            match item.text() {
                Some(text) => texts.push((text, item.at)),
                None => self.problem(
                    parts.file,
                    item.at,
                    format!("a text was expected here, not {}", item.called()),
                ),
            }
        }
        texts
    }

    /// Returns the named entries of a map: name, value and the span of the name.
    pub(super) fn named<'a>(
        &mut self,
        parts: &Parts<'a>,
        key: &str,
    ) -> Vec<(&'a str, &'a Node, At)> {
        let entries: &[(Node, Node)] = match parts.get(key) {
            None => &[],
            Some(Node { kind: Kind::Map(entries), .. }) => entries,
            Some(node) => {
                let text = format!("`{key}` is a map of names; {} stands here", node.called());
                self.problem(parts.file, node.at, text);
                &[]
            }
        };
        let mut named = Vec::new();
        for (name, node) in entries {
            let text = name.text().unwrap_or_default();
            match check_set_name(text) {
                Ok(()) => named.push((text, node, name.at)),
                Err(problem) => self.problem(parts.file, name.at, problem),
            }
        }
        named
    }

    /// Counts ports and label values; too many are a mistake, reported once.
    pub(super) fn count(&mut self, file: &str, at: At, more: u64) -> bool {
        let before = self.named;
        self.named += more;
        if self.named <= MAX_NAMED {
            return true;
        }
        if before <= MAX_NAMED {
            let text = format!(
                "the rules name more than {MAX_NAMED} ports and label values, those of named sets \
                at each use; write ranges of ports, and selectors of fewer values"
            );
            self.problem(file, at, text);
        }
        false
    }

    /// Reads a setting that only one document may have.
    pub(super) fn once<'a, T: PartialEq + Deserialize<'a>>(
        &mut self,
        parts: &Parts<'a>,
        key: &str,
        kept: &mut Option<T>,
    ) {
        let Some(given) = self.optional::<T>(parts, key) else { return };
        if kept.as_ref().is_some_and(|kept| *kept != given) {
            let text = format!("another document of this network has another `{key}`; say it once");
            let at = parts.get(key).map_or(parts.at, |node| node.at);
            self.problem(parts.file, at, text);
        }
        *kept = Some(given);
    }

    pub(super) fn fitting<'a, T: Deserialize<'a>>(
        &mut self,
        file: &str,
        node: &'a Node,
    ) -> Option<T> {
        match value(node) {
            Ok(value) => Some(value),
            Err(misfit) => {
                self.problem(file, misfit.at.unwrap_or(node.at), misfit.text);
                None
            }
        }
    }
}

impl Document<'_> {
    pub(super) fn parts(&self) -> Parts<'_> {
        Parts { file: self.file, what: "a policy", at: self.begin, entries: &self.fields }
    }
}
