use super::{
    caller::Caller,
    lists::{self, Listed, Query},
    problem::ApiError,
    request::{At, Body, Precondition, etag, with_state},
    state::Api,
};
use crate::{ids::random_hex, mesh::Mesh};
use axum::{Json, extract::State, http::StatusCode, response::Response};
use meshward_api_types::{
    ChangeCredential, CreateCredential, CreatedCredential, Credential, Page, Role, operations,
};
use meshward_control_state::{change_log::ListKind, plans::credentials, world::World};
use serde::Deserialize;
use std::sync::Arc;
use time::OffsetDateTime;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    role: Option<Role>,
}

impl Listed for Credential {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Credentials;

    fn may(caller: &Caller) -> Result<(), ApiError> {
        caller.must_be(Role::Admin)
    }

    fn key(&self) -> String {
        self.name.clone()
    }

    fn fits(&self, filter: &Filter) -> bool {
        lists::is(filter.role.as_ref(), &self.role)
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        world.credentials.values().map(credentials::describe).collect()
    }

    fn one(_: &Mesh, world: &World, key: &str) -> Option<Self> {
        known(world, key)
    }
}

/// Creates a credential. Its token is shown only once.
#[utoipa::path(post, path = operations::CREATE_CREDENTIAL.path(), tag = "credentials",
    operation_id = "create_credential", request_body = CreateCredential,
    responses((status = 201, body = CreatedCredential)))]
pub(super) async fn create(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<CreateCredential>,
) -> Result<(StatusCode, Json<CreatedCredential>), ApiError> {
    caller.must_be(Role::Admin)?;
    let secret = secret();
    let done = mesh
        .change(&caller.context, |world| credentials::create(world, &wanted, &secret, now()))
        .await?;
    Ok((StatusCode::CREATED, Json(CreatedCredential { token: secret, kept: done.outcome })))
}

/// Seconds since 1970.
fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// A new bearer token.
pub fn secret() -> String {
    let secret: String = random_hex::<24>();
    format!("mwa1_{secret}")
}

/// Lists the credentials, without their secrets.
#[utoipa::path(get, path = operations::CREDENTIALS.path(), tag = "credentials",
    operation_id = "list_credentials",
    params(("role" = Option<Role>, Query, description = "Only credentials with this role")),
    responses((status = 200, body = Page<Credential>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Credential>(api, caller, query).await
}

/// Returns a credential, without its secret.
#[utoipa::path(get, path = operations::CREDENTIAL.path(), tag = "credentials",
    operation_id = "get_credential",
    params(("name" = String, Path, description = "The name of the credential")),
    responses((status = 200, body = Credential,
        headers(("ETag" = String, description = "The state")))))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<String>,
) -> Result<Response, ApiError> {
    Ok(with_state(&lists::one::<Credential>(&mesh, &caller, &name, "credential")?))
}

/// Changes a credential's role, networks or lifetime. Fields that are not given stay as they are.
/// The token stays the same.
#[utoipa::path(patch, path = operations::CHANGE_CREDENTIAL.path(), tag = "credentials",
    operation_id = "change_credential", request_body = ChangeCredential,
    params(("name" = String, Path, description = "The name of the credential")),
    responses((status = 200, body = Credential,
        headers(("ETag" = String, description = "The state")))))]
pub(super) async fn change(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<String>,
    expected: Precondition,
    Body(wanted): Body<ChangeCredential>,
) -> Result<Response, ApiError> {
    caller.must_be(Role::Admin)?;
    let plan = |world: &World| {
        expected.check(known(world, &name).as_ref().map(etag).as_deref())?;
        credentials::change(world, &name, &wanted, now())
    };
    Ok(with_state(&mesh.change(&caller.context, plan).await?.outcome))
}

fn known(world: &World, name: &str) -> Option<Credential> {
    world.credentials.get(name).map(credentials::describe)
}

/// Revokes a credential. Returns the credential.
#[utoipa::path(delete, path = operations::REVOKE_CREDENTIAL.path(), tag = "credentials",
    operation_id = "revoke_credential",
    params(("name" = String, Path, description = "The name of the credential")),
    responses((status = 200, body = Credential)))]
pub(super) async fn revoke(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<String>,
    expected: Precondition,
) -> Result<Json<Credential>, ApiError> {
    caller.must_be(Role::Admin)?;
    let plan = |world: &World| {
        expected.removing(known(world, &name), || credentials::revoke(world, &name))
    };
    Ok(Json(mesh.change(&caller.context, plan).await?.outcome))
}
