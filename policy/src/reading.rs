//! Reading policy: YAML documents, in one file or many, to one policy for each network.

use crate::{
    admission::{AdmissionRule, ImagePattern, SigningKey},
    document::{Declarations, ForensicsRule, Mode, Policy, Rule, TestCase, Trigger},
    routes::RouteRule,
};
use ipnet::IpNet;
use meshward_model::{NetworkName, PortSpec, Selector, api::PolicyFile, measurement::Sha256};
use serde::{Deserialize, Deserializer, de};
use serde_saphyr::{Location, Spanned};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    fmt,
};

/// The most bytes of all files together.
pub const MAX_SOURCE: usize = 4 << 20;

/// Where something stands, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line in it.
    pub line: u64,
    /// The character in the line.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Something that is wrong, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What, and how to mend it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// All that is wrong with what was written.
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
pub struct Written {
    /// The policy.
    pub policy: Policy,
    /// Rules, guardrails and triggers by their names.
    pub named: HashMap<String, Place>,
    /// The tests, in their order.
    pub tests: Vec<Place>,
    /// The network's name where it stands first.
    pub begin: Place,
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
                let place = Place { file: "policy".into(), line: 1, column: 1 };
                let text = "one policy was expected here, with its `network:`".into();
                Err(BadPolicy(vec![Problem { place, text }]))
            }
        }
    }
}

/// Reads files: all documents of one network, wherever they stand, are one policy. They share their named sets.
///
/// # Errors
/// [`BadPolicy`]: everything that was found.
pub fn read(files: &[PolicyFile]) -> Result<Vec<Written>, BadPolicy> {
    let Parsed { mut reader, by_network } = parse(files);
    let written =
        by_network.into_iter().map(|(network, documents)| reader.merge(network, documents)).collect();
    reader.done(written)
}

/// The policy of one network, by the files that have a part of it. They may be a part of other networks' policies, too, of
/// which other parts are not here.
#[derive(Debug, Clone)]
pub struct Own {
    /// The policy; none if no document is about the network.
    pub written: Option<Written>,
    /// Where other networks are named.
    pub others: Vec<(Place, NetworkName)>,
}

/// Reads what files say of one network.
///
/// # Errors
/// [`BadPolicy`]: everything that was found, but for what other networks' documents mean.
pub fn read_own(files: &[PolicyFile], network: &NetworkName) -> Result<Own, BadPolicy> {
    let Parsed { mut reader, mut by_network } = parse(files);
    let own = by_network.remove(network);
    let written = own.map(|documents| reader.merge(network.clone(), documents));
    let mut others = Vec::new();
    for (network, documents) in by_network {
        let places = documents.iter().map(|(file, document)| place(file, Some(document.network.defined)));
        others.extend(places.map(|place| (place, network.clone())));
    }
    reader.done(Own { written, others })
}

/// Documents, before what they say is put together.
#[derive(Default)]
struct Parsed<'a> {
    reader: Reader,
    by_network: BTreeMap<NetworkName, Vec<(&'a str, Document)>>,
}

fn parse(files: &[PolicyFile]) -> Parsed<'_> {
    let mut parsed = Parsed::default();
    let Parsed { reader, by_network } = &mut parsed;
    let total: usize = files.iter().map(|file| file.text.len()).sum();
    if total > MAX_SOURCE {
        let text = format!("the policy has {total} bytes; at most {MAX_SOURCE} are taken");
        reader.problem(files.first().map_or("", |file| &file.name), None, text);
        return parsed;
    }
    let mut names = BTreeSet::new();
    for file in files {
        if !names.insert(&file.name) {
            reader.problem(&file.name, None, "two files have this name; give each its own");
        }
        match serde_saphyr::from_multiple::<Document>(&file.text) {
            Ok(documents) => {
                if documents.is_empty() {
                    reader.problem(&file.name, None, "the file holds no policy; begin with `network: NAME`");
                }
                for document in documents {
                    let network = document.network.value.clone();
                    by_network.entry(network).or_default().push((&file.name, document));
                }
            }
            Err(error) => {
                let text = error.without_snippet().to_string();
                reader.problem(&file.name, error.location(), plain(&text));
            }
        }
    }
    parsed
}

