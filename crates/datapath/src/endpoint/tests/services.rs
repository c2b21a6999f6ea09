//! Connections through services: what clients, instances and the wire see of each other.

use super::*;
use crate::{
    config::ServiceConfig,
    fuzzing::{strict, with_checksums},
    headers::{FIN, Headers, Icmp, RST, SYN, build},
    reject::{IcmpError, icmp_error},
    tcp::ACK,
};
use meshward_types::{Affinity, InstanceStates, Nearness, ServiceName, ServicePort, Serving};
use std::collections::HashSet;

const SERVICE: &str = "10.42.255.7";
const CLIENT: &str = "10.42.0.1";
/// The addresses of instances on node 1.
const ANY_API: [&str; 3] = ["10.42.1.1", "10.42.1.2", "10.42.1.3"];

/// Returns an instance of the service on a node, by its last two numbers.
fn put_instance(at: usize, number: u8, serving: Serving) -> ConfigChange {
    put_with_states(at, number, states(serving, "api"))
}

/// Returns the states of an instance in which it has this one for a service.
fn states(serving: Serving, service: &str) -> InstanceStates {
    let unhealthy: Option<ServiceName> =
        (serving == Serving::Unhealthy).then(|| service.parse().unwrap());
    InstanceStates {
        draining: serving == Serving::Draining,
        unhealthy: unhealthy.into_iter().collect(),
    }
}

fn put_with_states(at: usize, number: u8, states: InstanceStates) -> ConfigChange {
    let config = WorkloadConfig {
        prefixes: vec![],
        node: name(at),
        addresses: vec![format!("10.42.{at}.{number}").parse().unwrap()],
        identity: API,
        quarantine: Quarantine::None,
        states,
    };
    ConfigChange::PutWorkload(instance_id(at, number), config)
}

fn instance_id(at: usize, number: u8) -> WorkloadId {
    match number {
        1 => id(at),
        _ => format!("api-{at}-{number}").parse().unwrap(),
    }
}

fn put_service(affinity: Affinity, prefer: Vec<Nearness>) -> ConfigChange {
    let port = |protocol, port, target| ServicePort { protocol, port, target };
    let config = ServiceConfig {
        addresses: vec![SERVICE.parse().unwrap(), "fd42:0:0:ff::7".parse().unwrap()],
        ports: vec![port(Protocol::Tcp, 80, 8080), port(Protocol::Udp, 53, 5353)],
        identities: vec![API],
        prefer,
        affinity,
        weights: vec![],
    };
    ConfigChange::PutService("api".parse().unwrap(), config)
}

fn put_open_link(link: Link) -> ConfigChange {
    let entry =
        |protocol, port| AclEntry { protocol, ports: PortRange { first: port, last: port } };
    let acl = Acl::new(vec![entry(Protocol::Tcp, 8080), entry(Protocol::Udp, 5353)]);
    ConfigChange::PutLink(link, acl)
}

impl Pair {
    /// Node 0 runs `web`, node 1 one instance of the service, or several.
    fn with_service(instances: &[u8]) -> Self {
        let pair = Self::new();
        let node = &pair.nodes[1].endpoint;
        for &number in instances.iter().filter(|number| **number != 1) {
            node.add_workload(LocalWorkload {
                prefixes: vec![],
                id: instance_id(1, number),
                addresses: vec![format!("10.42.1.{number}").parse().unwrap()],
                vouched: None,
            });
        }
        for at in [0, 1] {
            let puts = instances.iter().map(|number| put_instance(1, *number, Serving::Ready));
            let changes: Vec<ConfigChange> = puts
                .chain([
                    put_service(Affinity::None, vec![]),
                    put_open_link(WEB_TO_API),
                    put_open_link(Link { from: API, to: API }),
                ])
                .collect();
            pair.apply(at, &changes);
            if !instances.contains(&1) {
                pair.apply(at, &[ConfigChange::RemoveWorkload(id(1))]);
            }
        }
        pair
    }

    /// Adds a client to the node of the instances.
    fn add_client_beside(&mut self, address: &str) -> WorkloadIndex {
        let endpoint = &self.nodes[1].endpoint;
        let addresses = vec![address.parse().unwrap()];
        let config = WorkloadConfig {
            prefixes: vec![],
            node: name(1),
            addresses: addresses.clone(),
            identity: WEB,
            quarantine: Quarantine::None,
            states: InstanceStates::default(),
        };
        let web: WorkloadId = "web-9".parse().unwrap();
        endpoint.apply(self.now, [ConfigChange::PutWorkload(web.clone(), config)]);
        let local = LocalWorkload { prefixes: vec![], id: web, addresses, vouched: None };
        endpoint.add_workload(local)
    }

    /// Returns the only packet that was delivered at a node since the last call.
    fn delivered(&mut self, at: usize) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.nodes[at].wire.delivered);
        assert_eq!(all.len(), 1, "one packet at node {at}");
        all.remove(0)
    }

    /// Sends a packet from node 0, and returns it as it arrives at node 1.
    fn request(&mut self, packet: &[u8]) -> Seen {
        self.send(0, packet);
        Seen::new(&self.delivered(1))
    }

    /// Sends a packet from an instance on node 1, and returns it as it arrives at node 0.
    fn answer(&mut self, packet: &[u8]) -> Seen {
        self.send_from_instance(packet);
        Seen::new(&self.delivered(0))
    }

    fn send_from_instance(&mut self, packet: &[u8]) {
        let source = Headers::parse(packet).unwrap().source;
        let (now, node) = (self.now, &mut self.nodes[1]);
        let workload = node.endpoint.state.tables.read().local_at(source).unwrap().0;
        node.send(now, workload, Offload::None, packet);
        self.carry();
    }

    /// Returns what is known of the service at a node.
    fn service(&self, at: usize) -> crate::endpoint::stats::ServiceStats {
        self.nodes[at].endpoint.stats(self.now).services.remove(0)
    }
}

