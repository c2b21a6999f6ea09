//! `meshctl status`: the mesh, and the node of this machine where there is one.

use crate::{
    arguments::{Common, Watching},
    client::Client,
    listing, note, out,
    output::{bad, bytes, good, list, table, whole},
};
use anyhow::Result;
use meshward_api_types::{
    Status,
    local::{LocalEndpoint, LocalStatus, RemovedNode},
    operations,
};
use meshward_types::relay::RelayId;
use serde::Serialize;
use std::{
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

#[derive(Serialize)]
struct Both {
    mesh: Option<Status>,
    /// The reason for `mesh` being absent although there is a coordinator to ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh_problem: Option<String>,
    node: Option<LocalStatus>,
    /// This machine's node, if it was removed from the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<RemovedNode>,
}

pub(crate) async fn status(common: &Common, watching: Watching) -> Result<ExitCode> {
    listing::list(watching, async || read(common).await, |both| print(common, both)).await?;
    let fine = removed(common).is_none() || common.socket.exists();
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the notice of a daemon that ended because its node was removed.
fn removed(common: &Common) -> Option<RemovedNode> {
    let text = std::fs::read(RemovedNode::path(&common.socket)).ok()?;
    serde_json::from_slice(&text).ok()
}

async fn read(common: &Common) -> Result<Both> {
    let client = Client::coordinator(common);
    // A machine that only runs a node needs no context, unless one is named.
    let expected = client.is_ok() || common.context.is_some();
    let mesh = async {
        let mesh: Result<Status> = client?.read(&operations::STATUS, &[], &[]).await;
        mesh
    };
    let node = async {
        let node: Result<LocalStatus> = if common.socket.exists() {
            Client::node(common).get("/v1/status").await
        } else {
            Err(anyhow::anyhow!("no node daemon runs on this machine"))
        };
        node
    };
    let (mesh, node) = tokio::join!(mesh, node);
    let removed = removed(common).filter(|_| node.is_err());
    let (mesh, node) = match (mesh, node) {
        (Err(mesh), Err(_)) if removed.is_none() => return Err(mesh),
        (mesh, node) => (mesh, node),
    };
    let mesh_problem = mesh.as_ref().err().filter(|_| expected).map(|error| format!("{error:#}"));
    Ok(Both { mesh: mesh.ok(), mesh_problem, node: node.ok(), removed })
}

fn print(common: &Common, both: &Both) -> Result<()> {
    if let Some(problem) = &both.mesh_problem {
        note!("{} {problem}", bad("the mesh:"));
    }
    if whole(common, both)? {
        return Ok(());
    }
    if let Some(mesh) = &both.mesh {
        print_mesh(mesh);
    }
    if let Some(node) = &both.node {
        print_node(common, node);
    }
    if let Some(RemovedNode { node, mesh, at }) = &both.removed {
        let since = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(*at));
        out!("node {node}: {} {mesh} at {since}", bad("was removed from mesh"));
        out!("  its workloads are closed; to join again: meshward-node join TOKEN@HOST");
    }
    Ok(())
}

fn print_mesh(mesh: &Status) {
    let away = mesh.nodes - mesh.nodes_connected.min(mesh.nodes);
    let away = if away > 0 { bad(format!(", {away} away")) } else { String::new() };
    let held = match mesh.workloads_quarantined {
        0 => String::new(),
        held => bad(format!(", {held} quarantined")),
    };
    out!("mesh {} at revision {}, coordinator {}", mesh.mesh, mesh.revision, mesh.version);
    out!("  nodes      {}{away}", mesh.nodes);
    out!("  networks   {}", mesh.networks);
    out!("  workloads  {}{held}", mesh.workloads);
    out!("  CA         {}", mesh.ca_fingerprint);
}

fn print_node(common: &Common, node: &LocalStatus) {
    let session = if node.connected { good("connected to") } else { bad("without session with") };
    out!("node {} at revision {}, {session} {}", node.node, node.revision, node.coordinator);
    if let Some(why) = &node.degraded {
        out!("  {}: {why}", bad("degraded"));
    }
    out!("  version      {}", node.version);
    out!("  workers      {} of {} active", node.workers_active, node.workers);
    out!("  workloads    {}", node.workloads);
    out!("  certificate  good for {} min", node.certificate_seconds / 60);
    for endpoint in &node.endpoints {
        print_endpoint(endpoint);
        print_peers(common, endpoint);
    }
}

fn print_endpoint(endpoint: &LocalEndpoint) {
    out!(
        "  endpoint {}: UDP port {}, key {}, blocks {}, {} flows",
        endpoint.network,
        endpoint.port,
        endpoint.public_key,
        list(&endpoint.blocks),
        endpoint.flows
    );
    out!("    offloads: {}", list(&endpoint.offloads));
    let shown =
        ["tcp_established", "tcp_transitory", "udp", "icmp"].into_iter().filter_map(|name| {
            let time = Duration::from_secs(*endpoint.timeouts.get(name)?);
            Some(format!("{name} {}", humantime::format_duration(time)))
        });
    out!("    timeouts: {}", shown.collect::<Vec<_>>().join(", "));
    let drops = endpoint.drops.iter().filter(|(_, count)| **count > 0);
    let drops: Vec<String> = drops.map(|(cause, count)| format!("{cause} {count}")).collect();
    if !drops.is_empty() {
        out!("    dropped: {}", drops.join(", "));
    }
}

fn print_peers(common: &Common, endpoint: &LocalEndpoint) {
    if endpoint.peers.is_empty() {
        return;
    }
    let rows = endpoint.peers.iter().map(|peer| {
        [
            format!("    {}", peer.node),
            peer.address.map_or("-".into(), |address| match RelayId::at(&address) {
                Some((_, relay)) => format!("by relay {relay}"),
                None => address.to_string(),
            }),
            peer.path_mtu.map_or("-".into(), |mtu| mtu.to_string()),
            peer.handshake_age.map_or("never".into(), |age| format!("{age} s ago")),
            bytes(peer.sent),
            bytes(peer.received),
        ]
    });
    table(common, ["    PEER", "ADDRESS", "MTU", "HANDSHAKE", "SENT", "RECEIVED"], rows);
    for (node, lost) in
        endpoint.peers.iter().filter_map(|peer| Some((&peer.node, peer.lost.as_ref()?)))
    {
        let again = match lost.again_in {
            0 => "it is tried again now".to_owned(),
            seconds => format!("it is left alone for {seconds} s more"),
        };
        out!(
            "    {node}: relayed since the direct way to {} was lost {} s ago: {}; {again}",
            lost.address,
            lost.seconds,
            lost.why
        );
    }
}
