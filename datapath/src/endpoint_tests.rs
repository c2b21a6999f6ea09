use super::*;
use crate::packet::build::packet;
use meshward_model::{
    Acl, AclEntry, NetworkName, PortRange, Protocol,
    view::{IdentitySpec, NetworkSpec},
};

const WEB: IdentityId = IdentityId(1);
const API: IdentityId = IdentityId(2);

/// Two nodes whose datagrams and packets are carried by hand.
struct Pair {
    now: Instant,
    nodes: [Node; 2],
}

struct Node {
    endpoint: Endpoint,
    slot: Slot,
    address: SocketAddr,
    wire: Wire,
}

#[derive(Default)]
struct Wire {
    datagrams: Vec<Vec<u8>>,
    delivered: Vec<Vec<u8>>,
}

impl Sink for Wire {
    fn to_workload(&mut self, _: Slot, _: Offload, packet: &[u8]) -> bool {
        self.delivered.push(packet.to_vec());
        true
    }
    fn to_network(&mut self, _: SocketAddr, datagrams: &[u8], size: usize) -> bool {
        self.datagrams.extend(datagrams.chunks(size).map(<[u8]>::to_vec));
        true
    }
}

fn network() -> NetworkName {
    "shop".parse().unwrap()
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

fn put_workload(at: usize, identity: IdentityId) -> Change {
    let spec =
        WorkloadSpec { node: name(at), addresses: vec![workload_at(at)], identity, quarantined: false };
    Change::Put(ItemKey::Workload(network(), id(at)), Item::Workload(spec))
}

fn put_identity(identity: IdentityId) -> Change {
    let labels = format!("app=a{identity}").parse().unwrap();
    let spec = IdentitySpec { labels, quarantined: false };
    Change::Put(ItemKey::Identity(network(), identity), Item::Identity(spec))
}

fn put_link() -> Change {
    let ports = PortRange { first: 8080, last: 8080 };
    let acl = Acl::new(vec![AclEntry { protocol: Protocol::Tcp, ports }]);
    Change::Put(ItemKey::Link(network(), WEB, API), Item::Link(acl))
}

impl Pair {
    /// Node 0 runs `web`, node 1 runs `api`, and `web` may reach `api` on tcp/8080.
    fn new() -> Self {
        let now = Instant::now();
        let secrets = [SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32])];
        let nodes = [0, 1].map(|at| {
            let other = 1 - at;
            let mut endpoint = Endpoint::new(name(at), secrets[at].clone(), now, Duration::ZERO);
            let addresses = vec![workload_at(at)];
            let slot = endpoint.add_local(LocalWorkload { id: id(at), addresses, vouched: None });
            let peer = PeerSpec {
                public_key: secrets[other].public(),
                candidates: vec![format!("192.0.2.{other}:51820").parse().unwrap()],
                prefixes: vec![format!("10.42.{other}.0/24").parse().unwrap()],
                vouches: vec![if other == 0 { WEB } else { API }],
            };
            let spec = NetworkSpec { prefixes: vec![], blocks: vec![], mtu: 1420 };
            endpoint.apply(&[
                Change::Put(ItemKey::Network(network()), Item::Network(spec)),
                Change::Put(ItemKey::Peer(network(), name(other)), Item::Peer(peer)),
                put_identity(WEB),
                put_identity(API),
                put_workload(0, WEB),
                put_workload(1, API),
                put_link(),
            ]);
            let address = format!("192.0.2.{at}:51820").parse().unwrap();
            Node { endpoint, slot, address, wire: Wire::default() }
        });
        Self { now, nodes }
    }

    fn send(&mut self, from: usize, packet: &[u8]) {
        let now = self.now;
        let node = &mut self.nodes[from];
        node.endpoint.from_workload(now, node.slot, Offload::None, &mut packet.to_vec(), &mut node.wire);
        node.endpoint.flush(now, &mut node.wire);
        self.carry();
    }

    fn carry(&mut self) {
        while self.nodes.iter().any(|node| !node.wire.datagrams.is_empty()) {
            for at in [0, 1] {
                let from = self.nodes[at].address;
                let now = self.now;
                for datagram in std::mem::take(&mut self.nodes[at].wire.datagrams) {
                    let node = &mut self.nodes[1 - at];
                    node.endpoint.from_network(now, from, &datagram, &mut node.wire);
                    node.endpoint.flush(now, &mut node.wire);
                }
            }
        }
    }

    fn drops(&self, at: usize, cause: Cause) -> u64 {
        self.nodes[at].endpoint.stats().drops.of(cause)
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
        assert_eq!(node.endpoint.stats().links[0].count.packets, 1, "each node counts what it sends");
    }
}

#[test]
fn a_denied_packet_never_reaches_the_wire() {
    let mut pair = Pair::new();
    pair.send(0, &packet("10.42.0.1", "10.42.1.1", 6, (4000, 22), b""));
    assert_eq!(pair.drops(0, Cause::Denied), 1);
    assert!(pair.nodes[1].wire.delivered.is_empty());
}

