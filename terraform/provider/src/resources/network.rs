//! The resource `meshward_network`.

use super::state::{body, keyed, text};
use crate::{
    checks,
    mesh::{Mesh, told},
};
use ipnet::IpNet;
use meshward_api_types::{CreateNetwork, Network, operations};
use meshward_terraform::{
    Answer, Attribute, Block, Diagnostic, Diagnostics, Path, Resource, Schema, Type, Value,
    timeouts, within,
};
use std::sync::Arc;

pub(crate) struct NetworkResource(pub Arc<Mesh>);

/// The default timeout of waiting for a network to be empty, so that it can be deleted.
const DELETE: (&str, &str) = ("delete", "5m");

impl NetworkResource {
    async fn create(&self, planned: Value) -> Result<Value, Diagnostics> {
        let wanted: CreateNetwork =
            body(&planned, &["name", "prefixes", "block_v4", "block_v6", "mtu"])?;
        let made: Network =
            self.0.write(&operations::CREATE_NETWORK, &[], &wanted).await.map_err(told)?;
        described(&planned, &made)
    }

    async fn delete(&self, state: Value) -> Result<(), Diagnostics> {
        let limit = within(&state, DELETE)?;
        let name = text(&state, "name")?;
        self.0
            .insist(limit, || async { self.0.remove(&operations::DELETE_NETWORK, &[&name]).await })
            .await
    }
}

fn described(state: &Value, network: &Network) -> Result<Value, Diagnostics> {
    let mut now = Value::of(network)?;
    now.set("id", network.name.as_str());
    now.set("timeouts", state.get("timeouts").clone());
    Ok(now)
}

impl Resource for NetworkResource {
    fn schema(&self) -> Schema {
        let block = |family: &str| {
            let text = format!(
                "The prefix length of each node's block of the {family} prefix. Default: chosen by \
                 the coordinator."
            );
            Attribute::optional(
                if family == "IPv4" { "block_v4" } else { "block_v6" },
                Type::Number,
                &text,
            )
            .or_computed()
            .replaces()
        };
        Schema::new(
            "A container network: a name and at most one prefix of each address family. Each node \
             gets a block of each prefix. Until a `meshward_policy` is applied, a network denies \
             everything.\n\nRefer to a network by `id`, so that the resources in it are replaced \
             with it. A network with workloads is deleted only once they are gone.",
            Block::of(vec![
                Attribute::id("The name."),
                Attribute::required("name", Type::String, "The name.")
                    .replaces()
                    .checked(checks::network),
                Attribute::required(
                    "prefixes",
                    Type::set(),
                    "The prefixes, such as `10.42.0.0/16` and `fd42::/48`.",
                )
                .replaces()
                .checked(checks::prefix),
                block("IPv4"),
                block("IPv6"),
                Attribute::optional(
                    "mtu",
                    Type::Number,
                    "The MTU of the workloads' interfaces, in bytes.",
                )
                .or(1420)
                .replaces()
                .checked(|value| checks::within(value, 1280, 9000, "The MTU")),
                Attribute::computed(
                    "resolver",
                    Type::strings(),
                    "The addresses at which nodes answer DNS queries of workloads.",
                ),
            ])
            .with(timeouts(&[DELETE])),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        let prefixes = config.get("prefixes").elements();
        let read: Vec<IpNet> = prefixes.iter().filter_map(|one| one.text()?.parse().ok()).collect();
        let wrong = |text: &str| {
            Diagnostic::error("Invalid prefixes", text).at(Path::of("prefixes")).into()
        };
        let v4 = read.iter().filter(|prefix| prefix.addr().is_ipv4()).count();
        match (v4, read.len() - v4) {
            (2.., _) | (_, 2..) => {
                wrong("A network has at most one prefix of each address family.")
            }
            (0, 0) if matches!(config.get("prefixes"), Value::List(all) if all.is_empty()) => {
                wrong("A network has at least one prefix, such as 10.42.0.0/16.")
            }
            _ => vec![],
        }
    }

    fn read(&self, state: Value) -> Answer<'_, Option<Value>> {
        Box::pin(async move {
            let name = text(&state, "name")?;
            let all = self.0.list(&operations::NETWORKS).await?;
            let found = all.iter().find(|network| network.name.as_str() == name);
            found.map(|network| described(&state, network)).transpose()
        })
    }

    fn create(&self, planned: Value) -> Answer<'_, Value> {
        Box::pin(self.create(planned))
    }

    /// Stores the new configuration: only `timeouts` changes in place.
    fn update(&self, _prior: Value, planned: Value) -> Answer<'_, Value> {
        Box::pin(async move { Ok(planned) })
    }

    fn delete(&self, state: Value) -> Answer<'_, ()> {
        Box::pin(self.delete(state))
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        Ok(keyed(&[("name", id)]))
    }

    fn import_form(&self) -> &'static str {
        "NETWORK"
    }
}
