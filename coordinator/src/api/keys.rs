use super::{caller::Caller, problem::ApiError, request::Body};
use crate::mesh::Mesh;
use axum::{Json, extract::State};
use meshward_api_types::{Role, RotateKeys, RotatedKeys, operations};
use meshward_control_proto::FromCoordinator;
use meshward_control_state::{Plan, Refusal, plans::networks, world::World};
use meshward_types::{NetworkName, NodeName, PublicKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The maximum time for which an answer waits until nodes report their new keys.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum time for which old keys stay valid, in seconds.
const MOST_KEPT: u64 = 30 * 24 * 3600;

/// Rotates the keys of endpoints without losing a packet. Nodes that are away keep their keys.
#[utoipa::path(post, path = operations::ROTATE_KEYS.path(), tag = "nodes",
    operation_id = "rotate_keys", request_body = RotateKeys,
    responses((status = 200, body = RotatedKeys)))]
pub(super) async fn rotate(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<RotateKeys>,
) -> Result<Json<RotatedKeys>, ApiError> {
    caller.must_be(Role::Admin)?;
    if wanted.keep_old_seconds > MOST_KEPT {
        return Err(Refusal::Invalid("old keys can be kept for 30 days at the most".into()).into());
    }
    if wanted.all == (wanted.node.is_some() || wanted.network.is_some()) {
        let text = "name the keys to rotate: those of a `node`, of a `network`, or `all`";
        return Err(Refusal::Invalid(text.into()).into());
    }
    let before = mesh.look(|world| check(world, &wanted).map(|()| keys(world, &wanted)))?;
    if caller.context.dry_run {
        return Ok(Json(answer(&mesh, &wanted, &before, before.len())));
    }
    let action = match (&wanted.node, &wanted.network) {
        (Some(node), Some(network)) => {
            format!("had node {node} make another key for network {network}")
        }
        (Some(node), None) => format!("had node {node} make other keys"),
        (None, Some(network)) => format!("had all nodes make other keys for network {network}"),
        (None, None) => "had all nodes make other keys".into(),
    };
    mesh.change(&caller.context, |_| Ok(Plan::noted(action.clone()))).await?;
    let request = FromCoordinator::RotateKeys {
        networks: wanted.network.iter().cloned().collect(),
        keep_old_seconds: wanted.keep_old_seconds,
    };
    let nodes: BTreeSet<&NodeName> = before.keys().map(|(node, _)| node).collect();
    for session in nodes.into_iter().filter_map(|node| mesh.sessions.get(node)) {
        session.queue_message(request.clone());
    }
    let begun = Instant::now();
    loop {
        let after = mesh.look(|world| keys(world, &wanted));
        let connected = |(node, _): &&(NodeName, NetworkName)| mesh.sessions.get(node).is_some();
        let changed = before.iter().filter(|(of, key)| after.get(of) != Some(key)).count();
        if changed >= before.keys().filter(connected).count() || begun.elapsed() >= ROTATION_TIMEOUT
        {
            return Ok(Json(answer(&mesh, &wanted, &before, changed)));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

type Keys = BTreeMap<(NodeName, NetworkName), PublicKey>;

fn answer(mesh: &Mesh, wanted: &RotateKeys, before: &Keys, rotated: usize) -> RotatedKeys {
    let away = |node: &NodeName| mesh.sessions.get(node).is_none();
    let mut nodes: Vec<NodeName> =
        before.keys().map(|(node, _)| node.clone()).filter(away).collect();
    nodes.dedup();
    RotatedKeys {
        endpoints: before.len(),
        rotated,
        away: nodes,
        keep_old_seconds: wanted.keep_old_seconds,
    }
}

fn check(world: &World, wanted: &RotateKeys) -> Result<(), Refusal> {
    if let Some(network) = &wanted.network {
        networks::find(world, network)?;
    }
    match &wanted.node {
        Some(node) if !world.nodes.contains_key(node) => {
            Err(Refusal::Missing(format!("there is no node `{node}`; `meshctl nodes` shows them")))
        }
        _ => Ok(()),
    }
}

fn keys(world: &World, wanted: &RotateKeys) -> Keys {
    let nodes = world
        .nodes
        .values()
        .filter(|node| wanted.node.as_ref().is_none_or(|own| *own == node.name));
    let all = nodes.flat_map(|node| {
        node.endpoints.iter().map(move |(network, endpoint)| (node, network, endpoint))
    });
    all.filter(|(_, network, _)| wanted.network.as_ref().is_none_or(|own| own == *network))
        .map(|(node, network, endpoint)| {
            ((node.name.clone(), network.clone()), endpoint.public_key)
        })
        .collect()
}
