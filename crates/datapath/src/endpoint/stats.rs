//! The counters of an endpoint.

use super::api::Endpoint;
use crate::{
    drop_reason::DropCounts,
    index::PeerIndex,
    link_counters::LinkStats,
    services::{counters::ConnectTimes, directory::Service, load::Micros},
    transport::stats::PeerStats,
};
use meshward_types::{NodeName, ServiceName, WorkloadId};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

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
    /// The services.
    pub services: Vec<ServiceStats>,
}

/// The counters of a service: of the connections that workloads of this node have through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStats {
    /// The service.
    pub name: ServiceName,
    /// Connections that were begun, each with one instance.
    pub connections: u64,
    /// Connections that an instance, or its node, has refused.
    pub refused: u64,
    /// Connections that an instance has not answered before its client asked again.
    pub unanswered: u64,
    /// Connections that were sent on to another instance, since the one of before refused, did not
    /// answer, or is gone.
    pub moved: u64,
    /// Packets for which there was no instance.
    pub without_instance: u64,
    /// Times to connect, over TCP.
    pub connect_times: ConnectTimes,
    /// The instances, in the order of their workloads' ids.
    pub instances: Vec<InstanceStats>,
}

/// The counters of an instance: of the connections that workloads of this node have with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceStats {
    /// The instance.
    pub workload: WorkloadId,
    /// Connections that are open.
    pub open: u64,
    /// Connections that were begun.
    pub connections: u64,
    /// Connections that it, or its node, has refused.
    pub refused: u64,
    /// Connections that it has not answered.
    pub unanswered: u64,
    /// The smoothed time until it answers; `None`: it has not yet.
    pub answer_time: Option<Duration>,
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
            services: self.service_stats(now),
        }
    }

    /// Returns the counters of the services.
    pub fn service_stats(&self, now: Instant) -> Vec<ServiceStats> {
        let micros = self.state.services.micros(now);
        let tables = self.state.tables.read();
        let mut services: Vec<ServiceStats> =
            tables.services.iter().map(|own| service_stats(own, micros)).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        services
    }
}

fn service_stats(service: &Service, now: Micros) -> ServiceStats {
    let (counters, read) = (&service.counters, |counter: &AtomicU64| counter.load(Relaxed));
    let usual = counters.usual.get();
    let mut instances: Vec<InstanceStats> = service
        .loads()
        .map(|(workload, load)| InstanceStats {
            workload: workload.clone(),
            open: load.open().into(),
            connections: read(&load.connections),
            refused: read(&load.refused),
            unanswered: read(&load.unanswered),
            answer_time: Some(load.answer_time(now, usual))
                .filter(|time| *time > 0)
                .map(Duration::from_micros),
        })
        .collect();
    instances.sort_by(|a, b| a.workload.cmp(&b.workload));
    ServiceStats {
        name: service.name.clone(),
        connections: read(&counters.connections),
        refused: read(&counters.refused),
        unanswered: read(&counters.unanswered),
        moved: read(&counters.moved),
        without_instance: read(&counters.without_instance),
        connect_times: counters.connect_times(),
        instances,
    }
}
