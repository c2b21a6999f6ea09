use super::{
    caller::Caller,
    enforcement,
    lists::{self, Listed, Query},
    problem::ApiError,
    request::{At, Body},
    state::Api,
};
use crate::{
    ids::new_id,
    mesh::{Done, Mesh},
};
use axum::{Json, extract::State, response::Response};
use meshward_api_types::{
    Impose, Page, Quarantine, QuarantineResult, QuarantineTarget, Role, operations,
};
use meshward_control_state::{
    Refusal,
    change_log::ListKind,
    plans::quarantines::{self, Hand},
    world::World,
};
use meshward_types::{NetworkName, Selector, WorkloadId};
use serde::Deserialize;
use std::sync::Arc;
use time::OffsetDateTime;

/// Cuts every link of the selected workloads, established flows included.
///
/// The answer comes when every connected node concerned enforces it, or after two seconds.
#[utoipa::path(post, path = operations::IMPOSE_QUARANTINE.path(), tag = "quarantine",
    operation_id = "quarantine", request_body = Impose,
    responses((status = 200, body = QuarantineResult)))]
pub(super) async fn impose(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<Impose>,
) -> Result<Json<QuarantineResult>, ApiError> {
    caller.must_be(Role::Operator)?;
    if wanted.target.selector.as_ref().is_some_and(Selector::is_empty) {
        let text = "an empty selector would isolate everything; name labels, or a workload's id";
        return Err(Refusal::Invalid(text.into()).about("selector").into());
    }
    if wanted.allow_from.as_ref().is_some_and(Selector::is_empty) {
        let text = "an empty selector would let everybody reach it; name labels, or leave it out";
        return Err(Refusal::Invalid(text.into()).about("allow_from").into());
    }
    let context = caller.context.because(wanted.message.clone());
    let (id, hand) = (new_id(), hand(&caller));
    let done = mesh
        .change_first(&context, |world| quarantines::impose(world, &id, &wanted, &hand))
        .await?;
    Ok(Json(enforced(&mesh, &caller, done).await))
}

fn hand(caller: &Caller) -> Hand<'_> {
    Hand {
        by: &caller.context.actor,
        networks: &caller.networks,
        admin: caller.role == Role::Admin,
        now: OffsetDateTime::now_utc(),
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    network: Option<NetworkName>,
    workload: Option<WorkloadId>,
    by: Option<String>,
}

impl Listed for Quarantine {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Quarantines;

    fn key(&self) -> String {
        self.id.clone()
    }

    fn fits(&self, filter: &Filter) -> bool {
        let target = &self.target;
        let network =
            filter.network.as_ref().is_none_or(|own| target.network.as_ref() == Some(own));
        let workload =
            filter.workload.as_ref().is_none_or(|own| target.workload.as_ref() == Some(own));
        network && workload && lists::is(filter.by.as_ref(), &self.by)
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        world.quarantines.values().map(Quarantine::from).collect()
    }

    fn is_for(&self, world: &World, caller: &Caller) -> bool {
        let own = self.target.workload.as_ref().and_then(|id| world.workload_networks.get(id));
        own.or(self.target.network.as_ref()).is_none_or(|network| caller.reaches(network))
    }
}

/// Lists the quarantines in force.
#[utoipa::path(get, path = operations::QUARANTINES.path(), tag = "quarantine",
    operation_id = "list_quarantines",
    params(("network" = Option<NetworkName>, Query, description = "Only entries of this network"),
        ("workload" = Option<WorkloadId>, Query, description = "Only quarantines of exactly this \
            workload"),
        ("by" = Option<String>, Query, description = "Only quarantines imposed by this actor: \
            `user:NAME` or `trigger:NAME`")),
    responses((status = 200, body = Page<Quarantine>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Quarantine>(api, caller, query).await
}

/// Returns a quarantine in force.
#[utoipa::path(get, path = operations::QUARANTINE.path(), tag = "quarantine",
    operation_id = "get_quarantine",
    params(("id" = String, Path, description = "The id of the quarantine")),
    responses((status = 200, body = Quarantine)))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Json<Quarantine>, ApiError> {
    Ok(Json(lists::one(&mesh, &caller, &id, "quarantine")?))
}

/// Ends the quarantine with exactly this target.
#[utoipa::path(post, path = operations::RELEASE_QUARANTINE.path(), tag = "quarantine",
    operation_id = "release", request_body = QuarantineTarget,
    responses((status = 200, body = QuarantineResult)))]
pub(super) async fn release(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(target): Body<QuarantineTarget>,
) -> Result<Json<QuarantineResult>, ApiError> {
    caller.must_be(Role::Operator)?;
    let hand = hand(&caller);
    let done = mesh
        .change_first(&caller.context, |world| quarantines::release(world, &target, &hand))
        .await?;
    Ok(Json(enforced(&mesh, &caller, done).await))
}

async fn enforced(mesh: &Mesh, caller: &Caller, done: Done<Vec<WorkloadId>>) -> QuarantineResult {
    let mut concerned = done.touched;
    if concerned.is_empty() && !caller.context.dry_run {
        // It was active already: the caller still learns how far it is enforced.
        concerned = mesh.look(|world| enforcement::concerned(world, &done.outcome));
    }
    let enforcement = enforcement::wait(mesh, &concerned, done.revision).await;
    QuarantineResult { revision: done.revision, workloads: done.outcome, enforcement }
}
