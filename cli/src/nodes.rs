//! Nodes, relays and keys.

use crate::{
    arguments::{self, Common, Key, Labelled, Node, Relay, Watching, verb_or_list},
    client::Client,
    listing, note,
    output::{Change, Effect, bad, count, good, list, or_dash, show, tell},
};
use anyhow::Result;
use meshward_api_types as api;
use meshward_api_types::{NodeState, RotateKeys, operations};
use meshward_types::NodeName;
use std::time::Duration;

pub(crate) async fn node(common: &Common, verb: Option<Node>, which: Labelled) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb_or_list(verb, which, Node::List)? {
        Node::Remove { name } => {
            let effects = if common.dry_run { what_goes(&client, &name).await } else { vec![] };
            client.remove(&operations::REMOVE_NODE, &[&name]).await?;
            let (would, done) = (format!("remove node {name}"), format!("node {name} is removed"));
            tell(common, &Change { would, done, effects, result: None })
        }
        Node::Approve { name, labels } => {
            let wanted = api::ApproveNode { labels: arguments::labels(&labels)? };
            let node = client.write(&operations::APPROVE_NODE, &[&name], &wanted).await?;
            let next = match node.state {
                NodeState::Expected => "; it has not joined yet",
                _ => "",
            };
            let would = format!("approve node {name} with labels {}", wanted.labels);
            let done = format!("node {name} is approved{next}");
            tell(common, &Change { would, done, effects: vec![], result: Some(&node) })
        }
        Node::List(Labelled { selector, watching }) => {
            let query: Vec<_> = listing::by_selector(selector.as_ref()).into_iter().collect();
            let read = async || client.all(&operations::NODES, &query).await;
            listing::list(watching, read, |all| print(common, all, selector.is_some())).await
        }
    }
}

/// Returns the effects of removing a node. An error in reading them is left to the removal.
async fn what_goes(client: &Client, name: &NodeName) -> Vec<Effect> {
    let mut effects = Vec::new();
    let workloads =
        client.all(&operations::WORKLOADS, &[("node", name.to_string())]).await.unwrap_or_default();
    for workload in workloads {
        let detail =
            format!("{}, {}, network {}", workload.name, workload.labels, workload.network);
        let id = workload.id.to_string();
        effects.push(Effect { action: "remove", kind: "workload", name: id, detail });
    }
    let routes = client.all(&operations::ROUTES, &[]).await.unwrap_or_default();
    for route in routes.into_iter().filter(|route| route.node == *name) {
        let approval = if route.approved_by_hand { ", with its approval" } else { "" };
        let detail = format!("network {}{approval}", route.network);
        effects.push(Effect {
            action: "remove",
            kind: "route",
            name: route.prefix.to_string(),
            detail,
        });
    }
    let devices = client.all(&operations::DEVICES, &[]).await.unwrap_or_default();
    for device in devices.into_iter().filter(|device| device.gateway == *name) {
        let (name, detail) = (device.name.to_string(), format!("network {}", device.network));
        effects.push(Effect { action: "remove", kind: "device", name, detail });
    }
    effects
}

