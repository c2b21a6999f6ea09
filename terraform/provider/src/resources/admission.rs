//! The resource `meshward_admission`.

use super::{
    part::{Part, keep_meaning, same},
    state::{keyed, text},
};
use crate::{
    checks,
    mesh::Mesh,
    written::{self, ADMISSION},
};
use meshward_api_types::{Policy, operations};
use meshward_terraform::{
    Answer, Attribute, Block, Diagnostics, Nested, Resource, Schema, Type, Value,
};
use meshward_types::PolicyFile;
use std::sync::Arc;

/// The part of a network's policy that the resource manages: its generated file.
const PART: Part = Part::Only(ADMISSION);
/// The attributes and blocks that the file is generated from.
const BLOCKS: [&str; 2] = ["keys", "rule"];

pub(crate) struct Admission(pub Arc<Mesh>);

impl Admission {
    async fn apply(&self, prior: Option<Value>, planned: Value) -> Result<Value, Diagnostics> {
        let network = text(&planned, "network")?;
        let own = written::admission(&network, &planned)?;
        let files = vec![PolicyFile { name: ADMISSION.into(), text: own.text }];
        match prior {
            None => PART.begin(&self.0, &planned, files).await?,
            Some(prior) => {
                let as_seen = |found: &Policy| {
                    Ok(described(prior.clone(), found)?
                        .is_some_and(|now| same(&prior, &now, &BLOCKS)))
                };
                PART.replace(&self.0, &planned, files, as_seen).await?
            }
        };
        let mut now = planned;
        now.set("id", network);
        Ok(now)
    }

    async fn look(&self, state: Value) -> Result<Option<Value>, Diagnostics> {
        let network = text(&state, "network")?;
        let all = self.0.list(&operations::POLICIES).await?;
        let Some(found) = all.iter().find(|policy| policy.network.as_str() == network) else {
            return Ok(None);
        };
        described(state, found)
    }
}

/// Returns the state for the network's policy; `None` if the policy does not have this part.
fn described(state: Value, found: &Policy) -> Result<Option<Value>, Diagnostics> {
    let network = text(&state, "network")?;
    let Some(file) = found.files.iter().find(|file| file.name == ADMISSION) else {
        return Ok(None);
    };
    let mut now = state;
    now.set("id", network.as_str());
    if written::admission(&network, &now)?.text != file.text {
        let read = written::read_back(file, &found.network);
        let blocks = read.as_ref().and_then(written::admission_blocks).unwrap_or_default();
        for name in BLOCKS {
            now.set(name, blocks.get(name).clone());
        }
    }
    Ok(Some(now))
}

impl Resource for Admission {
    fn schema(&self) -> Schema {
        let rule = Block::of(vec![
            Attribute::required("name", Type::String, "The name, unique in the network's policy."),
            Attribute::optional(
                "for",
                Type::String,
                "The workloads that the rule applies to: a selector such as `app=web`. Default: \
                 all.",
            )
            .checked(checks::selector),
            Attribute::optional(
                "images",
                Type::strings(),
                "Permitted repositories of images: `REGISTRY/PATH`, `REGISTRY/PATH/*` for all \
                 below it, or `*` for any.",
            ),
            Attribute::optional(
                "signed_by",
                Type::strings(),
                "Names from `keys`. One of these keys must have signed each image.",
            ),
            Attribute::optional(
                "config",
                Type::strings(),
                "Permitted configuration digests (`sha256:...`).",
            ),
            Attribute::optional(
                "privileges",
                Type::strings(),
                "Permitted privileges beyond those of an ordinary container, such as `capability \
                 NET_ADMIN`. Default: none.",
            ),
            Attribute::optional(
                "shared",
                Type::String,
                "Containers that share the network namespace of the workload. `judge` (the \
                 default): they must satisfy the rule, too. `allow`: they may be anything.",
            )
            .checked(checks::shared),
        ]);
        Schema::new(
            "The admission rules of a network, for the images, signatures, configuration and \
             privileges that nodes have measured. A workload must satisfy every rule that applies \
             to it. When the rules change, running workloads are judged again. A network has one \
             such resource.",
            Block::of(vec![
                Attribute::id("The network."),
                Attribute::required(
                    "network",
                    Type::String,
                    "The network. Use the `id` of a `meshward_network`.",
                )
                .replaces()
                .checked(checks::network),
                Attribute::optional(
                    "keys",
                    Type::map(),
                    "Public keys that sign images, by name: PEM, ECDSA on P-256.",
                ),
            ])
            .with(Nested { count: (1, 0), ..Nested::list("rule", "An admission rule.", rule) }),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        if !config.get("keys").is_known() || !config.get("rule").is_known() {
            return vec![];
        }
        let known = config.get("network").text();
        match written::admission(known.unwrap_or("unknown"), config) {
            Err(wrong) => wrong,
            Ok(own) => {
                let file = PolicyFile { name: ADMISSION.into(), text: own.text.clone() };
                written::check(&[file], known, Some((ADMISSION, &own)))
            }
        }
    }

    fn keep_meaning(&self, prior: &Value, proposed: &mut Value) {
        keep_meaning(prior, proposed, &BLOCKS, |network, value| {
            written::admission(network, value).ok().map(|own| own.text)
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
