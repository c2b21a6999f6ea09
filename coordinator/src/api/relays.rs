use super::{
    caller::Caller,
    lists::{self, Listed, Query},
    problem::ApiError,
    request::{At, Precondition, etag},
    state::Api,
};
use crate::mesh::Mesh;
use axum::{
    Json,
    extract::State,
    http::header::ETAG,
    response::{IntoResponse, Response},
};
use meshward_api_types::{Page, Relay, Role, operations};
use meshward_control_state::{
    Refusal,
    change_log::ListKind,
    plans::{nodes::serves_any, relays},
    records::{NodeRecord, RelayRecord},
    world::World,
};
use meshward_types::{NetworkName, NodeName, relay::RelayId};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    site: Option<String>,
    connected: Option<bool>,
}

impl Listed for Relay {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Relays;
    /// Links of relays change without a revision.
    const VOLATILE: bool = true;

    fn key(&self) -> String {
        self.name.to_string()
    }

    fn fits(&self, filter: &Filter) -> bool {
        let site = filter.site.as_ref().is_none_or(|site| self.site.as_ref() == Some(site));
        site && lists::is(filter.connected.as_ref(), &self.connected)
    }

    fn all(mesh: &Mesh, world: &World) -> Vec<Self> {
        world.relays.values().map(|relay| describe(mesh, world, relay, &[])).collect()
    }

    /// Only the nodes of the caller's networks are counted.
    fn redacted_for(self, mesh: &Mesh, world: &World, caller: &Caller) -> Self {
        match world.relays.get(&self.name) {
            Some(relay) if !caller.networks.is_empty() => {
                describe(mesh, world, relay, &caller.networks)
            }
            _ => self,
        }
    }
}

/// Lists the relays, apart from the coordinator.
#[utoipa::path(get, path = operations::RELAYS.path(), tag = "nodes", operation_id = "list_relays",
    params(("site" = Option<String>, Query, description = "Only entries of this site"),
        ("connected" = Option<bool>, Query, description = "Only relays that are connected now \
            (true) or not (false)")),
    responses((status = 200, body = Page<Relay>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Relay>(api, caller, query).await
}

/// Returns a relay.
#[utoipa::path(get, path = operations::RELAY.path(), tag = "nodes", operation_id = "get_relay",
    params(("name" = NodeName, Path, description = "The name of the relay")),
    responses((status = 200, body = Relay, headers(("ETag" = String, description = "The state")))))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NodeName>,
) -> Result<Response, ApiError> {
    let relay: Relay = lists::one(&mesh, &caller, name.as_str(), "relay")?;
    let tag = mesh.look(|world| world.relays.get(&name).map(etag));
    Ok(([(ETAG, tag.unwrap_or_default())], Json(relay)).into_response())
}

/// Returns a relay. Only nodes of `networks` are counted; all, if these are empty.
fn describe(mesh: &Mesh, world: &World, relay: &RelayRecord, networks: &[NetworkName]) -> Relay {
    let by_it = |node: &&NodeRecord| {
        let mut candidates = node.endpoints.values().flat_map(|endpoint| &endpoint.candidates);
        candidates.any(|candidate| {
            RelayId::at(candidate).is_some_and(|(_, number)| number.0 == relay.number)
        })
    };
    Relay {
        name: relay.name.clone(),
        number: relay.number,
        site: relay.site.clone(),
        addresses: relay.addresses.clone(),
        connected: mesh.relays.is_connected(&relay.name),
        nodes: world
            .nodes
            .values()
            .filter(by_it)
            .filter(|node| serves_any(world, &node.name, networks))
            .count(),
    }
}

/// Removes a relay: its link ends, and its certificate is revoked. Returns the relay.
#[utoipa::path(delete, path = operations::REMOVE_RELAY.path(), tag = "nodes",
    operation_id = "remove_relay",
    params(("name" = NodeName, Path, description = "The name of the relay")),
    responses((status = 200, body = Relay)))]
pub(super) async fn remove(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At(name): At<NodeName>,
    expected: Precondition,
) -> Result<Json<Relay>, ApiError> {
    caller.must_be(Role::Admin)?;
    let plan = |world: &World| {
        let known = world.relays.get(&name);
        expected.check(known.map(etag).as_deref())?;
        let plan = relays::remove(world, &name)?;
        let relay = known.ok_or_else(|| Refusal::Missing(format!("there is no relay `{name}`")))?;
        Ok(plan.with_outcome(describe(&mesh, world, relay, &caller.networks)))
    };
    Ok(Json(mesh.change(&caller.context, plan).await?.outcome))
}
