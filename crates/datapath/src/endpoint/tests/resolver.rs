//! DNS queries of workloads, which the node answers itself.

use super::*;
use crate::{
    headers::Headers,
    resolver::{DatagramQuery, Intercept, ResolverConfig},
};

const OWN: &str = "10.42.0.1";
const RESOLVER: &str = "10.42.255.53";
const OUTSIDE: &str = "192.0.2.1";
const UDP: u8 = 17;
const TCP: u8 = 6;

/// A sink that answers each query with its identity and its bytes backwards.
#[derive(Default)]
struct Answering {
    asked: Vec<Vec<u8>>,
    delivered: Vec<(WorkloadIndex, Vec<u8>)>,
}

impl Sink for Answering {
    fn to_workload(&mut self, to: WorkloadIndex, _: Offload, packet: GatherList<'_>) -> bool {
        self.delivered.push((to, packet.to_vec()));
        true
    }
    fn to_network(&mut self, _: SocketAddr, _: Ecn, _: &[u8], _: usize) -> bool {
        panic!("a query leaves the node")
    }
    fn to_network_unfragmented(&mut self, _: SocketAddr, _: &[u8]) {}
    fn queue_handshake(&mut self, _: SocketAddr, _: &[u8]) -> bool {
        false
    }
    fn request_handshakes(&mut self) {}
    fn resolve(&mut self, query: DatagramQuery<'_>, answer: &mut Vec<u8>) -> bool {
        assert_eq!(query.asker.identity, WEB);
        self.asked.push(query.message.to_vec());
        answer.clear();
        answer.extend(query.message.iter().rev());
        true
    }
}

struct Resolving {
    endpoint: Endpoint,
    workload: WorkloadIndex,
    streams: WorkloadIndex,
    now: Instant,
}

impl Resolving {
    fn new(intercept: Intercept) -> Self {
        let now = Instant::now();
        let endpoint = Endpoint::new(name(0), SecretKey::from_bytes([7; 32]), now, Duration::ZERO);
        let prefixes = vec!["10.42.0.0/16".parse().unwrap()];
        let network = NetworkConfig {
            prefixes,
            service_blocks: vec![],
            mtu: 1420,
            conduct: Conduct::default(),
        };
        let identity = ConfigChange::PutIdentity(WEB, Quarantine::None);
        endpoint.apply(now, [ConfigChange::SetNetwork(network), identity, put_workload(0, WEB)]);
        let local = |id, address: &str| LocalWorkload {
            id,
            addresses: vec![address.parse().unwrap()],
            prefixes: vec![],
            vouched: None,
        };
        let workload = endpoint.add_workload(local(id(0), OWN));
        let streams = endpoint.add_workload(local(id(9), RESOLVER));
        let addresses = vec![RESOLVER.parse().unwrap()];
        endpoint.set_resolver(ResolverConfig { addresses, intercept, streams: Some(streams) });
        Self { endpoint, workload, streams, now }
    }

    fn send(&self, from: WorkloadIndex, offload: Offload, packet: &[u8]) -> Answering {
        let (mut scratch, mut sink) = (WorkerScratch::default(), Answering::default());
        let mut batch = self.endpoint.begin_batch(&mut scratch, self.now);
        batch.egress(from, offload, &mut packet.to_vec(), &mut sink);
        batch.finish(&mut sink);
        sink
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.endpoint.stats(self.now).drops.of(reason)
    }
}

fn query(from: &str, to: &str) -> Vec<u8> {
    packet(from, to, UDP, (40_000, 53), b"abc")
}

#[test]
fn a_query_is_answered_from_the_address_that_was_asked() {
    let node = Resolving::new(Intercept::Nothing);
    let sink = node.send(node.workload, Offload::None, &query(OWN, RESOLVER));
    assert_eq!(sink.asked, [b"abc"]);
    let [(to, answer)] = &sink.delivered[..] else { panic!("{:?}", sink.delivered) };
    let headers = Headers::parse(answer).unwrap();
    assert_eq!(*to, node.workload);
    assert_eq!((headers.source_port, headers.destination_port), (53, 40_000));
    assert_eq!(headers.source, RESOLVER.parse::<IpAddr>().unwrap());
    assert_eq!(headers.destination, OWN.parse::<IpAddr>().unwrap());
    assert_eq!(&answer[28..], b"cba");
    let sum = crate::checksum::Sum::default().add(&answer[20..]);
    assert!(sum.add_pseudo(headers.source, headers.destination, UDP, 11).is_valid());
    assert!(crate::checksum::Sum::default().add(&answer[..20]).is_valid());
}

