//! A packet from one workload to another through two endpoints.

use crate::{
    packets::{API, To, WEB, acl, packet, packet_to},
    report::nanoseconds,
    services::put_service,
};
use meshward_datapath::{
    ConfigChange, Ecn, Endpoint, GatherList, Incoming, Link, LocalWorkload, NetworkConfig, Now,
    Offload, PeerConfig, PeerSite, Quarantine, Received, SecretKey, SegmentKind, Sink,
    WorkerScratch, WorkloadConfig, WorkloadIndex,
};
use meshward_types::{Conduct, InstanceStates, NodeName, WorkloadId};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Segments of a super-packet of TCP: as many as leave in one call.
const SEGMENTS: usize = 44;

/// Bytes of a packet that hold all headers: those to a service are rewritten.
const HEAD: usize = 40;

/// Two endpoints, and what passes between them.
struct Pair {
    nodes: [Endpoint; 2],
    scratches: [WorkerScratch; 2],
    wire: Wire,
    now: Now,
}

#[derive(Default)]
struct Wire {
    datagrams: Vec<u8>,
    size: usize,
    handshakes: Vec<Vec<u8>>,
    delivered: usize,
}

impl Sink for Wire {
    fn to_workload(&mut self, _: WorkloadIndex, _: Offload, packet: GatherList<'_>) -> bool {
        self.delivered += packet.iter().map(<[u8]>::len).sum::<usize>();
        true
    }
    fn to_network(&mut self, _: SocketAddr, _: Ecn, datagrams: &[u8], size: usize) -> bool {
        // What the kernel copies out of a sender's buffer.
        self.datagrams.extend_from_slice(datagrams);
        self.size = size;
        true
    }
    fn to_network_unfragmented(&mut self, _: SocketAddr, _: &[u8]) {}
    fn queue_handshake(&mut self, _: SocketAddr, message: &[u8]) -> bool {
        self.handshakes.push(message.to_vec());
        true
    }
    fn request_handshakes(&mut self) {}
}

fn address(at: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, at as u8], 51820))
}

pub(crate) fn node_name(at: usize) -> NodeName {
    format!("node-{at}").parse().expect("a name")
}

fn secret(at: usize) -> SecretKey {
    SecretKey::from_bytes([at as u8 + 1; 32])
}

fn workload_id(at: usize) -> WorkloadId {
    format!("w{at}").parse().expect("a name")
}

fn workload_address(at: usize) -> IpAddr {
    [10, 42, at as u8, 1].into()
}

/// Returns the settings of the network.
pub(crate) fn network() -> ConfigChange {
    ConfigChange::SetNetwork(NetworkConfig {
        prefixes: vec![],
        service_blocks: vec!["10.42.255.0/24".parse().expect("a prefix")],
        mtu: 1420,
        conduct: Conduct::default(),
    })
}

/// Returns the configuration of node `at`: the network, its peer, two workloads and the link.
fn config(at: usize) -> Vec<ConfigChange> {
    let other = 1 - at;
    let peer = PeerConfig {
        public_key: secret(other).public(),
        candidates: vec![address(other)],
        prefixes: vec![format!("10.42.{other}.0/24").parse().expect("a prefix")],
        site: PeerSite::Other,
    };
    let mut changes = vec![
        network(),
        put_service(),
        ConfigChange::PutPeer(node_name(other), peer),
        ConfigChange::PutLink(Link { from: WEB, to: API }, acl(10_000)),
    ];
    for (at, identity) in [(0, WEB), (1, API)] {
        changes.push(ConfigChange::PutIdentity(identity, Quarantine::None));
        let config = WorkloadConfig {
            prefixes: vec![],
            node: node_name(at),
            addresses: vec![workload_address(at)],
            identity,
            quarantine: Quarantine::None,
            states: InstanceStates::default(),
        };
        changes.push(ConfigChange::PutWorkload(workload_id(at), config));
    }
    changes
}