/// A packet as somebody receives it: valid.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    from: String,
    to: String,
    flags: u8,
}

impl Seen {
    fn new(packet: &[u8]) -> Self {
        let headers = strict(packet);
        let Headers { source, source_port, destination, destination_port, tcp_flags, .. } = headers;
        Self {
            from: format!("{source}:{source_port}"),
            to: format!("{destination}:{destination_port}"),
            flags: tcp_flags,
        }
    }

    fn instance(&self) -> &str {
        self.to.split(':').next().unwrap()
    }
}

fn seen(from: &str, to: &str, flags: u8) -> Seen {
    Seen { from: from.into(), to: to.into(), flags }
}

/// Returns a segment with the numbers that fit an open connection.
fn tcp(from: (&str, u16), to: (&str, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    let mut packet = packet(from.0, to.0, 6, (from.1, to.1), data);
    let at = Headers::parse(&packet).unwrap().payload;
    packet[at + 13] = flags;
    let (sequence, acknowledgement) = if flags & SYN != 0 { (0u32, 1u32) } else { (1, 1) };
    packet[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
    if flags & ACK != 0 {
        packet[at + 8..at + 12].copy_from_slice(&acknowledgement.to_be_bytes());
    }
    with_checksums(&packet)
}

fn udp(from: (&str, u16), to: (&str, u16), data: &[u8]) -> Vec<u8> {
    with_checksums(&packet(from.0, to.0, 17, (from.1, to.1), data))
}

fn syn(port: u16) -> Vec<u8> {
    tcp((CLIENT, port), (SERVICE, 80), SYN, b"")
}

#[test]
fn a_connection_goes_to_an_instance_and_comes_from_the_service() {
    let mut pair = Pair::with_service(&[1]);
    assert_eq!(pair.request(&syn(4000)), seen("10.42.0.1:4000", "10.42.1.1:8080", SYN));
    let syn_ack = tcp(("10.42.1.1", 8080), (CLIENT, 4000), SYN | ACK, b"");
    assert_eq!(pair.answer(&syn_ack), seen("10.42.255.7:80", "10.42.0.1:4000", SYN | ACK));
    let data = tcp((CLIENT, 4000), (SERVICE, 80), ACK, b"get");
    assert_eq!(pair.request(&data).to, "10.42.1.1:8080");
    pair.now += Duration::from_millis(30);
    let data = tcp(("10.42.1.1", 8080), (CLIENT, 4000), ACK, b"got");
    assert_eq!(pair.answer(&data).from, "10.42.255.7:80");
    let stats = pair.service(0);
    assert_eq!((stats.connections, stats.instances[0].open, stats.moved), (1, 1, 0));
    assert_eq!(stats.instances[0].answer_time, Some(Duration::from_millis(30)));
    let flows_of_instance =
        |pair: &Pair| pair.nodes[1].endpoint.count_flows_to(pair.now, &HashSet::from([id(1)]));
    assert_eq!(flows_of_instance(&pair), [(id(1), 1)].into());
    for (from, to) in [((CLIENT, 4000), (SERVICE, 80)), (("10.42.1.1", 8080), (CLIENT, 4000))] {
        let at = usize::from(from.0 != CLIENT);
        pair.send(at, &tcp(from, to, FIN | ACK, b""));
    }
    assert_eq!(pair.service(0).instances[0].open, 0);
    assert!(flows_of_instance(&pair).is_empty(), "a drain does not wait for what is closed");
}

#[test]
fn super_packets_to_a_service_are_cut_into_valid_ones() {
    let mut pair = Pair::with_service(&[1]);
    pair.request(&syn(4000));
    pair.answer(&tcp(("10.42.1.1", 8080), (CLIENT, 4000), SYN | ACK, b""));
    let mut whole = packet(CLIENT, SERVICE, 6, (4000, 80), &[7; 5000]);
    (whole[32], whole[33]) = (5 << 4, ACK);
    let offload = Offload::Segment { kind: SegmentKind::TcpV4, size: 1000, headers: 40, start: 20 };
    let now = pair.now;
    let workload = pair.nodes[0].workload;
    pair.nodes[0].send(now, workload, offload, &whole);
    let datagrams = pair.nodes[0].wire.datagrams.len();
    assert_eq!(datagrams, 5);
    pair.carry();
    for packet in std::mem::take(&mut pair.nodes[1].wire.delivered) {
        assert_eq!(Seen::new(&packet).to, "10.42.1.1:8080");
    }
}

#[test]
fn ipv6_works_alike() {
    let mut pair = Pair::with_service(&[]);
    let both = |at: usize, last: u8| {
        vec![
            format!("10.42.{at}.{last}").parse().unwrap(),
            format!("fd42:0:0:{at}::{last}").parse().unwrap(),
        ]
    };
    for at in [0, 1] {
        let other = 1 - at;
        let node = &mut pair.nodes[at];
        node.endpoint.remove_workload(node.workload);
        node.workload = node.endpoint.add_workload(LocalWorkload {
            prefixes: vec![],
            id: id(at),
            addresses: both(at, 1),
            vouched: None,
        });
        let secret = SecretKey::from_bytes([other as u8 + 1; 32]);
        let peer = PeerConfig {
            public_key: secret.public(),
            candidates: vec![format!("192.0.2.{other}:51820").parse().unwrap()],
            prefixes: vec![
                format!("10.42.{other}.0/24").parse().unwrap(),
                format!("fd42:0:0:{other}::/64").parse().unwrap(),
            ],
            site: PeerSite::Same,
        };
        let mut changes = vec![ConfigChange::PutPeer(name(other), peer)];
        for (of, identity) in [(0, WEB), (1, API)] {
            let config = WorkloadConfig {
                prefixes: vec![],
                node: name(of),
                addresses: both(of, 1),
                identity,
                quarantine: Quarantine::None,
                states: InstanceStates::default(),
            };
            changes.push(ConfigChange::PutWorkload(id(of), config));
        }
        pair.apply(at, &changes);
    }
    let (client, instance, service) = ("fd42::1", "fd42:0:0:1::1", "fd42:0:0:ff::7");
    let request = tcp((client, 4000), (service, 80), SYN, b"");
    assert_eq!(pair.request(&request), seen("fd42::1:4000", "fd42:0:0:1::1:8080", SYN));
    let answer = tcp((instance, 8080), (client, 4000), SYN | ACK, b"");
    assert_eq!(pair.answer(&answer), seen("fd42:0:0:ff::7:80", "fd42::1:4000", SYN | ACK));
}

#[test]
fn an_instance_of_the_same_node_is_reached_too_and_so_is_the_client_itself() {
    let mut pair = Pair::with_service(&[1]);
    // The instance is a client now, and the only instance.
    let looped = tcp(("10.42.1.1", 4000), (SERVICE, 80), SYN, b"");
    pair.send(1, &looped);
    assert_eq!(Seen::new(&pair.delivered(1)), seen("10.42.255.7:4000", "10.42.1.1:8080", SYN));
    let answer = tcp(("10.42.1.1", 8080), (SERVICE, 4000), SYN | ACK, b"");
    pair.send(1, &answer);
    let answer = Seen::new(&pair.delivered(1));
    assert_eq!(answer, seen("10.42.255.7:80", "10.42.1.1:4000", SYN | ACK));
    pair.send(1, &tcp(("10.42.1.1", 4000), (SERVICE, 80), ACK, b"get"));
    assert_eq!(Seen::new(&pair.delivered(1)).to, "10.42.1.1:8080");
    let beside = pair.add_client_beside("10.42.1.9");
    let now = pair.now;
    let request = tcp(("10.42.1.9", 5000), (SERVICE, 80), SYN, b"");
    pair.nodes[1].send(now, beside, Offload::None, &request);
    assert_eq!(Seen::new(&pair.delivered(1)), seen("10.42.1.9:5000", "10.42.1.1:8080", SYN));
    pair.send(1, &tcp(("10.42.1.1", 8080), ("10.42.1.9", 5000), SYN | ACK, b""));
    let answer = Seen::new(&pair.delivered(1));
    assert_eq!(answer, seen("10.42.255.7:80", "10.42.1.9:5000", SYN | ACK));
}

#[test]
fn a_service_opens_nothing_that_policy_denies_and_the_refusal_comes_from_it() {
    let mut pair = Pair::with_service(&[1]);
    let conduct = Conduct { on_deny: meshward_types::OnDeny::Reject, ..Conduct::default() };
    pair.apply(0, &[put_network(conduct), ConfigChange::RemoveLink(WEB_TO_API)]);
    pair.send(0, &syn(4000));
    let refusal = Seen::new(&pair.delivered(0));
    assert_eq!(refusal, seen("10.42.255.7:80", "10.42.0.1:4000", RST | ACK));
    assert!(pair.nodes[1].wire.delivered.is_empty());
    pair.send(0, &udp((CLIENT, 4000), (SERVICE, 53), b"who"));
    let error = pair.delivered(0);
    let headers = Headers::parse(&error).unwrap();
    assert_eq!((headers.icmp, headers.source), (Icmp::Error, SERVICE.parse().unwrap()));
    assert_eq!(Seen::new(&error[28..]), seen("10.42.0.1:4000", "10.42.255.7:53", 0));
    assert_eq!(pair.service(0).instances[0].open, 0);
}

#[test]
fn nobody_sends_from_an_address_of_a_service() {
    let mut pair = Pair::with_service(&[1]);
    pair.send(0, &tcp((SERVICE, 80), ("10.42.1.1", 8080), SYN, b""));
    assert_eq!(pair.drops(0, DropReason::SpoofedByWorkload), 1);
    pair.request(&syn(3999));
    // Nor for somebody else.
    pair.send(0, &tcp(("10.42.0.8", 4000), (SERVICE, 80), SYN, b""));
    assert_eq!(pair.drops(0, DropReason::SpoofedByWorkload), 2);
    let (now, node) = (pair.now, &mut pair.nodes[0]);
    let mut batch = node.endpoint.begin_batch(&mut node.scratch, now);
    batch.send_control(PeerIndex(0), &syn(4000), &mut node.wire);
    batch.finish(&mut node.wire);
    pair.carry();
    assert_eq!(pair.drops(1, DropReason::UnknownAddress), 1, "none crosses the wire");
}

#[test]
fn errors_of_an_instance_quote_what_the_client_has_sent() {
    let mut pair = Pair::with_service(&[1]);
    let request = udp((CLIENT, 4000), (SERVICE, 53), b"who");
    pair.send(0, &request);
    let arrived = pair.delivered(1);
    let kind = IcmpError { kind_v4: [3, 3], kind_v6: [1, 4], rest: 0 };
    let error = icmp_error(&arrived, &Headers::parse(&arrived).unwrap(), kind, 576);
    pair.send(1, &error);
    let error = pair.delivered(0);
    let headers = Headers::parse(&error).unwrap();
    assert_eq!(headers.source, SERVICE.parse::<IpAddr>().unwrap());
    assert_eq!(error[28..], request);
    assert_eq!(pair.service(0).refused, 1);
    // And those of the client what the instance has sent.
    let mut pair = Pair::with_service(&[1]);
    pair.request(&udp((CLIENT, 4000), (SERVICE, 53), b"who"));
    let answer = udp(("10.42.1.1", 5353), (CLIENT, 4000), b"me");
    pair.send(1, &answer);
    let arrived = pair.delivered(0);
    let error = icmp_error(&arrived, &Headers::parse(&arrived).unwrap(), kind, 576);
    pair.send(0, &error);
    let error = pair.delivered(1);
    assert_eq!(error[28..], answer);
}

#[test]
fn a_packet_that_is_too_big_is_answered_with_what_its_sender_knows() {
    let mut pair = Pair::with_service(&[1]);
    let mut request = udp((CLIENT, 4000), (SERVICE, 53), &[7; 1500]);
    request[6] |= 0x40;
    crate::checksum::set_ipv4(&mut request, 20);
    pair.send(0, &request);
    let error = pair.delivered(0);
    let headers = Headers::parse(&error).unwrap();
    assert_eq!(headers.source, SERVICE.parse::<IpAddr>().unwrap());
    assert_eq!(error[28..], request[..error.len() - 28]);
}

/// Cuts a packet into fragments of 800 bytes.
fn fragments(whole: &[u8]) -> Vec<Vec<u8>> {
    let transport = &whole[20..];
    let piece = |at: usize| {
        let part = &transport[at..transport.len().min(at + 800)];
        let more = u16::from(at + 800 < transport.len());
        let mut piece = [&whole[..20], part].concat();
        piece[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
        piece[4..6].copy_from_slice(&[0, 9]);
        piece[6..8].copy_from_slice(&((at / 8) as u16 | more << 13).to_be_bytes());
        crate::checksum::set_ipv4(&mut piece, 20);
        piece
    };
    (0..transport.len()).step_by(800).map(piece).collect()
}

/// Puts fragments together again, and reads the packet strictly.
fn reassembled(mut pieces: Vec<Vec<u8>>) -> Seen {
    pieces.sort_by_key(|piece| u16::from_be_bytes([piece[6], piece[7]]) & 0x1fff);
    let mut whole = pieces[0].clone();
    pieces[1..].iter().for_each(|piece| whole.extend(&piece[20..]));
    let length = whole.len() as u16;
    whole[2..4].copy_from_slice(&length.to_be_bytes());
    whole[6..8].fill(0);
    crate::checksum::set_ipv4(&mut whole, 20);
    Seen::new(&whole)
}

#[test]
fn fragments_go_where_their_packet_goes_in_any_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut pair = Pair::with_service(&[1, 2, 3]);
        let request = fragments(&udp((CLIENT, 4000), (SERVICE, 53), &[7; 2000]));
        for number in order {
            pair.send(0, &request[number]);
        }
        let arrived = std::mem::take(&mut pair.nodes[1].wire.delivered);
        assert_eq!(arrived.len(), 3, "{order:?}");
        let request = reassembled(arrived);
        assert_eq!(request.from, "10.42.0.1:4000");
        let instance = request.instance();
        let answer = fragments(&udp((instance, 5353), (CLIENT, 4000), &[8; 2000]));
        for number in order {
            pair.send_from_instance(&answer[number]);
        }
        let arrived = std::mem::take(&mut pair.nodes[0].wire.delivered);
        assert_eq!(reassembled(arrived), seen("10.42.255.7:53", "10.42.0.1:4000", 0), "{order:?}");
    }
}

#[test]
fn fragments_of_an_instance_to_itself_come_from_the_service() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut pair = Pair::with_service(&[1]);
        let mut exchange = |pieces: Vec<Vec<u8>>| {
            for number in order {
                pair.send(1, &pieces[number]);
            }
            reassembled(std::mem::take(&mut pair.nodes[1].wire.delivered))
        };
        let request = fragments(&udp(("10.42.1.1", 4000), (SERVICE, 53), &[7; 2000]));
        assert_eq!(exchange(request), seen("10.42.255.7:4000", "10.42.1.1:5353", 0), "{order:?}");
        let mut answer = fragments(&udp(("10.42.1.1", 5353), (SERVICE, 4000), &[8; 2000]));
        for piece in &mut answer {
            // Another datagram.
            piece[4..6].copy_from_slice(&[0, 10]);
            crate::checksum::set_ipv4(piece, 20);
        }
        assert_eq!(exchange(answer), seen("10.42.255.7:53", "10.42.1.1:4000", 0), "{order:?}");
    }
}

