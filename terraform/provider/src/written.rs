//! Policy files: those that users write, and those that are generated from blocks of configuration.

use crate::services;
use meshward_policy::{
    Action, BadPolicy, Budget, Declarations, Destination, Mode, Policy, Problem, Rule, Shared,
    Target, TestCase, run_tests,
};
use meshward_terraform::{Diagnostic, Diagnostics, Path, Value};
use meshward_types::{Labels, NetworkName, OnDeny, OnRevoke, OutsideTarget, PolicyFile, Selector};
use serde_json::{Map, json};
use std::slice;

/// The file that is generated from the blocks of a `meshward_policy`.
pub(crate) const POLICY: &str = "terraform/policy.yaml";
/// The file that is generated from a `meshward_admission`. Applying a `meshward_policy` leaves it
/// unchanged.
pub(crate) const ADMISSION: &str = "terraform/admission.yaml";

/// The timeouts of a policy; the attributes' names are these with the suffix `_timeout`.
pub(crate) const TIMEOUTS: [&str; 4] = ["tcp_established", "tcp_transitory", "udp", "icmp"];
/// The settings of a policy whose value is one word.
pub(crate) const WORDS: [&str; 5] =
    ["mode", "declarations", "on_deny", "on_quarantine", "on_revoke"];

/// A file that is generated from blocks. Each block is one line of it, so that the line of an error
/// identifies the block.
#[derive(Default)]
pub(crate) struct Written {
    pub text: String,
    lines: Vec<Path>,
}

/// A type of block, and the list of the policy that it is written to.
struct Blocks {
    /// The key of the list.
    title: &'static str,
    /// The type of the block.
    block: &'static str,
    /// The attribute that diagnostics about the block point to: Terraform shows no line for a block
    /// itself.
    anchor: &'static str,
    /// Converts a block to an item of the list.
    item: fn(&Value) -> Result<serde_json::Value, Diagnostic>,
}

const SERVICES: Blocks =
    Blocks { title: "services", block: "service", anchor: "name", item: services::item };
const RULES: Blocks = Blocks { title: "rules", block: "rule", anchor: "name", item: rule };
const GUARDRAILS: Blocks =
    Blocks { title: "guardrails", block: "guardrail", anchor: "name", item: rule };
const TESTS: Blocks = Blocks { title: "tests", block: "test", anchor: "expect", item: test };
const ADMISSION_RULES: Blocks =
    Blocks { title: "admission", block: "rule", anchor: "name", item: admission_rule };

impl Written {
    fn line(&mut self, path: Path, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        self.lines.push(path);
    }

    /// Appends the list that the blocks of one type form.
    fn blocks(&mut self, config: &Value, blocks: &Blocks) -> Result<(), Diagnostics> {
        let Blocks { title, block, anchor, item } = *blocks;
        let all = config.get(block).elements();
        if all.is_empty() {
            return Ok(());
        }
        let path = Path::of(block);
        self.line(path.clone(), &format!("{title}:"));
        for (index, one) in all.iter().enumerate() {
            // Terraform shows the line of an attribute, and none of a block.
            let path = path.index(index).attribute(anchor);
            let item = item(one).map_err(|error| error.at(path.clone()))?;
            self.line(path, &format!("  - {item}"));
        }
        Ok(())
    }

    fn attribute_path(&self, problem: &Problem) -> Path {
        let line = usize::try_from(problem.span.line).unwrap_or_default();
        self.lines.get(line.wrapping_sub(1)).cloned().unwrap_or_default()
    }
}

/// Generates the policy file of a configuration's blocks and settings; `None` if there are none.
///
/// # Errors
/// Fails if the selector or the labels of a block are malformed; the diagnostic has the block's
/// path.
pub(crate) fn policy(network: &str, config: &Value) -> Result<Option<Written>, Diagnostics> {
    let mut written = Written::default();
    written.line(Path::of("network"), &format!("network: {}", json!(network)));
    for name in WORDS {
        if let Some(word) = config.get(name).text() {
            written.line(Path::of(name), &format!("{name}: {}", json!(word)));
        }
    }
    let mut timeouts = Map::new();
    for name in TIMEOUTS {
        if let Some(time) = config.get(&format!("{name}_timeout")).text() {
            timeouts.insert(name.into(), time.into());
        }
    }
    if let Some((first, _)) = timeouts.iter().next() {
        let path = Path::of(&format!("{first}_timeout"));
        written.line(path, &format!("timeouts: {}", serde_json::Value::from(timeouts)));
    }
    if let Some(dns) = services::dns(config) {
        written.line(Path::of("dns_zone"), &format!("dns: {dns}"));
    }
    for blocks in [SERVICES, RULES, GUARDRAILS, TESTS] {
        written.blocks(config, &blocks)?;
    }
    Ok((written.lines.len() > 1).then_some(written))
}