impl Pair {
    fn new() -> Self {
        let instant = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nodes = [0, 1].map(|at| {
            let endpoint = Endpoint::new(node_name(at), secret(at), instant, Duration::ZERO);
            endpoint.add_workload(LocalWorkload {
                prefixes: vec![],
                id: workload_id(at),
                addresses: vec![workload_address(at)],
                vouched: None,
            });
            endpoint.apply(instant, config(at));
            endpoint
        });
        let now = Now { instant, unix };
        let mut pair = Self { nodes, scratches: Default::default(), wire: Wire::default(), now };
        pair.shake_hands();
        pair
    }

    fn shake_hands(&mut self) {
        let first = packet(17, 1, 92);
        self.send(&mut first.clone(), Offload::None);
        self.nodes[0].begin_handshakes(self.now, &mut self.wire);
        // Initiation, response, and the packet that waited.
        for at in [1, 0, 1] {
            self.receive(at);
            for message in std::mem::take(&mut self.wire.handshakes) {
                let (node, scratch) = (&self.nodes[at], &mut self.scratches[at]);
                node.receive_handshake(
                    self.now,
                    Incoming { from: address(1 - at), message: &message },
                    scratch,
                    &mut self.wire,
                );
            }
        }
        assert_eq!(self.wire.delivered, first.len(), "the session stands");
    }

    fn send(&mut self, packet: &mut [u8], offload: Offload) {
        let mut batch = self.nodes[0].begin_batch(&mut self.scratches[0], self.now.instant);
        batch.egress(WorkloadIndex(0), offload, packet, &mut self.wire);
        batch.finish(&mut self.wire);
    }

    fn receive(&mut self, at: usize) {
        let mut datagrams = std::mem::take(&mut self.wire.datagrams);
        let range = 0..datagrams.len();
        let mut batch = self.nodes[at].begin_batch(&mut self.scratches[at], self.now.instant);
        batch.ingress(
            Received { from: address(1 - at), ecn: Ecn::NotCapable, range, size: self.wire.size },
            &mut datagrams,
            &mut self.wire,
        );
        batch.deliver(&mut datagrams, &mut self.wire);
        batch.finish(&mut self.wire);
        if self.wire.datagrams.is_empty() {
            datagrams.clear();
            self.wire.datagrams = datagrams;
        }
    }
}

/// Returns the nanoseconds for a packet from one workload to another through two endpoints: read,
/// checked, cut, summed, sealed; opened, merged, checked.
pub(crate) fn whole_path(to: To, size: usize, time: Duration) -> f64 {
    let mut pair = Pair::new();
    if size < 1000 {
        // Small ones come one by one, and leave together.
        let mut small = packet_to(to, 17, size);
        let head = <[u8; HEAD]>::try_from(&small[..HEAD]).expect("it is longer");
        return nanoseconds(time, 64, || {
            let mut batch = pair.nodes[0].begin_batch(&mut pair.scratches[0], pair.now.instant);
            for _ in 0..64 {
                small[..HEAD].copy_from_slice(&head);
                batch.egress(WorkloadIndex(0), Offload::None, &mut small, &mut pair.wire);
            }
            batch.finish(&mut pair.wire);
            pair.receive(1);
        });
    }
    let mut super_packet = packet_to(to, 6, 40 + SEGMENTS * (size - 40));
    let head = <[u8; HEAD]>::try_from(&super_packet[..HEAD]).expect("it is longer");
    let offload = Offload::Segment {
        kind: SegmentKind::TcpV4,
        size: (size - 40) as u16,
        headers: 40,
        start: 20,
    };
    let before = pair.wire.delivered;
    let each = nanoseconds(time, SEGMENTS, || {
        super_packet[..HEAD].copy_from_slice(&head);
        pair.send(&mut super_packet, offload);
        pair.receive(1);
    });
    assert!(
        (pair.wire.delivered - before).is_multiple_of(super_packet.len()),
        "everything arrived"
    );
    each
}
