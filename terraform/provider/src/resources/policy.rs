//! The resource `meshward_policy`.

use super::{
    part::{Part, is_empty, keep_meaning, same},
    state::{keep_unset, keyed, text},
};
use crate::{
    checks,
    mesh::Mesh,
    services,
    written::{self, ADMISSION, POLICY},
};
use meshward_api_types::{Policy, operations};
use meshward_terraform::{
    Answer, Attribute, Block, Diagnostic, Diagnostics, Nested, Path, Resource, Schema, Type, Value,
};
use meshward_types::PolicyFile;
use std::{collections::BTreeMap, sync::Arc};

pub(crate) struct PolicyResource(pub Arc<Mesh>);

/// The part of a network's policy that the resource manages: all files but that of
/// `meshward_admission`.
const PART: Part = Part::AllBut(ADMISSION);
/// The attributes and blocks that the policy is made of.
const CONTENT: [&str; 18] = [
    "files",
    "mode",
    "declarations",
    "on_deny",
    "on_quarantine",
    "on_revoke",
    "tcp_established_timeout",
    "tcp_transitory_timeout",
    "udp_timeout",
    "icmp_timeout",
    "dns_zone",
    "dns_upstreams",
    "dns_intercept",
    "split_zone",
    "service",
    "rule",
    "guardrail",
    "test",
];
const BLOCKS: &[&str] = CONTENT.split_at(1).1;

/// Returns the policy files in a configuration's attribute `files`.
pub(crate) fn files(config: &Value) -> Vec<PolicyFile> {
    let Value::Map(all) = config.get("files") else { return vec![] };
    let file = |(name, text): (&String, &Value)| {
        Some(PolicyFile { name: name.clone(), text: text.text()?.to_owned() })
    };
    all.iter().filter_map(file).collect()
}

/// Returns the attribute `files`.
pub(crate) fn files_attribute(attribute: fn(&str, Type, &str) -> Attribute) -> Attribute {
    attribute(
        "files",
        Type::map(),
        "Files in the policy language (`docs/policy.md` of Meshward), by name; error messages \
         contain the names: `{ \"shop.yaml\" = file(\"${path.module}/shop.yaml\") }`.",
    )
}

impl PolicyResource {
    async fn apply(&self, prior: Option<Value>, planned: Value) -> Result<Value, Diagnostics> {
        let network = text(&planned, "network")?;
        let mut all = files(&planned);
        let own = written::policy(&network, &planned)?;
        all.extend(own.map(|own| PolicyFile { name: POLICY.into(), text: own.text }));
        let result = match prior {
            None => PART.begin(&self.0, &planned, all).await?,
            Some(prior) => {
                let as_seen = |found: &Policy| {
                    Ok(described(&prior, found)?.is_some_and(|now| same(&prior, &now, &CONTENT)))
                };
                PART.replace(&self.0, &planned, all, as_seen).await?
            }
        };
        let mut now = planned;
        now.set("id", network);
        now.set("revision", Value::of(&result.revision)?);
        Ok(now)
    }

    async fn look(&self, state: Value) -> Result<Option<Value>, Diagnostics> {
        let network = text(&state, "network")?;
        let all = self.0.list(&operations::POLICIES).await?;
        let Some(found) = all.iter().find(|policy| policy.network.as_str() == network) else {
            return Ok(None);
        };
        described(&state, found)
    }
}

/// Returns the state for the network's policy; `None` if the policy does not have this part.
fn described(state: &Value, found: &Policy) -> Result<Option<Value>, Diagnostics> {
    let network = text(state, "network")?;
    let own: Vec<&PolicyFile> = found.files.iter().filter(|file| file.name != ADMISSION).collect();
    if own.is_empty() {
        return Ok(None);
    }
    let mut now = Value::default();
    let (from_blocks, others): (Vec<&PolicyFile>, Vec<&PolicyFile>) =
        own.into_iter().partition(|file| file.name == POLICY);
    let mut others: BTreeMap<&str, &str> =
        others.iter().map(|file| (&*file.name, &*file.text)).collect();
    let wanted = written::policy(&network, state)?;
    match from_blocks.first() {
        Some(file) if wanted.is_some_and(|wanted| wanted.text == file.text) => {
            for name in BLOCKS {
                now.set(name, state.get(name).clone());
            }
        }
        Some(file) => {
            match written::read_back(file, &found.network).as_ref().and_then(written::policy_blocks)
            {
                Some(blocks) => {
                    for name in BLOCKS {
                        now.set(name, blocks.get(name).clone());
                    }
                }
                None => {
                    others.insert(&file.name, &file.text);
                }
            }
        }
        None => {}
    }
    now.set("files", Value::of(&others)?);
    now.set("id", network.as_str());
    now.set("network", network);
    now.set("message", state.get("message").clone());
    // The resource for admission makes revisions of the same policy. As long as nothing of this
    // part has changed, its revision stays.
    let revision = if same(state, &now, &CONTENT) && !state.get("revision").is_null() {
        state.get("revision").clone()
    } else {
        Value::of(&found.revision)?
    };
    now.set("revision", revision);
    keep_unset(state, &mut now, &["files"]);
    Ok(Some(now))
}

