//! How far a change is enforced: by which nodes, and by which not yet.

use crate::mesh::Mesh;
use meshward_api_types::{Enforcement, SilentNode};
use meshward_control_state::{timestamp, world::World};
use meshward_types::{Revision, WorkloadId};
use roaring::{MultiOps, RoaringBitmap};
use std::time::Duration;

/// For how long an answer waits for the connected nodes to enforce a change.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits for nodes to enforce a revision, for a moment, and says how far it has come.
pub(super) async fn wait(
    mesh: &Mesh,
    concerned: &RoaringBitmap,
    revision: Revision,
) -> Enforcement {
    let enforcing = mesh.sessions.wait_enforced(concerned, revision, PATIENCE).await;
    mesh.look(|world| Enforcement {
        nodes: concerned.len() as usize,
        nodes_enforcing: enforcing.len() as usize,
        nodes_silent: (concerned - &enforcing)
            .iter()
            .filter_map(|node| silent(mesh, world, node, &enforcing))
            .collect(),
    })
}

/// A node that does not say that it enforces it; nothing if it was removed meanwhile.
fn silent(mesh: &Mesh, world: &World, node: u32, enforcing: &RoaringBitmap) -> Option<SilentNode> {
    let name = world.nodes.record(node)?.name.clone();
    let mut peers = world.networks.values().map(|network| network.meeting(node)).union();
    peers.remove(node);
    Some(SilentNode {
        connected: mesh.sessions.get(&name).is_some(),
        since: mesh.sessions.last_seen(&name).map(timestamp),
        peers: peers.len() as usize,
        peers_enforcing: peers.intersection_len(enforcing) as usize,
        node: name,
    })
}

/// The nodes that have to do with these workloads: those that run them, and those whose workloads
/// meet them.
pub(super) fn concerned(world: &World, workloads: &[WorkloadId]) -> RoaringBitmap {
    let mut nodes = RoaringBitmap::new();
    for id in workloads {
        let network =
            world.workload_networks.get(id).and_then(|network| world.networks.get(network));
        let Some((network, workload)) = network.and_then(|own| Some((own, own.workloads.get(id)?)))
        else {
            continue;
        };
        nodes |= network.subscribers(workload.identity);
        nodes.extend(world.nodes.index(&workload.node));
    }
    nodes
}
