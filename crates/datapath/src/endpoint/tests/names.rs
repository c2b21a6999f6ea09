//! Rules by domain name: what nodes learn of each other, and whose packets it counts for.

use super::*;
use crate::{
    AddressFamily, NameGateway, NameMessage, NameRoute, headers::build::packet,
    learnt_names::NameAsker,
};
use meshward_types::{
    Outside,
    dns::DomainName,
    outside::{Effect, OutsideRule, Precedence},
};

const BANK: &str = "203.0.113.9";

fn domain(text: &str) -> DomainName {
    text.parse().unwrap()
}

/// Returns a pair whose workload on node 1 is an egress gateway; `web` may reach `*.bank.example`.
fn with_egress() -> Pair {
    let pair = Pair::with_gateway("0.0.0.0/0");
    let ports = PortRange { first: 443, last: 443 };
    let rule = OutsideRule {
        targets: vec!["*.bank.example".parse().unwrap()],
        precedence: Precedence::Rule,
        effect: Effect::Allow,
        ports: vec![AclEntry { protocol: Protocol::Tcp, ports }],
        on_deny: None,
    };
    let acl = Acl::new(vec![]).with_outside(Some(Outside { rules: vec![rule], observes: false }));
    let put = ConfigChange::PutLink(WEB_TO_API, acl);
    (0..2).for_each(|at| pair.apply(at, std::slice::from_ref(&put)));
    pair
}

impl Pair {
    fn route(&self, text: &str) -> Option<NameRoute> {
        let asker = workload_at(0);
        self.nodes[0].endpoint.name_route(asker, &domain(text), AddressFamily::Ipv4)
    }

    /// Returns the asker as the gateway's node knows it.
    fn asker_of_peer(&self, text: &str) -> Option<NameAsker> {
        let peer = self.nodes[1].endpoint.peer_of(&name(0)).unwrap();
        self.nodes[1].endpoint.asker_of_peer(self.now, peer, workload_at(0), &domain(text))
    }

    fn learn(&self, at: usize, text: &str, address: &str) {
        let asker = match at {
            0 => self.route(text).unwrap().asker,
            _ => self.asker_of_peer(text).unwrap(),
        };
        let learnt = [(address.parse().unwrap(), 60)];
        self.nodes[at].endpoint.learn_name(self.now, asker, &domain(text), learnt);
    }

    /// Sends a message to the other node. Returns what that hears.
    fn carry_name_message(
        &mut self,
        from: usize,
        message: &NameMessage<'_>,
    ) -> Vec<(PeerIndex, u64, Vec<u8>)> {
        let peer = self.nodes[from].endpoint.peer_of(&name(1 - from)).unwrap();
        let Node { endpoint, scratch, wire, .. } = &mut self.nodes[from];
        let mut batch = endpoint.begin_batch(scratch, self.now);
        assert!(batch.send_name_message(peer, message, wire));
        batch.finish(wire);
        let [(ecn, mut datagram)] =
            <[_; 1]>::try_from(std::mem::take(&mut wire.datagrams)).unwrap();
        let (from, to, mut names) = (self.nodes[from].address, 1 - from, Names::default());
        let Node { endpoint, scratch, .. } = &mut self.nodes[to];
        let mut batch = endpoint.begin_batch(scratch, self.now);
        let size = datagram.len();
        batch.ingress(Received { from, ecn, range: 0..size, size }, &mut datagram, &mut names);
        batch.finish(&mut names);
        assert!(names.wire.delivered.is_empty());
        names.heard
    }

    /// Sends a packet outside, of a connection with this port of the client's. Returns whether it
    /// has come to the gateway.
    fn reaches(&mut self, port: u16, address: &str) -> bool {
        self.nodes[1].wire.delivered.clear();
        let own = packet("10.42.0.1", address, 6, (port, 443), b"hello");
        self.send(0, &own);
        self.nodes[1].wire.delivered == [own]
    }
}

#[test]
fn both_nodes_have_to_have_learnt_the_address() {
    let mut pair = with_egress();
    assert!(!pair.reaches(1, BANK));
    pair.learn(0, "www.bank.example", BANK);
    assert!(!pair.reaches(2, BANK), "the gateway's node believes nobody");
    assert_eq!(pair.drops(1, DropReason::Denied), 1);
    pair.learn(1, "www.bank.example", BANK);
    assert!(pair.reaches(3, BANK) && !pair.reaches(3, "203.0.113.10"));
}

