//! The metrics of names: DNS queries of workloads.

use crate::app::Node;
use meshward_runtime::metrics::counted;
use prometheus_client::registry::Registry;

/// Registers the queries of every network's workloads.
pub(super) fn register(registry: &mut Registry, node: &Node) {
    let endpoints = node.enforcement.endpoints().into_iter();
    let queries = endpoints.flat_map(|(network, served)| {
        served.resolver.counts().into_iter().map(move |count| {
            let labels = [
                ("network", network.to_string()),
                ("kind", count.kind.to_owned()),
                ("outcome", count.outcome.to_owned()),
            ];
            (labels, count.queries)
        })
    });
    let help = "DNS queries of workloads, by kind and outcome";
    counted(registry, "dns_queries", help, queries.collect::<Vec<_>>());
}
