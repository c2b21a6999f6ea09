//! `meshward_admission`.

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

/// The file that is written here, and nothing else of a network's policy.
const PART: Part = Part::Only(ADMISSION);
/// What blocks say.
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

/// The state that a policy of the network comes to; none if nobody has written this part of it.
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
            Attribute::required("name", Type::String, "Its name, unique in the network's policy."),
            Attribute::optional(
                "for",
                Type::String,
                "The workloads that it speaks of: a selector such as `app=web`. All, if it is left \
                 out.",
            )
            .checked(checks::selector),
            Attribute::optional(
                "images",
                Type::strings(),
                "Where their images may come from: `REGISTRY/PATH`, `REGISTRY/PATH/*` for all \
                 below it, or `*`.",
            ),
            Attribute::optional(
                "signed_by",
                Type::strings(),
                "Names of keys, of which one must have signed each image.",
            ),
            Attribute::optional(
                "config",
                Type::strings(),
                "Configuration digests (`sha256:...`), of which they must have one.",
            ),
            Attribute::optional(
                "privileges",
                Type::strings(),
                "What they may do that a container usually may not, such as `capability \
                 NET_ADMIN`. Nothing, if it is left out.",
            ),
            Attribute::optional(
                "shared",
                Type::String,
                "`allow`: containers that share their network namespace may be anything. `judge`, \
                 or left out: they have to be what the workload has to be.",
            )
            .checked(checks::shared),
        ]);
        Schema::new(
            "What workloads have to be to be let into a network: by the images, signatures, \
             configuration and privileges that their nodes have measured. Every rule that speaks \
             of a workload must be content. When it changes, what runs is judged anew. There is \
             one such resource for each network.",
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
                    "Public keys in PEM that sign images (ECDSA on P-256), by names.",
                ),
            ])
            .with(Nested { count: (1, 0), ..Nested::list("rule", "A rule of admission.", rule) }),
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
