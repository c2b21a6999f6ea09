use super::{
    caller::Caller,
    lists::{self, BySelector, Listed, Query},
    problem::ApiError,
    request::{At, Body},
    state::Api,
};
use crate::mesh::Mesh;
use axum::{Json, extract::State, response::Response};
use ipnet::IpNet;
use meshward_api_types::{ApproveEgress, ApproveRoute, Page, Role, Route, RouteState, operations};
use meshward_control_state::{Plan, Refusal, change_log::ListKind, plans::routes, world::World};
use meshward_types::{NetworkName, NodeName, schema::Cidr};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    network: Option<NetworkName>,
    node: Option<NodeName>,
    state: Option<RouteState>,
    selector: Option<BySelector>,
}

impl Listed for Route {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Routes;

    fn key(&self) -> String {
        format!("{}/{}/{}", self.network, self.node, self.prefix)
    }

    fn is_for(&self, _: &World, caller: &Caller) -> bool {
        caller.reaches(&self.network)
    }

    fn fits(&self, filter: &Filter) -> bool {
        lists::is(filter.network.as_ref(), &self.network)
            && lists::is(filter.node.as_ref(), &self.node)
            && lists::is(filter.state.as_ref(), &self.state)
            && lists::selects(filter.selector.as_ref(), &self.labels)
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        routes::list(world)
    }
}

/// Lists the routes: prefixes behind gateways.
#[utoipa::path(get, path = operations::ROUTES.path(), tag = "routes", operation_id = "list_routes",
    params(("network" = Option<NetworkName>, Query, description = "Only entries of this network"),
        ("node" = Option<NodeName>, Query, description = "Only routes behind this node"),
        ("state" = Option<RouteState>, Query, description = "Only entries in this state"),
        ("selector" = Option<String>, Query, description = "Only entries with such labels: \
            `app=web,env in (prod,stage),!old`")),
    responses((status = 200, body = Page<Route>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Route>(api, caller, query).await
}

/// Returns a route: a prefix behind a gateway. Write the slash of the prefix as `%2F`.
#[utoipa::path(get, path = operations::ROUTE.path(), tag = "routes", operation_id = "get_route",
    params(("network" = NetworkName, Path, description = "The network"),
        ("node" = NodeName, Path, description = "The gateway"),
        ("prefix" = Cidr, Path, description = "The prefix")),
    responses((status = 200, body = Route)))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At((network, node, prefix)): At<(NetworkName, NodeName, IpNet)>,
) -> Result<Json<Route>, ApiError> {
    let key = format!("{network}/{node}/{}", prefix.trunc());
    Ok(Json(lists::one(&mesh, &caller, &key, "route")?))
}

/// Approves a prefix behind a node, before or after the node advertises it.
#[utoipa::path(post, path = operations::APPROVE_ROUTE.path(), tag = "routes",
    operation_id = "approve_route", request_body = ApproveRoute,
    responses((status = 200, body = Route)))]
pub(super) async fn approve(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<ApproveRoute>,
) -> Result<Json<Route>, ApiError> {
    decide(&mesh, &caller, |world, scope| routes::approve(world, &wanted, scope)).await
}

/// Withdraws an approval: links through the route are cut, unless the policy approves it.
#[utoipa::path(post, path = operations::DISAPPROVE_ROUTE.path(), tag = "routes",
    operation_id = "disapprove_route", request_body = ApproveRoute,
    responses((status = 200, body = Route)))]
pub(super) async fn disapprove(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<ApproveRoute>,
) -> Result<Json<Route>, ApiError> {
    decide(&mesh, &caller, |world, scope| routes::disapprove(world, &wanted, scope)).await
}

/// Approves what an egress gateway advertises, of both address families at once.
#[utoipa::path(post, path = operations::APPROVE_EGRESS.path(), tag = "routes",
    operation_id = "approve_egress", request_body = ApproveEgress,
    responses((status = 200, body = Vec<Route>)))]
pub(super) async fn approve_egress(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<ApproveEgress>,
) -> Result<Json<Vec<Route>>, ApiError> {
    decide(&mesh, &caller, |world, scope| routes::approve_egress(world, &wanted, scope)).await
}

/// Withdraws the approvals of an egress gateway, of both address families at once.
#[utoipa::path(post, path = operations::DISAPPROVE_EGRESS.path(), tag = "routes",
    operation_id = "disapprove_egress", request_body = ApproveEgress,
    responses((status = 200, body = Vec<Route>)))]
pub(super) async fn disapprove_egress(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<ApproveEgress>,
) -> Result<Json<Vec<Route>>, ApiError> {
    decide(&mesh, &caller, |world, scope| routes::disapprove_egress(world, &wanted, scope)).await
}

/// Changes approvals, which is up to owners, within the networks of the caller's credential.
async fn decide<T>(
    mesh: &Mesh,
    caller: &Caller,
    plan: impl Fn(&World, &[NetworkName]) -> Result<Plan<T>, Refusal>,
) -> Result<Json<T>, ApiError> {
    caller.must_be(Role::Owner)?;
    let plan = |world: &World| plan(world, &caller.networks);
    Ok(Json(mesh.change(&caller.context, plan).await?.outcome))
}