#[test]
fn a_connect_to_an_instance_that_has_just_gone_goes_to_another_one() {
    let mut pair = Pair::with_service(&[1, 2]);
    let (now, beside) = (pair.now, pair.add_client_beside("10.42.1.9"));
    // The node knows that it is gone, and the view not yet.
    let tables = pair.nodes[1].endpoint.state.tables.read();
    let (gone, _) = tables.local_at("10.42.1.2".parse().unwrap()).unwrap();
    drop(tables);
    pair.nodes[1].endpoint.remove_workload(gone);
    for port in 5000..5020 {
        let request = tcp(("10.42.1.9", port), (SERVICE, 80), SYN, b"");
        pair.nodes[1].send(now, beside, Offload::None, &request);
        let arrived = Seen::new(&pair.delivered(1));
        assert_eq!(arrived.to, "10.42.1.1:8080", "and nothing to the client");
    }
    assert!(pair.service(1).refused > 0);
}

#[test]
fn a_refused_connect_goes_to_another_instance_before_its_client_notices() {
    let mut pair = Pair::with_service(&[1, 2]);
    let first = pair.request(&syn(4000));
    let refusal = tcp((first.instance(), 8080), (CLIENT, 4000), RST | ACK, b"");
    pair.send_from_instance(&refusal);
    assert!(pair.nodes[0].wire.delivered.is_empty(), "the client hears nothing of it");
    let second = Seen::new(&pair.delivered(1));
    assert_ne!(first.instance(), second.instance());
    let syn_ack = tcp((second.instance(), 8080), (CLIENT, 4000), SYN | ACK, b"");
    assert_eq!(pair.answer(&syn_ack), seen("10.42.255.7:80", "10.42.0.1:4000", SYN | ACK));
    let stats = pair.service(0);
    assert_eq!((stats.refused, stats.moved, stats.connections), (1, 1, 2));
    // If all refuse, the client is told.
    for port in 5000..5010 {
        let first = pair.request(&syn(port));
        assert_eq!(first.instance(), second.instance(), "the other one has just refused");
    }
    let mut pair = Pair::with_service(&[1, 2]);
    let first = pair.request(&syn(4000));
    pair.send_from_instance(&tcp((first.instance(), 8080), (CLIENT, 4000), RST | ACK, b""));
    let second = Seen::new(&pair.delivered(1));
    let refusal = tcp((second.instance(), 8080), (CLIENT, 4000), RST | ACK, b"");
    assert_eq!(pair.answer(&refusal), seen("10.42.255.7:80", "10.42.0.1:4000", RST | ACK));
}

