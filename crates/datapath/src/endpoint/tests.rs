use super::api::Endpoint;
use crate::{
    config::{ConfigChange, Link, NetworkConfig, PeerConfig, PeerSite, Quarantine, WorkloadConfig},
    drop_reason::DropReason,
    ecn::Ecn,
    gather::GatherList,
    headers::build::packet,
    in_band::vouch,
    index::{PeerIndex, WorkloadIndex},
    ingress::Received,
    keys::SecretKey,
    offload::{Offload, SegmentKind},
    packet_batch::WorkerScratch,
    sink::Sink,
    transport::state::Now,
    workload::LocalWorkload,
};
use meshward_types::{
    Acl, AclEntry, Conduct, IdentityId, InstanceStates, NodeName, PortRange, Protocol, WorkloadId,
};
use meshward_wireguard::load_gate::Incoming;
use meshward_wireguard::message::OVERHEAD;
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

mod fragments;
mod icmp_errors;
mod names;
mod rejections;
mod resolver;
mod services;

const WEB: IdentityId = IdentityId(1);
const API: IdentityId = IdentityId(2);
const WEB_TO_API: Link = Link { from: WEB, to: API };

/// Two nodes whose datagrams and packets are carried by hand.
struct Pair {
    now: Instant,
    nodes: [Node; 2],
}

struct Node {
    endpoint: Endpoint,
    scratch: WorkerScratch,
    workload: WorkloadIndex,
    address: SocketAddr,
    wire: Wire,
}

#[derive(Default)]
struct Wire {
    datagrams: Vec<(Ecn, Vec<u8>)>,
    delivered: Vec<Vec<u8>>,
    handshakes: Vec<Vec<u8>>,
    handshakes_requested: bool,
}

impl Sink for Wire {
    fn to_workload(&mut self, _: WorkloadIndex, _: Offload, packet: GatherList<'_>) -> bool {
        self.delivered.push(packet.to_vec());
        true
    }
    fn to_network(&mut self, _: SocketAddr, ecn: Ecn, datagrams: &[u8], size: usize) -> bool {
        self.datagrams.extend(datagrams.chunks(size).map(|datagram| (ecn, datagram.to_vec())));
        true
    }
    fn to_network_unfragmented(&mut self, _: SocketAddr, datagram: &[u8]) {
        self.datagrams.push((Ecn::NotCapable, datagram.to_vec()));
    }
    fn queue_handshake(&mut self, _: SocketAddr, message: &[u8]) -> bool {
        self.handshakes.push(message.to_vec());
        true
    }
    fn request_handshakes(&mut self) {
        self.handshakes_requested = true;
    }
}

impl Node {
    fn send(&mut self, now: Instant, workload: WorkloadIndex, offload: Offload, packet: &[u8]) {
        let mut batch = self.endpoint.begin_batch(&mut self.scratch, now);
        batch.egress(workload, offload, &mut packet.to_vec(), &mut self.wire);
        batch.finish(&mut self.wire);
    }

    fn receive(&mut self, now: Instant, from: SocketAddr, ecn: Ecn, datagram: &[u8]) {
        let mut batch = self.endpoint.begin_batch(&mut self.scratch, now);
        let mut buffer = datagram.to_vec();
        let size = buffer.len();
        batch.ingress(Received { from, ecn, range: 0..size, size }, &mut buffer, &mut self.wire);
        batch.deliver(&mut buffer, &mut self.wire);
        batch.finish(&mut self.wire);
        for message in std::mem::take(&mut self.wire.handshakes) {
            self.endpoint.receive_handshake(
                time(now),
                Incoming { from, message: &message },
                &mut self.scratch,
                &mut self.wire,
            );
        }
    }

