//! The counters of an endpoint.

use super::api::Endpoint;
use crate::{
    drop_reason::DropCounts, index::PeerIndex, link_counters::LinkStats,
    transport::stats::PeerStats,
};
use meshward_types::{NodeName, WorkloadId};
use std::time::Instant;

/// The counters of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointStats {
    /// Packets dropped, by reason.
    pub drops: DropCounts,
    /// Flows in the flow table, but for those that are denied.
    pub flows: usize,
    /// Every link that was used or tried.
    pub links: Vec<LinkStats>,
    /// The peers.
    pub peers: Vec<(NodeName, PeerStats)>,
    /// The devices.
    pub devices: Vec<(WorkloadId, PeerStats)>,
}

impl Endpoint {
    /// Returns the counters.
    pub fn stats(&self, now: Instant) -> EndpointStats {
        let (peers, devices) = {
            let tables = self.state.tables.read();
            let peers: Vec<(PeerIndex, NodeName)> =
                tables.peers().map(|(peer, node)| (peer, node.clone())).collect();
            let devices: Vec<(PeerIndex, WorkloadId)> =
                tables.devices().map(|(peer, id)| (peer, id.clone())).collect();
            (peers, devices)
        };
        let stats = |peer| self.state.transport.stats(now, peer);
        let with_stats = peers.into_iter().filter_map(|(peer, node)| Some((node, stats(peer)?)));
        let devices = devices.into_iter().filter_map(|(peer, id)| Some((id, stats(peer)?)));
        EndpointStats {
            drops: self.state.drops.read(),
            flows: self.state.filter.flows(),
            links: self.state.filter.links(),
            peers: with_stats.collect(),
            devices: devices.collect(),
        }
    }
}