#[test]
fn a_connect_without_an_answer_goes_to_another_instance_with_the_next_syn() {
    let mut pair = Pair::with_service(&[1, 2]);
    let first = pair.request(&syn(4000));
    pair.now += Duration::from_millis(100);
    assert_eq!(pair.request(&syn(4000)), first, "it may still answer");
    pair.now += Duration::from_secs(1);
    let second = pair.request(&syn(4000));
    assert_ne!(first.instance(), second.instance());
    // The first one answers after all: the client must not see two answers.
    pair.send_from_instance(&tcp((first.instance(), 8080), (CLIENT, 4000), SYN | ACK, b""));
    assert!(pair.nodes[0].wire.delivered.is_empty());
    assert_eq!(pair.drops(0, DropReason::Moved), 1);
    let stats = pair.service(0);
    assert_eq!((stats.unanswered, stats.moved), (1, 1));
}

#[test]
fn connections_to_an_instance_that_is_gone_end_at_once_and_datagrams_go_elsewhere() {
    let mut pair = Pair::with_service(&[1, 2]);
    let request = pair.request(&syn(4000));
    let instance = request.instance().to_owned();
    pair.answer(&tcp((&instance, 8080), (CLIENT, 4000), SYN | ACK, b""));
    let mut datagrams = (5000..5100).map(|port| {
        let datagram = udp((CLIENT, port), (SERVICE, 53), b"who");
        (pair.request(&datagram).instance().to_owned(), datagram)
    });
    let (_, datagram) = datagrams.find(|(of, _)| *of == instance).unwrap();
    let number = instance.rsplit('.').next().unwrap().parse().unwrap();
    pair.apply(0, &[ConfigChange::RemoveWorkload(instance_id(1, number))]);
    pair.send(0, &tcp((CLIENT, 4000), (SERVICE, 80), ACK, b"get"));
    let reset = Seen::new(&pair.delivered(0));
    assert_eq!((reset.from.as_str(), reset.flags & RST), ("10.42.255.7:80", RST));
    let moved = pair.request(&datagram);
    assert_ne!(moved.instance(), instance);
    assert_eq!(pair.service(0).moved, 2);
    let next = pair.request(&syn(4001));
    assert_ne!(next.instance(), instance);
}

