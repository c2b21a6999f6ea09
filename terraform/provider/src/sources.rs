//! Data sources without a resource of the same attributes.

use crate::{
    checks,
    mesh::Mesh,
    resources::{duration_text, files, files_attribute},
    services::selector_text,
    written,
};
use meshward_api_types::{LinkChange, Service, SubmitPolicy, operations};
use meshward_policy::{Problem, review};
use meshward_terraform::{
    Answer, Attribute, Block, DataSource, Diagnostic, Diagnostics, Path, Schema, Type, Value,
};
use serde_json::json;
use std::sync::Arc;

/// The data source `meshward_policy_check`.
pub(crate) struct PolicyCheck(pub Arc<Mesh>);

impl PolicyCheck {
    async fn check(&self, config: Value) -> Result<Value, Diagnostics> {
        let files = files(&config);
        let wrong = written::check(&files, config.get("network").text(), None);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let all = meshward_policy::read(&files).unwrap_or_default();
        let mut findings: Vec<(String, String)> = all
            .iter()
            .flat_map(review)
            .map(|Problem { span, text }| (span.to_string(), text))
            .collect();
        let mut now = config.clone();
        let (mut opened, mut closed) = (vec![], vec![]);
        if *config.get("live") == Value::Bool(true) {
            let wanted = SubmitPolicy {
                files,
                prune: false,
                scope: None,
                message: None,
                count_cuts: false,
                reset: false,
            };
            let result = self.0.try_out(&operations::SUBMIT_POLICY, &wanted).await?;
            findings = result
                .findings
                .into_iter()
                .map(|finding| (finding.location, finding.text))
                .collect();
            opened = result.networks.iter().flat_map(|network| network.opened.clone()).collect();
            closed = result.networks.iter().flat_map(|network| network.closed.clone()).collect();
        }
        if *config.get("strict") == Value::Bool(true) && !findings.is_empty() {
            let said = findings.iter().map(|(location, text)| {
                let file = location.split(':').next().unwrap_or_default();
                Diagnostic::error("Warning about the policy", format!("{location}: {text}"))
                    .at(Path::of("files").key(file))
            });
            return Err(said.collect());
        }
        now.set("opened", links(&opened));
        now.set("closed", links(&closed));
        let networks = all.iter().map(|written| written.policy.network.to_string().into());
        now.set("networks", Value::List(networks.collect()));
        let rules: usize = all
            .iter()
            .map(|written| written.policy.rules.len() + written.policy.guardrails.len())
            .sum();
        now.set("rules", rules as u64);
        now.set(
            "tests_passed",
            all.iter().map(|written| written.policy.tests.len() as u64).sum::<u64>(),
        );
        let findings = findings
            .into_iter()
            .map(|(location, text)| json!({ "location": location, "text": text }));
        now.set("findings", Value::from_json(findings.collect()));
        Ok(now)
    }
}

fn links(changes: &[LinkChange]) -> Value {
    let all = changes.iter().map(|change| {
        json!({
            "from": change.from.to_string(),
            "to": change.to.to_string(),
            "before": change.before,
            "after": change.after,
        })
    });
    Value::from_json(all.collect())
}