#[test]
fn gateways_are_asked_for_names_that_a_rule_names_and_for_no_others() {
    let pair = with_egress();
    let peer = pair.nodes[0].endpoint.peer_of(&name(1)).unwrap();
    let route = pair.route("www.bank.example").unwrap();
    assert_eq!(route.gateways, [NameGateway::Peer(peer)]);
    assert!(pair.asker_of_peer("www.bank.example").is_some());
    for other in ["bank.example", "www.shop.example"] {
        assert!(pair.route(other).is_none() && pair.asker_of_peer(other).is_none(), "{other}");
    }
    let endpoint = &pair.nodes[0].endpoint;
    let stranger = "10.42.0.2".parse().unwrap();
    let name_of_bank = domain("www.bank.example");
    assert!(endpoint.name_route(stranger, &name_of_bank, AddressFamily::Ipv4).is_none());
    // There is no gateway for IPv6: that of IPv4 knows which names there are.
    let v6 = endpoint.name_route(workload_at(0), &name_of_bank, AddressFamily::Ipv6);
    assert_eq!(v6, Some(route));
    // A peer asks for its own workloads only.
    let gateway = &pair.nodes[1].endpoint;
    let web = gateway.peer_of(&name(0)).unwrap();
    assert!(gateway.asker_of_peer(pair.now, web, workload_at(1), &name_of_bank).is_none());
    pair.apply(1, &[ConfigChange::PutIdentity(WEB, Quarantine::Silent)]);
    assert!(pair.asker_of_peer("www.bank.example").is_none());
}

#[test]
fn a_flow_goes_on_when_its_name_is_not_fresh_and_no_other_begins() {
    let mut pair = with_egress();
    for at in [0, 1] {
        pair.learn(at, "www.bank.example", BANK);
    }
    assert!(pair.reaches(1, BANK));
    pair.send(1, &packet(BANK, "10.42.0.1", 6, (443, 1), b"hi"));
    for minutes in 0..30 {
        pair.wait(Duration::from_mins(1));
        // The rules are others from then on: the flow is judged again.
        pair.apply(0, &[put_identity(IdentityId(100 + minutes))]);
        pair.apply(1, &[put_identity(IdentityId(100 + minutes))]);
        assert!(pair.reaches(1, BANK), "{minutes} minutes");
    }
    assert!(!pair.reaches(2, BANK));
    // Another node of the same names takes up where this one was.
    let endpoint = &pair.nodes[0].endpoint;
    let saved = endpoint.learnt_names();
    assert_eq!(saved.len(), 1);
    endpoint.restore_names(pair.now, &saved);
    assert!(!pair.reaches(2, BANK) && pair.reaches(1, BANK));
}

#[test]
fn addresses_of_the_network_and_of_links_are_not_learnt() {
    let pair = with_egress();
    for address in ["10.42.0.9", "169.254.169.254", "127.0.0.1"] {
        pair.learn(0, "www.bank.example", address);
    }
    assert!(pair.nodes[0].endpoint.learnt_names().is_empty());
}

#[test]
fn what_a_workload_has_learnt_goes_with_it() {
    let pair = with_egress();
    pair.learn(0, "www.bank.example", BANK);
    assert_eq!(pair.nodes[0].endpoint.learnt_names().len(), 1);
    pair.nodes[0].endpoint.remove_workload(pair.nodes[0].workload);
    assert!(pair.nodes[0].endpoint.learnt_names().is_empty());
}

/// Keeps messages about names.
#[derive(Default)]
struct Names {
    wire: Wire,
    heard: Vec<(PeerIndex, u64, Vec<u8>)>,
}

impl Sink for Names {
    fn to_workload(&mut self, at: WorkloadIndex, offload: Offload, own: GatherList<'_>) -> bool {
        self.wire.to_workload(at, offload, own)
    }
    fn to_network(&mut self, to: SocketAddr, ecn: Ecn, datagrams: &[u8], size: usize) -> bool {
        self.wire.to_network(to, ecn, datagrams, size)
    }
    fn to_network_unfragmented(&mut self, to: SocketAddr, datagram: &[u8]) {
        self.wire.to_network_unfragmented(to, datagram);
    }
    fn queue_handshake(&mut self, from: SocketAddr, message: &[u8]) -> bool {
        self.wire.queue_handshake(from, message)
    }
    fn request_handshakes(&mut self) {
        self.wire.request_handshakes();
    }
    fn name_message(&mut self, peer: PeerIndex, message: NameMessage<'_>) {
        let (NameMessage::Query { number, message, .. } | NameMessage::Answer { number, message }) =
            message;
        self.heard.push((peer, number, message.to_vec()));
    }
}

#[test]
fn messages_about_names_come_with_the_peer_that_has_sent_them() {
    let mut pair = with_egress();
    let gateway = pair.nodes[0].endpoint.peer_of(&name(1)).unwrap();
    let message = NameMessage::Query { number: 7, asker: workload_at(0), message: b"asked" };
    // It waits for a session first, then it leaves at once.
    let Node { endpoint, scratch, wire, .. } = &mut pair.nodes[0];
    let mut batch = endpoint.begin_batch(scratch, pair.now);
    assert!(batch.send_name_message(gateway, &message, wire));
    batch.finish(wire);
    pair.carry();
    let heard = pair.carry_name_message(0, &message);
    let web = pair.nodes[1].endpoint.peer_of(&name(0)).unwrap();
    assert_eq!(heard, [(web, 7, b"asked".to_vec())]);
    let answer = NameMessage::Answer { number: 7, message: b"answered" };
    let heard = pair.carry_name_message(1, &answer);
    assert_eq!(heard, [(gateway, 7, b"answered".to_vec())]);
}
