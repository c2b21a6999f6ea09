//! ICMP errors between nodes: from workloads, from gateways, and from routers behind them.

use super::*;
use crate::{
    checksum::Sum,
    headers::{Headers, build},
};

const HOST: &str = "10.8.0.5";

/// Returns a pair whose workload on node 1 is a gateway of 10.8.0.0/24.
fn with_gateway() -> Pair {
    let mut pair = Pair::with_gateway("10.8.0.0/24");
    pair.send(0, &to_host());
    assert_eq!(pair.nodes[1].wire.delivered, [to_host()]);
    pair
}

fn to_host() -> Vec<u8> {
    packet("10.42.0.1", HOST, 6, (4000, 8080), &[7; 900])
}

fn error(from: &str, about: &[u8]) -> Vec<u8> {
    let to = Headers::parse(about).unwrap().source;
    let message = [&[3, 1, 0, 0, 0, 0, 0, 0][..], about].concat();
    build::ip(from.parse().unwrap(), to, 1, &message)
}

fn arrived(pair: &Pair) -> usize {
    pair.nodes[0].wire.delivered.len()
}

#[test]
fn errors_come_from_a_gateway_and_from_routers_behind_it_whatever_their_address() {
    let mut pair = with_gateway();
    for (number, from) in
        [HOST, "10.42.1.1", "10.8.0.1", "203.0.113.1", "192.168.1.1"].iter().enumerate()
    {
        pair.send(1, &error(from, &to_host()));
        assert_eq!(arrived(&pair), number + 1, "{from}");
        let delivered = pair.nodes[0].wire.delivered.last().unwrap();
        assert_eq!(delivered.len(), 576, "it is cut");
        assert!(
            Sum::default().add(&delivered[..20]).is_valid()
                && Sum::default().add(&delivered[20..]).is_valid()
        );
    }
    // What no router outside has: an address of the mesh.
    pair.send(1, &error("10.42.0.1", &to_host()));
    pair.send(1, &error("10.42.0.77", &to_host()));
    assert_eq!((arrived(&pair), pair.drops(1, DropReason::SpoofedByWorkload)), (5, 2));
}

#[test]
fn a_gateway_sends_no_errors_about_what_does_not_go_through_it() {
    let mut pair = with_gateway();
    let elsewhere = packet("10.42.0.1", "10.9.0.5", 6, (4000, 8080), b"");
    pair.send(1, &error("10.42.1.1", &elsewhere));
    assert_eq!(pair.drops(1, DropReason::StrayIcmpError), 1);
    pair.send(1, &error("203.0.113.1", &elsewhere));
    assert_eq!(pair.drops(1, DropReason::SpoofedByWorkload), 1);
    pair.send(1, &packet("203.0.113.1", "10.42.0.1", 17, (1, 2), b""));
    assert_eq!(pair.drops(1, DropReason::SpoofedByWorkload), 2, "nothing but errors");
    assert_eq!(arrived(&pair), 0);
}

#[test]
fn the_receiving_node_checks_errors_of_a_peer_by_itself() {
    let mut pair = with_gateway();
    let forge = |pair: &mut Pair, packet: &[u8]| {
        let (now, node) = (pair.now, &mut pair.nodes[1]);
        let mut batch = node.endpoint.begin_batch(&mut node.scratch, now);
        batch.send_control(PeerIndex(0), packet, &mut node.wire);
        batch.finish(&mut node.wire);
        pair.carry();
    };
    forge(
        &mut pair,
        &error("203.0.113.1", &packet("10.42.0.1", "10.42.9.9", 6, (4000, 8080), b"")),
    );
    assert_eq!(pair.drops(0, DropReason::SpoofedByPeer), 1);
    forge(&mut pair, &error("10.42.1.1", &packet("10.42.0.1", "10.42.9.9", 6, (4000, 8080), b"")));
    assert_eq!(pair.drops(0, DropReason::StrayIcmpError), 1);
    forge(&mut pair, &error("10.42.1.1", &packet("10.42.0.1", "10.42.1.1", 6, (4000, 8080), b"")));
    assert_eq!(pair.drops(0, DropReason::Denied), 1, "no such flow");
    forge(&mut pair, &error("203.0.113.1", &to_host()));
    assert_eq!(arrived(&pair), 1);
}

#[test]
fn a_quarantined_gateway_sends_no_errors() {
    let mut pair = with_gateway();
    let quarantined = pair.nodes[1].workload;
    pair.nodes[1].endpoint.quarantine_locally(quarantined, true);
    pair.send(1, &error("203.0.113.1", &to_host()));
    assert_eq!((arrived(&pair), pair.drops(1, DropReason::Quarantined)), (0, 1));
}

#[test]
fn any_gateway_of_a_prefix_sends_errors_of_its_routers() {
    let mut pair = with_gateway();
    // Another one, on a node whose name comes first, so that it is the one that is used.
    let other: NodeName = "a-node".parse().unwrap();
    let peer = PeerConfig {
        public_key: SecretKey::from_bytes([9; 32]).public(),
        candidates: vec![],
        prefixes: vec!["10.42.9.0/24".parse().unwrap()],
        site: PeerSite::Other,
    };
    let config = WorkloadConfig {
        prefixes: vec!["10.8.0.0/24".parse().unwrap()],
        node: other.clone(),
        addresses: vec!["10.42.9.1".parse().unwrap()],
        identity: API,
        quarantine: Quarantine::None,
        states: InstanceStates::default(),
    };
    let changes = [ConfigChange::PutPeer(other, peer), ConfigChange::PutWorkload(id(9), config)];
    pair.apply(0, &changes);
    for (number, from) in ["10.8.0.1", HOST, "203.0.113.1"].iter().enumerate() {
        pair.send(1, &error(from, &to_host()));
        assert_eq!(arrived(&pair), number + 1, "{from}");
    }
    pair.send(1, &error("10.42.9.1", &to_host()));
    assert_eq!(arrived(&pair), 3, "the other's own address");
}

#[test]
fn routes_of_one_host_have_its_errors_by_any_of_their_interfaces() {
    let mut pair = with_gateway();
    let addresses: Vec<IpAddr> = vec!["10.42.1.2".parse().unwrap()];
    let prefixes = vec!["10.9.0.0/24".parse().unwrap()];
    let config = WorkloadConfig {
        prefixes: prefixes.clone(),
        node: name(1),
        addresses: addresses.clone(),
        identity: WEB,
        quarantine: Quarantine::None,
        states: InstanceStates::default(),
    };
    let put = ConfigChange::PutWorkload(id(7), config);
    pair.apply(1, &[put]);
    let workload = LocalWorkload { id: id(7), addresses, prefixes, vouched: None };
    let own = pair.nodes[1].workload;
    pair.nodes[1].workload = pair.nodes[1].endpoint.add_workload(workload);
    // By the other route's interface: about what went to this one's, checked as this one's.
    pair.send(1, &error("203.0.113.1", &to_host()));
    assert_eq!(arrived(&pair), 1);
    pair.nodes[1].endpoint.quarantine_locally(own, true);
    pair.send(1, &error("203.0.113.1", &to_host()));
    assert_eq!((arrived(&pair), pair.drops(1, DropReason::Quarantined)), (1, 1));
}
