//! The local API: HTTP over a unix socket that only the daemon's user can open.

use crate::{
    app::Node,
    metrics,
    problem::{self, ApiError},
    reachability::netcheck,
    refusal::Refusal,
};
use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, State},
    http::{StatusCode, request::Parts},
    middleware::from_fn,
    routing::{get, patch},
};
use ipnet::IpNet;
use meshward_api_types::{
    diagnosis::{Netcheck, Ping, Pong},
    local::{
        AddContainer, AddedContainer, Advertise, Attach, AttachedContainer, CommandEnd,
        ContainerKey, DryRun, LocalStatus, LocalWorkload, Relabel, RunnerCommand,
    },
};
use meshward_runtime::body;
use meshward_types::{NetworkName, WorkloadId};
use serde::{Deserialize, de::DeserializeOwned};
use std::{fs, os::unix::fs::PermissionsExt, path::Path as StdPath, sync::Arc};
use tokio::net::{UnixListener, UnixStream};

const MAX_BODY: usize = 1 << 20;

/// Serves the API until the process ends.
///
/// # Errors
/// Fails if the socket cannot be made, or another daemon answers on it.
pub async fn serve(node: Arc<Node>) -> Result<()> {
    let listener = listen(&node.config.socket, "name another socket with --socket").await?;
    tokio::spawn(async move { axum::serve(listener, router(node)).await });
    Ok(())
}

/// Makes a unix socket that only the daemon's user can open.
///
/// # Errors
/// Fails if it cannot be made, or another daemon answers on it. `mend` says what then helps.
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

/// Runs some work to its end in a task of its own: a client that goes away halfway leaves nothing
/// half done.
///
/// # Errors
/// The errors of the work; [`Refusal::Failed`] if it panics.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(work).await.unwrap_or_else(|panic| Err(Refusal::Failed(panic.to_string())))
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/workloads", get(workloads).post(attach))
        .route("/v1/containers", get(containers).post(add_container))
        .route("/v1/containers/{container}/{interface}", get(container).delete(remove_container))
        .route("/v1/routes", axum::routing::post(advertise).delete(withdraw))
        .route("/v1/workloads/{id}", patch(relabel).delete(detach))
        .route("/v1/workloads/{id}/commands", axum::routing::post(commands))
        .route("/v1/workloads/{id}/commands/{number}", axum::routing::post(command_ended))
        .route("/v1/ping", axum::routing::post(ping))
        .route("/v1/netcheck", get(check_net))
        .with_state(node.clone())
        .merge(meshward_runtime::metrics::routes(metrics::scrape(node)))
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(from_fn(problem::documented))
}

async fn status(State(node): State<Arc<Node>>, _: NoQuery) -> Json<LocalStatus> {
    Json(node.status())
}

async fn workloads(State(node): State<Arc<Node>>, _: NoQuery) -> Json<Vec<LocalWorkload>> {
    Json(node.workloads.all())
}

/// Asks another node for an answer. It changes nothing.
async fn ping(
    State(node): State<Arc<Node>>,
    Write { wanted, .. }: Write<Ping>,
) -> Result<Json<Pong>, Refusal> {
    Ok(Json(node.ping(&wanted).await?))
}

async fn check_net(State(node): State<Arc<Node>>, _: NoQuery) -> Json<Netcheck> {
    Json(netcheck::check(&node.reachability).await)
}

/// A query without parameters: unknown ones are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        read_query(parts)
    }
}

/// A write with a body, or its dry run.
struct Write<T> {
    wanted: T,
    dry_run: DryRun,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Write<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let Removal { dry_run } = Removal::from_request_parts(&mut parts, state).await?;
        body::check_json(&parts.headers)?;
        let bytes = body::read(body, MAX_BODY).await?;
        match serde_json::from_slice(&bytes) {
            Ok(wanted) => Ok(Self { wanted, dry_run }),
            Err(error) if error.is_data() => {
                let text = format!("the body does not fit: {error}");
                Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, text))
            }
            Err(error) => Err(ApiError::malformed(format!("the body is no JSON: {error}"))),
        }
    }
}

/// A write without a body, or its dry run.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    #[serde(default)]
    dry_run: DryRun,
}

impl<S: Send + Sync> FromRequestParts<S> for Removal {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        read_query(parts)
    }
}

