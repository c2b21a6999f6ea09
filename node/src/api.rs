//! The local API: HTTP over a unix socket that only the daemon's user can open.

use crate::{
    daemon::{Node, Refusal},
    metrics,
};
use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, patch},
};
use ipnet::IpNet;
use meshward_model::{
    NetworkName, WorkloadId,
    api::ErrorBody,
    local::{
        Advertise, Attach, AttachedContainer, ContainerKey, LocalStatus, LocalWorkload, PlaceContainer,
        PlacedContainer, Relabel,
    },
};
use serde::Deserialize;
use std::{fs, os::unix::fs::PermissionsExt, path::Path as StdPath, sync::Arc};
use tokio::net::{UnixListener, UnixStream};

const MAX_BODY: usize = 1 << 20;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Missing(_) => StatusCode::NOT_FOUND,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(ErrorBody { error: self.to_string(), field: None })).into_response()
    }
}

/// Serves the API until the process ends.
///
/// # Errors
/// If the socket cannot be made, or another daemon answers on it.
pub async fn serve(node: Arc<Node>) -> Result<()> {
    let listener = listen(&node.config.socket, "name another socket with --socket").await?;
    tokio::spawn(async move { axum::serve(listener, router(node)).await });
    Ok(())
}

/// Makes a unix socket that only the daemon's user can open.
///
/// # Errors
/// If it cannot be made, or another daemon answers on it. `mend` says what then helps.
pub async fn listen(path: &StdPath, mend: &str) -> Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        anyhow::bail!("another meshward-node answers on {}; {mend}", path.display());
    }
    let folder = path.parent().context("the socket has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot make the socket {}; {mend}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Runs some work to its end in a task of its own: a client that goes away halfway leaves nothing half done.
///
/// # Errors
/// Those of the work; [`Refusal::Failed`] if it panics.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(work).await.unwrap_or_else(|panic| Err(Refusal::Failed(panic.to_string())))
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/workloads", get(workloads).post(attach))
        .route("/v1/containers", get(containers).post(place))
        .route("/v1/containers/{container}/{interface}", get(container).delete(remove_container))
        .route("/v1/routes", axum::routing::post(advertise).delete(withdraw))
        .route("/v1/workloads/{id}", patch(relabel).delete(detach))
        .fallback(async || Refusal::Missing("there is no such path in the node's local API".into()))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(node.clone())
        .merge(meshward_daemon::metrics::routes(metrics::scrape(node)))
}

async fn status(State(node): State<Arc<Node>>) -> Json<LocalStatus> {
    Json(node.status().await)
}

async fn workloads(State(node): State<Arc<Node>>) -> Json<Vec<LocalWorkload>> {
    Json(node.workloads().await)
}

async fn attach(
    State(node): State<Arc<Node>>,
    wanted: Result<Json<Attach>, JsonRejection>,
) -> Result<(StatusCode, Json<LocalWorkload>), Refusal> {
    let Json(wanted) = wanted.map_err(|rejection| Refusal::Invalid(rejection.body_text()))?;
    let attached = to_the_end(async move { node.attach(wanted).await }).await?;
    Ok((StatusCode::CREATED, Json(attached)))
}

#[derive(Deserialize)]
struct InNetwork {
    network: NetworkName,
}

async fn containers(State(node): State<Arc<Node>>, Query(of): Query<InNetwork>) -> Json<Vec<ContainerKey>> {
    Json(node.containers_in(&of.network).await)
}

async fn place(
    State(node): State<Arc<Node>>,
    wanted: Result<Json<PlaceContainer>, JsonRejection>,
) -> Result<(StatusCode, Json<PlacedContainer>), Refusal> {
    let Json(wanted) = wanted.map_err(|rejection| Refusal::Invalid(rejection.body_text()))?;
    let placed = to_the_end(async move { node.place_container(wanted).await }).await?;
    Ok((StatusCode::CREATED, Json(placed)))
}

async fn container(
    State(node): State<Arc<Node>>,
    Path((container, interface)): Path<(String, String)>,
) -> Result<Json<AttachedContainer>, Refusal> {
    Ok(Json(node.container(ContainerKey { container, interface }).await?))
}

async fn remove_container(
    State(node): State<Arc<Node>>,
    Path((container, interface)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let key = ContainerKey { container, interface };
    to_the_end(async move { node.remove_container(key).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn advertise(
    State(node): State<Arc<Node>>,
    wanted: Result<Json<Advertise>, JsonRejection>,
) -> Result<(StatusCode, Json<LocalWorkload>), Refusal> {
    let Json(wanted) = wanted.map_err(|rejection| Refusal::Invalid(rejection.body_text()))?;
    let advertised = to_the_end(async move { node.advertise(wanted).await }).await?;
    Ok((StatusCode::CREATED, Json(advertised)))
}

#[derive(Deserialize)]
struct OfRoute {
    network: NetworkName,
    prefix: IpNet,
}

async fn withdraw(State(node): State<Arc<Node>>, Query(of): Query<OfRoute>) -> Result<StatusCode, Refusal> {
    to_the_end(async move { node.withdraw(&of.network, of.prefix).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn relabel(
    State(node): State<Arc<Node>>,
    Path(id): Path<WorkloadId>,
    wanted: Result<Json<Relabel>, JsonRejection>,
) -> Result<Json<LocalWorkload>, Refusal> {
    let Json(wanted) = wanted.map_err(|rejection| Refusal::Invalid(rejection.body_text()))?;
    Ok(Json(node.relabel(&id, wanted.labels).await?))
}

async fn detach(State(node): State<Arc<Node>>, Path(id): Path<WorkloadId>) -> Result<StatusCode, Refusal> {
    to_the_end(async move { node.detach(&id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