impl DataSource for PolicyCheck {
    fn schema(&self) -> Schema {
        let changes = || {
            let text = Type::String;
            Type::objects(&[
                ("from", text.clone()),
                ("to", text.clone()),
                ("before", text.clone()),
                ("after", text),
            ])
        };
        Schema::new(
            "Checks a policy and runs its tests during the plan. Mistakes fail the plan, with \
             file, line and column. Nothing is changed; without `live`, the coordinator is not \
             asked.",
            Block::of(vec![
                files_attribute(Attribute::required),
                Attribute::optional(
                    "network",
                    Type::String,
                    "The network that all documents must be for.",
                )
                .checked(checks::network),
                Attribute::optional(
                    "strict",
                    Type::Bool,
                    "Whether warnings fail the plan, too: rules without effect, selectors that \
                     match no workload.",
                ),
                Attribute::optional(
                    "live",
                    Type::Bool,
                    "Whether to ask the coordinator which links would open and close among the \
                     current workloads. The network must exist.",
                ),
                Attribute::computed("networks", Type::strings(), "The networks of the documents."),
                Attribute::computed("rules", Type::Number, "The number of rules and guardrails."),
                Attribute::computed(
                    "tests_passed",
                    Type::Number,
                    "The number of tests that passed.",
                ),
                Attribute::computed(
                    "findings",
                    Type::objects(&[("location", Type::String), ("text", Type::String)]),
                    "The warnings.",
                ),
                Attribute::computed(
                    "opened",
                    changes(),
                    "Links that would open, in whole or in part. Only with `live`.",
                ),
                Attribute::computed(
                    "closed",
                    changes(),
                    "Links that would close, in whole or in part. Only with `live`.",
                ),
            ]),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        if config.get("files").is_known() {
            written::check(&files(config), config.get("network").text(), None)
        } else {
            vec![]
        }
    }

    fn read(&self, config: Value) -> Answer<'_, Value> {
        Box::pin(self.check(config))
    }
}

/// The data source `meshward_node`. It has attributes that the resource leaves out because they
/// change without Terraform.
pub(crate) struct NodeSource(pub Arc<Mesh>);

impl DataSource for NodeSource {
    fn schema(&self) -> Schema {
        let blocks = Type::objects(&[("network", Type::String), ("prefixes", Type::strings())]);
        Schema::new(
            "Reads a node by name, also one that waits for approval.",
            Block::of(vec![
                Attribute::id("The name."),
                Attribute::required("name", Type::String, "The name.").checked(checks::node),
                Attribute::computed(
                    "state",
                    Type::String,
                    "The state: `expected` (approved, and has not joined), `waiting` (for \
                     approval) or `member`.",
                ),
                Attribute::computed(
                    "connected",
                    Type::Bool,
                    "Whether the node has a session with the coordinator now.",
                ),
                Attribute::computed(
                    "address",
                    Type::String,
                    "The source address and port of the node's session.",
                ),
                Attribute::computed("version", Type::String, "The version of its software."),
                Attribute::computed("site", Type::String, "The site, from the join token."),
                Attribute::computed("labels", Type::map(), "All labels of the node."),
                Attribute::computed(
                    "blocks",
                    blocks,
                    "The node's blocks of the networks that it serves.",
                ),
                Attribute::computed("workloads", Type::Number, "The number of its workloads."),
                Attribute::computed(
                    "forget_after",
                    Type::String,
                    "The time without contact after which the coordinator removes the node, if it \
                     is ephemeral.",
                ),
                Attribute::computed(
                    "problems",
                    Type::strings(),
                    "The problems that keep the node from serving networks.",
                ),
            ]),
        )
    }

    fn read(&self, config: Value) -> Answer<'_, Value> {
        Box::pin(async move {
            let all = self.0.list(&operations::NODES).await?;
            let name = config.get("name").text().unwrap_or_default();
            let Some(node) = all.iter().find(|node| node.name.as_str() == name) else {
                let text = format!("There is no node `{name}`, joined or approved.");
                return Err(Diagnostic::error("Not found", text).at(Path::of("name")).into());
            };
            let mut now = Value::of(node)?;
            now.set("id", name);
            now.set("forget_after", Value::of(&node.forget_after_seconds.map(duration_text))?);
            Ok(now)
        })
    }
}

/// The data source `meshward_links`.
pub(crate) struct LinksSource(pub Arc<Mesh>);

