//! What the node tells of itself: to people, to Prometheus, and to the coordinator when it asks.

use super::{Node, seconds_now, show};
use crate::{clock, offloads::Offloads, workers::ServedEndpoint};
use meshward_api_types::local::{
    LocalEndpoint, LocalPeer, LocalStatus, LocalWorkload as Shown, LostWay,
};
use meshward_control_proto::{FlowSeen, LinkCount, view::NetworkSpec};
use meshward_datapath::{EndpointStats, PathLossReason, Timeouts};
use meshward_types::{Acl, IdentityId, NetworkName, WorkloadId};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

impl Node {
    /// How many live flows each workload would lose, were these links like this.
    pub async fn count_cuts(
        &self,
        network: &NetworkName,
        links: Vec<(IdentityId, IdentityId, Acl)>,
    ) -> Vec<(WorkloadId, u64)> {
        let served =
            self.state.lock().await.endpoints.get(network).map(|running| running.served.clone());
        let Some(served) = served else { return vec![] };
        let links = links.into_iter().map(|(from, to, acl)| ((from, to), acl)).collect();
        served.endpoint.count_cut_flows(clock::now(), &links).into_iter().collect()
    }

    /// The kinds of flows that were begun or tried in the last so many seconds.
    pub async fn flows(&self, network: &NetworkName, seconds: u64) -> Vec<FlowSeen> {
        let served =
            self.state.lock().await.endpoints.get(network).map(|running| running.served.clone());
        let Some(served) = served else { return vec![] };
        let kinds =
            served.endpoint.flow_kinds(clock::now(), Duration::from_secs(seconds)).into_iter();
        kinds
            .map(|(from, to, kind)| {
                let (protocol, port, passed) = (kind.protocol, kind.port, kind.passed);
                FlowSeen { from, to, protocol, port, passed }
            })
            .collect()
    }

    /// The counters of every link.
    pub async fn link_counts(&self) -> Vec<LinkCount> {
        let stats = self.stats().await.into_iter();
        let counts = stats.flat_map(|(network, stats, _)| {
            let count = move |link: meshward_datapath::LinkStats| LinkCount {
                network: network.clone(),
                from: link.from,
                to: link.to,
                count: link.count,
            };
            stats.links.into_iter().map(count)
        });
        counts.collect()
    }

    /// What every endpoint has counted.
    pub async fn stats(&self) -> Vec<(NetworkName, EndpointStats, Offloads)> {
        let served: Vec<_> = self
            .state
            .lock()
            .await
            .endpoints
            .iter()
            .map(|(n, r)| (n.clone(), r.served.clone()))
            .collect();
        let now = clock::now();
        let stats = |(network, served): (NetworkName, Arc<ServedEndpoint>)| {
            (network, served.endpoint.stats(now), served.offloads())
        };
        served.into_iter().map(stats).collect()
    }

    /// The workloads.
    pub async fn workloads(&self) -> Vec<Shown> {
        let state = self.state.lock().await;
        state.workloads.values().map(|workload| show(&state, workload)).collect()
    }

    /// The node in short.
    pub async fn status(&self) -> LocalStatus {
        let stats = self
            .stats()
            .await
            .into_iter()
            .map(|(network, stats, offloads)| (network, (stats, offloads)));
        let stats: BTreeMap<_, _> = stats.collect();
        let credentials = self.folder.credentials().and_then(|credentials| credentials.read());
        let now = seconds_now() as i64;
        let state = self.state.lock().await;
        let endpoints = state.endpoints.iter().map(|(network, running)| {
            let (stats, offloads) =
                stats.get(network).map(|(stats, offloads)| (stats, offloads)).unzip();
            LocalEndpoint {
                offloads: offloads.map(|offloads| offloads.names()).unwrap_or_default(),
                network: network.clone(),
                blocks: state
                    .view
                    .network(network)
                    .map(|spec| spec.blocks.clone())
                    .unwrap_or_default(),
                public_key: running.public_key.to_string(),
                port: running.port,
                peers: stats.map(peers).unwrap_or_default(),
                flows: stats.map(|stats| stats.flows).unwrap_or_default(),
                drops: stats.map(drops).unwrap_or_default(),
                timeouts: state.view.network(network).map(timeouts).unwrap_or_default(),
            }
        });
        LocalStatus {
            node: self.membership.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            workers: self.workers.workers().get(),
            workers_active: self.workers.active().get(),
            coordinator: self.membership.coordinator.clone(),
            connected: state.is_connected,
            degraded: self.folder.troubles().summary(),
            revision: state.view.revision,
            certificate_seconds: credentials.map(|read| read.not_after - now).unwrap_or_default(),
            endpoints: endpoints.collect(),
            workloads: state.workloads.len(),
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
            longest: stats.path_mtu,
            handshake_age: stats.handshake_age.map(|age| age.as_secs()),
            sent: stats.sent,
            received: stats.received,
        };
    stats.peers.iter().map(peer).collect()
}

fn drops(stats: &EndpointStats) -> BTreeMap<String, u64> {
    stats.drops.iter().map(|(name, count)| (name.to_owned(), count)).collect()
}
