//! Services, with their instances.

use super::{
    caller::Caller,
    drains,
    lists::{self, Listed, Query},
    problem::ApiError,
    request::At,
    state::Api,
};
use crate::{mesh::Mesh, service_load};
use axum::{Json, extract::State, response::Response};
use meshward_api_types::{
    Instance, InstanceLoad, Page, Service, ServiceClients, ServiceDetails, ServiceLoad,
    ServicePort, ServiceProtocol, operations,
};
use meshward_control_state::{
    change_log::ListKind,
    loads::Load,
    plans::networks,
    records::WorkloadRecord,
    world::{NetworkState, World},
};
use meshward_policy::{Action, Rule, Service as PolicyService};
use meshward_types::{
    Affinity, HealthCheck, HealthProbe, IdentityId, InstanceStates, Labels, Lasting, NetworkName,
    PortRange, PortSpec, Protocol, ServiceName, Serving, WeightRule,
};
use serde::Deserialize;
use std::sync::Arc;

/// The largest number of identities of instances that rules by labels are compared with.
const MAX_COMPARED: usize = 64;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Filter {
    network: Option<NetworkName>,
    name: Option<ServiceName>,
}

impl Listed for Service {
    type Filter = Filter;
    const KIND: ListKind = ListKind::Services;

    fn check(world: &World, filter: &Filter) -> Result<(), ApiError> {
        match &filter.network {
            Some(name) => Ok(networks::find(world, name).map(drop)?),
            None => Ok(()),
        }
    }

    fn key(&self) -> String {
        format!("{}/{}", self.network, self.name)
    }

    fn is_for(&self, _: &World, caller: &Caller) -> bool {
        caller.reaches(&self.network)
    }

    fn fits(&self, filter: &Filter) -> bool {
        lists::is(filter.network.as_ref(), &self.network)
            && lists::is(filter.name.as_ref(), &self.name)
    }

    fn all(_: &Mesh, world: &World) -> Vec<Self> {
        let all = world.networks.values().flat_map(|network| {
            let services = &network.links.policy().services;
            services.iter().filter_map(|service| describe(world, network, service))
        });
        all.collect()
    }

    fn keys(world: &World) -> Option<Vec<String>> {
        let keys = world.networks.values().flat_map(|network| {
            network.services.records().map(|own| format!("{}/{}", own.network, own.name))
        });
        Some(keys.collect())
    }

    fn one(_: &Mesh, world: &World, key: &str) -> Option<Self> {
        let (network, service) = find(world, key)?;
        describe(world, network, service)
    }
}

fn find<'a>(world: &'a World, key: &str) -> Option<(&'a NetworkState, &'a PolicyService)> {
    let (network, name) = key.split_once('/')?;
    let network = world.networks.get(&network.parse().ok()?)?;
    Some((network, network.links.policy().service(&name.parse().ok()?)?))
}

/// Returns a service; `None` if it has no virtual address.
fn describe(world: &World, network: &NetworkState, service: &PolicyService) -> Option<Service> {
    let record = network.services.record(&service.name)?;
    let port = |port: &meshward_types::ServicePort| ServicePort {
        protocol: match port.protocol {
            Protocol::Udp => ServiceProtocol::Udp,
            _ => ServiceProtocol::Tcp,
        },
        port: port.port,
        target: port.target,
    };
    let (mut ready, mut draining, mut unhealthy) = (0, 0, 0);
    for (_, own) in instances(network, service) {
        match states(world, own).serving(&service.name) {
            Serving::Ready => ready += 1,
            Serving::Draining => draining += 1,
            Serving::Unhealthy => unhealthy += 1,
        }
    }
    let zone = &network.links.policy().dns.zone;
    Some(Service {
        network: record.network.clone(),
        name: record.name.clone(),
        dns_name: format!("{}.{}.{zone}", record.name, record.network),
        addresses: record.addresses.clone(),
        selector: service.instances.clone(),
        ports: service.ports.iter().map(port).collect(),
        prefer: service.prefer.clone(),
        health: service.health.as_ref().map(check_as_text),
        fan_out: service.fan_out.to_string(),
        affinity_seconds: match service.affinity {
            Affinity::None => None,
            Affinity::Client(time) => Some(time.as_secs()),
        },
        ready,
        draining,
        unhealthy,
    })
}

/// Returns the instances of a service, with their identities.
fn instances<'a>(
    network: &'a NetworkState,
    service: &PolicyService,
) -> impl Iterator<Item = (IdentityId, &'a WorkloadRecord)> {
    let selected = network.links.select(&service.instances).into_iter();
    selected.flat_map(|id| network.workloads_of(id).map(move |record| (id, &**record)))
}

/// Returns the states of a workload as an instance of services.
pub(super) fn states(world: &World, record: &WorkloadRecord) -> InstanceStates {
    let draining = world.drains.of(record).is_some();
    InstanceStates { draining, unhealthy: record.unhealthy.clone() }
}

fn check_as_text(check: &HealthCheck) -> String {
    let HealthCheck { probe, port, every, timeout, failures } = check;
    let probe = match probe {
        HealthProbe::Http(path) => format!("http {path}"),
        HealthProbe::Tcp => "tcp".into(),
        HealthProbe::Grpc(service) => format!("grpc {service}"),
        HealthProbe::Exec(command) => format!("exec {}", command.join(" ")),
    };
    let port = port.map(|port| format!(" port {port}")).unwrap_or_default();
    let [every, timeout] = [*every, *timeout].map(|time| String::from(Lasting(time)));
    format!("{probe}{port} every {every}, timeout {timeout}, failures {failures}")
}