#[test]
fn what_drains_keeps_its_connections_and_gets_no_others() {
    let mut pair = Pair::with_service(&[1, 2]);
    let request = pair.request(&syn(4000));
    let instance = request.instance().to_owned();
    pair.answer(&tcp((&instance, 8080), (CLIENT, 4000), SYN | ACK, b""));
    let number = instance.rsplit('.').next().unwrap().parse().unwrap();
    pair.apply(0, &[put_instance(1, number, Serving::Draining)]);
    let data = pair.request(&tcp((CLIENT, 4000), (SERVICE, 80), ACK, b"get"));
    assert_eq!(data.instance(), instance);
    for port in 5000..5050 {
        assert_ne!(pair.request(&syn(port)).instance(), instance);
    }
    let other = if number == 1 { 2 } else { 1 };
    pair.apply(0, &[put_instance(1, other, Serving::Draining)]);
    pair.send(0, &syn(6000));
    let refusal = Seen::new(&pair.delivered(0));
    assert_eq!(refusal, seen("10.42.255.7:80", "10.42.0.1:6000", RST | ACK));
    assert_eq!(pair.service(0).without_instance, 1);
}

#[test]
fn an_instance_that_is_unhealthy_for_one_service_gets_connections_through_another() {
    let mut pair = Pair::with_service(&[1, 2]);
    pair.apply(0, &[put_with_states(1, 1, states(Serving::Unhealthy, "admin"))]);
    let reached: HashSet<String> =
        (4000..4050).map(|port| pair.request(&syn(port)).instance().to_owned()).collect();
    assert_eq!(reached.len(), 2, "both are ready for this service: {reached:?}");
    pair.apply(0, &[put_with_states(1, 1, states(Serving::Unhealthy, "api"))]);
    for port in 5000..5050 {
        assert_eq!(pair.request(&syn(port)).instance(), "10.42.1.2");
    }
}

