//! The routes of the API, and the server.

use super::{
    backup,
    caller::{self, Origin},
    credentials, devices,
    document::{self, DOCUMENT},
    drains, external_metrics, health, idempotency, inventory, keys, links, logs, networks,
    policies, problem, quarantines, relays, request, routes, services, shape,
    state::Api,
    tokens, watch,
};
use crate::{api_latency::ApiRequest, mesh::Mesh};
use axum::{
    Json, Router,
    extract::{ConnectInfo, MatchedPath, Request, State},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
    routing::get,
};
use meshward_relay::tls_listener::{Accepted, TlsListener};
use meshward_runtime::http;
use std::{sync::Arc, time::Instant};
use tokio::sync::Semaphore;
use tower_http::compression::CompressionLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// The routes that need a bearer token.
fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(document::Document::openapi())
        .routes(routes!(inventory::status))
        .routes(routes!(logs::audit))
        .routes(routes!(backup::backup))
        .routes(routes!(inventory::list_nodes))
        .routes(routes!(inventory::get_node, inventory::approve_node, inventory::remove_node))
        .routes(routes!(inventory::list_workloads))
        .routes(routes!(inventory::get_workload))
        .routes(routes!(services::list))
        .routes(routes!(services::get))
        .routes(routes!(drains::begin, drains::list))
        .routes(routes!(drains::end))
        .routes(routes!(drains::progress))
        .routes(routes!(external_metrics::get))
        .routes(routes!(links::list))
        .routes(routes!(keys::rotate))
        .routes(routes!(devices::create, devices::list))
        .routes(routes!(devices::get, devices::remove))
        .routes(routes!(routes::list))
        .routes(routes!(routes::get))
        .routes(routes!(routes::approve))
        .routes(routes!(routes::disapprove))
        .routes(routes!(routes::approve_egress))
        .routes(routes!(routes::disapprove_egress))
        .routes(routes!(relays::list))
        .routes(routes!(relays::get, relays::remove))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::get, tokens::revoke))
        .routes(routes!(networks::create, networks::list))
        .routes(routes!(networks::get, networks::delete))
        .routes(routes!(credentials::create, credentials::list))
        .routes(routes!(credentials::get, credentials::change, credentials::revoke))
        .routes(routes!(policies::submit, policies::list))
        .routes(routes!(policies::get))
        .routes(routes!(logs::policy))
        .routes(routes!(policies::difference))
        .routes(routes!(policies::roll_back))
        .routes(routes!(policies::suggest))
        .routes(routes!(policies::explain))
        .routes(routes!(quarantines::impose, quarantines::list))
        .routes(routes!(quarantines::get))
        .routes(routes!(quarantines::release))
}

/// The routes without authentication.
fn open() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::version))
}

/// Returns the OpenAPI document of all routes.
pub(super) fn openapi() -> serde_json::Value {
    let (_, routes) = described().merge(open()).split_for_parts();
    document::document(&routes)
}

/// Returns the router of the API.
pub fn router(mesh: Arc<Mesh>) -> Router {
    let document = openapi();
    let api = Api {
        mesh,
        shapes: Arc::new(shape::Shapes::of(&document)),
        answers: Arc::default(),
        watches: Arc::new(Semaphore::new(watch::MAX_WATCHES)),
    };
    let (own, _) = described().split_for_parts();
    let (open, _) = open().split_for_parts();
    let shaped = from_fn_with_state(api.clone(), request::shaped);
    let own = own
        .route_layer(from_fn_with_state(api.answers.clone(), idempotency::once))
        .route_layer(shaped.clone())
        .route_layer(from_fn_with_state(api.mesh.clone(), caller::authenticated));
    let open = open.route(DOCUMENT, get(move || async move { Json(document) })).route_layer(shaped);
    own.merge(open)
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(from_fn_with_state(api.mesh.clone(), timed))
        .layer(from_fn(problem::documented))
        .layer(CompressionLayer::new())
        .with_state(api)
}

/// Serves the API on connections that have done their TLS handshake, until the process ends.
pub async fn serve(tls: TlsListener, mesh: Arc<Mesh>) {
    let router = router(mesh);
    let serve_one = move |Accepted { stream, from, permit }| {
        let origin = Origin { address: from, permit: Some(permit) };
        let prepare = move |request: &mut Request| {
            request.extensions_mut().insert(ConnectInfo(origin.clone()));
        };
        http::serve_connection(stream, router.clone(), prepare)
    };
    tls.serve(serve_one).await;
}

/// Measures the latency of a request. All requests without a route are counted together.
async fn timed(State(mesh): State<Arc<Mesh>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = path.as_ref().map(|_| request.method().to_string());
    let response = next.run(request).await;
    let request = ApiRequest {
        method: method.unwrap_or_default(),
        path: path.unwrap_or_default(),
        status: format!("{}xx", response.status().as_u16() / 100),
    };
    mesh.api_latency.note(&request, begun.elapsed());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_api_types::operations;
    use std::collections::BTreeSet;

    #[test]
    fn the_openapi_document_in_the_tree_is_the_one_that_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let served = serde_json::to_string_pretty(&openapi()).unwrap() + "\n";
        if std::env::var_os("MESHWARD_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &served).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let mend = "docs/openapi.json differs from what is served; write it with \
            MESHWARD_WRITE_OPENAPI=1 cargo nextest run -p meshward-coordinator openapi";
        assert!(kept == served, "{mend}");
    }

    #[test]
    fn the_operations_that_are_served_are_those_that_clients_know() {
        let document = openapi();
        let mut served = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            let methods = item.as_object().unwrap().keys();
            served.extend(methods.map(|method| (method.as_str(), path.as_str())));
        }
        served.retain(|(_, path)| path.starts_with("/v1/") || path.starts_with("/apis/"));
        let known: BTreeSet<_> = operations::ALL.iter().map(|own| (own.method, own.path)).collect();
        assert_eq!(served, known);
    }
}