/// Generates the policy file of a configuration's admission rules and keys.
///
/// # Errors
/// Fails if the selector or the labels of a block are malformed; the diagnostic has the block's
/// path.
pub(crate) fn admission(network: &str, config: &Value) -> Result<Written, Diagnostics> {
    let mut written = Written::default();
    written.line(Path::of("network"), &format!("network: {}", json!(network)));
    if let Value::Map(keys) = config.get("keys") {
        written.line(Path::of("keys"), "keys:");
        for (name, key) in keys {
            let line = format!("  {}: {}", json!(name), json!(key.text().unwrap_or_default()));
            written.line(Path::of("keys").key(name), &line);
        }
    }
    written.blocks(config, &ADMISSION_RULES)?;
    Ok(written)
}

fn selector(block: &Value, name: &str) -> Result<serde_json::Value, Diagnostic> {
    let text = block.get(name).text().unwrap_or_default();
    let read: Selector =
        text.parse().map_err(|error| Diagnostic::error("Invalid selector", format!("{error}")))?;
    Ok(json!(read))
}

fn labels(block: &Value, name: &str) -> Result<serde_json::Value, Diagnostic> {
    let text = block.get(name).text().unwrap_or_default();
    let read: Labels =
        text.parse().map_err(|error| Diagnostic::error("Invalid labels", format!("{error}")))?;
    Ok(json!(read))
}

/// Reads the selector of a rule's servers. Written short, the label `service` would name a service.
fn servers(block: &Value, name: &str) -> Result<serde_json::Value, Diagnostic> {
    let selector = selector(block, name)?;
    let only = selector.as_object().filter(|all| all.len() == 1);
    match only.and_then(|all| all.get("service")).filter(|value| value.is_string()) {
        Some(value) => Ok(json!({ "service": { "in": [value] } })),
        None => Ok(selector),
    }
}

/// The attributes for targets outside of the mesh, with their keys in a policy.
const OUTSIDE: [(&str, &str); 2] = [("to_cidr", "cidr"), ("to_dns", "dns")];

/// Sets the attributes for targets outside of the mesh.
fn set_outside(block: &mut Value, targets: &[OutsideTarget]) {
    let (names, prefixes): (Vec<_>, Vec<_>) =
        targets.iter().partition(|target| matches!(target, OutsideTarget::Dns(_)));
    for ((attribute, _), targets) in OUTSIDE.into_iter().zip([prefixes, names]) {
        if !targets.is_empty() {
            block.set(attribute, strings(&targets));
        }
    }
}

/// Converts what a rule or a test names at the other end: `to`, `to_service`, or what is outside of
/// the mesh.
fn destination(
    block: &Value,
    read: fn(&Value, &str) -> Result<serde_json::Value, Diagnostic>,
) -> Result<serde_json::Value, Diagnostic> {
    let mut outside = Map::new();
    for (attribute, key) in OUTSIDE {
        let targets = block.get(attribute);
        if !targets.elements().is_empty() {
            outside.insert(key.into(), targets.to_json());
        }
    }
    let is_outside = !outside.is_empty();
    match (block.get("to").text(), block.get("to_service").text(), is_outside) {
        (None, Some(service), false) => Ok(json!({ "service": service })),
        (Some(_), None, false) => read(block, "to"),
        (None, None, true) => {
            if block.get("via").text().is_some() {
                outside.insert("via".into(), read(block, "via")?);
            }
            Ok(outside.into())
        }
        _ => {
            let text = "Set one of `to`, `to_service` and, for what is outside of the mesh, \
                        `to_cidr` and `to_dns`.";
            Err(Diagnostic::error("One server", text))
        }
    }
}

