use super::{ApiError, Body, Caller};
use crate::{
    mesh::Mesh,
    plans::{networks, policies},
};
use axum::{
    Json,
    extract::{Path, State},
};
use meshward_model::{
    NetworkName,
    api::{ErrorBody, ExplainQuery, Explanation, Policy, PolicyResult, SubmitPolicy},
};
use std::{sync::Arc, time::Duration};

/// For how long an answer waits for the connected nodes to enforce a change.
pub const ENFORCEMENT: Duration = Duration::from_secs(2);

/// Checks a policy and, unless it is a dry run, applies it to its network.
///
/// The answer comes when every connected node that it concerns enforces it, or after two seconds.
#[utoipa::path(post, path = "/v1/policies", tag = "policy", operation_id = "submit_policy", request_body = SubmitPolicy,
    responses((status = 200, body = PolicyResult), (status = "4XX", body = ErrorBody)))]
pub async fn submit(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<SubmitPolicy>,
) -> Result<Json<PolicyResult>, ApiError> {
    let done = mesh.change(&caller.0, |world| policies::apply(world, &wanted.source)).await?;
    mesh.sessions.wait_enforced(&done.touched, done.revision, ENFORCEMENT).await;
    let revision = (!caller.0.dry_run).then_some(done.revision);
    Ok(Json(PolicyResult { revision, ..done.outcome }))
}

/// Gives the policy of a network as it was written.
#[utoipa::path(get, path = "/v1/networks/{name}/policy", tag = "policy", operation_id = "get_policy",
    params(("name" = String, Path, description = "The network's name")),
    responses((status = 200, body = Policy), (status = "4XX", body = ErrorBody)))]
pub async fn get(
    State(mesh): State<Arc<Mesh>>,
    _: Caller,
    Path(name): Path<NetworkName>,
) -> Result<Json<Policy>, ApiError> {
    let source =
        mesh.look(|world| networks::find(world, &name).map(|network| network.policy_source.clone()))?;
    Ok(Json(Policy { network: name, source }))
}

/// Says whether a flow is allowed, and what decides.
#[utoipa::path(post, path = "/v1/explain", tag = "policy", operation_id = "explain", request_body = ExplainQuery,
    responses((status = 200, body = Vec<Explanation>), (status = "4XX", body = ErrorBody)))]
pub async fn explain(
    State(mesh): State<Arc<Mesh>>,
    _: Caller,
    Body(query): Body<ExplainQuery>,
) -> Result<Json<Vec<Explanation>>, ApiError> {
    Ok(Json(mesh.look(|world| policies::explain(world, &query))?))
}