#[test]
fn a_client_may_use_one_port_for_a_service_and_for_its_instance_itself() {
    let mut pair = Pair::with_service(&[1]);
    pair.request(&syn(4000));
    pair.answer(&tcp(("10.42.1.1", 8080), (CLIENT, 4000), SYN | ACK, b""));
    let direct = pair.request(&tcp((CLIENT, 4000), ("10.42.1.1", 8080), SYN, b""));
    assert_eq!((direct.to.as_str(), direct.flags), ("10.42.1.1:8080", SYN));
    assert_ne!(direct.from, "10.42.0.1:4000");
    let port = direct.from.rsplit(':').next().unwrap().parse().unwrap();
    let answer = pair.answer(&tcp(("10.42.1.1", 8080), (CLIENT, port), SYN | ACK, b""));
    assert_eq!(answer, seen("10.42.1.1:8080", "10.42.0.1:4000", SYN | ACK));
    let more = pair.request(&tcp((CLIENT, 4000), ("10.42.1.1", 8080), ACK, b"get"));
    assert_eq!(more.from, direct.from);
    // The other way round: the service's connection gets another port.
    pair.request(&tcp((CLIENT, 4001), ("10.42.1.1", 8080), SYN, b""));
    let through = pair.request(&syn(4001));
    assert_ne!(through.from, "10.42.0.1:4001");
    let port = through.from.rsplit(':').next().unwrap().parse().unwrap();
    let answer = pair.answer(&tcp(("10.42.1.1", 8080), (CLIENT, port), SYN | ACK, b""));
    assert_eq!(answer, seen("10.42.255.7:80", "10.42.0.1:4001", SYN | ACK));
}

#[test]
fn a_restarted_daemon_goes_on_with_connections_through_services() {
    let mut pair = Pair::with_service(&[1, 2, 3]);
    let connections: Vec<(u16, String)> = (4000..4020)
        .map(|port| {
            let instance = pair.request(&syn(port)).instance().to_owned();
            pair.answer(&tcp((&instance, 8080), (CLIENT, port), SYN | ACK, b""));
            pair.request(&tcp((CLIENT, port), (SERVICE, 80), ACK, b"get"));
            (port, instance)
        })
        .collect();
    let saved = pair.nodes[0].endpoint.export_flows(time(pair.now), true);
    let mut other = Pair::with_service(&[1, 2, 3]);
    // Before they are imported, it is not known which instance they have.
    other.nodes[0].endpoint.state.filter.set_awaits_flows(true);
    for (port, _) in &connections {
        other.send(0, &tcp((CLIENT, *port), (SERVICE, 80), ACK, b"more"));
    }
    assert_eq!(other.drops(0, DropReason::AwaitsFlows), 20);
    assert!(other.nodes[1].wire.delivered.is_empty());
    other.nodes[0].endpoint.import_flows(time(other.now), &saved).unwrap();
    other.nodes[0].endpoint.note_flows_imported();
    std::mem::swap(&mut pair.nodes[0].endpoint, &mut other.nodes[0].endpoint);
    assert_eq!(pair.service(0).instances.iter().map(|own| own.open).sum::<u64>(), 20);
    // Sessions do not outlive the daemon.
    pair.now += Duration::from_secs(1);
    pair.request(&udp((CLIENT, 3999), (SERVICE, 53), b"who"));
    for (port, instance) in &connections {
        // The server speaks first in half of them.
        if port % 2 == 0 {
            let data = tcp((instance, 8080), (CLIENT, *port), ACK, b"got");
            assert_eq!(pair.answer(&data).from, "10.42.255.7:80");
        }
        let data = pair.request(&tcp((CLIENT, *port), (SERVICE, 80), ACK, b"more"));
        assert_eq!(data.instance(), instance);
    }
    assert_eq!(pair.service(0).instances.iter().map(|own| own.open).sum::<u64>(), 21);
}

impl Pair {
    /// Begins a connection of the client from this port, in which both have spoken. Returns the
    /// instance.
    fn connect(&mut self, port: u16) -> String {
        let instance = self.request(&syn(port)).instance().to_owned();
        self.answer(&tcp((&instance, 8080), (CLIENT, port), SYN | ACK, b""));
        self.request(&tcp((CLIENT, port), (SERVICE, 80), ACK, b"get"));
        instance
    }

    /// Loses what a node knows of flows, as in a crash.
    fn lose_flows(&mut self, at: usize) {
        let state = &mut self.nodes[at].endpoint.state;
        state.filter = crate::filter::Filter::new(self.now, crate::RESUME_WINDOW);
        state.services.connections = crate::services::connections::Connections::new(1024);
    }
}

