//! Reading policy: YAML documents, in one file or many, to one policy for each network. All that is
//! wrong is said at once.

mod own;
mod rules;
mod tree;
mod value;

pub use own::own_documents;

use crate::{admission::SigningKey, document::Policy};
use meshward_types::{FlowTimeouts, NetworkName, PolicyFile, PortSpec, Selector};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};
use tree::{At, Kind, Node, documents};
use value::{unknown, value};

/// The most bytes of all files together.
pub const MAX_SOURCE: usize = 4 << 20;
/// The most ports and label values that all rules name, those of named sets at each use.
const MAX_NAMED: u64 = 1_000_000;
/// The most mistakes that are told.
const MAX_PROBLEMS: usize = 1000;

/// Where something stands, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceSpan {
    /// The file.
    pub file: String,
    /// The line in it.
    pub line: u64,
    /// The character in the line.
    pub column: u64,
}

impl fmt::Display for SourceSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Something that is wrong, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub span: SourceSpan,
    /// What, and how to mend it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.span, self.text)
    }
}

/// All that is wrong with the files of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPolicy(pub Vec<Problem>);

impl std::error::Error for BadPolicy {}

impl fmt::Display for BadPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// A policy, and where its parts stand.
#[derive(Debug, Clone)]
pub struct ParsedPolicy {
    /// The policy.
    pub policy: Policy,
    /// Rules, guardrails and triggers by their names.
    pub named: HashMap<String, SourceSpan>,
    /// The tests, in their order.
    pub tests: Vec<SourceSpan>,
    /// The network's name where it stands first.
    pub begin: SourceSpan,
    /// The timeouts, if there are any.
    pub timeouts: Option<SourceSpan>,
    /// The files that have a part of it.
    pub files: BTreeSet<String>,
}

impl Policy {
    /// Reads the one policy that a text holds.
    ///
    /// # Errors
    /// [`BadPolicy`], with line and column.
    pub fn parse(source: &str) -> Result<Self, BadPolicy> {
        let file = PolicyFile { name: "policy".into(), text: source.to_owned() };
        let mut all = read(&[file])?;
        match all.pop() {
            Some(only) if all.is_empty() => Ok(only.policy),
            _ => {
                let span = SourceSpan { file: "policy".into(), line: 1, column: 1 };
                let text = "one policy was expected here, with its `network:`".into();
                Err(BadPolicy(vec![Problem { span, text }]))
            }
        }
    }
}

/// Reads files: all documents of one network, wherever they stand, are one policy. They share their
/// named sets.
///
/// # Errors
/// [`BadPolicy`]: everything that was found.
pub fn read(files: &[PolicyFile]) -> Result<Vec<ParsedPolicy>, BadPolicy> {
    let ParsedDocuments { mut reader, by_network } = parse(files);
    let parsed = by_network
        .into_iter()
        .map(|(network, documents)| reader.merge(network, documents))
        .collect();
    reader.done(parsed)
}

/// The policy of one network, by the files that have a part of it. They may be a part of other
/// networks' policies, too, of which other parts are not here.
#[derive(Debug, Clone)]
pub struct NetworkPolicy {
    /// The policy; none if no document is about the network.
    pub parsed: Option<ParsedPolicy>,
    /// Where other networks are named.
    pub others: Vec<(SourceSpan, NetworkName)>,
}

/// Reads what files say of one network.
///
/// # Errors
/// [`BadPolicy`]: everything that was found, but for what other networks' documents mean.
pub fn read_own(files: &[PolicyFile], network: &NetworkName) -> Result<NetworkPolicy, BadPolicy> {
    let ParsedDocuments { mut reader, mut by_network } = parse(files);
    let own = by_network.remove(network);
    let parsed = own.map(|documents| reader.merge(network.clone(), documents));
    let mut others = Vec::new();
    for (network, documents) in by_network {
        let spans = documents.iter().map(|document| span(document.file, document.begin));
        others.extend(spans.map(|span| (span, network.clone())));
    }
    reader.done(NetworkPolicy { parsed, others })
}

/// Documents, before what they say is put together.
#[derive(Default)]
struct ParsedDocuments<'a> {
    reader: Reader,
    by_network: BTreeMap<NetworkName, Vec<Document<'a>>>,
}

/// A document of one network.
struct Document<'a> {
    file: &'a str,
    begin: At,
    fields: Vec<(Node, Node)>,
}

/// What a document may say.
const PARTS: &[&str] = &[
    "network",
    "mode",
    "declarations",
    "on_deny",
    "on_quarantine",
    "on_revoke",
    "timeouts",
    "ports",
    "selectors",
    "rules",
    "guardrails",
    "tests",
    "triggers",
    "keys",
    "admission",
    "routes",
    "forensics",
];