    fn begin_handshakes(&mut self, now: Instant) {
        if std::mem::take(&mut self.wire.handshakes_requested) {
            self.endpoint.begin_handshakes(time(now), &mut self.wire);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.endpoint.tick(time(now), &mut self.scratch, &mut self.wire);
    }
}

/// Returns a wall clock that goes with `now`.
fn time(now: Instant) -> Now {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    Now {
        instant: now,
        unix: Duration::from_secs(1_700_000_000) + now.saturating_duration_since(*START),
    }
}

fn name(at: usize) -> NodeName {
    format!("node-{at}").parse().unwrap()
}

fn id(at: usize) -> WorkloadId {
    format!("w{at}").parse().unwrap()
}

fn workload_at(at: usize) -> IpAddr {
    format!("10.42.{at}.1").parse().unwrap()
}

fn put_network(conduct: Conduct) -> ConfigChange {
    let service_blocks =
        vec!["10.42.255.0/24".parse().unwrap(), "fd42:0:0:ff::/64".parse().unwrap()];
    ConfigChange::SetNetwork(NetworkConfig { prefixes: vec![], service_blocks, mtu: 1420, conduct })
}

fn put_workload(at: usize, identity: IdentityId) -> ConfigChange {
    let config = WorkloadConfig {
        prefixes: vec![],
        node: name(at),
        addresses: vec![workload_at(at)],
        identity,
        quarantine: Quarantine::None,
        states: InstanceStates::default(),
    };
    ConfigChange::PutWorkload(id(at), config)
}

fn put_identity(identity: IdentityId) -> ConfigChange {
    ConfigChange::PutIdentity(identity, Quarantine::None)
}

fn put_link() -> ConfigChange {
    let ports = PortRange { first: 8080, last: 8080 };
    let acl = Acl::new(vec![AclEntry { protocol: Protocol::Tcp, ports }]);
    ConfigChange::PutLink(WEB_TO_API, acl)
}

impl Pair {
    /// Node 0 runs `web`, node 1 runs `api`, and `web` may reach `api` on tcp/8080.
    fn new() -> Self {
        let now = Instant::now();
        let secrets = [SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32])];
        let nodes = [0, 1].map(|at| {
            let other = 1 - at;
            let endpoint = Endpoint::new(name(at), secrets[at].clone(), now, Duration::ZERO);
            let addresses = vec![workload_at(at)];
            let workload = endpoint.add_workload(LocalWorkload {
                prefixes: vec![],
                id: id(at),
                addresses,
                vouched: None,
            });
            let peer = PeerConfig {
                public_key: secrets[other].public(),
                candidates: vec![format!("192.0.2.{other}:51820").parse().unwrap()],
                prefixes: vec![format!("10.42.{other}.0/24").parse().unwrap()],
                site: PeerSite::Other,
            };
            endpoint.apply(
                now,
                [
                    put_network(Conduct::default()),
                    ConfigChange::PutPeer(name(other), peer),
                    put_identity(WEB),
                    put_identity(API),
                    put_workload(0, WEB),
                    put_workload(1, API),
                    put_link(),
                ],
            );
            let address = format!("192.0.2.{at}:51820").parse().unwrap();
            Node {
                endpoint,
                scratch: WorkerScratch::default(),
                workload,
                address,
                wire: Wire::default(),
            }
        });
        Self { now, nodes }
    }

    /// A pair whose workload on node 1 is a gateway of a prefix.
    fn with_gateway(prefix: &str) -> Self {
        let mut pair = Self::new();
        let prefixes = vec![prefix.parse().unwrap()];
        let (workload, addresses) = (pair.nodes[1].workload, vec![workload_at(1)]);
        pair.nodes[1].endpoint.remove_workload(workload);
        let workload = LocalWorkload {
            id: id(1),
            addresses: addresses.clone(),
            prefixes: prefixes.clone(),
            vouched: None,
        };
        pair.nodes[1].workload = pair.nodes[1].endpoint.add_workload(workload);
        let config = WorkloadConfig {
            prefixes,
            node: name(1),
            addresses,
            identity: API,
            quarantine: Quarantine::None,
            states: InstanceStates::default(),
        };
        let put = ConfigChange::PutWorkload(id(1), config);
        let config = NetworkConfig {
            prefixes: vec!["10.42.0.0/16".parse().unwrap()],
            service_blocks: vec![],
            mtu: 1420,
            conduct: Conduct::default(),
        };
        let changes = [put, ConfigChange::SetNetwork(config)];
        (0..2).for_each(|at| pair.apply(at, &changes));
        pair
    }

    fn send(&mut self, from: usize, packet: &[u8]) {
        self.send_as(from, Offload::None, packet);
    }

    fn send_as(&mut self, from: usize, offload: Offload, packet: &[u8]) {
        let (now, workload) = (self.now, self.nodes[from].workload);
        self.nodes[from].send(now, workload, offload, packet);
        self.carry();
    }

    fn carry(&mut self) {
        self.carry_marked(None);
    }

    /// Carries all datagrams; `mark` is what the network writes to their outer headers.
    fn carry_marked(&mut self, mark: Option<Ecn>) {
        let now = self.now;
        self.nodes.iter_mut().for_each(|node| node.begin_handshakes(now));
        while self.nodes.iter().any(|node| !node.wire.datagrams.is_empty()) {
            for at in [0, 1] {
                let from = self.nodes[at].address;
                for (ecn, datagram) in std::mem::take(&mut self.nodes[at].wire.datagrams) {
                    self.nodes[1 - at].receive(now, from, mark.unwrap_or(ecn), &datagram);
                }
            }
            self.nodes.iter_mut().for_each(|node| node.begin_handshakes(now));
        }
    }

    /// Time passes, with ticks.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(250);
            let now = self.now;
            self.nodes.iter_mut().for_each(|node| node.tick(now));
            self.carry();
        }
    }

    fn apply(&self, at: usize, changes: &[ConfigChange]) {
        self.nodes[at].endpoint.apply(self.now, changes.iter().cloned());
    }

    fn drops(&self, at: usize, cause: DropReason) -> u64 {
        self.nodes[at].endpoint.stats(self.now).drops.of(cause)
    }
}

