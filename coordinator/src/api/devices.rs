use super::{
    caller::Caller,
    lists::{self, BySelector, Listed, Query},
    problem::ApiError,
    request::{At, Body},
    state::Api,
};
use crate::mesh::{ChangeContext, Mesh};
use axum::{Json, extract::State, http::StatusCode, response::Response};
use meshward_api_types::{CreateDevice, CreatedDevice, Device, Page, Role, operations};
use meshward_control_proto::{Answer, DeviceOrder, Question};
use meshward_control_state::{
    Plan, Refusal,
    change_log::ListKind,
    plans::{networks, nodes},
    records::{NodeRecord, WorkloadRecord},
    world::{AdmittedWorkload, World},
};
use meshward_types::{NetworkName, NodeName, WorkloadName, bounded::printable, relay::is_relayed};
use serde::Deserialize;
use std::{net::SocketAddr, sync::Arc};

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    network: Option<NetworkName>,
    gateway: Option<NodeName>,
    selector: Option<BySelector>,
}

impl Listed for Device {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Devices;

    fn key(&self) -> String {
        format!("{}/{}", self.network, self.name)
    }

    fn is_for(&self, _: &World, caller: &Caller) -> bool {
        caller.reaches(&self.network)
    }

    fn fits(&self, filter: &Filter) -> bool {
        lists::is(filter.network.as_ref(), &self.network)
            && lists::is(filter.gateway.as_ref(), &self.gateway)
            && lists::selects(filter.selector.as_ref(), &self.labels)
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        let describe = |AdmittedWorkload { record, labels, .. }: AdmittedWorkload<'_>| {
            Some(describe(record, labels.clone(), record.device?))
        };
        world.workloads().filter_map(describe).collect()
    }
}

/// Lists the devices.
#[utoipa::path(get, path = operations::DEVICES.path(), tag = "devices",
    operation_id = "list_devices",
    params(("network" = Option<NetworkName>, Query, description = "Only entries of this network"),
        ("gateway" = Option<NodeName>, Query, description = "Only devices of this gateway"),
        ("selector" = Option<String>, Query, description = "Only entries with such labels: \
            `app=web,env in (prod,stage),!old`")),
    responses((status = 200, body = Page<Device>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Device>(api, caller, query).await
}

/// Returns a device.
#[utoipa::path(get, path = operations::DEVICE.path(), tag = "devices", operation_id = "get_device",
    params(
        ("network" = NetworkName, Path, description = "The network"),
        ("name" = WorkloadName, Path, description = "The name of the device"),
    ),
    responses((status = 200, body = Device)))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At((network, name)): At<(NetworkName, WorkloadName)>,
) -> Result<Json<Device>, ApiError> {
    Ok(Json(lists::one(&mesh, &caller, &format!("{network}/{name}"), "device")?))
}

fn describe(
    record: &WorkloadRecord,
    labels: meshward_types::Labels,
    key: meshward_types::PublicKey,
) -> Device {
    Device {
        name: record.name.clone(),
        network: record.network.clone(),
        gateway: record.node.clone(),
        workload: record.id.clone(),
        addresses: record.addresses.clone(),
        labels,
        public_key: key.to_string(),
    }
}

/// Creates a device: a machine with any WireGuard client. It joins through a node, its gateway,
/// which must be connected.
#[utoipa::path(post, path = operations::CREATE_DEVICE.path(), tag = "devices",
    operation_id = "create_device", request_body = CreateDevice,
    responses((status = 201, body = CreatedDevice)))]
pub(super) async fn create(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    Body(wanted): Body<CreateDevice>,
) -> Result<(StatusCode, Json<CreatedDevice>), ApiError> {
    caller.must_be(Role::Owner)?;
    caller.must_reach(&wanted.network)?;
    let public_key = wanted.public_key.parse().map_err(|error: meshward_types::keys::BadKey| {
        Refusal::Invalid(error.to_string()).about("public_key")
    })?;
    let Gateway { name: gateway, endpoint } =
        mesh.look(|world| gateway(&mesh, world, &wanted, &caller.networks))?;
    let session = mesh.sessions.get(&gateway).ok_or_else(|| away(&gateway))?;
    let order = DeviceOrder {
        network: wanted.network.clone(),
        name: wanted.name.clone(),
        labels: wanted.labels.clone(),
        public_key,
    };
    if caller.context.dry_run {
        let created = CreatedDevice {
            name: wanted.name,
            gateway,
            workload: None,
            addresses: vec![],
            public_key: String::new(),
            endpoint,
            prefixes: vec![],
            mtu: 0,
        };
        return Ok((StatusCode::CREATED, Json(created)));
    }
    let answer = match session.ask(&Question::AddDevice(order)).await {
        Some(Answer::Device(answer)) => answer.map_err(|why| Refusal::Invalid(printable(&why)))?,
        _ => {
            return Err(
                Refusal::Failed(format!("node {gateway} does not answer; try again")).into()
            );
        }
    };
    note(
        &mesh,
        &caller.context,
        format!("took in device {} ({}) by node {gateway}", wanted.name, answer.id),
    )
    .await?;
    let created = CreatedDevice {
        name: wanted.name,
        gateway,
        workload: Some(answer.id),
        addresses: answer.addresses,
        public_key: answer.public_key.to_string(),
        endpoint,
        prefixes: answer.prefixes,
        mtu: answer.mtu,
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Removes a device. Its gateway must be connected. Returns the device.
#[utoipa::path(delete, path = operations::REMOVE_DEVICE.path(), tag = "devices",
    operation_id = "remove_device",
    params(
        ("network" = NetworkName, Path, description = "The network"),
        ("name" = WorkloadName, Path, description = "The name of the device"),
    ),
    responses((status = 200, body = Device)))]