fn rule(block: &Value) -> Result<serde_json::Value, Diagnostic> {
    let mut item = Map::new();
    item.insert("name".into(), block.get("name").to_json());
    item.insert("from".into(), selector(block, "from")?);
    item.insert("to".into(), destination(block, servers)?);
    for name in ["allow", "deny"] {
        if !block.get(name).elements().is_empty() {
            item.insert(name.into(), block.get(name).to_json());
        }
    }
    if let Some(word) = block.get("on_deny").text() {
        item.insert("on_deny".into(), word.into());
    }
    if *block.get("observe") == Value::Bool(true) {
        item.insert("observe".into(), true.into());
    }
    Ok(item.into())
}

fn test(block: &Value) -> Result<serde_json::Value, Diagnostic> {
    Ok(json!({
        "from": labels(block, "from")?,
        "to": destination(block, labels)?,
        "port": block.get("port").to_json(),
        "expect": block.get("expect").to_json(),
    }))
}

fn admission_rule(block: &Value) -> Result<serde_json::Value, Diagnostic> {
    let mut item = Map::new();
    item.insert("name".into(), block.get("name").to_json());
    if block.get("for").text().is_some() {
        item.insert("for".into(), selector(block, "for")?);
    }
    for name in ["images", "signed_by", "config", "privileges"] {
        if !block.get(name).elements().is_empty() {
            item.insert(name.into(), block.get(name).to_json());
        }
    }
    if let Some(shared) = block.get("shared").text() {
        item.insert("shared".into(), shared.into());
    }
    Ok(item.into())
}

/// Validates policy files and runs the tests in them. If `network` is given, all of them must be
/// for it. `own` is the file that is generated from blocks: diagnostics about it have the block's
/// path.
pub(crate) fn check(
    files: &[PolicyFile],
    network: Option<&str>,
    own: Option<(&str, &Written)>,
) -> Diagnostics {
    let said = |summary: &str, problem: &Problem| {
        let file = &problem.span.file;
        match own.filter(|(name, _)| name == file) {
            Some((_, written)) => {
                Diagnostic::error(summary, problem.text.clone()).at(written.attribute_path(problem))
            }
            None => Diagnostic::error(summary, problem.to_string()).at(Path::of("files").key(file)),
        }
    };
    let all = match meshward_policy::read(files) {
        Ok(all) => all,
        Err(BadPolicy(problems)) => {
            return problems.iter().map(|problem| said("Invalid policy", problem)).collect();
        }
    };
    let mut diagnostics = Vec::new();
    for written in &all {
        let name = &written.policy.network;
        if let Some(network) = network.filter(|network| *network != name.as_str()) {
            let text = format!(
                "this document is for network {name}, and the resource is for network {network}"
            );
            diagnostics.push(said(
                "Another network's policy",
                &Problem { span: written.begin.clone(), text },
            ));
        }
        let failures =
            run_tests(&written.policy, &Budget::of(Budget::PLAN)).unwrap_or_else(|error| {
                let problem =
                    Problem { span: written.begin.clone(), text: format!("its tests: {error}") };
                diagnostics.push(said("The policy is too large", &problem));
                vec![]
            });
        for failure in failures {
            let text = failure.to_string();
            let span = written.tests.get(failure.number - 1).unwrap_or(&written.begin).clone();
            diagnostics.push(said("A test of the policy fails", &Problem { span, text }));
        }
    }
    diagnostics
}

/// Parses a file; `None` unless it is exactly one policy, for `network`.
pub(crate) fn read_back(file: &PolicyFile, network: &NetworkName) -> Option<Policy> {
    let mut all = meshward_policy::read(std::slice::from_ref(file)).ok()?;
    let only = all.pop().filter(|_| all.is_empty())?;
    (only.policy.network == *network).then_some(only.policy)
}