#[test]
fn the_receiving_node_enforces_by_itself() {
    let mut pair = Pair::new();
    pair.nodes[1].endpoint.apply(&[Change::Drop(ItemKey::Link(network(), WEB, API))]);
    pair.send(0, &to_api());
    assert!(pair.nodes[1].wire.delivered.is_empty());
    assert_eq!(pair.drops(1, Cause::Denied), 1);
}

#[test]
fn a_workload_cannot_send_from_another_address() {
    let mut pair = Pair::new();
    pair.send(0, &packet("10.42.0.2", "10.42.1.1", 6, (4000, 8080), b""));
    pair.send(0, &packet("10.42.1.1", "10.42.0.1", 6, (4000, 8080), b""));
    assert_eq!(pair.drops(0, Cause::SpoofedByWorkload), 2);
}

#[test]
fn a_peer_cannot_send_from_outside_its_prefixes() {
    let mut pair = Pair::new();
    let forged = packet("10.42.9.1", "10.42.1.1", 6, (4000, 8080), b"");
    let (now, node) = (pair.now, &mut pair.nodes[0]);
    node.endpoint.wireguard.seal(0, &forged, &mut node.endpoint.batch, &mut node.wire);
    node.endpoint.flush(now, &mut node.wire);
    pair.carry();
    assert_eq!(pair.drops(1, Cause::SpoofedByPeer), 1);
}

#[test]
fn a_workload_that_is_not_admitted_sends_and_receives_nothing() {
    let mut pair = Pair::new();
    pair.nodes[1].endpoint.apply(&[Change::Drop(ItemKey::Workload(network(), id(1)))]);
    pair.send(0, &to_api());
    assert_eq!(pair.drops(1, Cause::NotAdmitted), 1);
    pair.send(1, &packet("10.42.1.1", "10.42.0.1", 6, (8080, 4000), b""));
    assert_eq!(pair.drops(1, Cause::NotAdmitted), 2);
}

#[test]
fn a_dropped_peer_can_neither_send_nor_be_reached() {
    let mut pair = Pair::new();
    pair.send(0, &to_api());
    pair.nodes[1].endpoint.apply(&[Change::Drop(ItemKey::Peer(network(), name(0)))]);
    pair.send(0, &to_api());
    assert_eq!(pair.nodes[1].wire.delivered.len(), 1);
    assert_eq!(pair.drops(1, Cause::UnknownPeer), 1);
}

#[test]
fn a_vouched_workload_is_let_in_only_with_an_identity_of_its_node() {
    for (identity, delivered) in [(WEB, 1), (API, 0)] {
        let mut pair = Pair::new();
        pair.nodes.iter_mut().for_each(|node| {
            node.endpoint.apply(&[Change::Drop(ItemKey::Workload(network(), id(0)))]);
        });
        // Both rules are there for `api` too, so that only the vouch decides.
        let entry = AclEntry { protocol: Protocol::Tcp, ports: PortRange::ALL };
        let any = Change::Put(ItemKey::Link(network(), API, API), Item::Link(Acl::new(vec![entry])));
        pair.nodes.iter_mut().for_each(|node| node.endpoint.apply(std::slice::from_ref(&any)));
        let slot = pair.nodes[0].slot;
        pair.nodes[0].endpoint.vouch(slot, Some(identity));
        let now = pair.now + vouch::REPEAT;
        let node = &mut pair.nodes[0];
        node.endpoint.tick(now, &mut node.wire);
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
    node.endpoint.add_local(LocalWorkload { id: id(9), addresses: addresses.clone(), vouched: None });
    let spec = WorkloadSpec { node: name(0), addresses, identity: API, quarantined: false };
    node.endpoint.apply(&[Change::Put(ItemKey::Workload(network(), id(9)), Item::Workload(spec))]);
    let mut allowed = packet("10.42.0.1", "10.42.0.9", 6, (4000, 8080), b"");
    let mut denied = packet("10.42.0.9", "10.42.0.1", 6, (4000, 8080), b"");
    node.endpoint.from_workload(pair.now, node.slot, Offload::None, &mut allowed, &mut node.wire);
    node.endpoint.from_workload(pair.now, Slot(1), Offload::None, &mut denied, &mut node.wire);
    assert_eq!(node.wire.delivered, [allowed]);
    assert!(node.wire.datagrams.is_empty());
}

#[test]
fn noise_from_the_network_is_counted_and_harmless() {
    let mut pair = Pair::new();
    let from = pair.nodes[0].address;
    for noise in [&b"x"[..], &[1; 148], &[4, 0, 0, 0], &[4; 64], &[0; 2000]] {
        let node = &mut pair.nodes[1];
        node.endpoint.from_network(pair.now, from, noise, &mut node.wire);
    }
    assert_eq!(pair.drops(1, Cause::UnknownPeer) + pair.drops(1, Cause::BadCrypto), 5);
    pair.send(0, &to_api());
    assert_eq!(pair.nodes[1].wire.delivered.len(), 1);
}

#[test]
fn the_secret_does_not_show() {
    assert_eq!(format!("{:?}", SecretKey::from_bytes([7; 32])), "SecretKey(..)");
}