fn print(common: &Common, all: &[api::Node], narrowed: bool) -> Result<()> {
    let row = |node: &api::Node| {
        let ephemeral = node.forget_after_seconds.map_or(String::new(), |seconds| {
            format!(", ephemeral ({})", humantime::format_duration(Duration::from_secs(seconds)))
        });
        let state = match node.state {
            NodeState::Expected => "expected".into(),
            NodeState::Waiting => bad("waiting"),
            NodeState::Member if node.degraded.is_some() => bad(format!("degraded{ephemeral}")),
            NodeState::Member if node.connected => good(format!("connected{ephemeral}")),
            NodeState::Member => bad(format!("away{ephemeral}")),
        };
        let blocks = node.blocks.iter().flat_map(|block| &block.prefixes);
        [
            node.name.to_string(),
            or_dash(node.site.as_ref()),
            state,
            or_dash(node.enforced),
            node.workloads.to_string(),
            list(blocks),
            or_dash(node.address.map(|address| address.ip())),
            if node.labels.is_empty() { "-".into() } else { node.labels.to_string() },
            or_dash(node.version.as_ref()),
            or_dash(node.seen.as_ref()),
        ]
    };
    let columns = [
        "NAME",
        "SITE+",
        "STATE",
        "ENFORCES",
        "WORKLOADS",
        "BLOCKS",
        "ADDRESS",
        "LABELS+",
        "VERSION+",
        "SEEN+",
    ];
    let none = "no nodes; make a token with: meshctl token create";
    show(common, all, columns, row, &listing::none(narrowed, "nodes", none))?;
    if common.is_table() {
        for node in all {
            let degraded = node.degraded.iter().map(|why| format!("degraded: {why}"));
            for problem in node.problems.iter().cloned().chain(degraded) {
                note!("{} {}: {problem}", bad("problem:"), node.name);
            }
        }
    }
    Ok(())
}

pub(crate) async fn key(common: &Common, verb: Key) -> Result<()> {
    let Key::Rotate { node, network, keep_old } = verb;
    let client = Client::coordinator(common)?;
    let all = node.is_none() && network.is_none();
    let wanted = RotateKeys { node, network, all, keep_old_seconds: keep_old.as_secs() };
    let rotated = client.write(&operations::ROTATE_KEYS, &[], &wanted).await?;
    let effects = if common.dry_run { what_rotates(&client, &wanted).await } else { vec![] };
    let would = format!("rotate the keys of {}", count(rotated.endpoints, "endpoint"));
    let done = format!("{} of {} endpoints have a new key", rotated.rotated, rotated.endpoints);
    tell(common, &Change { would, done, effects, result: Some(&rotated) })?;
    if common.is_table() && !rotated.away.is_empty() {
        note!("{} {} keep theirs until they are asked again", bad("away:"), list(&rotated.away));
    }
    Ok(())
}

async fn what_rotates(client: &Client, wanted: &RotateKeys) -> Vec<Effect> {
    let nodes = client.all(&operations::NODES, &[]).await.unwrap_or_default();
    let own =
        nodes.iter().filter(|node| wanted.node.as_ref().is_none_or(|name| *name == node.name));
    let mut effects = Vec::new();
    for (node, block) in own.flat_map(|node| node.blocks.iter().map(move |block| (node, block))) {
        if wanted.network.as_ref().is_none_or(|name| *name == block.network) {
            let (name, detail) = (node.name.to_string(), format!("network {}", block.network));
            effects.push(Effect { action: "rotate", kind: "key of node", name, detail });
        }
    }
    effects
}

pub(crate) async fn relay(common: &Common, verb: Option<Relay>, which: Watching) -> Result<()> {
    let client = Client::coordinator(common)?;
    let watching = match verb_or_list(verb, which, Relay::List)? {
        Relay::List(watching) => watching,
        Relay::Remove { name } => {
            client.remove(&operations::REMOVE_RELAY, &[&name]).await?;
            let (would, done) =
                (format!("remove relay {name}"), format!("relay {name} is removed"));
            return tell(common, &Change { would, done, effects: vec![], result: None });
        }
    };
    let row = |relay: &api::Relay| {
        [
            relay.name.to_string(),
            relay.number.to_string(),
            or_dash(relay.site.as_ref()),
            if relay.connected { good("connected") } else { bad("away") },
            relay.nodes.to_string(),
            list(&relay.addresses),
        ]
    };
    let columns = ["NAME", "NUMBER", "SITE", "STATE", "NODES", "ADDRESSES"];
    let none = "no relays but the coordinator; make a token with: meshctl token create --relay";
    let read = async || client.all(&operations::RELAYS, &[]).await;
    listing::list(watching, read, |all: &Vec<api::Relay>| show(common, all, columns, row, none))
        .await
}