#[test]
fn each_query_of_a_super_packet_is_answered() {
    let node = Resolving::new(Intercept::Nothing);
    let offload = Offload::Segment { kind: SegmentKind::Udp, size: 2, headers: 28, start: 20 };
    let sink = node.send(node.workload, offload, &query(OWN, RESOLVER));
    assert_eq!(sink.asked, [&b"ab"[..], b"c"]);
    assert_eq!(sink.delivered.len(), 2);
}

#[test]
fn only_an_admitted_workload_may_ask_and_from_its_own_address() {
    let node = Resolving::new(Intercept::Nothing);
    let sink = node.send(node.workload, Offload::None, &query("10.42.0.2", RESOLVER));
    assert!(sink.asked.is_empty() && node.drops(DropReason::SpoofedByWorkload) == 1);
    let reset = ConfigChange::PutIdentity(WEB, Quarantine::Silent);
    node.endpoint.apply(node.now, [reset]);
    let sink = node.send(node.workload, Offload::None, &query(OWN, RESOLVER));
    assert!(sink.asked.is_empty() && node.drops(DropReason::Quarantined) == 1);
    node.endpoint.apply(node.now, [ConfigChange::RemoveWorkload(id(0))]);
    let sink = node.send(node.workload, Offload::None, &query(OWN, RESOLVER));
    assert!(sink.asked.is_empty() && node.drops(DropReason::NotAdmitted) == 1);
}

#[test]
fn queries_to_other_addresses_are_answered_on_request() {
    let node = Resolving::new(Intercept::Nothing);
    let sink = node.send(node.workload, Offload::None, &query(OWN, OUTSIDE));
    assert!(sink.asked.is_empty() && node.drops(DropReason::UnknownAddress) == 1);
    let node = Resolving::new(Intercept::Queries);
    let sink = node.send(node.workload, Offload::None, &query(OWN, OUTSIDE));
    assert_eq!((sink.asked.len(), sink.delivered.len()), (1, 1));
    let sink = node.send(node.workload, Offload::None, &query(OWN, "10.42.1.1"));
    assert!(sink.asked.is_empty(), "policy decides about name servers in the network");
    let other = packet(OWN, OUTSIDE, UDP, (40_000, 54), b"abc");
    assert!(node.send(node.workload, Offload::None, &other).asked.is_empty());
}

#[test]
fn connections_to_the_resolver_go_to_its_interface_and_nothing_else_does() {
    let node = Resolving::new(Intercept::Nothing);
    let segment = |from, to, ports| packet(from, to, TCP, ports, b"");
    let sink = node.send(node.workload, Offload::None, &segment(OWN, RESOLVER, (40_000, 53)));
    assert_eq!(sink.delivered[0].0, node.streams);
    let sink = node.send(node.streams, Offload::None, &segment(RESOLVER, OWN, (53, 40_000)));
    assert_eq!(sink.delivered[0].0, node.workload);
    for ports in [(40_000, 80), (53, 80)] {
        let sink = node.send(node.workload, Offload::None, &segment(OWN, RESOLVER, ports));
        assert!(sink.delivered.is_empty(), "{ports:?}");
    }
    for packet in [
        segment(RESOLVER, OWN, (80, 40_000)),
        packet(RESOLVER, OWN, UDP, (53, 40_000), b""),
        segment(RESOLVER, "10.42.1.1", (53, 40_000)),
    ] {
        assert!(node.send(node.streams, Offload::None, &packet).delivered.is_empty());
    }
}

#[test]
fn an_answer_that_comes_later_goes_to_the_workload_that_has_asked_only() {
    let node = Resolving::new(Intercept::Nothing);
    let headers = Headers::parse(&query(OWN, RESOLVER)).unwrap();
    let ends = crate::resolver::QueryEnds::of(&headers);
    let answer = |to| {
        let (mut scratch, mut sink) = (WorkerScratch::default(), Answering::default());
        let mut batch = node.endpoint.begin_batch(&mut scratch, node.now);
        let taken = batch.answer(to, &ends, b"later", &mut sink);
        batch.finish(&mut sink);
        (taken, sink.delivered.len())
    };
    assert_eq!(answer(node.workload), (true, 1));
    assert_eq!(answer(node.streams), (false, 0), "another has the index by now");
}
