//! Drains: workloads that get no new connections through services.

use super::{
    caller::Caller,
    enforcement,
    lists::{self, Listed, Query},
    problem::ApiError,
    request::Body,
    state::Api,
};
use crate::mesh::{Done, Mesh};
use axum::{Json, extract::State, response::Response};
use meshward_api_types::{
    BeginDrain, Drain, DrainProgress, DrainResult, DrainTarget, OpenFlows, Page, Role, operations,
};
use meshward_control_proto::{Answer, Question};
use meshward_control_state::{
    Refusal,
    change_log::ListKind,
    plans::drains::{self, DrainAuthor},
    records::{self, DrainRecord, RecordKey},
    world::World,
};
use meshward_types::{NetworkName, NodeName, WorkloadId};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use time::OffsetDateTime;

/// The largest number of workloads whose flows nodes are asked to count.
const MAX_COUNTED: usize = 10_000;

fn target(given: &DrainTarget) -> Result<records::DrainTarget, Refusal> {
    match (&given.workload, &given.node) {
        (Some(workload), None) => Ok(records::DrainTarget::Workload(workload.clone())),
        (None, Some(node)) => Ok(records::DrainTarget::Node(node.clone())),
        _ => Err(Refusal::Invalid("name either a workload or a node".into())),
    }
}

/// Drains a workload or a node: services choose it no longer, and its flows go on.
///
/// The answer comes when every connected node concerned enforces it, or after two seconds.
#[utoipa::path(post, path = operations::BEGIN_DRAIN.path(), tag = "services", operation_id = "drain", request_body = BeginDrain,
    responses((status = 200, body = DrainResult)))]
pub(super) async fn begin(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<BeginDrain>,
) -> Result<Json<DrainResult>, ApiError> {
    caller.must_be(Role::Operator)?;
    let target = target(&wanted.target)?;
    let context = caller.context.because(wanted.message.clone());
    let author = DrainAuthor {
        by: &caller.context.actor,
        networks: &caller.networks,
        why: wanted.message.as_deref(),
        now: OffsetDateTime::now_utc(),
    };
    let done = mesh.change(&context, |world| drains::drain(world, &target, &author)).await?;
    Ok(Json(enforced(&mesh, done).await))
}

/// Ends the drain of a workload or a node.
#[utoipa::path(post, path = operations::END_DRAIN.path(), tag = "services", operation_id = "undrain", request_body = DrainTarget,
    responses((status = 200, body = DrainResult)))]
pub(super) async fn end(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<DrainTarget>,
) -> Result<Json<DrainResult>, ApiError> {
    caller.must_be(Role::Operator)?;
    let target = target(&wanted)?;
    let plan = |world: &World| drains::undrain(world, &target, &caller.networks);
    let done = mesh.change(&caller.context, plan).await?;
    Ok(Json(enforced(&mesh, done).await))
}

async fn enforced(mesh: &Mesh, done: Done<Vec<WorkloadId>>) -> DrainResult {
    let enforcement = enforcement::wait(mesh, &done.touched, done.revision).await;
    DrainResult { revision: done.revision, workloads: done.outcome, enforcement }
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    workload: Option<WorkloadId>,
    node: Option<NodeName>,
}

impl Listed for Drain {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Drains;

    fn key(&self) -> String {
        target(&self.target).map(|own| RecordKey::Drain(own).stored().name).unwrap_or_default()
    }

    fn fits(&self, filter: &Filter) -> bool {
        let DrainTarget { workload, node } = &self.target;
        filter.workload.as_ref().is_none_or(|own| Some(own) == workload.as_ref())
            && filter.node.as_ref().is_none_or(|own| Some(own) == node.as_ref())
    }

    fn is_for(&self, world: &World, caller: &Caller) -> bool {
        match (&self.target.workload, &self.target.node) {
            (Some(id), _) => {
                world.workload_networks.get(id).is_some_and(|network| caller.reaches(network))
            }
            (None, Some(node)) => {
                world.workloads_on(node).any(|record| caller.reaches(&record.network))
                    || caller.networks.is_empty()
            }
            (None, None) => false,
        }
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        world.drains.all().map(|record| describe(world, record)).collect()
    }
}

pub(super) fn describe(world: &World, record: &DrainRecord) -> Drain {
    let (workload, node, workloads) = match &record.target {
        records::DrainTarget::Workload(id) => (Some(id.clone()), None, 1),
        records::DrainTarget::Node(node) => {
            (None, Some(node.clone()), world.workloads_on(node).count())
        }
    };
    Drain {
        target: DrainTarget { workload, node },
        since: record.since.clone(),
        by: record.by.clone(),
        why: record.why.clone(),
        workloads,
    }
}

/// Lists the drains.
#[utoipa::path(get, path = operations::DRAINS.path(), tag = "services", operation_id = "list_drains",
    params(("workload" = Option<WorkloadId>, Query, description = "Only the drain of this workload"),
        ("node" = Option<NodeName>, Query, description = "Only the drain of this node")),
    responses((status = 200, body = Page<Drain>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Drain>(api, caller, query).await
}

/// Returns the open flows of workloads that others began: what a drain waits for.
#[utoipa::path(post, path = operations::DRAIN_PROGRESS.path(), tag = "services", operation_id = "drain_progress", request_body = DrainTarget,
    responses((status = 200, body = DrainProgress)))]
pub(super) async fn progress(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<DrainTarget>,
) -> Result<Json<DrainProgress>, ApiError> {
    let target = target(&wanted)?;
    let asked = mesh.look(|world| asked(world, &target, &caller.networks))?;
    let (mut workloads, mut silent) = (BTreeMap::new(), BTreeSet::new());
    for (node, networks) in asked {
        for (network, ids) in networks {
            let question =
                Question::OpenFlows { network, workloads: ids.iter().cloned().collect() };
            let answer = match mesh.sessions.get(&node) {
                Some(session) => session.ask(&question).await,
                None => None,
            };
            let Some(Answer::OpenFlows(counts)) = answer else {
                silent.insert(node.clone());
                continue;
            };
            // A node may only report its own workloads.
            let own = counts.into_iter().filter(|one| ids.contains(&one.workload) && one.flows > 0);
            workloads.extend(own.map(|one| (one.workload, one.flows)));
        }
    }
    let flows = |(workload, flows)| OpenFlows { workload, flows };
    Ok(Json(DrainProgress {
        workloads: workloads.into_iter().map(flows).collect(),
        nodes_silent: silent.into_iter().collect(),
    }))
}

/// The workloads of a target by node and network.
type Asked = BTreeMap<NodeName, BTreeMap<NetworkName, BTreeSet<WorkloadId>>>;

fn asked(
    world: &World,
    target: &records::DrainTarget,
    networks: &[NetworkName],
) -> Result<Asked, Refusal> {
    let mut asked = Asked::new();
    for id in drains::targeted(world, target, networks)?.into_iter().take(MAX_COUNTED) {
        let Some(known) = world.workload(&id) else { continue };
        let by_network = asked.entry(known.node().clone()).or_default();
        by_network.entry(known.network().clone()).or_default().insert(id);
    }
    Ok(asked)
}
