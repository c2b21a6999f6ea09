use super::{
    caller::Caller,
    lists::{self, Listed, Query},
    problem::ApiError,
    request::{At, Body, Precondition, with_state},
    state::Api,
};
use crate::mesh::Mesh;
use axum::{Json, extract::State, http::StatusCode, response::Response};
use meshward_api_types::{CreateNetwork, Network, Page, Role, operations};
use meshward_control_state::{change_log::ListKind, plans::networks, world::World};
use meshward_types::NetworkName;
use serde::Deserialize;
use std::sync::Arc;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Unfiltered {}

impl Listed for Network {
    type Filter = Unfiltered;
    const KIND: ListKind = ListKind::Networks;

    fn key(&self) -> String {
        self.name.to_string()
    }

    fn is_for(&self, _: &World, caller: &Caller) -> bool {
        caller.reaches(&self.name)
    }

    fn fits(&self, _: &Unfiltered) -> bool {
        true
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        world.networks.values().map(|network| Network::from(&network.record)).collect()
    }
}

/// Creates a network.
#[utoipa::path(post, path = operations::CREATE_NETWORK.path(), tag = "networks",
    operation_id = "create_network", request_body = CreateNetwork,
    responses((status = 201, body = Network)))]
pub(super) async fn create(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<CreateNetwork>,
) -> Result<(StatusCode, Json<Network>), ApiError> {
    caller.must_be(Role::Admin)?;
    let done = mesh.change(&caller.context, |world| networks::create(world, &wanted)).await?;
    Ok((StatusCode::CREATED, Json(done.outcome)))
}

/// Lists the networks.
#[utoipa::path(get, path = operations::NETWORKS.path(), tag = "networks",
    operation_id = "list_networks",
    responses((status = 200, body = Page<Network>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Unfiltered>,
) -> Result<Response, ApiError> {
    lists::list::<Network>(api, caller, query).await
}

/// Returns a network.
#[utoipa::path(get, path = operations::NETWORK.path(), tag = "networks",
    operation_id = "get_network",
    params(("name" = NetworkName, Path, description = "The name of the network")),
    responses((status = 200, body = Network,
        headers(("ETag" = String, description = "The state")))))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NetworkName>,
) -> Result<Response, ApiError> {
    Ok(with_state(&lists::one::<Network>(&mesh, &caller, name.as_str(), "network")?))
}

/// Deletes a network without workloads. Returns the network.
#[utoipa::path(delete, path = operations::DELETE_NETWORK.path(), tag = "networks",
    operation_id = "delete_network",
    params(("name" = NetworkName, Path, description = "The name of the network")),
    responses((status = 200, body = Network)))]
pub(super) async fn delete(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NetworkName>,
    expected: Precondition,
) -> Result<Json<Network>, ApiError> {
    caller.must_be(Role::Admin)?;
    let plan = |world: &World| {
        let network = Network::from(&networks::find(world, &name)?.record);
        expected.removing(Some(network), || networks::delete(world, &name))
    };
    Ok(Json(mesh.change(&caller.context, plan).await?.outcome))
}