fn rules(name: &str, description: &str) -> Nested {
    Nested::list(name, description, Block::of([clients(), servers(), actions()].concat()))
}

/// Returns the attributes with which a rule says what its name is, and who begins flows.
fn clients() -> Vec<Attribute> {
    vec![
        Attribute::required("name", Type::String, "The name, unique in the network's policy."),
        Attribute::required(
            "from",
            Type::String,
            "The clients, which begin flows: a selector such as `app=web,env in (prod,stage)`. \
             Empty: all workloads.",
        )
        .checked(checks::selector),
    ]
}

/// Returns the attributes with which a rule says where its flows go.
fn servers() -> Vec<Attribute> {
    vec![
        Attribute::optional(
            "to",
            Type::String,
            "The servers: a selector. A rule has one of `to`, `to_service` and, for \
             what is outside of the mesh, `to_cidr` and `to_dns`.",
        )
        .checked(checks::selector),
        Attribute::optional(
            "to_service",
            Type::String,
            "The service whose instances are the servers. `allow` and `deny` then name its \
             ports; without them, the rule allows all of its ports.",
        )
        .checked(checks::service),
        Attribute::optional(
            "to_cidr",
            Type::strings(),
            "The prefixes outside of the mesh that the rule is about, behind egress gateways.",
        ),
        Attribute::optional(
            "to_dns",
            Type::strings(),
            "The domain names outside of the mesh that the rule is about, such as \
             `api.example.com` or `*.example.com`, behind egress gateways.",
        ),
        Attribute::optional(
            "via",
            Type::String,
            "The egress gateways for `to_cidr` and `to_dns`: a selector. Default: all.",
        )
        .checked(checks::selector),
    ]
}

/// Returns the attributes with which a rule says what becomes of packets.
fn actions() -> Vec<Attribute> {
    let ports = "Ports are written as `tcp/8080`, `udp/5000-5999`, `icmp` or `any`, or as the name \
                 of a set of ports from a file.";
    vec![
        Attribute::optional("allow", Type::strings(), &format!("Ports to allow. {ports}")),
        Attribute::optional(
            "deny",
            Type::strings(),
            &format!("Ports to deny. {ports} A rule has either `allow` or `deny`."),
        ),
        Attribute::optional(
            "observe",
            Type::Bool,
            "Whether packets that the rule denies pass, and are counted.",
        ),
        Attribute::optional(
            "on_deny",
            Type::String,
            "The answer to the packets that the rule denies, or, if it allows, to all between \
             the two selectors that nothing allows: `drop` or `reject`. Default: that of the \
             network.",
        )
        .checked(checks::on_deny),
    ]
}

fn timeout(of: &str, what: &str) -> Attribute {
    let text =
        format!("How long idle flows are kept, such as `90s` or `2h`, from `1s` to `7d`: {what}");
    Attribute::optional(&format!("{of}_timeout"), Type::String, &text)
}

/// Returns the block `test`.
fn test() -> Block {
    Block::of(vec![
        Attribute::required(
            "from",
            Type::String,
            "The labels of the client, such as `app=web,env=prod`.",
        )
        .checked(checks::label_set),
        Attribute::optional(
            "to",
            Type::String,
            "The labels of the server. A test has one of `to`, `to_service`, `to_cidr` \
             and `to_dns`.",
        )
        .checked(checks::label_set),
        Attribute::optional(
            "to_service",
            Type::String,
            "The service whose instance is the server; `port` is a port of the service.",
        )
        .checked(checks::service),
        Attribute::optional(
            "to_cidr",
            Type::strings(),
            "The address or prefix outside of the mesh that the flow is to, behind an egress \
             gateway.",
        ),
        Attribute::optional(
            "to_dns",
            Type::strings(),
            "The domain name outside of the mesh that the flow is to, behind an egress gateway.",
        ),
        Attribute::optional(
            "via",
            Type::String,
            "The labels of the egress gateway for `to_cidr` or `to_dns`. Default: none.",
        )
        .checked(checks::label_set),
        Attribute::required("port", Type::String, "The port, such as `tcp/5432`."),
        Attribute::required(
            "expect",
            Type::String,
            "The expected result: `allow`, `deny`, or `reject` (denied, and the sender is told).",
        )
        .checked(checks::expectation),
    ])
}