/// Lists the services.
#[utoipa::path(get, path = operations::SERVICES.path(), tag = "services", operation_id = "list_services",
    params(("network" = Option<NetworkName>, Query, description = "Only entries of this network"),
        ("name" = Option<ServiceName>, Query, description = "Only services with this name")),
    responses((status = 200, body = Page<Service>)))]
pub(super) async fn list(
    api: State<Api>,
    caller: Caller,
    query: Query<Filter>,
) -> Result<Response, ApiError> {
    lists::list::<Service>(api, caller, query).await
}

/// Returns a service, with its instances.
#[utoipa::path(get, path = operations::SERVICE.path(), tag = "services", operation_id = "get_service",
    params(("network" = NetworkName, Path, description = "The network"),
        ("name" = ServiceName, Path, description = "The name of the service")),
    responses((status = 200, body = ServiceDetails)))]
pub(super) async fn get(
    State(mesh): State<Arc<Mesh>>,
    caller: Caller,
    At((network, name)): At<(NetworkName, ServiceName)>,
) -> Result<Json<ServiceDetails>, ApiError> {
    let key = format!("{network}/{name}");
    let service: Service = lists::one(&mesh, &caller, &key, "service").map_err(|error| {
        let missing = mesh.look(|world| {
            let policy = world.networks.get(&network)?.links.policy();
            policy.find_service(&name).err().map(|error| ApiError::missing(error.to_string()))
        });
        missing.filter(|_| caller.reaches(&network)).unwrap_or(error)
    })?;
    let loads = mesh.loads.of(&network, &name);
    let details = mesh.look(|world| {
        let (network, known) = find(world, &key)?;
        let described = instances(network, known).map(|of| Instance {
            load: loads.instances.get(&of.1.id).map(instance_load),
            ..instance(world, network, known, of)
        });
        let mut all: Vec<Instance> = described.collect();
        all.sort_unstable_by(|a, b| (&a.node, &a.workload).cmp(&(&b.node, &b.workload)));
        let load = service_load(network, &name, &loads);
        Some(ServiceDetails { service, load, clients: clients(network, known), instances: all })
    });
    details.map(Json).ok_or_else(|| ApiError::missing("the service has just been removed"))
}

/// Returns the rules by which clients reach a service.
fn clients(network: &NetworkState, service: &PolicyService) -> Vec<ServiceClients> {
    let identities = network.links.select(&service.instances);
    let labels: Vec<&Labels> =
        identities.iter().take(MAX_COMPARED).filter_map(|id| network.links.labels(*id)).collect();
    let leads_to = |rule: &Rule| {
        rule.target.service() == Some(&service.name)
            || labels.iter().any(|labels| rule.to.matches(labels))
    };
    let ports = |rule: &Rule| -> Vec<PortSpec> {
        let is_open = |port: &&meshward_types::ServicePort| {
            rule.ports().iter().any(|spec| spec.matches(port.protocol, port.target))
        };
        let open = service.ports.iter().filter(is_open).map(|port| PortSpec {
            protocol: Some(port.protocol),
            ports: PortRange { first: port.port, last: port.port },
        });
        open.collect()
    };
    let rules = network.links.policy().rules.iter();
    rules
        .filter(|rule| rule.action() == Action::Allow && leads_to(rule))
        .map(|rule| ServiceClients {
            from: rule.from.clone(),
            ports: ports(rule),
            rule: rule.name.clone(),
        })
        .filter(|clients| !clients.ports.is_empty())
        .collect()
}

fn service_load(
    network: &NetworkState,
    name: &ServiceName,
    load: &service_load::ServiceLoad,
) -> ServiceLoad {
    let narrowed = network.narrowing.service(name);
    let sizes = narrowed.into_iter().flat_map(|narrowed| {
        narrowed.subsets.clients().map(|client| narrowed.subsets.of(client).count())
    });
    let sizes: Vec<usize> = sizes.collect();
    ServiceLoad {
        open: load.open(),
        connects_per_second: load.begun(),
        desired: load.desired,
        clients: sizes.len(),
        least_fan_out: sizes.iter().min().copied(),
        most_fan_out: sizes.iter().max().copied(),
    }
}

fn instance_load(load: &Load) -> InstanceLoad {
    InstanceLoad {
        open: load.open,
        connects_per_second: load.begun,
        connect_micros: load.connect_time.map(|time| time.as_micros() as u64),
        used_percent: (load.used * 100.0).round() as u64,
    }
}

fn instance(
    world: &World,
    network: &NetworkState,
    service: &PolicyService,
    (identity, record): (IdentityId, &WorkloadRecord),
) -> Instance {
    let labels = network.links.labels(identity);
    let weight = labels.map(|labels| WeightRule::weight_of(&service.weights, labels));
    let quarantine =
        labels.and_then(|labels| world.quarantine_of(&record.network, labels, Some(&record.id)));
    Instance {
        workload: record.id.clone(),
        name: record.name.clone(),
        node: record.node.clone(),
        site: world.nodes.get(&record.node).and_then(|node| node.site.clone()),
        addresses: record.addresses.clone(),
        weight: weight.unwrap_or_default().get(),
        serving: states(world, record).serving(&service.name),
        drain: world.drains.of(record).map(|drain| drains::describe(world, drain)),
        quarantined: quarantine.is_some(),
        load: None,
    }
}
