use super::{ApiError, Body, Caller};
use crate::{mesh::Mesh, plans::routes};
use axum::{Json, extract::State};
use meshward_model::api::{ApproveRoute, ErrorBody, Role, Route};
use std::sync::Arc;

/// Lists the prefixes behind gateways.
#[utoipa::path(get, path = "/v1/routes", tag = "routes", operation_id = "list_routes",
    responses((status = 200, body = Vec<Route>), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Json<Vec<Route>> {
    let mut all = mesh.look(routes::list);
    all.retain(|route| caller.reaches(&route.network));
    Json(all)
}

/// Approves a prefix behind a node, before or after the node advertises it.
#[utoipa::path(post, path = "/v1/routes/approve", tag = "routes", operation_id = "approve_route", request_body = ApproveRoute,
    responses((status = 200, body = Route), (status = "4XX", body = ErrorBody)))]
pub async fn approve(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<ApproveRoute>,
) -> Result<Json<Route>, ApiError> {
    may(&mesh, &caller, &wanted)?;
    Ok(Json(mesh.change(&caller.author, |world| routes::approve(world, &wanted)).await?.outcome))
}

/// Takes an approval back: links through the route are cut, unless the policy approves it.
#[utoipa::path(post, path = "/v1/routes/disapprove", tag = "routes", operation_id = "disapprove_route", request_body = ApproveRoute,
    responses((status = 200, body = Route), (status = "4XX", body = ErrorBody)))]
pub async fn disapprove(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<ApproveRoute>,
) -> Result<Json<Route>, ApiError> {
    may(&mesh, &caller, &wanted)?;
    Ok(Json(mesh.change(&caller.author, |world| routes::disapprove(world, &wanted)).await?.outcome))
}

fn may(mesh: &Mesh, caller: &Caller, wanted: &ApproveRoute) -> Result<(), ApiError> {
    caller.must_be(Role::Owner)?;
    // What cannot be found is said by the plan.
    match mesh.look(|world| routes::find(world, wanted)) {
        Ok(approval) => caller.must_reach(&approval.network),
        Err(_) => Ok(()),
    }
}