/// A parser's message without the place, which is said in front.
fn plain(text: &str) -> &str {
    let first = text.lines().next().unwrap_or(text);
    let end = first.find(" at line ").unwrap_or(first.len());
    let begin = first[..end].strip_prefix("error: ").map_or(0, |_| "error: ".len());
    first[begin..end].trim()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    network: Spanned<NetworkName>,
    mode: Option<Spanned<Mode>>,
    declarations: Option<Spanned<Declarations>>,
    #[serde(default)]
    ports: BTreeMap<Name, Vec<PortSpec>>,
    #[serde(default)]
    selectors: BTreeMap<Name, Selector>,
    #[serde(default)]
    rules: Vec<Spanned<RawRule>>,
    #[serde(default)]
    guardrails: Vec<Spanned<RawRule>>,
    #[serde(default)]
    tests: Vec<Spanned<TestCase>>,
    #[serde(default)]
    triggers: Vec<Spanned<Trigger>>,
    #[serde(default)]
    keys: BTreeMap<Name, Spanned<String>>,
    #[serde(default)]
    admission: Vec<Spanned<RawAdmission>>,
    #[serde(default)]
    routes: Vec<Spanned<RawRoute>>,
    #[serde(default)]
    forensics: Vec<Spanned<RawForensics>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawForensics {
    name: Spanned<String>,
    from: Spanned<Who>,
    to: Option<Spanned<Who>>,
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    over_guardrails: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    name: Spanned<String>,
    #[serde(rename = "for")]
    who: Option<Spanned<Who>>,
    within: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdmission {
    name: Spanned<String>,
    #[serde(rename = "for")]
    who: Option<Spanned<Who>>,
    #[serde(default)]
    images: Vec<Spanned<String>>,
    #[serde(default)]
    signed_by: Vec<Spanned<String>>,
    #[serde(default)]
    config: Vec<Sha256>,
    #[serde(default)]
    privileges: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Spanned<String>,
    from: Spanned<Who>,
    to: Spanned<Who>,
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    deny: Vec<Spanned<String>>,
    #[serde(default)]
    observe: bool,
}

/// A named set's name: such that it can be no port and no protocol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct Name(String);

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !(1..=63).contains(&text.len()) || !text.chars().all(allowed) {
            return Err(format!("`{text}` cannot name a set: use 1 to 63 letters, digits, `-` and `_`"));
        }
        if text.parse::<PortSpec>().is_ok() {
            return Err(format!("`{text}` is a protocol, and cannot name a set of ports"));
        }
        Ok(Self(text))
    }
}