impl DataSource for LinksSource {
    fn schema(&self) -> Schema {
        let link = Type::objects(&[
            ("network", Type::String),
            ("from", Type::map()),
            ("to", Type::map()),
            ("acl", Type::String),
            ("packets", Type::Number),
            ("bytes", Type::Number),
            ("denied", Type::Number),
            ("observed", Type::Number),
        ]);
        Schema::new(
            "The links between workloads, with the counters of the connected nodes. Pairs that \
             were only denied have an empty `acl`.",
            Block::of(vec![
                Attribute::optional("network", Type::String, "Only the links of this network.")
                    .checked(checks::network),
                Attribute::computed(
                    "links",
                    link,
                    "The links: labels, ACL as text, and counters of packets and bytes.",
                ),
                Attribute::computed(
                    "nodes_silent",
                    Type::strings(),
                    "Nodes whose counters are missing.",
                ),
            ]),
        )
    }

    fn read(&self, config: Value) -> Answer<'_, Value> {
        Box::pin(async move {
            let network =
                config.get("network").text().map(|network| ("network", network.to_owned()));
            let query: Vec<_> = network.into_iter().collect();
            let all = self.0.list_now(&operations::LINKS, &query).await?;
            let mut now = config;
            let links = all.items.iter().map(|link| {
                json!({
                    "network": link.network,
                    "from": link.from,
                    "to": link.to,
                    "acl": link.acl.to_string(),
                    "packets": link.packets,
                    "bytes": link.bytes,
                    "denied": link.denied,
                    "observed": link.observed,
                })
            });
            now.set("links", Value::from_json(links.collect()));
            now.set("nodes_silent", Value::of(&all.nodes_silent)?);
            Ok(now)
        })
    }
}

/// The data source `meshward_service`. A service is made by the block `service` of a
/// `meshward_policy`, or by a policy file.
pub(crate) struct ServiceSource(pub Arc<Mesh>);

impl DataSource for ServiceSource {
    fn schema(&self) -> Schema {
        let number = |name: &str, text: &str| Attribute::computed(name, Type::Number, text);
        let text = |name: &str, text: &str| Attribute::computed(name, Type::String, text);
        Schema::new(
            "Reads a service, by network and name. Services are made by `meshward_policy`.",
            Block::of(vec![
                Attribute::id("`NETWORK/NAME`."),
                Attribute::required("network", Type::String, "The network.")
                    .checked(checks::network),
                Attribute::required("name", Type::String, "The name.").checked(checks::service),
                text("dns_name", "The DNS name."),
                Attribute::computed(
                    "addresses",
                    Type::strings(),
                    "The virtual addresses, at most one of each address family.",
                ),
                Attribute::computed(
                    "ports",
                    Type::strings(),
                    "The ports, such as `tcp/80 to 8080`.",
                ),
                text("selector", "The instances, by their labels."),
                text("health", "The health check, as text."),
                text("fan_out", "The number of instances that a client's node is linked with."),
                number("ready", "The number of instances that get new connections."),
                number("draining", "The number of instances that are drained."),
                number("unhealthy", "The number of instances whose health check fails."),
            ]),
        )
    }

    fn read(&self, config: Value) -> Answer<'_, Value> {
        Box::pin(async move {
            let all = self.0.list(&operations::SERVICES).await?;
            let [network, name] =
                ["network", "name"].map(|key| config.get(key).text().unwrap_or_default());
            let is_it =
                |own: &&Service| own.network.as_str() == network && own.name.as_str() == name;
            let Some(service) = all.iter().find(is_it) else {
                let text = format!(
                    "There is no service `{name}` in network `{network}`. Services are made by the \
                     policy of the network: let this depend on its `meshward_policy`."
                );
                return Err(Diagnostic::error("Not found", text).at(Path::of("name")).into());
            };
            let ports = service.ports.iter().map(|port| port.to_string().into()).collect();
            let mut now = Value::of(service)?;
            now.set("id", format!("{network}/{name}"));
            now.set("ports", Value::List(ports));
            now.set("selector", selector_text(&service.selector));
            Ok(now)
        })
    }
}
