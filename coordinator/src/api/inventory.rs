//! Nodes and workloads.

use super::{
    caller::Caller,
    lists::{self, BySelector, Listed, Query},
    problem::ApiError,
    request::{At, Body, Precondition, etag},
    services,
    state::Api,
};
use crate::mesh::Mesh;
use axum::{
    Json,
    extract::State,
    http::header::ETAG,
    response::{IntoResponse, Response},
};
use meshward_api_types::{
    ApproveNode, Block, Measured, Node, NodeState, Page, Role, Status, Workload, operations,
};
use meshward_control_state::{
    Refusal,
    change_log::ListKind,
    plans::{networks, nodes},
    records::{RefusedRecord, WorkloadRef},
    timestamp,
    world::{AdmittedWorkload, World},
};
use meshward_types::{NetworkName, NodeName, WorkloadId, WorkloadName};
use serde::Deserialize;
use std::{collections::BTreeSet, sync::Arc};

/// A summary of the mesh; for a credential that is limited to some networks, only of these.
#[utoipa::path(get, path = operations::STATUS.path(), tag = "mesh", operation_id = "status",
    responses((status = 200, body = Status)))]
pub(super) async fn status(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Json<Status> {
    Json(mesh.look(|world| {
        let nodes: Vec<&NodeName> = world
            .nodes
            .keys()
            .filter(|name| nodes::serves_any(world, name, &caller.networks))
            .collect();
        let networks: Vec<_> = world
            .networks
            .values()
            .filter(|network| caller.reaches(&network.record.name))
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            mesh: mesh.ca.mesh.clone(),
            ca_fingerprint: mesh.ca.fingerprint().to_string(),
            revision: world.revision,
            nodes: nodes.len(),
            nodes_connected: nodes.iter().filter(|name| mesh.sessions.get(name).is_some()).count(),
            networks: networks.len(),
            workloads: networks.iter().map(|network| network.workloads.len()).sum(),
            workloads_quarantined: networks
                .iter()
                .map(|network| world.quarantined_in(network))
                .sum(),
        }
    }))
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct NodeFilter {
    site: Option<String>,
    state: Option<NodeState>,
    connected: Option<bool>,
    selector: Option<BySelector>,
}

impl Listed for Node {
    type Filter = NodeFilter;
    const KIND: ListKind = ListKind::Nodes;
    /// Sessions, and what nodes enforce, change without a revision.
    const VOLATILE: bool = true;

    fn key(&self) -> String {
        self.name.to_string()
    }

    fn fits(&self, filter: &NodeFilter) -> bool {
        let site = filter.site.as_ref().is_none_or(|site| self.site.as_ref() == Some(site));
        site && lists::is(filter.state.as_ref(), &self.state)
            && lists::is(filter.connected.as_ref(), &self.connected)
            && lists::selects(filter.selector.as_ref(), &self.labels)
    }

    fn all(mesh: &Mesh, world: &World) -> Vec<Self> {
        let names: BTreeSet<&NodeName> =
            world.nodes.keys().chain(world.approved_nodes.keys()).collect();
        names.into_iter().map(|name| describe(mesh, world, name)).collect()
    }

    fn keys(world: &World) -> Option<Vec<String>> {
        let names: BTreeSet<&NodeName> =
            world.nodes.keys().chain(world.approved_nodes.keys()).collect();
        Some(names.into_iter().map(ToString::to_string).collect())
    }

    fn one(mesh: &Mesh, world: &World, key: &str) -> Option<Self> {
        let name = key.parse().ok()?;
        nodes::is_known(world, &name).then(|| describe(mesh, world, &name))
    }

    fn is_for(&self, world: &World, caller: &Caller) -> bool {
        nodes::serves_any(world, &self.name, &caller.networks)
    }

    fn redacted_for(mut self, _: &Mesh, world: &World, caller: &Caller) -> Self {
        if caller.networks.is_empty() {
            return self;
        }
        self.blocks.retain(|block| caller.reaches(&block.network));
        let workloads = world.workloads_on(&self.name);
        self.workloads = workloads.filter(|workload| caller.reaches(&workload.network)).count();
        if let Some(known) = world.nodes.get(&self.name) {
            let own = known.problems.iter().filter(|(network, _)| caller.reaches(network));
            self.problems = own.map(|(_, problem)| problem.clone()).collect();
        }
        self
    }
}

/// Lists the nodes.
#[utoipa::path(get, path = operations::NODES.path(), tag = "nodes", operation_id = "list_nodes",
    params(("site" = Option<String>, Query, description = "Only entries of this site"),
        ("state" = Option<NodeState>, Query, description = "Only entries in this state"),
        ("connected" = Option<bool>, Query, description = "Only nodes with a session now (true) or \
            without (false)"),
        ("selector" = Option<String>, Query, description = "Only entries with such labels: \
            `gpu=yes,zone in (a,b),!old`")),
    responses((status = 200, body = Page<Node>)))]