enum Who {
    Named(String),
    Selector(Selector),
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Who;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("labels such as { app: web }, or the name of one of `selectors`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Who, E> {
                Ok(Who::Named(name.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Who, A::Error> {
                Selector::deserialize(de::value::MapAccessDeserializer::new(map)).map(Who::Selector)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
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
}

impl Reader {
    fn done<T>(mut self, read: T) -> Result<T, BadPolicy> {
        self.problems.sort();
        if self.problems.is_empty() { Ok(read) } else { Err(BadPolicy(self.problems)) }
    }

    fn problem(&mut self, file: &str, at: Option<Location>, text: impl Into<String>) {
        self.problems.push(Problem { place: place(file, at), text: text.into() });
    }

    fn merge(&mut self, network: NetworkName, documents: Vec<(&str, Document)>) -> Written {
        let sets = self.sets(&documents);
        let keys = self.keys(&documents);
        let begin = documents.first().map(|(file, document)| place(file, Some(document.network.defined)));
        let mut written = Written {
            policy: Policy::deny_all(network),
            named: HashMap::new(),
            tests: Vec::new(),
            begin: begin.unwrap_or_else(|| place("policy", None)),
            files: documents.iter().map(|(file, _)| (*file).to_owned()).collect(),
        };
        let (mut mode, mut declarations) = (None, None);
        for (file, document) in documents {
            self.once(file, "mode", document.mode, &mut mode);
            self.once(file, "declarations", document.declarations, &mut declarations);
            for rule in document.rules {
                let rule = self.rule(file, &sets, rule, &mut written.named);
                written.policy.rules.extend(rule);
            }
            for rule in document.guardrails {
                let rule = self.rule(file, &sets, rule, &mut written.named);
                written.policy.guardrails.extend(rule);
            }
            for test in document.tests {
                written.tests.push(place(file, Some(test.defined)));
                written.policy.tests.push(test.value);
            }
            for trigger in document.triggers {
                self.name(file, &trigger.value.name, trigger.defined, &mut written.named);
                if let Err(text) = check_trigger(&trigger.value) {
                    self.problem(file, Some(trigger.defined), text);
                }
                written.policy.triggers.push(trigger.value);
            }
            for rule in document.admission {
                let rule = self.admission(file, &sets, &keys, rule.value, &mut written.named);
                written.policy.admission.extend(rule);
            }
            for rule in document.forensics {
                let rule = self.forensics(file, &sets, rule.value, &mut written.named);
                written.policy.forensics.extend(rule);
            }
            for rule in document.routes {
                let rule = self.route(file, &sets, rule.value, &mut written.named);
                written.policy.routes.extend(rule);
            }
        }
        written.policy.keys = keys;
        written.policy.mode = mode.unwrap_or_default();
        written.policy.declarations = declarations.unwrap_or_default();
        written
    }

    /// Takes a setting that only one document may have.
    fn once<T: PartialEq>(&mut self, file: &str, key: &str, given: Option<Spanned<T>>, kept: &mut Option<T>) {
        let Some(given) = given else { return };
        if kept.as_ref().is_some_and(|kept| *kept != given.value) {
            let text = format!("another document of this network has another `{key}`; say it once");
            self.problem(file, Some(given.defined), text);
        }
        *kept = Some(given.value);
    }

    fn sets(&mut self, documents: &[(&str, Document)]) -> Sets {
        let mut sets = Sets::default();
        for (file, document) in documents {
            let at = Some(document.network.defined);
            for (Name(name), ports) in &document.ports {
                if sets.ports.insert(name.clone(), ports.clone()).is_some_and(|before| before != *ports) {
                    self.problem(
                        file,
                        at,
                        format!("another document of this network has other ports under `{name}`"),
                    );
                }
            }
            for (Name(name), selector) in &document.selectors {
                let before = sets.selectors.insert(name.clone(), selector.clone());
                if before.is_some_and(|before| before != *selector) {
                    self.problem(
                        file,
                        at,
                        format!("another document of this network has another selector under `{name}`"),
                    );
                }
            }
        }
        sets
    }

    fn keys(&mut self, documents: &[(&str, Document)]) -> BTreeMap<String, SigningKey> {
        let mut keys = BTreeMap::new();
        for (file, document) in documents {
            for (Name(name), pem) in &document.keys {
                match pem.value.parse::<SigningKey>() {
                    Ok(key) => {
                        if keys.insert(name.clone(), key.clone()).is_some_and(|before| before != key) {
                            let text =
                                format!("another document of this network has another key under `{name}`");
                            self.problem(file, Some(pem.defined), text);
                        }
                    }
                    Err(text) => self.problem(file, Some(pem.defined), format!("key `{name}`: {text}")),
                }
            }
        }
        keys
    }

    fn name(&mut self, file: &str, name: &str, at: Location, named: &mut HashMap<String, Place>) {
        if !(1..=128).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            let shown: String = name.chars().take(128).collect();
            let text = format!("`{shown}` is not a rule name: use 1 to 128 printable characters");
            self.problem(file, Some(at), text);
        }
        match named.entry(name.to_owned()) {
            Entry::Vacant(free) => {
                free.insert(place(file, Some(at)));
            }
            Entry::Occupied(taken) => {
                let text = format!(
                    "there is a `{name}` already, at {}; give each its own name, so that `meshctl explain` can tell them apart",
                    taken.get()
                );
                self.problem(file, Some(at), text);
            }
        }
    }

    fn rule(
        &mut self,
        file: &str,
        sets: &Sets,
        rule: Spanned<RawRule>,
        named: &mut HashMap<String, Place>,
    ) -> Option<Rule> {
        let at = rule.defined;
        let RawRule { name, from, to, allow, deny, observe } = rule.value;
        self.name(file, &name.value, name.defined, named);
        let name = name.value;
        if allow.is_empty() == deny.is_empty() {
            let text = format!(
                "rule `{name}` must have either `allow` or `deny`, with at least one port; write for instance `allow: [tcp/8080]`"
            );
            self.problem(file, Some(at), text);
        }
        if observe && deny.is_empty() {
            let text = format!(
                "rule `{name}` allows: there is nothing to observe; `observe: true` goes with `deny`, or `mode: observe` with the whole policy"
            );
            self.problem(file, Some(at), text);
        }
        let (from, to) = (self.who(file, sets, from), self.who(file, sets, to));
        let (allow, deny) = (self.ports(file, sets, allow), self.ports(file, sets, deny));
        Some(Rule { name, from: from?, to: to?, allow, deny, observe })
    }

    fn admission(
        &mut self,
        file: &str,
        sets: &Sets,
        keys: &BTreeMap<String, SigningKey>,
        rule: RawAdmission,
        named: &mut HashMap<String, Place>,
    ) -> Option<AdmissionRule> {
        let RawAdmission { name, who, images, signed_by, config, privileges } = rule;
        self.name(file, &name.value, name.defined, named);
        let mut patterns = Vec::new();
        for image in images {
            match image.value.parse::<ImagePattern>() {
                Ok(pattern) => patterns.push(pattern),
                Err(text) => self.problem(file, Some(image.defined), text),
            }
        }
        for key in signed_by.iter().filter(|key| !keys.contains_key(&key.value)) {
            let mend = did_you_mean(&key.value, keys.keys().map(String::as_str))
                .unwrap_or_else(|| "put its PEM text under `keys:`".into());
            self.problem(file, Some(key.defined), format!("no key is called `{}`; {mend}", key.value));
        }
        let who = match who {
            Some(who) => self.who(file, sets, who)?,
            None => Selector::default(),
        };
        let signed_by = signed_by.into_iter().map(|key| key.value).collect();
        Some(AdmissionRule { name: name.value, who, images: patterns, signed_by, config, privileges })
    }

    fn forensics(
        &mut self,
        file: &str,
        sets: &Sets,
        rule: RawForensics,
        named: &mut HashMap<String, Place>,
    ) -> Option<ForensicsRule> {
        let RawForensics { name, from, to, allow, over_guardrails } = rule;
        self.name(file, &name.value, name.defined, named);
        let allow = match allow.is_empty() {
            true => vec![PortSpec::ANY],
            false => self.ports(file, sets, allow),
        };
        let (from, to) = (self.who(file, sets, from), to.map(|to| self.who(file, sets, to)));
        let to = to.unwrap_or_else(|| Some(Selector::default()));
        let rule = Rule { name: name.value, from: from?, to: to?, allow, deny: vec![], observe: false };
        Some(ForensicsRule { rule, over_guardrails })
    }

    fn route(
        &mut self,
        file: &str,
        sets: &Sets,
        rule: RawRoute,
        named: &mut HashMap<String, Place>,
    ) -> Option<RouteRule> {
        let RawRoute { name, who, within } = rule;
        self.name(file, &name.value, name.defined, named);
        let mut prefixes = Vec::new();
        for prefix in within {
            match prefix.value.parse::<IpNet>() {
                Ok(prefix) => prefixes.push(prefix.trunc()),
                Err(_) => {
                    let text = format!("`{}` is no prefix; write one such as 10.8.0.0/16", prefix.value);
                    self.problem(file, Some(prefix.defined), text);
                }
            }
        }
        let who = match who {
            Some(who) => self.who(file, sets, who)?,
            None => Selector::default(),
        };
        Some(RouteRule { name: name.value, who, within: prefixes })
    }

    fn who(&mut self, file: &str, sets: &Sets, who: Spanned<Who>) -> Option<Selector> {
        let name = match who.value {
            Who::Selector(selector) => return Some(selector),
            Who::Named(name) => name,
        };
        if let Some(selector) = sets.selectors.get(&name) {
            return Some(selector.clone());
        }
        let mend = did_you_mean(&name, sets.selectors.keys().map(String::as_str))
            .unwrap_or_else(|| "name one under `selectors:`, or write labels such as { app: web }".into());
        self.problem(file, Some(who.defined), format!("no selector is called `{name}`; {mend}"));
        None
    }

    fn ports(&mut self, file: &str, sets: &Sets, written: Vec<Spanned<String>>) -> Vec<PortSpec> {
        let mut ports = Vec::new();
        for Spanned { value: text, defined, .. } in written {
            match (text.parse::<PortSpec>(), sets.ports.get(&text)) {
                (Ok(port), _) => ports.push(port),
                (Err(_), Some(set)) => ports.extend(set),
                (Err(error), None) => {
                    let known =
                        sets.ports.keys().map(String::as_str).chain(["tcp", "udp", "sctp", "icmp", "any"]);
                    let mend = did_you_mean(text.split('/').next().unwrap_or_default(), known);
                    let text = match mend {
                        Some(mend) => format!("{error}; {mend}"),
                        None => error.to_string(),
                    };
                    self.problem(file, Some(defined), text);
                }
            }
        }
        ports
    }
}

fn check_trigger(trigger: &Trigger) -> Result<(), String> {
    use crate::document::Reaction;
    let name = &trigger.name;
    if let Err(text) = trigger.when.check() {
        return Err(format!("trigger `{name}`: {text}"));
    }
    match &trigger.then {
        Reaction::Label(labels) if labels.is_empty() => Err(format!("trigger `{name}` gives no label")),
        Reaction::Label(labels) => {
            labels.check_unreserved().map_err(|error| format!("trigger `{name}`: {error}"))
        }
        Reaction::Webhook(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
            Err(format!("trigger `{name}`: `{url}` is no URL; begin with http:// or https://"))
        }
        _ if trigger.alone && trigger.then != Reaction::Quarantine => {
            Err(format!("trigger `{name}`: a node alone can quarantine and nothing else; leave out `alone`"))
        }
        _ => Ok(()),
    }
}

/// The nearest of what is known, as a sentence.
pub(crate) fn did_you_mean<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let near = known.map(|word| (strsim::damerau_levenshtein(given, word), word)).min()?;
    let most = (given.chars().count() / 3).max(1);
    (near.0 <= most && near.0 > 0).then(|| format!("did you mean `{}`?", near.1))
}

fn place(file: &str, at: Option<Location>) -> Place {
    let (line, column) = at.map_or((1, 1), |at| (at.line().max(1), at.column().max(1)));
    Place { file: file.to_owned(), line, column }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Action, Expect};

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

    fn file(name: &str, text: &str) -> PolicyFile {
        PolicyFile { name: name.into(), text: text.into() }
    }

    #[test]
    fn the_language_of_the_design_page_is_read() {
        let policy = Policy::parse(SHOP).unwrap();
        assert_eq!(policy.rules[0].allow.len(), 2);
        assert_eq!(policy.guardrails[0].action(), Action::Deny);
        assert_eq!(policy.tests[0].expect, Expect::Deny);
    }

    #[test]
    fn a_mistake_is_named_with_its_place_and_its_mend() {
        for (find, replace, says) in [
            ("tcp/8080", "tpc/8080", "policy:7:13: `tpc/8080` is not a port: no protocol is called `tpc`"),
            ("tcp/8080", "tpc/8080", "did you mean `tcp`?"),
            ("allow: [tcp/8080, icmp]", "alow: [tcp/8080]", "alow"),
            ("in: [prod, stage]", "in: []", "empty list"),
            ("expect: deny", "expect: maybe", "maybe"),
            ("{ app: web }\n    to", "webs\n    to", "no selector is called `webs`"),
        ] {
            let text = SHOP.replace(find, replace);
            assert_ne!(text, SHOP, "{find}");
            let error = Policy::parse(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.starts_with("policy:") && !error.contains(" at line "), "{error}");
        }
    }

    #[test]
    fn a_rule_does_one_thing_under_a_name_of_its_own() {
        let said = |text: &str| Policy::parse(text).unwrap_err().to_string();
        let neither = SHOP.replace("    allow: [tcp/8080, icmp]\n", "");
        assert!(said(&neither).contains("either `allow` or `deny`"));
        let twice = SHOP.replace("dev-never-reaches-prod", "web-to-api");
        assert!(
            said(&twice).contains("policy:9:11: there is a `web-to-api` already, at policy:4:11"),
            "{}",
            said(&twice)
        );
        let observed = SHOP.replace("icmp]", "icmp]\n    observe: true");
        assert!(said(&observed).contains("nothing to observe"));
    }

    #[test]
    fn files_and_documents_of_a_network_are_one_policy_and_share_their_sets() {
        let sets = "network: shop\nports: { web: [tcp/80, tcp/443] }\nselectors: { front: { app: web } }\n";
        let use_of = "network: shop\nrules: [{ name: a, from: front, to: { app: api }, allow: [web, icmp] }]\n---\nnetwork: lab\nmode: observe\n";
        let all = read(&[file("sets.yaml", sets), file("b.yaml", use_of)]).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].policy.network.as_str(), all[0].policy.mode), ("lab", Mode::Observe));
        let rule = &all[1].policy.rules[0];
        assert_eq!((rule.from.to_string().as_str(), rule.allow.len()), ("app=web", 3));
        assert_eq!(all[1].named["a"].to_string(), "b.yaml:2:17");
        let error =
            read(&[file("a.yaml", use_of), file("b.yaml", "network: shop\nports: { wob: [tcp/80] }")])
                .unwrap_err();
        assert_eq!(error.0.len(), 2, "{error}");
        assert!(error.to_string().contains("did you mean `wob`?"), "{error}");
    }

    #[test]
    fn settings_and_sets_are_said_once() {
        let one = "network: shop\nmode: observe\nports: { web: [tcp/80] }";
        let other = "network: shop\nmode: enforce\nports: { web: [tcp/81] }";
        let error = read(&[file("a", one), file("b", other)]).unwrap_err();
        assert_eq!(error.0.len(), 2, "{error}");
        assert!(
            read(&[file("a", "network: shop\nports: { tcp: [tcp/80] }")])
                .unwrap_err()
                .to_string()
                .contains("is a protocol")
        );
    }

    #[test]
    fn triggers_are_read_and_checked() {
        let text = |then: &str| {
            format!(
                "network: shop\ntriggers: [{{ name: scan, when: {{ denied_flows: 20, distinct_ports: 10, within: 10s }}, then: {then}, for: 10m }}]"
            )
        };
        let policy = Policy::parse(&text("quarantine")).unwrap();
        assert_eq!(
            policy.triggers[0].lasts,
            Some(meshward_model::Lasting(std::time::Duration::from_secs(600)))
        );
        assert!(Policy::parse(&text("{ label: { suspect: yes } }")).is_ok());
        for (then, says) in
            [("{ label: {} }", "gives no label"), ("{ webhook: x }", "is no URL"), ("sleep", "sleep")]
        {
            let error = Policy::parse(&text(then)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let nothing = text("quarantine").replace("denied_flows: 20, distinct_ports: 10, ", "");
        assert!(Policy::parse(&nothing).unwrap_err().to_string().contains("denied_flows"));
    }

    #[test]
    fn hostile_yaml_is_refused() {
        let bomb = "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nnetwork: shop";
        assert!(Policy::parse(bomb).is_err());
        assert!(Policy::parse(&"[".repeat(100_000)).is_err());
        assert!(Policy::parse("").is_err());
    }
}
