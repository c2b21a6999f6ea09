//! The node's metrics for Prometheus. docs/metrics.md lists every name.

mod health;
mod names;
mod services;

use crate::{app::Node, offloads::Offloads};
use meshward_api_types::local::{LocalStatus, LocalWorkload, State};
use meshward_datapath::{EndpointStats, LinkStats, PeerStats};
use meshward_runtime::metrics::{Scrape, counted, measured, number, with_process};
use meshward_types::{NetworkName, relay::is_relayed};
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The registry, made anew for each scrape from what is true then.
pub fn scrape(node: Arc<Node>) -> Scrape {
    Arc::new(move || {
        let node = node.clone();
        Box::pin(async move { registry(&node) })
    })
}

fn registry(node: &Node) -> Registry {
    let (status, workloads, stats) = (node.status(), node.workloads.all(), node.stats());
    with_process("meshward_node", env!("CARGO_PKG_VERSION"), |registry| {
        register(registry, &status, &workloads, &stats);
        names::register(registry, node);
        health::register(registry, &workloads, &node.workloads.probes());
    })
}

fn register(
    registry: &mut Registry,
    status: &LocalStatus,
    workloads: &[LocalWorkload],
    stats: &[(NetworkName, EndpointStats, Offloads)],
) {
    number(registry, "connected", "1 while there is a session", u64::from(status.connected));
    let degraded = u64::from(status.degraded.is_some());
    number(
        registry,
        "degraded",
        "1 while what has to be cannot be written down, as on a full disk",
        degraded,
    );
    number(registry, "revision", "The revision that is enforced", status.revision.0);
    let left = status.certificate_seconds.max(0) as u64;
    number(registry, "certificate_seconds", "Until the certificate expires", left);
    let states = ["open", "quarantined", "refused", "unmeasured", "vouched", "waiting"];
    let in_state = states.map(|name| {
        let count = workloads.iter().filter(|workload| state_name(&workload.state) == name).count();
        ([("state", name.to_owned())], count as u64)
    });
    measured(registry, "workloads", "Workloads by state", in_state);
    let peers = stats.iter().flat_map(|(network, stats, _)| {
        let paths = ["direct", "relayed"].into_iter();
        paths.map(move |path| {
            let is = |peer: &&_| path_kind(peer) == Some(path);
            let count = stats.peers.iter().map(|(_, peer)| peer).filter(is).count();
            ([("network", network.to_string()), ("path", path.to_owned())], count as u64)
        })
    });
    measured(registry, "paths", "Peers with a path, by its kind", peers.collect::<Vec<_>>());
    let each = |value: &dyn Fn(&EndpointStats) -> u64| -> Vec<_> {
        stats
            .iter()
            .map(|(network, stats, _)| ([("network", network.to_string())], value(stats)))
            .collect()
    };
    let sum = |pick: fn(&LinkStats) -> u64| each(&|stats| stats.links.iter().map(pick).sum());
    measured(registry, "flows", "Flows in the table", each(&|stats| stats.flows as u64));
    measured(registry, "peers", "Peers", each(&|stats| stats.peers.len() as u64));
    counted(
        registry,
        "packets",
        "Packets that workloads sent and that passed",
        sum(|link| link.count.packets),
    );
    counted(registry, "bytes", "Bytes of those packets", sum(|link| link.count.bytes));
    let drops = stats.iter().flat_map(|(network, stats, _)| {
        let labels =
            move |reason: &str| [("network", network.to_string()), ("reason", reason.to_owned())];
        stats.drops.iter().map(move |(reason, count)| (labels(reason), count))
    });
    counted(registry, "drops", "Packets dropped, by reason", drops.collect::<Vec<_>>());
    services::register(registry, stats.iter().map(|(network, stats, _)| (network, stats)));
}

/// Returns the label value of the path to a peer; `None` while it has no path.
fn path_kind(peer: &PeerStats) -> Option<&'static str> {
    peer.address.map(|address| if is_relayed(&address) { "relayed" } else { "direct" })
}

/// Returns the label value of a state.
fn state_name(state: &State) -> &'static str {
    match state {
        State::Unmeasured => "unmeasured",
        State::Waiting => "waiting",
        State::Open => "open",
        State::Vouched => "vouched",
        State::Quarantined => "quarantined",
        State::Refused(_) => "refused",
    }
}