fn parse(files: &[PolicyFile]) -> ParsedDocuments<'_> {
    let mut parsed = ParsedDocuments::default();
    let ParsedDocuments { reader, by_network } = &mut parsed;
    let total: usize = files.iter().map(|file| file.text.len()).sum();
    if total > MAX_SOURCE {
        let text = format!(
            "the policy has {total} bytes in all, and {MAX_SOURCE} are taken; make several networks of it, or name sets of ports and selectors"
        );
        reader.problem(files.first().map_or("", |file| &file.name), At::START, text);
        return parsed;
    }
    let mut names = BTreeSet::new();
    for file in files {
        if !names.insert(&file.name) {
            reader.problem(&file.name, At::START, "two files have this name; give each its own");
        }
        let read = documents(&file.text);
        if read.roots.is_empty() && read.problems.is_empty() {
            reader.problem(
                &file.name,
                At::START,
                "the file holds no policy; begin with `network: NAME`",
            );
        }
        for (at, text) in read.problems {
            reader.problem(&file.name, at, text);
        }
        for root in read.roots {
            if let Some((network, document)) = reader.document(&file.name, root) {
                by_network.entry(network).or_default().push(document);
            }
        }
    }
    parsed
}

/// The parts of one thing that is written as a map.
struct Parts<'a> {
    file: &'a str,
    /// What it is, for people.
    what: &'a str,
    at: At,
    entries: &'a [(Node, Node)],
}

impl<'a> Parts<'a> {
    fn get(&self, key: &str) -> Option<&'a Node> {
        let found = self.entries.iter().find(|(own, _)| own.text() == Some(key));
        found.map(|(_, value)| value).filter(|value| !value.is_nothing())
    }
}

/// Refuses what cannot name a set: it can be no port and no protocol.
fn check_set_name(text: &str) -> Result<(), String> {
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

/// What a policy's documents have named.
#[derive(Default)]
struct Sets {
    ports: BTreeMap<String, Vec<PortSpec>>,
    selectors: BTreeMap<String, Selector>,
}

#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
    /// Ports and label values that were named.
    named: u64,
}

impl Reader {
    fn done<T>(mut self, read: T) -> Result<T, BadPolicy> {
        self.problems.sort();
        self.problems.dedup();
        self.problems.truncate(MAX_PROBLEMS);
        if self.problems.is_empty() { Ok(read) } else { Err(BadPolicy(self.problems)) }
    }

    fn problem(&mut self, file: &str, at: At, text: impl Into<String>) {
        // Some more than are told: they are told in their order.
        if self.problems.len() < 2 * MAX_PROBLEMS {
            self.problems.push(Problem { span: span(file, at), text: text.into() });
        }
    }

