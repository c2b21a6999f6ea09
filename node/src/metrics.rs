//! What Prometheus sees of the node. docs/metrics.md lists every name.

use crate::daemon::Node;
use meshward_daemon::metrics::{Scrape, counted, measured, number};
use meshward_model::local::State;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The registry, made anew for each scrape from what is true then.
pub fn scrape(node: Arc<Node>) -> Scrape {
    Arc::new(move || {
        let node = node.clone();
        Box::pin(async move { registry(&node).await })
    })
}

async fn registry(node: &Node) -> Registry {
    let mut registry = Registry::with_prefix("meshward_node");
    let (status, workloads, stats) = (node.status().await, node.workloads().await, node.stats().await);
    number(&mut registry, "connected", "1 while there is a session", u64::from(status.connected));
    let degraded = u64::from(status.degraded.is_some());
    number(
        &mut registry,
        "degraded",
        "1 while what has to be cannot be written down, as on a full disk",
        degraded,
    );
    number(&mut registry, "revision", "The revision that is enforced", status.revision.0);
    let left = status.certificate_seconds.max(0) as u64;
    number(&mut registry, "certificate_seconds", "Until the certificate expires", left);
    let states = [
        ("open", State::Open),
        ("quarantined", State::Quarantined),
        ("vouched", State::Vouched),
        ("waiting", State::Waiting),
    ];
    let in_state = states.map(|(name, state)| {
        (
            [("state", name.to_owned())],
            workloads.iter().filter(|workload| workload.state == state).count() as u64,
        )
    });
    measured(&mut registry, "workloads", "Workloads by state", in_state);
    let each = |value: &dyn Fn(&meshward_datapath::EndpointStats) -> u64| -> Vec<_> {
        stats.iter().map(|(network, stats, _)| ([("network", network.to_string())], value(stats))).collect()
    };
    let sum =
        |pick: fn(&meshward_datapath::LinkStats) -> u64| each(&|stats| stats.links.iter().map(pick).sum());
    measured(&mut registry, "flows", "Flows in the table", each(&|stats| stats.flows as u64));
    measured(&mut registry, "peers", "Peers", each(&|stats| stats.peers.len() as u64));
    counted(
        &mut registry,
        "packets",
        "Packets that workloads sent and that passed",
        sum(|link| link.count.packets),
    );
    counted(&mut registry, "bytes", "Bytes of those packets", sum(|link| link.count.bytes));
    let drops = stats.iter().flat_map(|(network, stats, _)| {
        let labels = move |cause: &str| [("network", network.to_string()), ("cause", cause.to_owned())];
        stats.drops.iter().map(move |(cause, count)| (labels(cause), count))
    });
    counted(&mut registry, "drops", "Packets dropped, by cause", drops.collect::<Vec<_>>());
    registry
}
