//! The state of the node: for people, for Prometheus, and for the coordinator when it asks.

use super::node::Node;
use crate::{
    clock::{self, unix_seconds},
    names::counts,
    offloads::Offloads,
    workers::ServedEndpoint,
};
use meshward_api_types::local::{LocalEndpoint, LocalPeer, LocalStatus, LostWay, QueryCount};
use meshward_control_proto::{
    LinkAcl, LinkCount, LoggedFlow, WorkloadCuts, WorkloadFlows, view::NetworkSpec,
};
use meshward_datapath::{
    EndpointStats, FlowKind, Link, LinkFlow, LinkStats, PathLossReason, ServiceStats, Timeouts,
};
use meshward_types::{NetworkName, WorkloadId};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

impl Node {
    /// Returns how many live flows each workload would lose, were these links like this.
    pub fn count_cuts(&self, network: &NetworkName, links: Vec<LinkAcl>) -> Vec<WorkloadCuts> {
        let Some(served) = self.enforcement.endpoint(network) else { return vec![] };
        let links = links.into_iter().map(|LinkAcl { from, to, acl }| (Link { from, to }, acl));
        let cut = served.endpoint.count_cut_flows(clock::now(), &links.collect()).into_iter();
        cut.map(|(workload, flows)| WorkloadCuts { workload, flows }).collect()
    }

    /// Returns the number of open flows that others have begun to workloads of this node.
    pub fn open_flows(
        &self,
        network: &NetworkName,
        workloads: Vec<WorkloadId>,
    ) -> Vec<WorkloadFlows> {
        let Some(served) = self.enforcement.endpoint(network) else { return vec![] };
        let workloads = workloads.into_iter().collect();
        let counts = served.endpoint.count_flows_to(clock::now(), &workloads).into_iter();
        counts.map(|(workload, flows)| WorkloadFlows { workload, flows }).collect()
    }

    /// Returns the kinds of flows that were begun or tried in the last so many seconds.
    pub fn flows(&self, network: &NetworkName, seconds: u64) -> Vec<LoggedFlow> {
        let Some(served) = self.enforcement.endpoint(network) else { return vec![] };
        let kinds =
            served.endpoint.flow_kinds(clock::now(), Duration::from_secs(seconds)).into_iter();
        kinds
            .map(|LinkFlow { link: Link { from, to }, kind }| {
                let FlowKind { protocol, port, passed } = kind;
                LoggedFlow { from, to, protocol, port, passed }
            })
            .collect()
    }

    /// Returns the counters of every link.
    pub fn link_counts(&self) -> Vec<LinkCount> {
        let stats = self.stats().into_iter();
        let counts = stats.flat_map(|(network, stats, _)| {
            let count = move |LinkStats { link, count }| LinkCount {
                network: network.clone(),
                from: link.from,
                to: link.to,
                count,
            };
            stats.links.into_iter().map(count)
        });
        counts.collect()
    }

    /// Returns what every endpoint has counted.
    pub fn stats(&self) -> Vec<(NetworkName, EndpointStats, Offloads)> {
        let now = clock::now();
        let stats = |(network, served): (NetworkName, Arc<ServedEndpoint>)| {
            (network, served.endpoint.stats(now), served.offloads())
        };
        self.enforcement.endpoints().into_iter().map(stats).collect()
    }

    /// Returns the DNS queries of a network's workloads here.
    fn queries(&self, network: &NetworkName) -> Vec<QueryCount> {
        let counts = self.enforcement.endpoint(network).map(|served| served.resolver.counts());
        let counts = counts.unwrap_or_default().into_iter();
        let count = |count: counts::QueryCount| QueryCount {
            kind: count.kind.to_owned(),
            outcome: count.outcome.to_owned(),
            queries: count.queries,
        };
        counts.map(count).collect()
    }

    /// Returns what every endpoint has counted of services.
    pub fn service_stats(&self) -> Vec<(NetworkName, Vec<ServiceStats>)> {
        let now = clock::now();
        let stats = |(network, served): (NetworkName, Arc<ServedEndpoint>)| {
            (network, served.endpoint.service_stats(now))
        };
        self.enforcement.endpoints().into_iter().map(stats).collect()
    }

    /// Returns the node in short.
    pub fn status(&self) -> LocalStatus {
        let credentials = self.folder.credentials().and_then(|credentials| credentials.read());
        let now = unix_seconds() as i64;
        let stats = self.stats().into_iter();
        let endpoints = stats.filter_map(|(network, stats, offloads)| {
            let (_, public_key, port) = self.enforcement.running(&network)?;
            let spec = self.enforcement.view(|view| view.network(&network).cloned());
            Some(LocalEndpoint {
                offloads: offloads.names(),
                blocks: spec.as_ref().map(|spec| spec.blocks.clone()).unwrap_or_default(),
                public_key: public_key.to_string(),
                port,
                peers: peers(&stats),
                flows: stats.flows,
                drops: drops(&stats),
                timeouts: spec.as_ref().map(timeouts).unwrap_or_default(),
                resolver: spec.as_ref().map(|spec| spec.resolver.clone()).unwrap_or_default(),
                queries: self.queries(&network),
                network,
            })
        });
        LocalStatus {
            node: self.membership.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            workers: self.workers.workers().get(),
            workers_active: self.workers.active().get(),
            coordinator: self.membership.coordinator.clone(),
            connected: self.link.is_connected(),
            degraded: self.folder.troubles().summary(),
            revision: self.enforcement.view(|view| view.revision),
            certificate_seconds: credentials.map(|read| read.not_after - now).unwrap_or_default(),
            endpoints: endpoints.collect(),
            workloads: self.workloads.count(),
        }
    }
}

/// The timeouts of a network, in seconds.
fn timeouts(spec: &NetworkSpec) -> BTreeMap<String, u64> {
    let all = Timeouts::of(&spec.conduct).all().into_iter();
    all.map(|(name, time)| (name.to_owned(), time.as_secs())).collect()
}

fn peers(stats: &EndpointStats) -> Vec<LocalPeer> {
    let peer =
        |(node, stats): &(meshward_types::NodeName, meshward_datapath::PeerStats)| LocalPeer {
            node: node.clone(),
            address: stats.address,
            lost: stats.lost_path.map(|lost| LostWay {
                address: lost.address,
                seconds: lost.since.as_secs(),
                again_in: lost.avoided_for.as_secs(),
                why: match lost.reason {
                    PathLossReason::Silence => "nothing came by it any more",
                    PathLossReason::Handshake => "a handshake was answered by a relay alone",
                }
                .to_owned(),
            }),
            path_mtu: stats.path_mtu,
            handshake_age: stats.handshake_age.map(|age| age.as_secs()),
            sent: stats.sent,
            received: stats.received,
        };
    stats.peers.iter().map(peer).collect()
}

fn drops(stats: &EndpointStats) -> BTreeMap<String, u64> {
    stats.drops.iter().map(|(name, count)| (name.to_owned(), count)).collect()
}