pub(super) async fn remove(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At((network, name)): At<(NetworkName, WorkloadName)>,
) -> Result<Json<Device>, ApiError> {
    caller.must_be(Role::Owner)?;
    caller.must_reach(&network)?;
    let found = mesh.look(|world| Device::one(&mesh, world, &format!("{network}/{name}")));
    let device = found.ok_or_else(|| {
        Refusal::Missing(format!(
            "there is no device `{name}` in network {network}; `meshctl device list` shows them"
        ))
    })?;
    let (id, node) = (&device.workload, &device.gateway);
    let session = mesh.sessions.get(node).ok_or_else(|| away(node))?;
    if caller.context.dry_run {
        return Ok(Json(device));
    }
    match session.ask(&Question::RemoveDevice(id.clone())).await {
        Some(Answer::Removed(done)) => done.map_err(|why| Refusal::Invalid(printable(&why)))?,
        _ => return Err(Refusal::Failed(format!("node {node} does not answer; try again")).into()),
    }
    note(&mesh, &caller.context, format!("turned away device {name} ({id})")).await?;
    Ok(Json(device))
}

async fn note(mesh: &Mesh, context: &ChangeContext, action: String) -> Result<(), Refusal> {
    mesh.change(context, |_| Ok(Plan::noted(action.clone()))).await.map(drop)
}

fn away(node: &NodeName) -> Refusal {
    Refusal::Conflict(format!(
        "node {node}, the gateway, is not connected; devices are kept there, so try again once it \
        is"
    ))
    .about("gateway")
}

/// The node by which a device joins.
struct Gateway {
    name: NodeName,
    /// The address at which the device reaches it.
    endpoint: SocketAddr,
}

/// Returns the gateway of a new device: the node that is named, or else the only connected one with
/// a direct address. A node that serves none of `scope` is treated as one that does not exist.
fn gateway(
    mesh: &Mesh,
    world: &World,
    wanted: &CreateDevice,
    scope: &[NetworkName],
) -> Result<Gateway, Refusal> {
    networks::find(world, &wanted.network).map_err(|refusal| refusal.about("network"))?;
    let direct_address = |node: &NodeRecord| {
        let candidates = &node.endpoints.get(&wanted.network)?.candidates;
        candidates.iter().find(|candidate| !is_relayed(candidate)).copied()
    };
    if let Some(name) = &wanted.gateway {
        let text = || format!("there is no node `{name}`; `meshctl nodes` shows them");
        let node = world.nodes.get(name).filter(|_| nodes::serves_any(world, name, scope));
        let node = node.ok_or_else(|| Refusal::Missing(text()).about("gateway"))?;
        let text = || format!("node {name} does not serve network {}", wanted.network);
        let endpoint = direct_address(node);
        let endpoint = endpoint.ok_or_else(|| Refusal::Conflict(text()).about("gateway"))?;
        return Ok(Gateway { name: name.clone(), endpoint });
    }
    let connected = world.nodes.values().filter(|node| mesh.sessions.get(&node.name).is_some());
    let mut found = connected.filter_map(|node| {
        Some(Gateway { name: node.name.clone(), endpoint: direct_address(node)? })
    });
    let only = found.next().ok_or_else(|| {
        Refusal::Conflict(format!(
            "no connected node serves network {}: a device needs one as its gateway",
            wanted.network
        ))
    })?;
    match found.next() {
        None => Ok(only),
        Some(_) => Err(Refusal::Invalid(
            "name the node by which the device joins (`--gateway`): one that it reaches directly"
                .into(),
        )
        .about("gateway")),
    }
}
