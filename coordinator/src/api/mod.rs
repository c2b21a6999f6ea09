//! The HTTP API, version 1. Everything but the OpenAPI document wants a bearer token.

mod backup;
mod credentials;
mod devices;
mod enforcement;
mod error;
mod inventory;
mod keys;
mod listener;
mod networks;
mod policies;
mod quarantines;
mod relays;
mod routes;
mod tokens;

pub use credentials::secret;
pub use error::{ApiError, Body, Caller, Origin};
pub use listener::TlsListener;

use crate::mesh::Mesh;
use axum::{Json, Router, extract::DefaultBodyLimit, routing::get};
use std::sync::Arc;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// The most bytes of a request's body.
const MAX_BODY: usize = 8 << 20;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Meshward coordinator",
        description = "Networks, nodes, workloads, policy and quarantine of one mesh. Times are RFC 3339 in UTC. Every write takes `?dry_run=true`: then it is checked and answered, but nothing is changed.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Bearer),
    security(("bearer" = []))
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

fn described() -> OpenApiRouter<Arc<Mesh>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(inventory::status))
        .routes(routes!(inventory::audit))
        .routes(routes!(backup::backup))
        .routes(routes!(inventory::list_nodes))
        .routes(routes!(inventory::approve_node, inventory::remove_node))
        .routes(routes!(inventory::list_workloads))
        .routes(routes!(inventory::list_links))
        .routes(routes!(keys::rotate))
        .routes(routes!(devices::create, devices::list))
        .routes(routes!(devices::remove))
        .routes(routes!(routes::list))
        .routes(routes!(routes::approve))
        .routes(routes!(routes::disapprove))
        .routes(routes!(relays::list))
        .routes(routes!(relays::remove))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::revoke))
        .routes(routes!(networks::create, networks::list))
        .routes(routes!(networks::delete))
        .routes(routes!(credentials::create, credentials::list))
        .routes(routes!(credentials::change, credentials::revoke))
        .routes(routes!(policies::submit, policies::list))
        .routes(routes!(policies::get))
        .routes(routes!(policies::log))
        .routes(routes!(policies::difference))
        .routes(routes!(policies::roll_back))
        .routes(routes!(policies::suggest))
        .routes(routes!(policies::explain))
        .routes(routes!(quarantines::impose, quarantines::list))
        .routes(routes!(quarantines::release))
}

/// The routes.
pub fn router(mesh: Arc<Mesh>) -> Router {
    let (router, document) = described().split_for_parts();
    router
        .route("/v1/openapi.json", get(move || async move { Json(document) }))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(mesh)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_openapi_document_in_the_tree_is_the_one_that_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let served = super::described().into_openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("MESHWARD_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &served).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let mend = "docs/openapi.json is not what is served; write it anew with MESHWARD_WRITE_OPENAPI=1 cargo nextest run -p meshward-coordinator openapi";
        assert!(kept == served, "{mend}");
    }
}
