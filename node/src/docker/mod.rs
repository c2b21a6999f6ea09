//! The plugin by which Docker puts containers on the mesh: a network driver and an IPAM driver,
//! both called `meshward`.
//!
//! Docker speaks HTTP over a unix socket: each call a POST of JSON, each answer JSON; a failure is
//! `{"Err": "..."}`.

mod bodies;
mod driver;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use crate::{api, app::Node, refusal::Refusal};
use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use driver::Driver;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{path::Path as StdPath, sync::Arc};
use tracing::{debug, warn};

const MAX_BODY: usize = 1 << 20;

/// Serves the plugin until the process ends.
///
/// # Errors
/// Fails if the socket cannot be made.
pub async fn serve(node: Arc<Node>, socket: &StdPath) -> Result<()> {
    let driver = Arc::new(Driver::restore(node));
    let listener = api::listen(socket, "name another plugin socket with --docker-plugin").await?;
    let following = driver.clone();
    tokio::spawn(async move { following.follow().await });
    tokio::spawn(async move { axum::serve(listener, router(driver)).await });
    Ok(())
}

fn router(driver: Arc<Driver>) -> Router {
    Router::new()
        .route("/{call}", post(call))
        .fallback(async || failed(StatusCode::NOT_FOUND, "the plugin has no such call"))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(driver)
}

fn failed(status: StatusCode, text: &str) -> Response {
    answer(status, &json!({ "Err": text }))
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/vnd.docker.plugins.v1.1+json")];
    (status, kind, body.to_string()).into_response()
}

async fn call(
    State(driver): State<Arc<Driver>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    let called = name.clone();
    match api::to_the_end(async move { dispatch(&driver, &called, &body).await }).await {
        Ok(body) => {
            debug!(call = name, "done");
            answer(StatusCode::OK, &body)
        }
        Err(refusal) => {
            let status = match refusal {
                Refusal::Malformed(_) | Refusal::Invalid(_) => StatusCode::BAD_REQUEST,
                Refusal::Early(_) => StatusCode::SERVICE_UNAVAILABLE,
                Refusal::Missing(_) => StatusCode::NOT_FOUND,
                Refusal::Changed(_) => StatusCode::CONFLICT,
                Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            warn!(call = name, "refused: {refusal}");
            failed(status, &refusal.to_string())
        }
    }
}

async fn dispatch(driver: &Driver, call: &str, body: &[u8]) -> Result<Value, Refusal> {
    match call {
        "Plugin.Activate" => Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
        "NetworkDriver.GetCapabilities" => {
            Ok(json!({ "Scope": "local", "ConnectivityScope": "global" }))
        }
        "NetworkDriver.CreateNetwork" => done(driver.create_network(read(body)?).await?),
        "NetworkDriver.DeleteNetwork" => done(driver.delete_network(read(body)?).await?),
        "NetworkDriver.CreateEndpoint" => done(driver.create_endpoint(read(body)?).await?),
        "NetworkDriver.DeleteEndpoint" => done(driver.delete_endpoint(read(body)?).await?),
        "NetworkDriver.EndpointOperInfo" => Ok(json!({ "Value": {} })),
        "NetworkDriver.Join" => done(driver.join(read(body)?).await?),
        "NetworkDriver.Leave" => done(driver.leave(&read(body)?)?),
        "NetworkDriver.DiscoverNew"
        | "NetworkDriver.DiscoverDelete"
        | "NetworkDriver.ProgramExternalConnectivity"
        | "NetworkDriver.RevokeExternalConnectivity"
        | "IpamDriver.ReleasePool" => Ok(json!({})),
        // What was given out is kept by us: it need not be asked for again after a restart of
        // Docker.
        "IpamDriver.GetCapabilities" => {
            Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false }))
        }
        "IpamDriver.GetDefaultAddressSpaces" => Ok(json!({
            "LocalDefaultAddressSpace": "meshward",
            "GlobalDefaultAddressSpace": "meshward",
        })),
        "IpamDriver.RequestPool" => done(driver.request_pool(read(body)?).await?),
        "IpamDriver.RequestAddress" => done(driver.request_address(read(body)?).await?),
        "IpamDriver.ReleaseAddress" => done(driver.release_address(&read(body)?)?),
        _ => Err(Refusal::Missing(format!("the plugin has no call `{call}`"))),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::Invalid(format!("the request cannot be read: {error}")))
}

fn done(body: impl Serialize) -> Result<Value, Refusal> {
    match serde_json::to_value(body) {
        // An answer without content is an object, too.
        Ok(Value::Null) => Ok(json!({})),
        Ok(value) => Ok(value),
        Err(error) => Err(Refusal::Failed(error.to_string())),
    }
}
