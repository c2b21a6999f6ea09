//! The metrics of the coordinator. docs/metrics.md lists every name.

use crate::{
    mesh::Mesh,
    service_load::{self, ServiceLoad},
};
use meshward_relay::metrics::{register_forwarder, register_guard};
use meshward_runtime::metrics::{Scrape, count, measured, number, with_process};
use meshward_types::{NetworkName, ServiceName};
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// Returns the function that makes the registry of each scrape.
pub fn scrape(mesh: Arc<Mesh>) -> Scrape {
    Arc::new(move || {
        let mesh = mesh.clone();
        Box::pin(async move {
            let is_full = u64::from(!mesh.has_room().await);
            with_process("meshward_coordinator", env!("CARGO_PKG_VERSION"), |registry| {
                number(
                    registry,
                    "disk_full",
                    "1 while the data folder's disk has no room",
                    is_full,
                );
                register(registry, &mesh);
            })
        })
    })
}

fn register(registry: &mut Registry, mesh: &Mesh) {
    let connected = mesh.sessions.count() as u64;
    number(registry, "nodes_connected", "Nodes with a session", connected);
    count(
        registry,
        "duplicates_refused",
        "Second machines with a node's identity that were refused a session",
        mesh.sessions.duplicate_count(),
    );
    register_guard(registry, &mesh.guard);
    register_forwarder(registry, &mesh.forwarder);
    mesh.look(|world| {
        number(registry, "revision", "Revision that is being distributed", world.revision.0);
        number(registry, "nodes", "Nodes that have joined", world.nodes.len() as u64);
        let behind = world.nodes.keys().filter_map(|node| mesh.sessions.get(node));
        let behind = behind.filter(|session| session.enforced() < world.revision).count() as u64;
        number(
            registry,
            "nodes_behind",
            "Connected nodes that have acknowledged only an older revision",
            behind,
        );
        number(registry, "quarantines", "Active quarantines", world.quarantines.len() as u64);
        let label = |name: &meshward_types::NetworkName| [("network", name.to_string())];
        let each = |value: &dyn Fn(&meshward_control_state::world::NetworkState) -> u64| -> Vec<_> {
            world.networks.iter().map(|(name, network)| (label(name), value(network))).collect()
        };
        let workloads = each(&|network| network.workloads.len() as u64);
        measured(registry, "workloads", "Admitted workloads", workloads);
        let refused = each(&|network| network.refused.len() as u64);
        measured(registry, "workloads_refused", "Workloads that admission refuses", refused);
        let identities = each(&|network| network.links.identities().count() as u64);
        measured(registry, "identities", "Identities that have a workload", identities);
        let links = each(&|network| network.links.count() as u64);
        measured(registry, "links", "Ordered pairs of identities that may talk", links);
    });
    register_services(registry, mesh);
    mesh.api_latency.register(registry);
}

fn register_services(registry: &mut Registry, mesh: &Mesh) {
    let names: Vec<(NetworkName, ServiceName)> = mesh.look(|world| {
        let services = service_load::services(world);
        services.map(|(network, name)| (network.record.name.clone(), name.clone())).collect()
    });
    let loads: Vec<_> = names
        .into_iter()
        .map(|(network, name)| {
            let load = mesh.loads.of(&network, &name);
            ([("network", network.to_string()), ("service", name.to_string())], load)
        })
        .collect();
    let each = |value: fn(&ServiceLoad) -> u64| -> Vec<_> {
        loads.iter().map(|(labels, load)| (labels.clone(), value(load))).collect()
    };
    let open = each(ServiceLoad::open);
    measured(registry, "service_open_flows", "Open flows through services", open);
    let begun = each(ServiceLoad::begun);
    measured(registry, "service_flows_per_second", "New flows a second through services", begun);
    let desired = each(|load| load.desired as u64);
    measured(
        registry,
        "service_desired_instances",
        "Instances that services would need for their load",
        desired,
    );
}
