//! Connections through services.

use crate::{
    endpoints::{network, node_name},
    packets::{API, PORT, SERVICE, SERVICE_PORT, To, WEB, acl, packet_to},
    report::nanoseconds,
};
use meshward_datapath::{
    ConfigChange, Ecn, Endpoint, GatherList, Link, LocalWorkload, Offload, Quarantine, SecretKey,
    ServiceConfig, Sink, WorkerScratch, WorkloadConfig, WorkloadIndex,
};
use meshward_types::{Affinity, IdentityId, InstanceStates, Protocol, ServicePort, WorkloadId};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// The instances of the service: as many as a node is usually linked with.
const INSTANCES: u8 = 20;
/// Packets that a worker passes in one batch.
const BATCH: usize = 64;

/// A node with a client and the instances of a service.
struct Node {
    endpoint: Endpoint,
    scratch: WorkerScratch,
    client: WorkloadIndex,
    now: Instant,
    sink: Handed,
}

/// A sink that counts what it is handed.
#[derive(Default)]
struct Handed {
    packets: usize,
}

impl Sink for Handed {
    fn to_workload(&mut self, _: WorkloadIndex, _: Offload, _: GatherList<'_>) -> bool {
        self.packets += 1;
        true
    }
    fn to_network(&mut self, _: SocketAddr, _: Ecn, _: &[u8], _: usize) -> bool {
        true
    }
    fn to_network_unfragmented(&mut self, _: SocketAddr, _: &[u8]) {}
    fn queue_handshake(&mut self, _: SocketAddr, _: &[u8]) -> bool {
        true
    }
    fn request_handshakes(&mut self) {}
}

/// Returns the service's configuration.
pub(crate) fn put_service() -> ConfigChange {
    let port = |protocol| ServicePort { protocol, port: SERVICE_PORT, target: PORT };
    let config = ServiceConfig {
        addresses: vec![SERVICE.into()],
        ports: vec![port(Protocol::Udp), port(Protocol::Tcp)],
        identities: vec![API],
        prefer: vec![],
        affinity: Affinity::None,
        weights: vec![],
    };
    ConfigChange::PutService("api".parse().expect("a name"), config)
}

impl Node {
    fn new() -> Self {
        let now = Instant::now();
        let secret = SecretKey::from_bytes([1; 32]);
        let endpoint = Endpoint::new(node_name(0), secret, now, Duration::ZERO);
        let mut changes = vec![
            network(),
            ConfigChange::PutIdentity(WEB, Quarantine::None),
            ConfigChange::PutIdentity(API, Quarantine::None),
            ConfigChange::PutLink(Link { from: WEB, to: API }, acl(1)),
            put_service(),
        ];
        let mut add = |last: u8, identity: IdentityId| {
            let id: WorkloadId = format!("w{last}").parse().expect("a name");
            let addresses: Vec<IpAddr> = match identity {
                WEB => vec![[10, 42, 0, 1].into()],
                _ => vec![[10, 42, 1, last].into()],
            };
            changes.push(ConfigChange::PutWorkload(
                id.clone(),
                WorkloadConfig {
                    node: node_name(0),
                    addresses: addresses.clone(),
                    // A machine behind the client has as many addresses as it takes.
                    prefixes: behind(identity),
                    identity,
                    quarantine: Quarantine::None,
                    states: InstanceStates::default(),
                },
            ));
            let prefixes = behind(identity);
            endpoint.add_workload(LocalWorkload { id, addresses, prefixes, vouched: None })
        };
        let client = add(0, WEB);
        (1..=INSTANCES).for_each(|last| _ = add(last, API));
        endpoint.apply(now, changes);
        let (scratch, sink) = (WorkerScratch::default(), Handed::default());
        Self { endpoint, scratch, client, now, sink }
    }
}

fn behind(identity: IdentityId) -> Vec<ipnet::IpNet> {
    match identity {
        WEB => vec!["10.43.0.0/16".parse().expect("a prefix")],
        _ => vec![],
    }
}

/// Returns the first packets of flows a second: headers read, an instance chosen, translated,
/// judged, the flow begun, and the packet handed over.
pub(crate) fn new_flows(to: To, flows: u32) -> f64 {
    let mut node = Node::new();
    let mut first = packet_to(to, 17, 92);
    let before = first.clone();
    first[12..14].copy_from_slice(&[10, 43]);
    let begun = Instant::now();
    for batch_number in 0..flows / BATCH as u32 {
        let mut batch = node.endpoint.begin_batch(&mut node.scratch, node.now);
        for number in 0..BATCH as u32 {
            let flow = batch_number * BATCH as u32 + number;
            first[14..16].copy_from_slice(&((flow >> 14) as u16).to_be_bytes());
            first[16..20].copy_from_slice(&before[16..20]);
            first[20..22].copy_from_slice(&(1024 + (flow & 0x3fff) as u16).to_be_bytes());
            first[22..28].copy_from_slice(&before[22..28]);
            batch.egress(node.client, Offload::None, &mut first, &mut node.sink);
        }
        batch.finish(&mut node.sink);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let sent = flows / BATCH as u32 * BATCH as u32;
    assert_eq!(node.sink.packets, sent as usize, "every packet was handed over");
    f64::from(sent) / seconds
}

/// Returns the nanoseconds for a packet of a flow that is in the table, without encryption.
pub(crate) fn known_flow(to: To, size: usize, time: Duration) -> f64 {
    let mut node = Node::new();
    let (original, mut packet) = (packet_to(to, 17, size), vec![0; size]);
    nanoseconds(time, BATCH, || {
        let mut batch = node.endpoint.begin_batch(&mut node.scratch, node.now);
        for _ in 0..BATCH {
            packet.copy_from_slice(&original);
            batch.egress(node.client, Offload::None, &mut packet, &mut node.sink);
        }
        batch.finish(&mut node.sink);
    })
}
