use super::{ApiError, Body, Caller, policies::ENFORCEMENT};
use crate::{
    mesh::{Done, Mesh, timestamp},
    plans::{quarantines, tokens::random},
};
use axum::{Json, extract::State};
use meshward_model::{
    WorkloadId,
    api::{ErrorBody, Quarantine, QuarantineResult, QuarantineTarget},
};
use std::sync::Arc;
use time::OffsetDateTime;

/// Cuts every link of the workloads that it names, established flows included.
///
/// The answer comes when every connected node that it concerns enforces it, or after two seconds.
#[utoipa::path(post, path = "/v1/quarantines", tag = "quarantine", operation_id = "quarantine", request_body = QuarantineTarget,
    responses((status = 200, body = QuarantineResult), (status = "4XX", body = ErrorBody)))]
pub async fn impose(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(target): Body<QuarantineTarget>,
) -> Result<Json<QuarantineResult>, ApiError> {
    let id: String = random::<4>().iter().map(|byte| format!("{byte:02x}")).collect();
    let since = timestamp(OffsetDateTime::now_utc());
    let done = mesh.change(&caller.0, |world| quarantines::impose(world, &id, &target, &since)).await?;
    Ok(Json(enforced(&mesh, done).await))
}

/// Lists the quarantines that stand.
#[utoipa::path(get, path = "/v1/quarantines", tag = "quarantine", operation_id = "list_quarantines",
    responses((status = 200, body = Vec<Quarantine>), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(mesh): State<Arc<Mesh>>, _: Caller) -> Json<Vec<Quarantine>> {
    Json(mesh.look(|world| world.quarantines.values().cloned().collect()))
}

/// Ends the quarantine with exactly this target.
#[utoipa::path(post, path = "/v1/quarantines/release", tag = "quarantine", operation_id = "release", request_body = QuarantineTarget,
    responses((status = 200, body = QuarantineResult), (status = "4XX", body = ErrorBody)))]
pub async fn release(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(target): Body<QuarantineTarget>,
) -> Result<Json<QuarantineResult>, ApiError> {
    let done = mesh.change(&caller.0, |world| quarantines::release(world, &target)).await?;
    Ok(Json(enforced(&mesh, done).await))
}

async fn enforced(mesh: &Mesh, done: Done<Vec<WorkloadId>>) -> QuarantineResult {
    let nodes_enforcing = mesh.sessions.wait_enforced(&done.touched, done.revision, ENFORCEMENT).await;
    QuarantineResult {
        revision: done.revision,
        workloads: done.outcome,
        nodes: done.touched.len() as usize,
        nodes_enforcing,
    }
}