#[test]
fn an_instance_goes_on_after_a_crash_with_what_its_client_asked_the_service_for() {
    let mut pair = Pair::with_service(&[1, 2, 3]);
    let connections: Vec<(u16, String)> =
        (4000..4020).map(|port| (port, pair.connect(port))).collect();
    pair.lose_flows(0);
    for (port, instance) in &connections {
        let data = tcp((instance, 8080), (CLIENT, *port), ACK, b"got");
        assert_eq!(pair.answer(&data), seen("10.42.255.7:80", &format!("{CLIENT}:{port}"), ACK));
        // The instance that has gone on is the one that the client's packets go to.
        let more = pair.request(&tcp((CLIENT, *port), (SERVICE, 80), ACK, b""));
        assert_eq!((more.instance(), more.flags), (instance.as_str(), ACK));
        assert_eq!(pair.answer(&data).from, "10.42.255.7:80");
        // Once it has spoken, a reset is a reset.
        let reset = pair.request(&tcp((CLIENT, *port), (SERVICE, 80), RST, b""));
        assert_eq!((reset.instance(), reset.flags), (instance.as_str(), RST));
    }
    assert_eq!(pair.drops(0, DropReason::Presumed), 0);
}

#[test]
fn a_connection_with_an_instance_itself_goes_on_after_a_crash() {
    let mut pair = Pair::with_service(&[1]);
    pair.request(&tcp((CLIENT, 4000), ("10.42.1.1", 8080), SYN, b""));
    pair.answer(&tcp(("10.42.1.1", 8080), (CLIENT, 4000), SYN | ACK, b""));
    pair.lose_flows(0);
    let data = tcp(("10.42.1.1", 8080), (CLIENT, 4000), ACK, b"got");
    assert_eq!(pair.answer(&data).from, "10.42.255.7:80", "it is taken for one with the service");
    // The client's kernel knows no such connection. The instance does not learn of that.
    pair.send(0, &tcp((CLIENT, 4000), (SERVICE, 80), RST, b""));
    assert_eq!(pair.drops(0, DropReason::Presumed), 1);
    assert!(pair.nodes[1].wire.delivered.is_empty());
    // The instance sends it again.
    assert_eq!(pair.answer(&data).from, "10.42.1.1:8080");
    let more = pair.request(&tcp((CLIENT, 4000), ("10.42.1.1", 8080), ACK, b"more"));
    assert_eq!((more.to.as_str(), more.from.as_str()), ("10.42.1.1:8080", "10.42.0.1:4000"));
    assert_eq!(pair.answer(&data).from, "10.42.1.1:8080");
    assert_eq!(pair.service(0).instances[0].open, 0, "none is open through the service");
}

#[test]
fn an_instance_waits_for_the_import_of_flows_and_for_nobody_that_the_rules_deny() {
    let mut pair = Pair::with_service(&[1]);
    pair.connect(4000);
    pair.lose_flows(0);
    let data = tcp(("10.42.1.1", 8080), (CLIENT, 4000), ACK, b"got");
    pair.nodes[0].endpoint.state.filter.set_awaits_flows(true);
    pair.send_from_instance(&data);
    assert_eq!(pair.drops(0, DropReason::AwaitsFlows), 1);
    pair.nodes[0].endpoint.state.filter.set_awaits_flows(false);
    pair.apply(0, &[ConfigChange::RemoveLink(WEB_TO_API)]);
    pair.send_from_instance(&data);
    assert!(pair.nodes[0].wire.delivered.is_empty());
    assert_eq!(pair.nodes[0].endpoint.state.services.connections.len(), 0);
}

#[test]
fn a_client_that_speaks_first_after_a_crash_has_the_instance_that_it_had() {
    let mut pair = Pair::with_service(&[1, 2, 3]);
    let connections: Vec<(u16, String)> =
        (4000..4020).map(|port| (port, pair.connect(port))).collect();
    pair.lose_flows(0);
    let same = connections.iter().filter(|(port, instance)| {
        let more = pair.request(&tcp((CLIENT, *port), (SERVICE, 80), ACK, b"more"));
        let is_same = more.instance() == instance;
        if !is_same {
            // What the other one still sends is not taken for a connection of its own.
            pair.send_from_instance(&tcp((instance, 8080), (CLIENT, *port), ACK, b"got"));
            assert!(pair.nodes[0].wire.delivered.is_empty());
        }
        is_same
    });
    assert!(same.count() >= 15, "rendezvous hashing finds nearly all");
}

#[test]
fn a_client_with_affinity_stays_with_its_instance_for_the_time() {
    let mut pair = Pair::with_service(&[1, 2, 3]);
    let affinity = Affinity::Client(Duration::from_mins(10));
    pair.apply(0, &[put_service(affinity, vec![])]);
    let first = pair.request(&syn(4000));
    for port in 4001..4020 {
        assert_eq!(pair.request(&syn(port)).instance(), first.instance());
    }
    let number: u8 = first.instance().rsplit('.').next().unwrap().parse().unwrap();
    pair.apply(0, &[put_instance(1, number, Serving::Draining)]);
    let second = pair.request(&syn(5000));
    assert_ne!(second.instance(), first.instance());
    pair.apply(0, &[put_instance(1, number, Serving::Ready)]);
    assert_eq!(pair.request(&syn(5001)).instance(), second.instance(), "it has moved");
    assert!(ANY_API.contains(&second.instance()));
}

#[test]
fn quic_goes_on_from_another_port_with_the_same_instance() {
    let mut pair = Pair::with_service(&[1, 2, 3]);
    for round in 0..8u16 {
        let (port, next) = (4000 + round, 5000 + round);
        let initial = udp((CLIENT, port), (SERVICE, 53), &[0xc0; 60]);
        let instance = pair.request(&initial).instance().to_owned();
        let short = udp((CLIENT, next), (SERVICE, 53), &[0x41; 60]);
        assert_eq!(pair.request(&short).instance(), instance);
    }
}