    /// The network of a document, and what it says.
    fn document<'a>(&mut self, file: &'a str, root: Node) -> Option<(NetworkName, Document<'a>)> {
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

    fn check_known(&mut self, parts: &Parts, known: &[&str]) {
        for (key, _) in parts.entries {
            let text = key.text().unwrap_or_default();
            if !known.contains(&text) {
                self.problem(parts.file, key.at, unknown(text, known));
            }
        }
    }

    /// The parts of something that is to be a map with some keys.
    fn parts<'a>(
        &mut self,
        file: &'a str,
        what: &'a str,
        node: &'a Node,
        known: &[&str],
    ) -> Option<Parts<'a>> {
        let Kind::Map(entries) = &node.kind else {
            let keys: Vec<String> = known.iter().map(|key| format!("`{key}`")).collect();
            let text =
                format!("{what} is parsed with {}; {} stands here", keys.join(", "), node.called());
            self.problem(file, node.at, text);
            return None;
        };
        let parts = Parts { file, what, at: node.at, entries };
        self.check_known(&parts, known);
        Some(parts)
    }

    fn optional<'a, T: Deserialize<'a>>(&mut self, parts: &Parts<'a>, key: &str) -> Option<T> {
        let node = parts.get(key)?;
        match value(node) {
            Ok(value) => Some(value),
            Err(misfit) => {
                self.problem(parts.file, misfit.at.unwrap_or(node.at), misfit.text);
                None
            }
        }
    }

    fn required<'a, T: Deserialize<'a>>(&mut self, parts: &Parts<'a>, key: &str) -> Option<T> {
        self.there(parts, key)?;
        self.optional(parts, key)
    }

    fn there<'a>(&mut self, parts: &Parts<'a>, key: &str) -> Option<&'a Node> {
        let node = parts.get(key);
        if node.is_none() {
            self.problem(parts.file, parts.at, format!("`{key}` is missing in {}", parts.what));
        }
        node
    }

    /// The items of a list; a list that is left out has none.
    fn list<'a>(&mut self, parts: &Parts<'a>, key: &str) -> &'a [Node] {
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

    /// The items of a list as texts with their spans.
    fn texts<'a>(&mut self, parts: &Parts<'a>, key: &str) -> Vec<(&'a str, At)> {
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

    /// Named things: name, value and the span of the name.
    fn named<'a>(&mut self, parts: &Parts<'a>, key: &str) -> Vec<(&'a str, &'a Node, At)> {
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

    /// Counts ports and label values; too many are a mistake, said once.
    fn count(&mut self, file: &str, at: At, more: u64) -> bool {
        let before = self.named;
        self.named += more;
        if self.named <= MAX_NAMED {
            return true;
        }
        if before <= MAX_NAMED {
            let text = format!(
                "the rules name more than {MAX_NAMED} ports and label values, those of named sets at each use; write ranges of ports, and selectors of fewer values"
            );
            self.problem(file, at, text);
        }
        false
    }

    fn merge(&mut self, network: NetworkName, documents: Vec<Document<'_>>) -> ParsedPolicy {
        let sets = self.sets(&documents);
        let keys = self.keys(&documents);
        let begin = documents.first().map(|document| span(document.file, document.begin));
        let mut parsed = ParsedPolicy {
            policy: Policy::deny_all(network),
            named: HashMap::new(),
            tests: Vec::new(),
            timeouts: None,
            begin: begin.unwrap_or_else(|| span("policy", At::START)),
            files: documents.iter().map(|document| document.file.to_owned()).collect(),
        };
        let (mut mode, mut declarations) = (None, None);
        let (mut on_deny, mut on_quarantine, mut on_revoke) = (None, None, None);
        let mut timeouts = None;
        for document in &documents {
            let parts = document.parts();
            self.once(&parts, "mode", &mut mode);
            self.once(&parts, "declarations", &mut declarations);
            self.once(&parts, "on_deny", &mut on_deny);
            self.once(&parts, "on_quarantine", &mut on_quarantine);
            self.once(&parts, "on_revoke", &mut on_revoke);
            self.once(&parts, "timeouts", &mut timeouts);
            self.check_timeouts(&parts, &mut parsed);
            self.take(&parts, &sets, &keys, &mut parsed);
        }
        parsed.policy.keys = keys;
        parsed.policy.mode = mode.unwrap_or_default();
        parsed.policy.declarations = declarations.unwrap_or_default();
        parsed.policy.on_deny = on_deny.unwrap_or_default();
        parsed.policy.on_quarantine = on_quarantine.unwrap_or_default();
        parsed.policy.on_revoke = on_revoke.unwrap_or_default();
        parsed.policy.timeouts = timeouts.unwrap_or_default();
        parsed
    }

    fn take(
        &mut self,
        parts: &Parts,
        sets: &Sets,
        keys: &BTreeMap<String, SigningKey>,
        parsed: &mut ParsedPolicy,
    ) {
        let ParsedPolicy { policy, named, tests, .. } = parsed;
        for node in self.list(parts, "rules") {
            policy.rules.extend(self.rule(parts.file, sets, node, named));
        }
        for node in self.list(parts, "guardrails") {
            policy.guardrails.extend(self.rule(parts.file, sets, node, named));
        }
        for node in self.list(parts, "tests") {
            if let Some(test) = self.test(parts.file, node) {
                tests.push(span(parts.file, node.at));
                policy.tests.push(test);
            }
        }
        for node in self.list(parts, "triggers") {
            policy.triggers.extend(self.trigger(parts.file, node, named));
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

    /// Takes a setting that only one document may have.
    fn once<'a, T: PartialEq + Deserialize<'a>>(
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

    fn check_timeouts(&mut self, parts: &Parts, parsed: &mut ParsedPolicy) {
        let Some(node) = parts.get("timeouts") else { return };
        parsed.timeouts = Some(span(parts.file, node.at));
        // What cannot be read is said elsewhere.
        let Ok(timeouts) = value::<FlowTimeouts>(node) else { return };
        if let Err(text) = timeouts.check() {
            self.problem(parts.file, node.at, text);
        }
    }

    fn sets(&mut self, documents: &[Document<'_>]) -> Sets {
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

    fn fitting<'a, T: Deserialize<'a>>(&mut self, file: &str, node: &'a Node) -> Option<T> {
        match value(node) {
            Ok(value) => Some(value),
            Err(misfit) => {
                self.problem(file, misfit.at.unwrap_or(node.at), misfit.text);
                None
            }
        }
    }

    fn keys(&mut self, documents: &[Document<'_>]) -> BTreeMap<String, SigningKey> {
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

impl Document<'_> {
    fn parts(&self) -> Parts<'_> {
        Parts { file: self.file, what: "a policy", at: self.begin, entries: &self.fields }
    }
}

/// The nearest of what is known, as a sentence.
pub(crate) fn did_you_mean<'a>(
    given: &str,
    known: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let near = known.map(|word| (strsim::damerau_levenshtein(given, word), word)).min()?;
    let most = (given.chars().count() / 3).max(1);
    (near.0 <= most && near.0 > 0).then(|| format!("did you mean `{}`?", near.1))
}

fn span(file: &str, at: At) -> SourceSpan {
    SourceSpan { file: file.to_owned(), line: at.line.into(), column: at.column.into() }
}

#[cfg(test)]
mod tests;
