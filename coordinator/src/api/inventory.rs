use super::{ApiError, Body, Caller};
use crate::{
    mesh::Mesh,
    plans::{networks, nodes, policies},
    world::World,
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use meshward_model::{
    IdentityId, NetworkName, NodeName,
    api::{
        ApproveNode, AuditEntry, Block, ErrorBody, Link, Links, Measured, Node, NodeState, Role, Status,
        Workload,
    },
    control::{Answer, Count, LinkCount, Question},
    relay::RelayId,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

#[derive(Deserialize)]
pub struct InNetwork {
    network: Option<NetworkName>,
}

#[derive(Deserialize)]
pub struct Newest {
    limit: Option<u32>,
}

/// The mesh in short; for a credential that reaches some networks only, what is of these.
#[utoipa::path(get, path = "/v1/status", tag = "mesh", operation_id = "status",
    responses((status = 200, body = Status), (status = "4XX", body = ErrorBody)))]
pub async fn status(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Json<Status> {
    Json(mesh.look(|world| {
        let nodes: Vec<&NodeName> =
            world.nodes.keys().filter(|name| nodes::serves_any(world, name, &caller.networks)).collect();
        let networks: Vec<_> =
            world.networks.values().filter(|network| caller.reaches(&network.record.name)).collect();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            mesh: mesh.ca.mesh.clone(),
            ca_fingerprint: mesh.ca.fingerprint().to_string(),
            revision: world.revision,
            nodes: nodes.len(),
            nodes_connected: nodes.iter().filter(|name| mesh.sessions.get(name).is_some()).count(),
            networks: networks.len(),
            workloads: networks.iter().map(|network| network.workloads.len()).sum(),
            workloads_quarantined: networks.iter().map(|network| world.quarantined_in(network)).sum(),
        }
    }))
}

/// The newest lines of the audit log, the newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "mesh", operation_id = "audit",
    params(("limit" = Option<u32>, Query, description = "How many, at most 1000 (default 100)")),
    responses((status = 200, body = Vec<AuditEntry>), (status = "4XX", body = ErrorBody)))]
pub async fn audit(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Query(newest): Query<Newest>,
) -> Result<Json<Vec<AuditEntry>>, ApiError> {
    caller.must_reach_all()?;
    Ok(Json(mesh.audit(newest.limit.unwrap_or(100).min(1000)).await?))
}

/// Lists the nodes.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", operation_id = "list_nodes",
    responses((status = 200, body = Vec<Node>), (status = "4XX", body = ErrorBody)))]