fn to_api() -> Vec<u8> {
    packet("10.42.0.1", "10.42.1.1", 6, (4000, 8080), b"hello")
}

#[test]
fn an_allowed_packet_crosses_and_its_answer_comes_back() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    assert_eq!(pair.nodes[1].wire.delivered, [to_api()]);
    let answer = packet("10.42.1.1", "10.42.0.1", 6, (8080, 4000), b"hi");
    pair.send(1, &answer);
    assert_eq!(pair.nodes[0].wire.delivered, [answer]);
    for node in &pair.nodes {
        assert_eq!(
            node.endpoint.stats(pair.now).links[0].count.packets,
            1,
            "each node counts what it sends"
        );
    }
}

#[test]
fn a_denied_packet_never_reaches_the_wire() {
    let mut pair = Pair::new();
    pair.send(0, &packet("10.42.0.1", "10.42.1.1", 6, (4000, 22), b""));
    assert_eq!(pair.drops(0, DropReason::Denied), 1);
    assert!(pair.nodes[1].wire.delivered.is_empty());
}

#[test]
fn the_receiving_node_enforces_by_itself() {
    let mut pair = Pair::new();
    pair.apply(1, &[ConfigChange::RemoveLink(WEB_TO_API)]);
    pair.send(0, &to_api());
    assert!(pair.nodes[1].wire.delivered.is_empty());
    assert_eq!(pair.drops(1, DropReason::Denied), 1);
}

#[test]
fn a_workload_cannot_send_from_another_address() {
    let mut pair = Pair::new();
    pair.send(0, &packet("10.42.0.2", "10.42.1.1", 6, (4000, 8080), b""));
    pair.send(0, &packet("10.42.1.1", "10.42.0.1", 6, (4000, 8080), b""));
    assert_eq!(pair.drops(0, DropReason::SpoofedByWorkload), 2);
}

