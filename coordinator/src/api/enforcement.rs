//! Progress of a change's enforcement: the nodes that enforce it, and those that do not yet.

use crate::mesh::Mesh;
use meshward_api_types::{Enforcement, SilentNode};
use meshward_control_state::{
    timestamp,
    world::{NodeIndex, NodeSet, World},
};
use meshward_types::{Revision, WorkloadId};
use std::time::Duration;

/// The maximum time for which an answer waits until the connected nodes enforce a change.
const ENFORCEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits for nodes to enforce a revision, for at most [`ENFORCEMENT_TIMEOUT`], and returns how many
/// do.
pub(super) async fn wait(mesh: &Mesh, concerned: &NodeSet, revision: Revision) -> Enforcement {
    let enforcing = mesh.sessions.wait_enforced(concerned, revision, ENFORCEMENT_TIMEOUT).await;
    mesh.look(|world| Enforcement {
        nodes: concerned.len(),
        nodes_enforcing: enforcing.len(),
        nodes_silent: (concerned - &enforcing)
            .iter()
            .filter_map(|node| silent(mesh, world, node, &enforcing))
            .collect(),
    })
}

/// Returns a node that has not acknowledged the revision; `None` if it was removed meanwhile.
fn silent(mesh: &Mesh, world: &World, node: NodeIndex, enforcing: &NodeSet) -> Option<SilentNode> {
    let name = world.nodes.record(node)?.name.clone();
    let mut peers: NodeSet = world.networks.values().map(|network| network.meeting(node)).collect();
    peers.remove(node);
    Some(SilentNode {
        connected: mesh.sessions.get(&name).is_some(),
        since: mesh.sessions.last_seen(&name).map(timestamp),
        peers: peers.len(),
        peers_enforcing: peers.intersection_len(enforcing),
        node: name,
    })
}

/// Returns the nodes that these workloads concern: those that run them, and those whose workloads
/// have a link with them.
pub(super) fn concerned(world: &World, workloads: &[WorkloadId]) -> NodeSet {
    let mut nodes = NodeSet::default();
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