pub async fn list_nodes(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Json<Vec<Node>> {
    Json(mesh.look(|world| {
        let names: BTreeSet<&NodeName> = world.nodes.keys().chain(world.approved_nodes.keys()).collect();
        let names = names.into_iter().filter(|name| nodes::serves_any(world, name, &caller.networks));
        names.map(|name| seen_by(&caller, world, describe(&mesh, world, name))).collect()
    }))
}

/// A node as a caller sees it: what is of other networks is left out.
fn seen_by(caller: &Caller, world: &World, mut node: Node) -> Node {
    if caller.networks.is_empty() {
        return node;
    }
    node.blocks.retain(|block| caller.reaches(&block.network));
    let workloads = world.workloads_on(&node.name);
    node.workloads = workloads.filter(|workload| caller.reaches(&workload.network)).count();
    if let Some(known) = world.nodes.get(&node.name) {
        let own = known.problems.iter().filter(|(network, _)| caller.reaches(network));
        node.problems = own.map(|(_, problem)| problem.clone()).collect();
    }
    node
}

/// A node as it stands, one that is only expected included.
fn describe(mesh: &Mesh, world: &World, name: &NodeName) -> Node {
    let given_labels = world.approved_nodes.get(name).map(|approved| approved.labels.clone());
    let Some(node) = world.nodes.get(name) else {
        return Node {
            name: name.clone(),
            state: NodeState::Expected,
            site: None,
            labels: given_labels.clone().unwrap_or_default(),
            given_labels,
            connected: false,
            degraded: None,
            enforced: None,
            address: None,
            version: None,
            blocks: vec![],
            problems: vec![],
            workloads: 0,
        };
    };
    let session = mesh.sessions.get(name);
    let mut problems: Vec<String> = node.problems.values().cloned().collect();
    if node.waiting {
        problems.push(format!("waits for approval: `meshctl nodes approve {name}`"));
    }
    if let Some(from) = mesh.sessions.held(name) {
        problems.push(format!(
            "another machine, at {from}, has the same identity (a copied disk?) and is held: remove its data folder, and run `meshward-node join` there"
        ));
    }
    problems.extend(session.iter().flat_map(|session| session.problems()));
    let block = |(network, prefixes): (&NetworkName, &Vec<_>)| Block {
        network: network.clone(),
        prefixes: prefixes.clone(),
    };
    Node {
        name: name.clone(),
        state: if node.waiting { NodeState::Waiting } else { NodeState::Member },
        site: node.site.clone(),
        labels: nodes::labels(world, node),
        given_labels,
        connected: session.is_some(),
        degraded: session.as_ref().and_then(|session| session.degraded()),
        enforced: session.as_ref().map(|session| session.enforced()),
        address: session.as_ref().map(|session| session.address),
        version: session.as_ref().map(|session| session.version.clone()),
        blocks: node.blocks.iter().map(block).collect(),
        problems,
        workloads: world.workloads_on(name).count(),
    }
}

/// Approves a node by name, before or after it joins, and gives it labels: these, and no others that it was given before.
#[utoipa::path(put, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "approve_node", request_body = ApproveNode,
    params(("name" = String, Path, description = "The node's name")),
    responses((status = 200, body = Node), (status = "4XX", body = ErrorBody)))]
pub async fn approve_node(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NodeName>,
    Body(wanted): Body<ApproveNode>,
) -> Result<Json<Node>, ApiError> {
    caller.must_be(Role::Admin)?;
    mesh.change(&caller.author, |world| nodes::approve(world, &name, &wanted)).await?;
    Ok(Json(mesh.look(|world| describe(&mesh, world, &name))))
}

/// Removes a node: its workloads go, its session ends, its certificate is good for nothing.
#[utoipa::path(delete, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "remove_node",
    params(("name" = String, Path, description = "The node's name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub async fn remove_node(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NodeName>,
) -> Result<StatusCode, ApiError> {
    caller.must_be(Role::Admin)?;
    mesh.change(&caller.author, |world| nodes::remove(world, &name)).await?;
    if !caller.author.dry_run {
        mesh.sessions.end(&name, "this node was removed from the mesh");
        mesh.relay.end(RelayId::of(&name));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the workloads.
#[utoipa::path(get, path = "/v1/workloads", tag = "workloads", operation_id = "list_workloads",
    params(("network" = Option<String>, Query, description = "Only those of this network")),
    responses((status = 200, body = Vec<Workload>), (status = "4XX", body = ErrorBody)))]
pub async fn list_workloads(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Query(only): Query<InNetwork>,
) -> Result<Json<Vec<Workload>>, ApiError> {
    mesh.look(|world| {
        if let Some(name) = &only.network {
            networks::find(world, name)?;
        }
        let reached = |network: &NetworkName| {
            only.network.as_ref().is_none_or(|own| own == network) && caller.reaches(network)
        };
        let refused = world.networks.values().filter(|network| reached(&network.record.name));
        let refused = refused.flat_map(|network| network.refused.values()).map(|record| Workload {
            id: record.report.id.clone(),
            name: record.report.name.clone(),
            network: record.report.network.clone(),
            node: record.node.clone(),
            addresses: record.report.addresses.clone(),
            prefixes: record.report.prefixes.clone(),
            labels: record.report.labels.clone(),
            identity: None,
            quarantined: false,
            refused: record.reasons.clone(),
            measurement: record.report.measurement.as_deref().map(Measured::from),
        });
        let shown = world.workloads().filter(|(workload, _, _)| reached(&workload.network));
        let shown = shown.map(|(workload, labels, quarantined)| Workload {
            id: workload.id.clone(),
            name: workload.name.clone(),
            network: workload.network.clone(),
            node: workload.node.clone(),
            addresses: workload.addresses.clone(),
            prefixes: workload.prefixes.clone(),
            labels: labels.clone(),
            identity: Some(workload.identity),
            quarantined,
            refused: vec![],
            measurement: workload.measurement.as_deref().map(Measured::from),
        });
        let mut workloads: Vec<Workload> = shown.chain(refused).collect();
        workloads.sort_unstable_by(|a, b| (&a.network, &a.name, &a.id).cmp(&(&b.network, &b.name, &b.id)));
        Ok(Json(workloads))
    })
}

/// Lists the links with the counters of all connected nodes; pairs that were only ever denied have an empty ACL.
#[utoipa::path(get, path = "/v1/links", tag = "policy", operation_id = "list_links",
    params(("network" = Option<String>, Query, description = "Only those of this network")),
    responses((status = 200, body = Links), (status = "4XX", body = ErrorBody)))]
