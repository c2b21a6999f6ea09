//! Metrics of the coordinator. docs/metrics.md lists every name.

use crate::mesh::Mesh;
use meshward_relay::metrics::{register_forwarder, register_guard};
use meshward_runtime::metrics::{Scrape, measured, number, with_process};
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The registry, made anew for each scrape from what is true then.
pub fn scrape(mesh: Arc<Mesh>) -> Scrape {
    Arc::new(move || {
        let mesh = mesh.clone();
        Box::pin(async move {
            let is_full = u64::from(!mesh.has_room().await);
            with_process("meshward_coordinator", env!("CARGO_PKG_VERSION"), |registry| {
                number(
                    registry,
                    "disk_full",
                    "Whether there is no room on the data folder's disk",
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
    number(
        registry,
        "identities_held",
        "Second machines with a node's identity that were held",
        mesh.sessions.duplicate_count(),
    );
    register_guard(registry, &mesh.guard);
    register_forwarder(registry, &mesh.forwarder);
    mesh.look(|world| {
        number(registry, "revision", "The revision that is distributed", world.revision.0);
        number(registry, "nodes", "Nodes that have joined", world.nodes.len() as u64);
        let behind = world.nodes.keys().filter_map(|node| mesh.sessions.get(node));
        let behind = behind.filter(|session| session.enforced() < world.revision).count() as u64;
        number(
            registry,
            "nodes_behind",
            "Connected nodes whose last word is of an older revision",
            behind,
        );
        number(registry, "quarantines", "Quarantines that stand", world.quarantines.len() as u64);
        let label = |name: &meshward_types::NetworkName| [("network", name.to_string())];
        let each = |value: &dyn Fn(&meshward_control_state::world::NetworkState) -> u64| -> Vec<_> {
            world.networks.iter().map(|(name, network)| (label(name), value(network))).collect()
        };
        let workloads = each(&|network| network.workloads.len() as u64);
        measured(registry, "workloads", "Workloads", workloads);
        let refused = each(&|network| network.refused.len() as u64);
        measured(registry, "refused", "Workloads that admission does not let in", refused);
        let identities = each(&|network| network.links.identities().count() as u64);
        measured(registry, "identities", "Identities that have a workload", identities);
        let links = each(&|network| network.links.count() as u64);
        measured(registry, "links", "Ordered pairs of identities that may talk", links);
    });
    mesh.api_latency.register(registry);
}