#[test]
fn what_one_workload_opens_takes_no_other_ones_connection() {
    let mut pair = Pair::with_service(&[1]);
    let connections = &mut pair.nodes[0].endpoint.state.services.connections;
    *connections = crate::services::connections::Connections::new(256);
    let addresses = vec!["10.42.0.9".parse().unwrap()];
    let config = WorkloadConfig {
        prefixes: vec![],
        node: name(0),
        addresses: addresses.clone(),
        identity: WEB,
        quarantine: Quarantine::None,
        states: InstanceStates::default(),
    };
    let flooder: WorkloadId = "flooder".parse().unwrap();
    (0..2).for_each(|at| {
        pair.apply(at, &[ConfigChange::PutWorkload(flooder.clone(), config.clone())]);
    });
    let workload = LocalWorkload { prefixes: vec![], id: flooder, addresses, vouched: None };
    let flooder = pair.nodes[0].endpoint.add_workload(workload);
    pair.request(&syn(4000));
    pair.answer(&tcp(("10.42.1.1", 8080), (CLIENT, 4000), SYN | ACK, b""));
    let now = pair.now;
    for port in 1..20_000 {
        let request = tcp(("10.42.0.9", port), (SERVICE, 80), SYN, b"");
        pair.nodes[0].send(now, flooder, Offload::None, &request);
        pair.nodes[0].wire.datagrams.clear();
    }
    assert!(pair.nodes[0].endpoint.state.services.connections.len() <= 256 + 64);
    let key = |port| {
        let headers = Headers::parse(&syn(port)).unwrap();
        crate::services::connections::ClientKey::of_packet(&headers)
    };
    assert!(pair.nodes[0].endpoint.state.services.connections.get(&key(4000)).is_some());
}

#[test]
fn connections_are_forgotten_with_their_flows() {
    let mut pair = Pair::with_service(&[1]);
    pair.request(&syn(4000));
    pair.request(&udp((CLIENT, 4000), (SERVICE, 53), b"who"));
    assert_eq!(pair.nodes[0].endpoint.state.services.connections.len(), 2);
    pair.wait(Duration::from_mins(3));
    assert_eq!(pair.nodes[0].endpoint.state.services.connections.len(), 0);
    assert_eq!(pair.service(0).instances[0].open, 0);
}

#[test]
fn a_cut_connection_is_reset_as_its_client_knows_it() {
    let mut pair = Pair::with_service(&[1]);
    pair.request(&syn(4000));
    pair.answer(&tcp(("10.42.1.1", 8080), (CLIENT, 4000), SYN | ACK, b""));
    let conduct = Conduct { on_revoke: meshward_types::OnRevoke::Reset, ..Conduct::default() };
    pair.apply(0, &[put_network(conduct)]);
    pair.apply(0, &[ConfigChange::RemoveLink(WEB_TO_API)]);
    let (now, node) = (pair.now, &mut pair.nodes[0]);
    node.tick(now);
    let resets: Vec<Seen> = node.wire.delivered.iter().map(|packet| Seen::new(packet)).collect();
    assert!(!resets.is_empty());
    for reset in resets {
        assert_eq!((reset.from.as_str(), reset.to.as_str()), ("10.42.255.7:80", "10.42.0.1:4000"));
    }
}

#[test]
fn segments_that_come_merged_are_delivered_from_the_service() {
    let mut pair = Pair::with_service(&[1]);
    pair.request(&syn(4000));
    pair.answer(&tcp(("10.42.1.1", 8080), (CLIENT, 4000), SYN | ACK, b""));
    pair.request(&tcp((CLIENT, 4000), (SERVICE, 80), ACK, b"get"));
    let mut whole = build::packet("10.42.1.1", CLIENT, 6, (8080, 4000), &[7; 4000]);
    (whole[32], whole[33]) = (5 << 4, ACK);
    whole[24..32].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 4]);
    let offload = Offload::Segment { kind: SegmentKind::TcpV4, size: 1000, headers: 40, start: 20 };
    let (now, workload) = (pair.now, pair.nodes[1].workload);
    pair.nodes[1].send(now, workload, offload, &whole);
    let datagrams: Vec<Vec<u8>> =
        std::mem::take(&mut pair.nodes[1].wire.datagrams).into_iter().map(|own| own.1).collect();
    let size = datagrams[0].len();
    let mut buffer = datagrams.concat();
    let (from, range) = (pair.nodes[1].address, 0..buffer.len());
    let node = &mut pair.nodes[0];
    let mut batch = node.endpoint.begin_batch(&mut node.scratch, now);
    let received = Received { from, ecn: Ecn::NotCapable, range, size };
    batch.ingress(received, &mut buffer, &mut node.wire);
    batch.deliver(&mut buffer, &mut node.wire);
    batch.finish(&mut node.wire);
    let mut merged = pair.delivered(0);
    assert_eq!(merged.len(), whole.len());
    for segment in crate::fuzzing::cut(&mut merged, offload).unwrap() {
        assert_eq!(Seen::new(&segment).from, "10.42.255.7:80");
    }
    // The checksum that the kernel completes is that of the pseudo-header.
    let headers = Headers::parse(&merged).unwrap();
    let pseudo = crate::checksum::Sum::default().add_pseudo(
        headers.source,
        headers.destination,
        6,
        merged.len() - 20,
    );
    assert_eq!(merged[36..38], pseudo.fold());
}