/// Converts a policy to blocks and settings; `None` if it has parts that no block expresses.
pub(crate) fn policy_blocks(policy: &Policy) -> Option<Value> {
    let plain = Policy {
        mode: policy.mode,
        declarations: policy.declarations,
        on_deny: policy.on_deny,
        on_quarantine: policy.on_quarantine,
        on_revoke: policy.on_revoke,
        timeouts: policy.timeouts,
        dns: policy.dns.clone(),
        services: policy.services.clone(),
        rules: policy.rules.clone(),
        guardrails: policy.guardrails.clone(),
        tests: policy.tests.clone(),
        ..Policy::deny_all(policy.network.clone())
    };
    if plain != *policy {
        return None;
    }
    let mut blocks = Value::default();
    let word = |value: serde_json::Value| Value::from_json(value);
    if policy.mode != Mode::default() {
        blocks.set("mode", word(json!(policy.mode)));
    }
    if policy.declarations != Declarations::default() {
        blocks.set("declarations", word(json!(policy.declarations)));
    }
    for (name, on_deny) in [("on_deny", policy.on_deny), ("on_quarantine", policy.on_quarantine)] {
        if on_deny != OnDeny::default() {
            blocks.set(name, word(json!(on_deny)));
        }
    }
    if policy.on_revoke != OnRevoke::default() {
        blocks.set("on_revoke", word(json!(policy.on_revoke)));
    }
    if let serde_json::Value::Object(timeouts) = json!(policy.timeouts) {
        for (name, time) in timeouts {
            blocks.set(&format!("{name}_timeout"), word(time));
        }
    }
    services::set_dns(&mut blocks, &policy.dns);
    if !policy.services.is_empty() {
        blocks.set("service", Value::List(policy.services.iter().map(services::block).collect()));
    }
    blocks.set("rule", Value::List(policy.rules.iter().map(rule_block).collect()));
    blocks.set("guardrail", Value::List(policy.guardrails.iter().map(rule_block).collect()));
    blocks.set("test", Value::List(policy.tests.iter().map(test_block).collect()));
    Some(blocks)
}

fn test_block(test: &TestCase) -> Value {
    let mut block = Value::from_json(json!({
        "from": test.from.to_string(),
        "port": test.port,
        "expect": test.expect,
    }));
    match &test.to {
        Destination::Labels(labels) => block.set("to", labels.to_string()),
        Destination::Service { name, .. } => block.set("to_service", name.as_str()),
        Destination::Outside { target, .. } => {
            set_outside(&mut block, slice::from_ref(target));
            let via = test.to.via();
            if !via.is_empty() {
                block.set("via", via.to_string());
            }
        }
    }
    block
}

fn rule_block(rule: &Rule) -> Value {
    let mut block = Value::default();
    block.set("name", rule.name.as_str());
    block.set("from", services::selector_text(&rule.from));
    let (mut allow, mut deny) = (&rule.allow[..], &rule.deny[..]);
    match &rule.target {
        Target::Labels => block.set("to", services::selector_text(&rule.to)),
        Target::Service(target) => {
            block.set("to_service", target.name.as_str());
            match rule.action() {
                Action::Allow => allow = &target.ports,
                Action::Deny => deny = &target.ports,
            }
        }
        Target::Outside(targets) => {
            set_outside(&mut block, targets);
            let via = rule.via();
            if !via.is_empty() {
                block.set("via", services::selector_text(&via));
            }
        }
    }
    for (name, ports) in [("allow", allow), ("deny", deny)] {
        if !ports.is_empty() {
            block.set(name, strings(ports));
        }
    }
    if rule.observe {
        block.set("observe", true);
    }
    if let Some(on_deny) = rule.on_deny {
        block.set("on_deny", Value::from_json(json!(on_deny)));
    }
    block
}

/// Converts a policy's admission to attributes and blocks; `None` if the policy has other parts.
pub(crate) fn admission_blocks(policy: &Policy) -> Option<Value> {
    let plain = Policy {
        keys: policy.keys.clone(),
        admission: policy.admission.clone(),
        ..Policy::deny_all(policy.network.clone())
    };
    if plain != *policy {
        return None;
    }
    let mut blocks = Value::default();
    if !policy.keys.is_empty() {
        blocks.set("keys", Value::from_json(json!(policy.keys)));
    }
    let rules = policy.admission.iter().map(|rule| {
        let mut block = Value::default();
        block.set("name", rule.name.as_str());
        if !rule.who.is_empty() {
            block.set("for", services::selector_text(&rule.who));
        }
        let lists = [
            ("images", strings(&rule.images)),
            ("signed_by", strings(&rule.signed_by)),
            ("config", strings(&rule.config)),
            ("privileges", strings(&rule.privileges)),
        ];
        for (name, list) in lists {
            if !list.elements().is_empty() {
                block.set(name, list);
            }
        }
        if rule.shared == Shared::Allow {
            block.set("shared", "allow");
        }
        block
    });
    blocks.set("rule", Value::List(rules.collect()));
    Some(blocks)
}

fn strings<T: ToString>(all: &[T]) -> Value {
    Value::List(all.iter().map(|one| one.to_string().into()).collect())
}

#[cfg(test)]
mod tests;
