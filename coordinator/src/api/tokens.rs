use super::{
    caller::Caller,
    lists::{self, Listed, Query},
    problem::ApiError,
    request::{At, Body, Precondition, with_state},
    state::Api,
};
use crate::{ids::token_seed, mesh::Mesh};
use axum::{Json, extract::State, http::StatusCode, response::Response};
use meshward_api_types::{CreateToken, CreatedToken, Page, Role, Token, operations};
use meshward_control_state::{change_log::ListKind, plans::tokens, world::World};
use serde::Deserialize;
use std::sync::Arc;
use time::OffsetDateTime;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    relay: Option<bool>,
    site: Option<String>,
}

impl Listed for Token {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Tokens;

    fn may(caller: &Caller) -> Result<(), ApiError> {
        caller.must_be(Role::Admin)
    }

    fn key(&self) -> String {
        self.id.clone()
    }

    fn fits(&self, filter: &Filter) -> bool {
        let site = filter.site.as_ref().is_none_or(|site| self.site.as_ref() == Some(site));
        site && lists::is(filter.relay.as_ref(), &self.relay)
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        world.tokens.values().map(tokens::describe).collect()
    }

    fn one(_: &Mesh, world: &World, key: &str) -> Option<Self> {
        world.tokens.get(key).map(tokens::describe)
    }
}

/// Creates a join token. Its text is shown only once.
#[utoipa::path(post, path = operations::CREATE_TOKEN.path(), tag = "nodes",
    operation_id = "create_token", request_body = CreateToken,
    responses((status = 201, body = CreatedToken)))]
pub(super) async fn create(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<CreateToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    caller.must_be(Role::Admin)?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let (token, record) = tokens::make(mesh.ca.fingerprint(), &wanted, token_seed(), now)?;
    mesh.change(&caller.context, |world| tokens::create(world, &record, now)).await?;
    let created = CreatedToken { token: token.to_string(), kept: tokens::describe(&record) };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Lists the join tokens, without their secrets.
#[utoipa::path(get, path = operations::TOKENS.path(), tag = "nodes", operation_id = "list_tokens",
    params(("relay" = Option<bool>, Query, description = "Only tokens for relays (true) or for \
        nodes (false)"),
        ("site" = Option<String>, Query, description = "Only entries of this site")),
    responses((status = 200, body = Page<Token>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Token>(api, caller, query).await
}

/// Returns a join token, without its secret.
#[utoipa::path(get, path = operations::TOKEN.path(), tag = "nodes", operation_id = "get_token",
    params(("id" = String, Path, description = "The id of the token")),
    responses((status = 200, body = Token, headers(("ETag" = String, description = "The state")))))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Response, ApiError> {
    Ok(with_state(&lists::one::<Token>(&mesh, &caller, &id, "token")?))
}

/// Revokes a join token. Nodes that have joined with it stay. Returns the token.
#[utoipa::path(delete, path = operations::REVOKE_TOKEN.path(), tag = "nodes",
    operation_id = "revoke_token",
    params(("id" = String, Path, description = "The id of the token")),
    responses((status = 200, body = Token)))]
pub(super) async fn revoke(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(id): At<String>,
    expected: Precondition,
) -> Result<Json<Token>, ApiError> {
    caller.must_be(Role::Admin)?;
    let plan = |world: &World| {
        expected
            .removing(world.tokens.get(&id).map(tokens::describe), || tokens::revoke(world, &id))
    };
    Ok(Json(mesh.change(&caller.context, plan).await?.outcome))
}
