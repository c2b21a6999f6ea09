use super::{ApiError, Body, Caller};
use crate::{mesh::Mesh, plans::tokens};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use meshward_model::api::{CreateToken, CreatedToken, ErrorBody, Role, Token};
use std::sync::Arc;
use time::OffsetDateTime;

/// Makes a join token. Its text is shown this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "nodes", operation_id = "create_token", request_body = CreateToken,
    responses((status = 201, body = CreatedToken), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<CreateToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    caller.must_be(Role::Admin)?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let (token, record) = tokens::make(mesh.ca.fingerprint(), &wanted, now)?;
    mesh.change(&caller.author, |world| tokens::create(world, &record, now)).await?;
    let created = CreatedToken { token: token.to_string(), kept: tokens::describe(&record) };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Lists the join tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "nodes", operation_id = "list_tokens",
    responses((status = 200, body = Vec<Token>), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Result<Json<Vec<Token>>, ApiError> {
    caller.must_be(Role::Admin)?;
    Ok(Json(mesh.look(|world| world.tokens.values().map(tokens::describe).collect())))
}

/// Revokes a join token. Nodes that have joined with it stay.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "nodes", operation_id = "revoke_token",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub async fn revoke(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.must_be(Role::Admin)?;
    mesh.change(&caller.author, |world| tokens::revoke(world, &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
