use super::{ApiError, Body, Caller, enforcement};
use crate::{
    mesh::{Done, Mesh},
    plans::{
        quarantines::{self, Hand},
        tokens::new_id,
    },
};
use axum::{Json, extract::State};
use meshward_model::{
    WorkloadId,
    api::{ErrorBody, Impose, Quarantine, QuarantineResult, QuarantineTarget, Role},
};
use std::sync::Arc;
use time::OffsetDateTime;

/// Cuts every link of the workloads that it names, established flows included.
///
/// The answer comes when every connected node that it concerns enforces it, or after two seconds.
#[utoipa::path(post, path = "/v1/quarantines", tag = "quarantine", operation_id = "quarantine", request_body = Impose,
    responses((status = 200, body = QuarantineResult), (status = "4XX", body = ErrorBody)))]
pub async fn impose(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<Impose>,
) -> Result<Json<QuarantineResult>, ApiError> {
    caller.must_be(Role::Operator)?;
    let author = caller.author.because(wanted.message.clone());
    let (id, hand) = (new_id(), hand(&caller));
    let done = mesh.change_first(&author, |world| quarantines::impose(world, &id, &wanted, &hand)).await?;
    Ok(Json(enforced(&mesh, &caller, done).await))
}

fn hand(caller: &Caller) -> Hand<'_> {
    Hand {
        by: &caller.author.actor,
        networks: &caller.networks,
        admin: caller.role == Role::Admin,
        now: OffsetDateTime::now_utc(),
    }
}

/// Lists the quarantines that stand.
#[utoipa::path(get, path = "/v1/quarantines", tag = "quarantine", operation_id = "list_quarantines",
    responses((status = 200, body = Vec<Quarantine>), (status = "4XX", body = ErrorBody)))]
pub async fn list(State(mesh): State<Arc<Mesh>>, caller: Caller) -> Json<Vec<Quarantine>> {
    Json(mesh.look(|world| {
        let own = world.quarantines.values().filter(|quarantine| {
            let target = &quarantine.target;
            let network = target.workload.as_ref().and_then(|id| world.workload_networks.get(id));
            network.or(target.network.as_ref()).is_none_or(|network| caller.reaches(network))
        });
        own.cloned().collect()
    }))
}

/// Ends the quarantine with exactly this target.
#[utoipa::path(post, path = "/v1/quarantines/release", tag = "quarantine", operation_id = "release", request_body = QuarantineTarget,
    responses((status = 200, body = QuarantineResult), (status = "4XX", body = ErrorBody)))]
pub async fn release(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(target): Body<QuarantineTarget>,
) -> Result<Json<QuarantineResult>, ApiError> {
    caller.must_be(Role::Operator)?;
    let hand = hand(&caller);
    let done = mesh.change_first(&caller.author, |world| quarantines::release(world, &target, &hand)).await?;
    Ok(Json(enforced(&mesh, &caller, done).await))
}

async fn enforced(mesh: &Mesh, caller: &Caller, done: Done<Vec<WorkloadId>>) -> QuarantineResult {
    let mut concerned = done.touched;
    if concerned.is_empty() && !caller.author.dry_run {
        // It stood already: whether all enforce it is wanted to be known all the same.
        concerned = mesh.look(|world| enforcement::concerned(world, &done.outcome));
    }
    let enforcement = enforcement::wait(mesh, &concerned, done.revision).await;
    QuarantineResult { revision: done.revision, workloads: done.outcome, enforcement }
}
