use super::{ApiError, Body, Caller};
use crate::{mesh::Mesh, plans::credentials};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use meshward_daemon::random;
use meshward_model::api::{
    ChangeCredential, CreateCredential, CreatedCredential, Credential, ErrorBody, Role,
};
use std::sync::Arc;

/// Makes a credential. Its token is shown this once.
#[utoipa::path(post, path = "/v1/credentials", tag = "credentials", operation_id = "create_credential", request_body = CreateCredential,
    responses((status = 201, body = CreatedCredential), (status = "4XX", body = ErrorBody)))]
pub async fn create(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<CreateCredential>,
) -> Result<(StatusCode, Json<CreatedCredential>), ApiError> {
    caller.must_be(Role::Admin)?;
    let secret = secret();
    let done = mesh.change(&caller.author, |world| credentials::create(world, &wanted, &secret)).await?;
    Ok((StatusCode::CREATED, Json(CreatedCredential { token: secret, kept: done.outcome })))
}

/// A new bearer token.
pub fn secret() -> String {
    let secret: String = random::<24>().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("mwa1_{secret}")
}

/// Lists the credentials, without their secrets.
#[utoipa::path(get, path = "/v1/credentials", tag = "credentials", operation_id = "list_credentials",
    responses((status = 200, body = Vec<Credential>), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Result<Json<Vec<Credential>>, ApiError> {
    caller.must_be(Role::Admin)?;
    Ok(Json(mesh.look(|world| world.credentials.values().map(credentials::describe).collect())))
}

/// Changes what a credential may do. Its token stays the same.
#[utoipa::path(patch, path = "/v1/credentials/{name}", tag = "credentials", operation_id = "change_credential", request_body = ChangeCredential,
    params(("name" = String, Path, description = "The credential's name")),
    responses((status = 200, body = Credential), (status = "4XX", body = ErrorBody)))]
pub async fn change(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(wanted): Body<ChangeCredential>,
) -> Result<Json<Credential>, ApiError> {
    caller.must_be(Role::Admin)?;
    let done = mesh.change(&caller.author, |world| credentials::change(world, &name, &wanted)).await?;
    Ok(Json(done.outcome))
}

/// Revokes a credential.
#[utoipa::path(delete, path = "/v1/credentials/{name}", tag = "credentials", operation_id = "revoke_credential",
    params(("name" = String, Path, description = "The credential's name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub async fn revoke(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.must_be(Role::Admin)?;
    mesh.change(&caller.author, |world| credentials::revoke(world, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