pub async fn list_links(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Query(only): Query<InNetwork>,
) -> Result<Json<Links>, ApiError> {
    if let Some(name) = &only.network {
        mesh.look(|world| networks::find(world, name).map(drop))?;
    }
    let answers: HashMap<_, _> = mesh.sessions.ask_all(&Question::Links).await.into_iter().collect();
    let counts = answers.values().flatten().flat_map(|answer| match answer {
        Answer::Links(counts) => &counts[..],
        _ => &[],
    });
    let mut sums: BTreeMap<(NetworkName, IdentityId, IdentityId), Count> = BTreeMap::new();
    for LinkCount { network, from, to, count } in counts {
        let zero = Count { packets: 0, bytes: 0, denied: 0, observed: 0 };
        let sum = sums.entry((network.clone(), *from, *to)).or_insert(zero);
        sum.packets += count.packets;
        sum.bytes += count.bytes;
        sum.denied += count.denied;
        sum.observed += count.observed;
    }
    Ok(Json(mesh.look(|world| {
        let wanted = only.network.as_slice();
        let concerned = |node: &&NodeName| {
            nodes::serves_any(world, node, &caller.networks) && nodes::serves_any(world, node, wanted)
        };
        let silent = world.nodes.keys().filter(concerned);
        let silent = silent.filter(|node| !matches!(answers.get(*node), Some(Some(_))));
        Links {
            links: {
                let mut links = counted_links(world, only.network.as_ref(), sums);
                links.retain(|link| caller.reaches(&link.network));
                links
            },
            nodes_answered: answers
                .iter()
                .filter(|(node, answer)| answer.is_some() && concerned(node))
                .count(),
            nodes_silent: silent.cloned().collect(),
        }
    })))
}

fn counted_links(
    world: &World,
    only: Option<&NetworkName>,
    mut sums: BTreeMap<(NetworkName, IdentityId, IdentityId), Count>,
) -> Vec<Link> {
    let mut links = Vec::new();
    for (name, network) in world.networks.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        for ((from, to), link) in policies::links(network) {
            let count = sums.remove(&(name.clone(), from, to));
            links.push(with_count(link, count));
        }
        for ((_, from, to), count) in sums.iter().filter(|((own, _, _), _)| own == name) {
            let (Some(from), Some(to)) = (network.identities.get(from), network.identities.get(to)) else {
                continue;
            };
            let link = Link {
                network: name.clone(),
                from: from.labels.clone(),
                to: to.labels.clone(),
                acl: Default::default(),
                packets: 0,
                bytes: 0,
                denied: 0,
                observed: 0,
            };
            links.push(with_count(link, Some(*count)));
        }
    }
    links.sort_by(|a, b| (&a.network, &a.from, &a.to).cmp(&(&b.network, &b.from, &b.to)));
    links
}

fn with_count(link: Link, count: Option<Count>) -> Link {
    let Some(count) = count else { return link };
    Link {
        packets: count.packets,
        bytes: count.bytes,
        denied: count.denied,
        observed: count.observed,
        ..link
    }
}