#[test]
fn a_peer_cannot_send_from_outside_its_prefixes() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    let forged = packet("10.42.9.1", "10.42.1.1", 6, (4000, 8080), b"");
    let (now, node) = (pair.now, &mut pair.nodes[0]);
    let mut batch = node.endpoint.begin_batch(&mut node.scratch, now);
    batch.send_control(PeerIndex(0), &forged, &mut node.wire);
    batch.finish(&mut node.wire);
    pair.carry();
    assert_eq!(pair.drops(1, DropReason::SpoofedByPeer), 1);
}

#[test]
fn a_workload_that_is_not_admitted_sends_and_receives_nothing() {
    let mut pair = Pair::new();
    pair.apply(1, &[ConfigChange::RemoveWorkload(id(1))]);
    pair.send(0, &to_api());
    assert_eq!(pair.drops(1, DropReason::NotAdmitted), 1);
    pair.send(1, &packet("10.42.1.1", "10.42.0.1", 6, (8080, 4000), b""));
    assert_eq!(pair.drops(1, DropReason::NotAdmitted), 2);
}

#[test]
fn a_dropped_peer_can_neither_send_nor_be_reached() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    pair.apply(1, &[ConfigChange::RemovePeer(name(0))]);
    pair.send(0, &to_api());
    assert_eq!(pair.nodes[1].wire.delivered.len(), 1);
    assert_eq!(pair.drops(1, DropReason::UnknownPeer), 1);
}

#[test]
fn a_vouched_workload_is_let_in_only_with_an_identity_of_its_node() {
    for (identity, delivered) in [(WEB, 1), (API, 0)] {
        let mut pair = Pair::new();
        // The node runs another workload of `web`; of the one that sends, the coordinator has not
        // spoken.
        let config = WorkloadConfig {
            prefixes: vec![],
            node: name(0),
            addresses: vec!["10.42.0.2".parse().unwrap()],
            identity: WEB,
            quarantine: Quarantine::None,
            states: InstanceStates::default(),
        };
        let another = ConfigChange::PutWorkload(id(2), config);
        let unspoken = ConfigChange::RemoveWorkload(id(0));
        (0..2).for_each(|at| pair.apply(at, &[another.clone(), unspoken.clone()]));
        // Both rules are there for `api` too, so that only the vouch decides.
        let entry = AclEntry { protocol: Protocol::Tcp, ports: PortRange::ALL };
        let any = ConfigChange::PutLink(Link { from: API, to: API }, Acl::new(vec![entry]));
        (0..2).for_each(|at| pair.apply(at, std::slice::from_ref(&any)));
        let workload = pair.nodes[0].workload;
        pair.nodes[0].endpoint.set_vouched_identity(workload, Some(identity));
        let now = pair.now + vouch::REPEAT;
        pair.nodes[0].tick(now);
        pair.carry();
        pair.send(0, &to_api());
        assert_eq!(pair.nodes[1].wire.delivered.len(), delivered, "{identity}");
        pair.now += vouch::LIFETIME;
        pair.send(0, &to_api());
        assert_eq!(pair.nodes[1].wire.delivered.len(), delivered, "a vouch must be renewed");
    }
}

#[test]
fn two_workloads_of_one_node_are_policed_without_crypto() {
    let mut pair = Pair::new();
    let node = &mut pair.nodes[0];
    let addresses = vec!["10.42.0.9".parse().unwrap()];
    node.endpoint.add_workload(LocalWorkload {
        prefixes: vec![],
        id: id(9),
        addresses: addresses.clone(),
        vouched: None,
    });
    let config = WorkloadConfig {
        prefixes: vec![],
        node: name(0),
        addresses,
        identity: API,
        quarantine: Quarantine::None,
        states: InstanceStates::default(),
    };
    node.endpoint.apply(pair.now, [ConfigChange::PutWorkload(id(9), config)]);
    let allowed = packet("10.42.0.1", "10.42.0.9", 6, (4000, 8080), b"");
    let denied = packet("10.42.0.9", "10.42.0.1", 6, (4000, 8080), b"");
    node.send(pair.now, node.workload, Offload::None, &allowed);
    node.send(pair.now, WorkloadIndex(1), Offload::None, &denied);
    assert_eq!(node.wire.delivered, [allowed]);
    assert!(node.wire.datagrams.is_empty());
}