/// Returns the attributes for the settings of a policy.
fn settings() -> Vec<Attribute> {
    vec![
        Attribute::optional(
            "mode",
            Type::String,
            "`enforce`, or `observe`: packets that rules or the default deny pass, and are \
             counted.",
        )
        .checked(checks::mode),
        Attribute::optional(
            "declarations",
            Type::String,
            "The effect of `accept-from` of a workload: `narrow` (it only restricts what policy \
             allows) or `open` (it also allows what no rule denies).",
        )
        .checked(checks::declarations),
        Attribute::optional(
            "on_deny",
            Type::String,
            "The answer to packets that nothing allows: `drop` (none, the default), or `reject` (a \
             TCP reset, or ICMP \"administratively prohibited\" for other protocols).",
        )
        .checked(checks::on_deny),
        Attribute::optional(
            "on_quarantine",
            Type::String,
            "The answer to packets of quarantined workloads: `drop` (none, the default), or \
             `reject`.",
        )
        .checked(checks::on_deny),
        Attribute::optional(
            "on_revoke",
            Type::String,
            "What happens to TCP connections that a change of policy or a quarantine cuts: `drop` \
             (their packets are dropped, the default), or `reset` (both ends get a reset).",
        )
        .checked(checks::on_revoke),
        timeout("tcp_established", "established TCP connections. Default: `24h`."),
        timeout("tcp_transitory", "TCP connections that are opening or closing. Default: `4m`."),
        timeout("udp", "UDP. Default: `3m`."),
        timeout("icmp", "ICMP echoes. Default: `1m`."),
    ]
    .into_iter()
    .chain(services::dns_attributes())
    .collect()
}

impl Resource for PolicyResource {
    fn schema(&self) -> Schema {
        let own = vec![
            Attribute::id("The network."),
            Attribute::required(
                "network",
                Type::String,
                "The network. Use the `id` of a `meshward_network`.",
            )
            .replaces()
            .checked(checks::network),
            files_attribute(Attribute::optional),
        ];
        let about = [
            Attribute::optional("message", Type::String, "The reason, for the log of the policy."),
            Attribute::computed("revision", Type::Number, "The revision of its last change.")
                .follows(),
        ];
        let attributes = own.into_iter().chain(settings()).chain(about).collect();
        Schema::new(
            "The policy of a network, except for admission, which `meshward_admission` manages: \
             files in the policy language, blocks, or both. Everything is denied unless a rule \
             allows it. Terraform checks the policy and runs its tests during the plan. When \
             `apply` returns, every connected node enforces it.\n\nA policy that somebody else \
             applies to the network is drift, and the next `apply` replaces it. A network has one \
             such resource.",
            Block::of(attributes)
                .with(services::split_zone())
                .with(services::service())
                .with(rules("rule", "Rules, which allow or deny."))
                .with(rules(
                    "guardrail",
                    "Rules that no other rule can override. Only the token of an admin can change \
                     them.",
                ))
                .with(Nested::list(
                    "test",
                    "Tests that must pass before the policy is applied.",
                    test(),
                )),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        if !CONTENT.iter().all(|name| config.get(name).is_known()) {
            return vec![];
        }
        if CONTENT.iter().all(|name| is_empty(config.get(name))) {
            let text = "Set `files`, or blocks `rule`, `guardrail` and `test`. A network without a \
                        policy denies everything.";
            return Diagnostic::error("An empty policy", text).into();
        }
        // The network's name may be unknown yet; any name will do to validate the policy.
        let files = files(config);
        let mut said = Vec::new();
        for file in files.iter().filter(|file| file.name.starts_with("terraform/")) {
            let text = "Names below terraform/ are reserved for the provider; rename the file.";
            said.push(
                Diagnostic::error("A reserved name", text).at(Path::of("files").key(&file.name)),
            );
        }
        let known = config.get("network").text();
        let of_files = || {
            let all = meshward_policy::read(&files).ok()?;
            Some(all.first()?.policy.network.to_string())
        };
        let network =
            known.map(ToOwned::to_owned).or_else(of_files).unwrap_or_else(|| "unknown".into());
        let own = match written::policy(&network, config) {
            Ok(own) => own,
            Err(wrong) => return wrong,
        };
        let generated =
            own.iter().map(|own| PolicyFile { name: POLICY.into(), text: own.text.clone() });
        let all: Vec<PolicyFile> = files.into_iter().chain(generated).collect();
        said.extend(written::check(&all, known, own.as_ref().map(|own| (POLICY, own))));
        said
    }

    fn keep_meaning(&self, prior: &Value, proposed: &mut Value) {
        keep_meaning(prior, proposed, BLOCKS, |network, value| {
            written::policy(network, value).ok().flatten().map(|own| own.text)
        });
    }

    fn read(&self, state: Value) -> Answer<'_, Option<Value>> {
        Box::pin(self.look(state))
    }

    fn create(&self, planned: Value) -> Answer<'_, Value> {
        Box::pin(self.apply(None, planned))
    }

    fn update(&self, prior: Value, planned: Value) -> Answer<'_, Value> {
        Box::pin(self.apply(Some(prior), planned))
    }

    fn delete(&self, state: Value) -> Answer<'_, ()> {
        Box::pin(async move { PART.remove(&self.0, &state).await })
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        Ok(keyed(&[("network", id)]))
    }

    fn import_form(&self) -> &'static str {
        "NETWORK"
    }
}