pub(super) async fn list_nodes(
    api: State<Api>,
    caller: Caller,
    query: Query<NodeFilter>,
) -> Result<Response, ApiError> {
    lists::list::<Node>(api, caller, query).await
}

/// Returns a node. Its `ETag` covers its approval and assigned labels, not its reports.
#[utoipa::path(get, path = operations::NODE.path(), tag = "nodes", operation_id = "get_node",
    params(("name" = NodeName, Path, description = "The name of the node")),
    responses((status = 200, body = Node, headers(("ETag" = String, description = "The state of \
        its approval")))))]
pub(super) async fn get_node(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NodeName>,
) -> Result<Response, ApiError> {
    let node: Node = lists::one(&mesh, &caller, name.as_str(), "node")?;
    Ok(answer(node))
}

fn answer(node: Node) -> Response {
    ([(ETAG, tag(&node))], Json(node)).into_response()
}

fn tag(node: &Node) -> String {
    etag(&(&node.name, node.state, &node.given_labels))
}

fn tag_in(mesh: &Mesh, world: &World, name: &NodeName) -> Option<String> {
    nodes::is_known(world, name).then(|| tag(&describe(mesh, world, name)))
}

/// Returns a node, which may be one that is approved and has not joined yet.
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
            forget_after_seconds: None,
            seen: None,
        };
    };
    let session = mesh.sessions.get(name);
    let mut problems: Vec<String> = node.problems.values().cloned().collect();
    if node.waiting {
        problems.push(format!("waits for approval: `meshctl nodes approve {name}`"));
    }
    if let Some(from) = mesh.sessions.recent_duplicate(name) {
        problems.push(format!(
            "another machine, at {from}, has the same identity (a copied disk?) and gets no \
            session: remove its data folder, and run `meshward-node join` there"
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
        address: session.as_ref().map(|session| session.node.address),
        version: session.as_ref().map(|session| session.node.version.clone()),
        blocks: node.blocks.iter().map(block).collect(),
        problems,
        workloads: world.workloads_on(name).count(),
        forget_after_seconds: node.forget_after,
        seen: mesh.sessions.last_seen(name).filter(|_| session.is_none()).map(timestamp),
    }
}

/// Approves a node by name, before or after it joins, and replaces the labels assigned to it.
#[utoipa::path(put, path = operations::APPROVE_NODE.path(), tag = "nodes",
    operation_id = "approve_node", request_body = ApproveNode,
    params(("name" = NodeName, Path, description = "The name of the node")),
    responses((status = 200, body = Node, headers(("ETag" = String, description = "The state of \
        its approval")))))]
pub(super) async fn approve_node(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NodeName>,
    expected: Precondition,
    Body(wanted): Body<ApproveNode>,
) -> Result<Response, ApiError> {
    caller.must_be(Role::Admin)?;
    let plan = |world: &World| {
        expected.check(tag_in(&mesh, world, &name).as_deref())?;
        nodes::approve(world, &name, &wanted)
    };
    mesh.change(&caller.context, plan).await?;
    let mut node = mesh.look(|world| describe(&mesh, world, &name));
    if caller.context.dry_run {
        // As it would be.
        node.given_labels = Some(wanted.labels);
        if node.state == NodeState::Waiting {
            node.state = NodeState::Member;
        }
    }
    Ok(answer(node))
}

/// Removes a node: its session ends, its certificate is revoked, and its workloads are closed.
/// Returns the node.
#[utoipa::path(delete, path = operations::REMOVE_NODE.path(), tag = "nodes",
    operation_id = "remove_node",
    params(("name" = NodeName, Path, description = "The name of the node")),
    responses((status = 200, body = Node)))]