#[test]
fn noise_from_the_network_is_counted_and_harmless() {
    let mut pair = Pair::new();
    let from = pair.nodes[0].address;
    for noise in [&b"x"[..], &[1; 148], &[4, 0, 0, 0], &[4; 64], &[0; 2000]] {
        let node = &mut pair.nodes[1];
        node.receive(pair.now, from, Ecn::NotCapable, noise);
    }
    assert_eq!(pair.drops(1, DropReason::UnknownPeer) + pair.drops(1, DropReason::BadCrypto), 5);
    pair.send(0, &to_api());
    assert_eq!(pair.nodes[1].wire.delivered.len(), 1);
}

#[test]
fn the_secret_does_not_show() {
    assert_eq!(format!("{:?}", SecretKey::from_bytes([7; 32])), "SecretKey(..)");
}

#[test]
fn a_super_packet_crosses_as_datagrams_of_the_mtu_and_is_one_again() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    pair.wait(Duration::from_secs(1));
    let path_mtu = pair.nodes[0].endpoint.stats(pair.now).peers[0].1.path_mtu;
    assert_eq!(path_mtu, Some(1420), "probes have found out how long packets may be");
    let mut packet = packet("10.42.0.1", "10.42.1.1", 6, (4000, 8080), &vec![7; 20_000]);
    (packet[32], packet[33]) = (5 << 4, 0x10);
    let offload = Offload::Segment { kind: SegmentKind::TcpV4, size: 1380, headers: 40, start: 20 };
    let (now, workload) = (pair.now, pair.nodes[0].workload);
    pair.nodes[0].send(now, workload, offload, &packet);
    let datagrams: Vec<Vec<u8>> =
        pair.nodes[0].wire.datagrams.drain(..).map(|(_, datagram)| datagram).collect();
    assert_eq!(datagrams.len(), 15);
    assert!(datagrams[..14].iter().all(|datagram| datagram.len() == 1420 + OVERHEAD));
    let mut together = datagrams.concat();
    let node = &mut pair.nodes[1];
    let mut batch = node.endpoint.begin_batch(&mut node.scratch, now);
    let from = "192.0.2.0:51820".parse().unwrap();
    let all = 0..together.len();
    batch.ingress(
        Received { from, ecn: Ecn::NotCapable, range: all, size: 1420 + OVERHEAD },
        &mut together,
        &mut node.wire,
    );
    batch.deliver(&mut together, &mut node.wire);
    batch.finish(&mut node.wire);
    let last = node.wire.delivered.last().unwrap();
    assert_eq!(last.len(), packet.len());
    assert_eq!(last[40..], packet[40..]);
}

#[test]
fn a_packet_beyond_the_mtu_is_answered_and_not_sent() {
    let mut pair = Pair::new();
    let mut big = packet("10.42.0.1", "10.42.1.1", 6, (4000, 8080), &[0; 2000]);
    big[6] |= 0x40;
    pair.send(0, &big);
    assert_eq!(pair.drops(0, DropReason::PacketTooBig), 1);
    let answer = pair.nodes[0].wire.delivered.pop().unwrap();
    assert_eq!((answer[20], answer[21]), (3, 4), "fragmentation needed");
    assert_eq!(answer[26..28], 1420u16.to_be_bytes());
    assert!(pair.nodes[1].wire.delivered.is_empty());
}