fn read_query<T: DeserializeOwned>(parts: &Parts) -> Result<T, Refusal> {
    let Query(read) = Query::try_from_uri(&parts.uri).map_err(|rejection| {
        Refusal::Malformed(format!("the query is malformed: {}", rejection.body_text()))
    })?;
    Ok(read)
}

/// Gives the runner of a workload the commands that it is to run. Waits for a while for one.
async fn commands(
    State(node): State<Arc<Node>>,
    Path(id): Path<WorkloadId>,
    Write { wanted: NoQuery {}, .. }: Write<NoQuery>,
) -> Result<Json<Vec<RunnerCommand>>, Refusal> {
    node.workloads.check_attached(&id)?;
    Ok(Json(node.runners.next(&id).await))
}

/// Notes the end of such a command.
async fn command_ended(
    State(node): State<Arc<Node>>,
    Path((id, number)): Path<(WorkloadId, u64)>,
    Write { wanted, .. }: Write<CommandEnd>,
) -> Json<()> {
    node.runners.ended(&id, number, wanted);
    Json(())
}

async fn attach(
    State(node): State<Arc<Node>>,
    Write { wanted, dry_run }: Write<Attach>,
) -> Result<(StatusCode, Json<LocalWorkload>), Refusal> {
    let attached = to_the_end(async move { node.workloads.attach(wanted, dry_run).await }).await?;
    Ok((made(dry_run), Json(attached)))
}

fn made(DryRun(dry): DryRun) -> StatusCode {
    if dry { StatusCode::OK } else { StatusCode::CREATED }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InNetwork {
    network: NetworkName,
}

impl<S: Send + Sync> FromRequestParts<S> for InNetwork {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        read_query(parts)
    }
}

async fn containers(State(node): State<Arc<Node>>, of: InNetwork) -> Json<Vec<ContainerKey>> {
    Json(node.workloads.containers_in(&of.network))
}

async fn add_container(
    State(node): State<Arc<Node>>,
    Write { wanted, dry_run }: Write<AddContainer>,
) -> Result<(StatusCode, Json<AddedContainer>), Refusal> {
    let added =
        to_the_end(async move { node.workloads.add_container(wanted, dry_run).await }).await?;
    Ok((made(dry_run), Json(added)))
}

async fn container(
    State(node): State<Arc<Node>>,
    Path((container, interface)): Path<(String, String)>,
    _: NoQuery,
) -> Result<Json<AttachedContainer>, Refusal> {
    Ok(Json(node.workloads.container(ContainerKey { container, interface }).await?))
}

async fn remove_container(
    State(node): State<Arc<Node>>,
    Path((container, interface)): Path<(String, String)>,
    Removal { dry_run }: Removal,
) -> Result<StatusCode, Refusal> {
    let key = ContainerKey { container, interface };
    to_the_end(async move { node.workloads.remove_container(&key, dry_run) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn advertise(
    State(node): State<Arc<Node>>,
    Write { wanted, dry_run }: Write<Advertise>,
) -> Result<(StatusCode, Json<LocalWorkload>), Refusal> {
    let advertised =
        to_the_end(async move { node.workloads.advertise(wanted, dry_run).await }).await?;
    Ok((made(dry_run), Json(advertised)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Withdraw {
    network: NetworkName,
    prefix: IpNet,
    #[serde(default)]
    dry_run: DryRun,
}

impl<S: Send + Sync> FromRequestParts<S> for Withdraw {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        read_query(parts)
    }
}

async fn withdraw(State(node): State<Arc<Node>>, of: Withdraw) -> Result<StatusCode, Refusal> {
    to_the_end(async move { node.workloads.withdraw(&of.network, of.prefix, of.dry_run) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn relabel(
    State(node): State<Arc<Node>>,
    Path(id): Path<WorkloadId>,
    Write { wanted, dry_run }: Write<Relabel>,
) -> Result<Json<LocalWorkload>, Refusal> {
    Ok(Json(node.workloads.relabel(&id, wanted, dry_run)?))
}

async fn detach(
    State(node): State<Arc<Node>>,
    Path(id): Path<WorkloadId>,
    Removal { dry_run }: Removal,
) -> Result<StatusCode, Refusal> {
    to_the_end(async move { node.workloads.detach_if(&id, dry_run) }).await?;
    Ok(StatusCode::NO_CONTENT)
}
