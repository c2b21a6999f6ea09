//! Networks.

use crate::{
    Mistake,
    arguments::{Common, Network, OfNetwork, Watching, verb_or_list},
    client::Client,
    listing,
    output::{Change, Effect, list, show, tell},
};
use anyhow::Result;
use meshward_api_types as api;
use meshward_api_types::{CreateNetwork, operations};
use meshward_types::NetworkName;

pub(crate) async fn network(common: &Common, verb: Option<Network>, which: Watching) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb_or_list(verb, which, Network::List)? {
        Network::Create { name, prefixes, block_v4, block_v6, mtu } => {
            let wanted = CreateNetwork { name, prefixes, block_v4, block_v6, mtu };
            let made = client.write(&operations::CREATE_NETWORK, &[], &wanted).await?;
            let (name, prefixes) = (&made.name, list(&made.prefixes));
            let would = format!("create network {name} ({prefixes})");
            let done = format!(
                "network {name} ({prefixes}) is created; it denies everything until a policy is \
                 applied"
            );
            tell(common, &Change { would, done, effects: vec![], result: Some(&made) })
        }
        Network::List(watching) => {
            let read = async || client.all(&operations::NETWORKS, &[]).await;
            listing::list(watching, read, |all| print(common, all)).await
        }
        Network::Delete { name } => {
            let effects = if common.dry_run { what_goes(&client, &name).await } else { vec![] };
            client.remove(&operations::DELETE_NETWORK, &[&name]).await?;
            let (would, done) =
                (format!("delete network {name}"), format!("network {name} is deleted"));
            tell(common, &Change { would, done, effects, result: None })
        }
    }
}

/// Returns the effects of deleting a network. An error in reading them is left to the deletion.
async fn what_goes(client: &Client, name: &NetworkName) -> Vec<Effect> {
    let mut effects = Vec::new();
    let policy = client.read(&operations::POLICY, &[name], &[]).await;
    for file in policy.map(|policy| policy.files).unwrap_or_default() {
        effects.push(Effect {
            action: "remove",
            kind: "policy file",
            name: file.name,
            detail: String::new(),
        });
    }
    for node in client.all(&operations::NODES, &[]).await.unwrap_or_default() {
        let own = node.blocks.iter().filter(|block| block.network == *name);
        for prefix in own.flat_map(|block| &block.prefixes) {
            let detail = format!("of node {}", node.name);
            effects.push(Effect {
                action: "free",
                kind: "block",
                name: prefix.to_string(),
                detail,
            });
        }
    }
    effects
}

fn print(common: &Common, all: &[api::Network]) -> Result<()> {
    let row = |network: &api::Network| {
        let blocks = network.prefixes.iter().map(|prefix| {
            format!(
                "/{}",
                if prefix.addr().is_ipv4() { network.block_v4 } else { network.block_v6 }
            )
        });
        [
            network.name.to_string(),
            list(&network.prefixes),
            list(blocks),
            network.mtu.to_string(),
            list(&network.resolver),
        ]
    };
    let none = "no networks; to create one: meshctl network create NAME --cidr 10.42.0.0/16";
    show(common, all, ["NAME", "PREFIXES", "BLOCK PER NODE", "MTU", "RESOLVER+"], row, none)
}

/// Returns the network that is named, or the only one that there is.
///
/// # Errors
/// [`Mistake`] if none is named and there is not exactly one.
pub(crate) async fn named_or_only(client: &Client, of: OfNetwork) -> Result<NetworkName> {
    if let Some(network) = of.network {
        return Ok(network);
    }
    let mut all = client.all(&operations::NETWORKS, &[]).await?;
    match all.len() {
        1 => Ok(all.swap_remove(0).name),
        0 => Err(Mistake(
            "there is no network yet; make one with: meshctl network create NAME --cidr ...".into(),
        )
        .into()),
        _ => {
            let names: Vec<&str> = all.iter().map(|network| network.name.as_str()).collect();
            Err(Mistake(format!(
                "there are several networks; add --network and one of {}",
                names.join(", ")
            ))
            .into())
        }
    }
}