#[test]
fn congestion_marks_reach_senders_that_know_ecn() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    for (inner, delivered) in [(2u8, Some(3)), (0, None)] {
        let mut packet = to_api();
        packet[1] = 0xb8 | inner;
        let (now, workload) = (pair.now, pair.nodes[0].workload);
        pair.nodes[0].send(now, workload, Offload::None, &packet);
        assert_eq!(pair.nodes[0].wire.datagrams[0].0, Ecn::of_class(inner), "and no DSCP outside");
        pair.nodes[1].wire.delivered.clear();
        pair.carry_marked(Some(Ecn::Congestion));
        let class = pair.nodes[1].wire.delivered.first().map(|packet| packet[1]);
        assert_eq!(class, delivered.map(|ecn| 0xb8 | ecn));
    }
    assert_eq!(pair.drops(1, DropReason::Congestion), 1);
}

#[test]
fn a_replayed_datagram_is_dropped() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    let (now, workload, from) = (pair.now, pair.nodes[0].workload, pair.nodes[0].address);
    pair.nodes[0].send(now, workload, Offload::None, &to_api());
    let (_, datagram) = pair.nodes[0].wire.datagrams[0].clone();
    pair.carry();
    assert_eq!(pair.nodes[1].wire.delivered.len(), 2);
    pair.nodes[1].receive(now, from, Ecn::NotCapable, &datagram);
    assert_eq!(pair.nodes[1].wire.delivered.len(), 2);
    assert_eq!(pair.drops(1, DropReason::BadCrypto), 1);
}

#[test]
fn sessions_are_renewed_under_traffic_and_no_packet_is_lost() {
    let mut pair = Pair::new();
    let answer = packet("10.42.1.1", "10.42.0.1", 6, (8080, 4000), b"hi");
    let mut youngest = Duration::MAX;
    for second in 0..400 {
        pair.send(0, &to_api());
        pair.send(1, &answer);
        pair.wait(Duration::from_secs(1));
        let age = pair.nodes[0].endpoint.stats(pair.now).peers[0].1.handshake_age.unwrap();
        assert!(age <= Duration::from_secs(181), "a session of {age:?} at {second} s");
        if second > 10 {
            youngest = youngest.min(age);
        }
    }
    assert!(youngest < Duration::from_secs(3), "never renewed");
    assert_eq!(pair.nodes[0].wire.delivered.len(), 400);
    assert_eq!(pair.nodes[1].wire.delivered.len(), 400);
}

#[test]
fn an_end_that_only_receives_sends_a_keepalive() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    let received = |pair: &Pair| {
        pair.nodes[0]
            .endpoint
            .state
            .transport
            .peers
            .read()
            .get(PeerIndex(0))
            .unwrap()
            .awaits_answer()
    };
    assert!(received(&pair), "an answer is awaited");
    pair.wait(Duration::from_secs(11));
    assert!(!received(&pair), "the keepalive was the answer");
}

#[test]
fn a_silent_peer_is_asked_for_a_new_session_until_it_is_hopeless() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    let workload = pair.nodes[0].workload;
    let mut initiations = 0;
    for _ in 0..(130 * 4) {
        pair.now += Duration::from_millis(250);
        let now = pair.now;
        // Node 1 hears nothing.
        pair.nodes[0].send(now, workload, Offload::None, &to_api());
        pair.nodes[0].tick(now);
        pair.nodes[0].begin_handshakes(now);
        initiations += pair.nodes[0].wire.datagrams.drain(..).filter(|(_, d)| d[0] == 1).count();
    }
    assert!((20..=30).contains(&initiations), "{initiations} initiations in 130 s");
}

#[test]
fn packets_that_wait_for_a_session_are_bounded_and_checked_again() {
    let mut pair = Pair::new();
    let (now, workload) = (pair.now, pair.nodes[0].workload);
    for _ in 0..200 {
        pair.nodes[0].send(now, workload, Offload::None, &to_api());
    }
    assert_eq!(pair.drops(0, DropReason::NoSession), 72);
    pair.apply(0, &[ConfigChange::RemoveLink(WEB_TO_API)]);
    pair.carry();
    assert_eq!(pair.drops(0, DropReason::Denied), 128);
    assert!(pair.nodes[1].wire.delivered.is_empty());
}

