use super::{ApiError, Caller};
use crate::{
    mesh::Mesh,
    plans::{nodes::serves_any, relays},
    records::RelayRecord,
    world::World,
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use meshward_model::{
    NetworkName, NodeName,
    api::{ErrorBody, Relay, Role},
    relay::RelayId,
};
use std::sync::Arc;

/// Lists the relays, apart from the coordinator.
#[utoipa::path(get, path = "/v1/relays", tag = "nodes", operation_id = "list_relays",
    responses((status = 200, body = Vec<Relay>), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Json<Vec<Relay>> {
    let describe = |world: &World| {
        world.relays.values().map(|relay| describe(&mesh, world, relay, &caller.networks)).collect()
    };
    Json(mesh.look(describe))
}

/// `networks`: those whose nodes are counted; none: all.
fn describe(mesh: &Mesh, world: &World, relay: &RelayRecord, networks: &[NetworkName]) -> Relay {
    let by_it = |node: &&crate::records::NodeRecord| {
        let mut candidates = node.endpoints.values().flat_map(|endpoint| &endpoint.candidates);
        candidates.any(|place| RelayId::at(place).is_some_and(|(_, number)| number.0 == relay.number))
    };
    Relay {
        name: relay.name.clone(),
        number: relay.number,
        site: relay.site.clone(),
        addresses: relay.addresses.clone(),
        connected: mesh.relays.is_connected(&relay.name),
        nodes: world
            .nodes
            .values()
            .filter(by_it)
            .filter(|node| serves_any(world, &node.name, networks))
            .count(),
    }
}

/// Removes a relay: its link ends, and its certificate is good for nothing.
#[utoipa::path(delete, path = "/v1/relays/{name}", tag = "nodes", operation_id = "remove_relay",
    params(("name" = String, Path, description = "The relay's name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub async fn remove(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NodeName>,
) -> Result<StatusCode, ApiError> {
    caller.must_be(Role::Admin)?;
    mesh.change(&caller.author, |world| relays::remove(world, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
