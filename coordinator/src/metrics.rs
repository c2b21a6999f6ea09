//! What Prometheus sees of the coordinator. docs/metrics.md lists every name.

use crate::mesh::Mesh;
use meshward_daemon::metrics::{Scrape, measured, number};
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The registry, made anew for each scrape from what is true then.
pub fn scrape(mesh: Arc<Mesh>) -> Scrape {
    Arc::new(move || {
        let registry = registry(&mesh);
        Box::pin(async move { registry })
    })
}

fn registry(mesh: &Mesh) -> Registry {
    let mut registry = Registry::with_prefix("meshward_coordinator");
    let connected = mesh.sessions.count() as u64;
    number(&mut registry, "nodes_connected", "Nodes with a session", connected);
    mesh.look(|world| {
        number(&mut registry, "revision", "The revision that is distributed", world.revision.0);
        number(&mut registry, "nodes", "Nodes that have joined", world.nodes.len() as u64);
        let behind = world.nodes.keys().filter_map(|node| mesh.sessions.get(node));
        let behind = behind.filter(|session| session.enforced() < world.revision).count() as u64;
        number(
            &mut registry,
            "nodes_behind",
            "Connected nodes whose last word is of an older revision",
            behind,
        );
        number(&mut registry, "quarantines", "Quarantines that stand", world.quarantines.len() as u64);
        let label = |name: &meshward_model::NetworkName| [("network", name.to_string())];
        let each = |value: &dyn Fn(&crate::world::NetworkState) -> u64| -> Vec<_> {
            world.networks.iter().map(|(name, network)| (label(name), value(network))).collect()
        };
        let workloads = each(&|network| network.workloads.len() as u64);
        measured(&mut registry, "workloads", "Workloads", workloads);
        let identities = each(&|network| network.links.identities().count() as u64);
        measured(&mut registry, "identities", "Identities that have a workload", identities);
        let links = each(&|network| network.links.count() as u64);
        measured(&mut registry, "links", "Ordered pairs of identities that may talk", links);
    });
    registry
}