#[test]
fn packets_for_a_peer_without_an_address_wait_until_it_initiates() {
    let mut pair = Pair::new();
    let peer = PeerConfig {
        public_key: SecretKey::from_bytes([2; 32]).public(),
        candidates: vec![],
        prefixes: vec!["10.42.1.0/24".parse().unwrap()],
        site: PeerSite::Other,
    };
    pair.apply(0, &[ConfigChange::RemovePeer(name(1))]);
    pair.apply(0, &[ConfigChange::PutPeer(name(1), peer)]);
    pair.send(0, &to_api());
    assert!(pair.nodes[1].wire.delivered.is_empty());
    // Node 1 has something to say, which no rule lets arrive: the session stands all the same.
    let any = AclEntry { protocol: Protocol::Tcp, ports: PortRange::ALL };
    pair.apply(1, &[ConfigChange::PutLink(Link { from: API, to: WEB }, Acl::new(vec![any]))]);
    pair.send(1, &packet("10.42.1.1", "10.42.0.1", 6, (1, 2), b""));
    assert_eq!(pair.nodes[1].wire.delivered, [to_api()]);
}

#[test]
fn under_load_a_handshake_needs_a_cookie_and_has_a_limit() {
    let mut pair = Pair::new();
    let (now, workload) = (pair.now, pair.nodes[0].workload);
    let from = pair.nodes[0].address;
    pair.nodes[0].send(now, workload, Offload::None, &to_api());
    pair.nodes[0].begin_handshakes(now);
    let (_, initiation) = pair.nodes[0].wire.datagrams.pop().unwrap();
    let loaded = |pair: &mut Pair, at: usize, message: &[u8]| {
        let (from, now) = (pair.nodes[1 - at].address, pair.now);
        let node = &mut pair.nodes[at];
        node.endpoint.note_overload(now);
        node.receive(now, from, Ecn::NotCapable, message);
        node.wire.datagrams.pop().map(|(_, datagram)| datagram)
    };
    let reply = loaded(&mut pair, 1, &initiation).unwrap();
    assert_eq!((reply[0], reply.len()), (3, 64), "a cookie, and no session");
    assert!(loaded(&mut pair, 0, &reply).is_none());
    // The next attempt shows the cookie, and gets through.
    pair.now += Duration::from_secs(6);
    let now = pair.now;
    pair.nodes[0].tick(now);
    let (_, initiation) = pair.nodes[0].wire.datagrams.pop().unwrap();
    let response = loaded(&mut pair, 1, &initiation).unwrap();
    assert_eq!(response[0], 2);
    pair.nodes[0].receive(now, from, Ecn::NotCapable, &response);
    pair.carry();
    assert_eq!(pair.nodes[1].wire.delivered.len(), 1);
    let answered = (0..100).filter(|_| loaded(&mut pair, 1, &initiation).is_some()).count();
    assert_eq!(answered, 0, "an initiation is accepted once");
    assert!(pair.drops(1, DropReason::HandshakeLimit) > 90);
}

#[test]
fn the_live_flows_that_another_policy_would_cut_are_counted_where_they_began() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    let cuts = |pair: &Pair, at: usize, acl: Acl| {
        pair.nodes[at].endpoint.count_cut_flows(pair.now, &[(WEB_TO_API, acl)].into())
    };
    assert_eq!(cuts(&pair, 0, Acl::default()), [(id(0), 1)].into());
    assert!(cuts(&pair, 1, Acl::default()).is_empty(), "it is counted once in the mesh");
    let all = AclEntry { protocol: Protocol::Tcp, ports: PortRange::ALL };
    assert!(cuts(&pair, 0, Acl::new(vec![all])).is_empty());
}