pub(super) async fn remove_node(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NodeName>,
    expected: Precondition,
) -> Result<Json<Node>, ApiError> {
    caller.must_be(Role::Admin)?;
    let plan = |world: &World| {
        expected.check(tag_in(&mesh, world, &name).as_deref())?;
        Ok::<_, Refusal>(nodes::remove(world, &name)?.with_outcome(describe(&mesh, world, &name)))
    };
    let done = mesh.change(&caller.context, plan).await?;
    if !caller.context.dry_run {
        mesh.disconnect(&name, "this node was removed from the mesh");
    }
    Ok(Json(done.outcome))
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct WorkloadFilter {
    network: Option<NetworkName>,
    node: Option<NodeName>,
    name: Option<WorkloadName>,
    quarantined: Option<bool>,
    refused: Option<bool>,
    selector: Option<BySelector>,
}

impl Listed for Workload {
    type Filter = WorkloadFilter;
    const KIND: ListKind = ListKind::Workloads;

    fn check(world: &World, filter: &WorkloadFilter) -> Result<(), ApiError> {
        match &filter.network {
            Some(name) => Ok(networks::find(world, name).map(drop)?),
            None => Ok(()),
        }
    }

    fn key(&self) -> String {
        self.id.to_string()
    }

    fn is_for(&self, _: &World, caller: &Caller) -> bool {
        caller.reaches(&self.network)
    }

    fn fits(&self, filter: &WorkloadFilter) -> bool {
        lists::is(filter.network.as_ref(), &self.network)
            && lists::is(filter.node.as_ref(), &self.node)
            && lists::is(filter.name.as_ref(), &self.name)
            && lists::is(filter.quarantined.as_ref(), &self.quarantined)
            && lists::is(filter.refused.as_ref(), &!self.refused.is_empty())
            && lists::selects(filter.selector.as_ref(), &self.labels)
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        let refused = world.networks.values().flat_map(|network| network.refused.values());
        let admitted = world.workloads().map(|workload| admitted(world, workload));
        admitted.chain(refused.map(|record| refused_one(record))).collect()
    }

    fn keys(world: &World) -> Option<Vec<String>> {
        Some(world.workload_networks.keys().map(ToString::to_string).collect())
    }

    fn one(_: &Mesh, world: &World, key: &str) -> Option<Self> {
        match world.workload(&key.parse().ok()?)? {
            WorkloadRef::Refused(record) => Some(refused_one(record)),
            WorkloadRef::Admitted(record) => {
                let network = world.networks.get(&record.network)?;
                let labels = &network.identities.get(&record.identity)?.labels;
                let quarantine = world.quarantine_of(&record.network, labels, Some(&record.id));
                let is_quarantined = quarantine.is_some();
                Some(admitted(world, AdmittedWorkload { record, labels, is_quarantined }))
            }
        }
    }
}

fn refused_one(record: &RefusedRecord) -> Workload {
    Workload {
        id: record.report.id.clone(),
        name: record.report.name.clone(),
        network: record.report.network.clone(),
        node: record.node.clone(),
        addresses: record.report.addresses.clone(),
        prefixes: record.report.prefixes.clone(),
        labels: record.report.labels.clone(),
        identity: None,
        owns_name: false,
        serving: None,
        unhealthy: vec![],
        quarantined: false,
        refused: record.reasons.clone(),
        measurement: record.report.measurement.as_deref().map(Measured::from),
    }
}

fn admitted(world: &World, workload: AdmittedWorkload<'_>) -> Workload {
    let AdmittedWorkload { record, labels, is_quarantined } = workload;
    let states = services::states(world, record);
    Workload {
        id: record.id.clone(),
        name: record.name.clone(),
        network: record.network.clone(),
        node: record.node.clone(),
        addresses: record.addresses.clone(),
        prefixes: record.prefixes.clone(),
        labels: labels.clone(),
        identity: Some(record.identity),
        owns_name: record.owns_name,
        serving: Some(states.serving_all()),
        unhealthy: states.unhealthy.into_iter().collect(),
        quarantined: is_quarantined,
        refused: vec![],
        measurement: record.measurement.as_deref().map(Measured::from),
    }
}

/// Lists the workloads.
#[utoipa::path(get, path = operations::WORKLOADS.path(), tag = "workloads",
    operation_id = "list_workloads",
    params(("network" = Option<NetworkName>, Query, description = "Only entries of this network"),
        ("node" = Option<NodeName>, Query, description = "Only workloads on this node"),
        ("name" = Option<WorkloadName>, Query, description = "Only workloads with this name"),
        ("quarantined" = Option<bool>, Query, description = "Only workloads under quarantine \
            (true) or not (false)"),
        ("refused" = Option<bool>, Query, description = "Only workloads that are refused (true) or \
            admitted (false)"),
        ("selector" = Option<String>, Query, description = "Only entries with such labels: \
            `app=web,env in (prod,stage),!old`")),
    responses((status = 200, body = Page<Workload>)))]
pub(super) async fn list_workloads(
    api: State<Api>,
    caller: Caller,
    query: Query<WorkloadFilter>,
) -> Result<Response, ApiError> {
    lists::list::<Workload>(api, caller, query).await
}

/// Returns a workload.
#[utoipa::path(get, path = operations::WORKLOAD.path(), tag = "workloads",
    operation_id = "get_workload",
    params(("id" = WorkloadId, Path, description = "The id of the workload")),
    responses((status = 200, body = Workload)))]
pub(super) async fn get_workload(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(id): At<WorkloadId>,
) -> Result<Json<Workload>, ApiError> {
    Ok(Json(lists::one(&mesh, &caller, id.as_str(), "workload")?))
}
