use super::{ApiError, Body, Caller};
use crate::{mesh::Mesh, plans::networks};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use meshward_model::{
    NetworkName,
    api::{CreateNetwork, ErrorBody, Network, Role},
};
use std::sync::Arc;

/// Makes a network.
#[utoipa::path(post, path = "/v1/networks", tag = "networks", operation_id = "create_network", request_body = CreateNetwork,
    responses((status = 201, body = Network), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<CreateNetwork>,
) -> Result<(StatusCode, Json<Network>), ApiError> {
    caller.must_be(Role::Admin)?;
    let done = mesh.change(&caller.author, |world| networks::create(world, &wanted)).await?;
    Ok((StatusCode::CREATED, Json(done.outcome)))
}

/// Lists the networks.
#[utoipa::path(get, path = "/v1/networks", tag = "networks", operation_id = "list_networks",
    responses((status = 200, body = Vec<Network>), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Json<Vec<Network>> {
    Json(mesh.look(|world| {
        let own = world.networks.values().filter(|network| caller.reaches(&network.record.name));
        own.map(|network| network.record.clone()).collect()
    }))
}

/// Deletes a network that has no workloads.
#[utoipa::path(delete, path = "/v1/networks/{name}", tag = "networks", operation_id = "delete_network",
    params(("name" = String, Path, description = "The network's name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub async fn delete(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<NetworkName>,
) -> Result<StatusCode, ApiError> {
    caller.must_be(Role::Admin)?;
    mesh.change(&caller.author, |world| networks::delete(world, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