#[test]
fn a_node_can_hold_its_own_workload_and_knows_what_it_was_denied() {
    let mut pair = Pair::new();
    pair.nodes[0].endpoint.watch_denials(true);
    pair.send(0, &packet("10.42.0.1", "10.42.1.1", 6, (4000, 22), b""));
    let denials = pair.nodes[0].endpoint.take_denials();
    assert_eq!(
        (denials.len(), denials[0].port, denials[0].workload),
        (1, 22, pair.nodes[0].workload)
    );
    pair.nodes[0].endpoint.quarantine_locally(pair.nodes[0].workload, true);
    pair.send(0, &to_api());
    assert_eq!(pair.drops(0, DropReason::Quarantined), 1);
    pair.nodes[0].endpoint.quarantine_locally(pair.nodes[0].workload, false);
    pair.send(0, &to_api());
    assert_eq!(pair.nodes[1].wire.delivered.len(), 1);
}

/// A sink that accepts everything, and keeps nothing but what the kernel would copy.
struct Quiet {
    datagrams: Vec<u8>,
    size: usize,
    delivered: usize,
}

impl Sink for Quiet {
    fn to_workload(&mut self, _: WorkloadIndex, _: Offload, packet: GatherList<'_>) -> bool {
        self.delivered += packet.iter().map(<[u8]>::len).sum::<usize>();
        true
    }
    fn to_network(&mut self, _: SocketAddr, _: Ecn, datagrams: &[u8], size: usize) -> bool {
        self.datagrams.extend_from_slice(datagrams);
        self.size = size;
        true
    }
    fn to_network_unfragmented(&mut self, _: SocketAddr, _: &[u8]) {}
    fn queue_handshake(&mut self, _: SocketAddr, _: &[u8]) -> bool {
        false
    }
    fn request_handshakes(&mut self) {}
}

#[test]
fn no_packet_of_a_known_flow_allocates_memory() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    assert_eq!(pair.nodes[1].wire.delivered.len(), 1, "the session stands");
    let mut whole = packet("10.42.0.1", "10.42.1.1", 6, (4000, 8080), &vec![7; 40 * 1380]);
    (whole[32], whole[33]) = (5 << 4, 0x10);
    let offload = Offload::Segment { kind: SegmentKind::TcpV4, size: 1380, headers: 40, start: 20 };
    let small = to_api();
    let mut wire = Quiet { datagrams: Vec::with_capacity(1 << 17), size: 0, delivered: 0 };
    let (now, from, [sender, receiver]) = (pair.now, pair.nodes[0].address, &mut pair.nodes);
    let mut buffer = Vec::with_capacity(1 << 17);
    let mut carry = |wire: &mut Quiet| {
        for (offload, packet) in [(offload, &whole[..]), (Offload::None, &small[..])] {
            buffer.clear();
            buffer.extend_from_slice(packet);
            let mut batch = sender.endpoint.begin_batch(&mut sender.scratch, now);
            batch.egress(sender.workload, offload, &mut buffer, wire);
            batch.finish(wire);
            buffer.clear();
            buffer.append(&mut wire.datagrams);
            let range = 0..buffer.len();
            let mut batch = receiver.endpoint.begin_batch(&mut receiver.scratch, now);
            batch.ingress(
                Received { from, ecn: Ecn::NotCapable, range, size: wire.size },
                &mut buffer,
                wire,
            );
            batch.deliver(&mut buffer, wire);
            batch.finish(wire);
        }
    };
    // The first rounds may make room that later ones use again.
    (0..4).for_each(|_| carry(&mut wire));
    wire.delivered = 0;
    let made = allocation_counter::measure(|| (0..256).for_each(|_| carry(&mut wire)));
    assert!(wire.delivered >= 256 * whole.len(), "everything arrived: {}", wire.delivered);
    assert_eq!(made.count_total, 0, "{made:?}");
}
