//! Services beside a naive model, over any history of packets, instances, restarts and time.
//!
//! Clients and instances are on one node. The model is a list of what was sent and what arrived:
//! each packet has a number, so it is known again. Every packet that arrives is valid; an instance
//! gets what clients have sent to it or to the service; and what a client gets is an answer to what
//! it has sent, from where it has sent it.

use super::{strict, with_checksums};
use crate::{
    config::{ConfigChange, Link, NetworkConfig, Quarantine, ServiceConfig, WorkloadConfig},
    ecn::Ecn,
    endpoint::api::Endpoint,
    gather::GatherList,
    headers::{FIN, Headers, Icmp, RST, SYN},
    icmp_error::Quoted,
    index::WorkloadIndex,
    keys::SecretKey,
    offload::Offload,
    packet_batch::WorkerScratch,
    reject::{IcmpError, icmp_error},
    sink::Sink,
    tcp::ACK,
    transport::state::Now,
    workload::LocalWorkload,
};
use meshward_fuzzing::Bytes;
use meshward_types::{
    Acl, AclEntry, Affinity, Conduct, IdentityId, InstanceStates, NodeName, PortRange, Protocol,
    ServicePort, Serving, WorkloadId,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

const CLIENTS: usize = 2;
const INSTANCES: usize = 3;
const WEB: IdentityId = IdentityId(1);
const API: IdentityId = IdentityId(2);
/// The ports of the service, and of its instances.
const PORTS: [(u8, u16, u16); 2] = [(6, 80, 8080), (17, 53, 5353)];

/// The addresses and ports of a packet, and its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
}

impl Ends {
    fn of(headers: &Headers) -> Self {
        Self {
            from: (headers.source, headers.source_port).into(),
            to: (headers.destination, headers.destination_port).into(),
            protocol: headers.ip_protocol,
        }
    }

    fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

/// A packet that was sent, and how it has arrived.
#[derive(Debug, Clone)]
struct Sent {
    by: usize,
    ends: Ends,
    arrived: Vec<Ends>,
}

/// The sender of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A workload.
    Workload,
    /// The node itself: a reset in an instance's name.
    Node,
}

struct World {
    endpoint: Endpoint,
    scratch: WorkerScratch,
    now: Instant,
    start: Instant,
    workloads: Vec<WorkloadIndex>,
    serving: [Option<Serving>; INSTANCES],
    out: Out,
    sent: Vec<Sent>,
    /// The newest packets that workloads got.
    received: Vec<(usize, Vec<u8>)>,
}

#[derive(Default)]
struct Out(Vec<(WorkloadIndex, Vec<u8>)>);

impl Sink for Out {
    fn to_workload(&mut self, to: WorkloadIndex, _: Offload, packet: GatherList<'_>) -> bool {
        self.0.push((to, packet.to_vec()));
        true
    }
    fn to_network(&mut self, _: SocketAddr, _: Ecn, _: &[u8], _: usize) -> bool {
        panic!("nothing is elsewhere");
    }
    fn to_network_unfragmented(&mut self, _: SocketAddr, _: &[u8]) {}
    fn queue_handshake(&mut self, _: SocketAddr, _: &[u8]) -> bool {
        false
    }
    fn request_handshakes(&mut self) {}
}

/// Runs a history that bytes describe.
pub(super) fn services(data: &[u8]) {
    let mut choices = Bytes(data);
    let mut world = World::new();
    while !choices.is_empty() {
        world.step(&mut choices);
    }
}

pub(super) fn samples() -> Vec<Vec<u8>> {
    (1..5)
        .map(|seed| (0..500u32).map(|at| ((at * at * 37 + at * seed * 11) >> 3) as u8).collect())
        .collect()
}

fn address(number: usize, is_v6: bool) -> IpAddr {
    match is_v6 {
        false => [10, 42, 0, number as u8 + 1].into(),
        true => [0xfd42, 0, 0, 0, 0, 0, 0, number as u16 + 1].into(),
    }
}

fn service(is_v6: bool) -> IpAddr {
    match is_v6 {
        false => [10, 42, 255, 7].into(),
        true => [0xfd42, 0, 0, 0xff, 0, 0, 0, 7].into(),
    }
}

fn id(number: usize) -> WorkloadId {
    format!("w{number}").parse().expect("a name")
}

fn node() -> NodeName {
    "node".parse().expect("a name")
}

fn endpoint(now: Instant) -> (Endpoint, Vec<WorkloadIndex>) {
    let endpoint = Endpoint::new(node(), SecretKey::from_bytes([1; 32]), now, Duration::ZERO);
    let add = |number| {
        let addresses = vec![address(number, false), address(number, true)];
        endpoint.add_workload(LocalWorkload {
            id: id(number),
            addresses,
            prefixes: vec![],
            vouched: None,
        })
    };
    let workloads = (0..CLIENTS + INSTANCES).map(add).collect();
    let entries = PORTS.map(|(protocol, _, target)| AclEntry {
        protocol: Protocol::from_ip(protocol),
        ports: PortRange { first: target, last: target },
    });
    let acl = Acl::new(entries.to_vec());
    let ports = PORTS.map(|(protocol, port, target)| ServicePort {
        protocol: Protocol::from_ip(protocol),
        port,
        target,
    });
    let config = ServiceConfig {
        addresses: vec![service(false), service(true)],
        ports: ports.to_vec(),
        identities: vec![API],
        prefer: vec![],
        affinity: Affinity::None,
        weights: vec![],
    };
    let blocks = ["10.42.255.0/24", "fd42:0:0:ff::/64"];
    let network = NetworkConfig {
        prefixes: vec![],
        service_blocks: blocks.map(|block| block.parse().expect("a prefix")).to_vec(),
        mtu: 1420,
        conduct: Conduct::default(),
    };
    let mut changes = vec![
        ConfigChange::SetNetwork(network),
        ConfigChange::PutIdentity(WEB, Quarantine::None),
        ConfigChange::PutIdentity(API, Quarantine::None),
        ConfigChange::PutLink(Link { from: WEB, to: API }, acl.clone()),
        ConfigChange::PutLink(Link { from: API, to: API }, acl),
        ConfigChange::PutService("api".parse().expect("a name"), config),
    ];
    changes.extend((0..CLIENTS).map(|number| put_workload(number, WEB, Serving::Ready)));
    endpoint.apply(now, changes);
    (endpoint, workloads)
}

fn put_workload(number: usize, identity: IdentityId, serving: Serving) -> ConfigChange {
    let config = WorkloadConfig {
        node: node(),
        addresses: vec![address(number, false), address(number, true)],
        prefixes: vec![],
        identity,
        quarantine: Quarantine::None,
        states: states(serving),
    };
    ConfigChange::PutWorkload(id(number), config)
}

/// Returns the states of an instance of the service `api`.
fn states(serving: Serving) -> InstanceStates {
    match serving {
        Serving::Ready => InstanceStates::default(),
        Serving::Draining => InstanceStates { draining: true, ..InstanceStates::default() },
        Serving::Unhealthy => {
            InstanceStates { unhealthy: ["api".parse().expect("a name")].into(), draining: false }
        }
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let (endpoint, workloads) = endpoint(now);
        let mut world = Self {
            endpoint,
            scratch: WorkerScratch::default(),
            now,
            start: now,
            workloads,
            serving: [Some(Serving::Ready); INSTANCES],
            out: Out::default(),
            sent: vec![],
            received: vec![],
        };
        (0..INSTANCES).for_each(|number| world.apply_serving(number));
        world
    }

    fn time(&self) -> Now {
        let unix = Duration::from_secs(1_700_000_000) + (self.now - self.start);
        Now { instant: self.now, unix }
    }

    fn apply_serving(&mut self, number: usize) {
        let change = match self.serving[number] {
            Some(serving) => put_workload(CLIENTS + number, API, serving),
            None => ConfigChange::RemoveWorkload(id(CLIENTS + number)),
        };
        self.endpoint.apply(self.now, [change]);
    }

    fn step(&mut self, choices: &mut Bytes<'_>) {
        match choices.below(16) {
            0 => self.now += Duration::from_millis(choices.below(3000) as u64),
            1 if choices.below(4) == 0 => self.now += Duration::from_secs(100),
            1 => {
                let time = self.time();
                self.endpoint.tick(time, &mut self.scratch, &mut self.out);
                self.check_arrivals();
            }
            2 if choices.below(2) == 0 => self.restart(),
            2 | 3 => {
                let number = choices.below(INSTANCES);
                let all = [Some(Serving::Ready), Some(Serving::Draining), Some(Serving::Unhealthy)];
                self.serving[number] = all.get(choices.below(4)).copied().flatten();
                self.apply_serving(number);
            }
            4..=8 => self.request(choices),
            9..=13 => self.answer(choices),
            _ => self.send_error(choices),
        }
    }

    fn restart(&mut self) {
        let saved = self.endpoint.export_flows(self.time(), true);
        let (endpoint, workloads) = endpoint(self.now);
        (self.endpoint, self.workloads) = (endpoint, workloads);
        (0..INSTANCES).for_each(|number| self.apply_serving(number));
        self.endpoint.import_flows(self.time(), &saved).expect("it was written a moment ago");
    }

    /// Has a client, or an instance, send something to the service or to an instance.
    fn request(&mut self, choices: &mut Bytes<'_>) {
        let (by, is_v6) = (choices.below(CLIENTS + INSTANCES), choices.below(4) == 0);
        let (protocol, port, target) = PORTS[choices.below(2)];
        let to: SocketAddr = match choices.below(4) {
            0 => (address(CLIENTS + choices.below(INSTANCES), is_v6), target).into(),
            _ => (service(is_v6), port).into(),
        };
        let from: SocketAddr = (address(by, is_v6), 4000 + choices.below(2) as u16).into();
        let flags = [SYN, SYN, ACK, ACK, FIN | ACK, RST][choices.below(6)];
        // A kernel sends nothing to its own address by an interface.
        if from.ip() != to.ip() {
            self.send(by, Ends { from, to, protocol }, flags);
        }
    }

    /// Has a workload answer something that it has received lately.
    fn answer(&mut self, choices: &mut Bytes<'_>) {
        let Some((by, packet)) = self.lately(choices) else { return };
        let headers = Headers::parse(&packet).expect("it was checked");
        if headers.icmp != Icmp::None {
            return;
        }
        let flags = [SYN | ACK, SYN | ACK, ACK, FIN | ACK, RST | ACK][choices.below(5)];
        self.send(by, Ends::of(&headers).reversed(), flags);
    }

    fn send_error(&mut self, choices: &mut Bytes<'_>) {
        let Some((by, packet)) = self.lately(choices) else { return };
        let headers = Headers::parse(&packet).expect("it was checked");
        let kind = IcmpError { kind_v4: [3, 3], kind_v6: [1, 4], rest: 0 };
        let limit = if choices.below(2) == 0 { 28 + 28 } else { 576 };
        let limit = if headers.source.is_ipv6() { limit + 60 } else { limit };
        if headers.icmp == Icmp::None {
            self.put(by, icmp_error(&packet, &headers, kind, limit));
        }
    }

    fn lately(&self, choices: &mut Bytes<'_>) -> Option<(usize, Vec<u8>)> {
        let newest = self.received.len().checked_sub(1 + choices.below(6))?;
        self.received.get(newest).cloned()
    }

    fn send(&mut self, by: usize, ends: Ends, flags: u8) {
        let number = (self.sent.len() as u32).to_be_bytes();
        self.sent.push(Sent { by, ends, arrived: vec![] });
        let mut transport = match ends.protocol {
            6 => vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0],
            _ => vec![0; 8],
        };
        if flags & SYN != 0 && ends.protocol == 6 {
            transport[7] = 0;
        }
        transport[..2].copy_from_slice(&ends.from.port().to_be_bytes());
        transport[2..4].copy_from_slice(&ends.to.port().to_be_bytes());
        transport.extend(number);
        let packet = match (ends.from.ip(), ends.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, ends.protocol, 0, 0];
                header[3] = 20 + transport.len() as u8;
                [&header[..], &from.octets(), &to.octets(), &transport].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = [0x60, 0, 0, 0, 0, transport.len() as u8, ends.protocol, 64];
                [&header[..], &from.octets(), &to.octets(), &transport].concat()
            }
            _ => return,
        };
        self.put(by, with_checksums(&packet));
    }

    fn put(&mut self, by: usize, mut packet: Vec<u8>) {
        let mut batch = self.endpoint.begin_batch(&mut self.scratch, self.now);
        batch.egress(self.workloads[by], Offload::None, &mut packet, &mut self.out);
        batch.finish(&mut self.out);
        self.check_arrivals();
    }

    fn check_arrivals(&mut self) {
        for (to, packet) in std::mem::take(&mut self.out.0) {
            let at = self.workloads.iter().position(|own| *own == to).expect("a workload");
            let headers = Headers::parse(&packet).expect("well-formed");
            let is_v6 = headers.destination.is_ipv6();
            assert_eq!(headers.destination, address(at, is_v6), "its own address");
            if headers.icmp == Icmp::Error {
                self.check_error(at, &packet, &headers);
            } else {
                strict(&packet);
                if self.check_packet(at, &packet, &headers) == Origin::Node {
                    // Nobody answers a reset.
                    continue;
                }
            }
            self.received.push((at, packet));
        }
    }

    fn check_packet(&mut self, at: usize, packet: &[u8], headers: &Headers) -> Origin {
        let ends = Ends::of(headers);
        let head = headers.payload + if headers.ip_protocol == 6 { 20 } else { 8 };
        let Some(number) = packet.get(head..head + 4) else {
            // This node's own: a reset, to somebody who has sent there.
            let known = |sent: &Sent| sent.by == at && sent.ends == ends.reversed();
            assert!(self.sent.iter().any(known), "{ends:?} answers nothing that {at} has sent");
            return Origin::Node;
        };
        let number = u32::from_be_bytes([number[0], number[1], number[2], number[3]]) as usize;
        let sent = self.sent[number].clone();
        // Who answers, answers as somebody who has sent to it sees it.
        let is_answer = |asked: &Sent| {
            asked.by == at
                && asked.ends.reversed() == ends
                && asked.arrived.contains(&sent.ends.reversed())
        };
        if !self.sent.iter().any(is_answer) {
            let target = PORTS.iter().find(|own| own.0 == ends.protocol).expect("a protocol").2;
            let newest = &self.sent[self.sent.len().saturating_sub(12)..];
            let is_request = ends.to.port() == target;
            assert!(is_request, "{sent:?} came to {at} as {ends:?}; {newest:#?}");
            let is_own = sent.ends.from.ip() == ends.from.ip();
            let is_looped = at == sent.by && ends.from.ip() == service(headers.source.is_ipv6());
            assert!(is_own || is_looped, "{sent:?} came to {at} as {ends:?}");
        }
        self.sent[number].arrived.push(ends);
        Origin::Workload
    }

    /// Checks that an error quotes what its receiver has sent.
    fn check_error(&self, at: usize, packet: &[u8], headers: &Headers) {
        let quoted = Quoted::read(packet, headers).expect("it quotes something");
        let ends = Ends::of(&quoted.headers);
        let known = |sent: &Sent| sent.by == at && sent.ends == ends;
        assert!(self.sent.iter().any(known), "{ends:?} is nothing that {at} has sent");
    }
}

#[cfg(test)]
mod tests {
    use super::services;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]
        #[test]
        fn what_arrives_is_what_the_model_expects(data in prop::collection::vec(any::<u8>(), 0..900)) {
            services(&data);
        }
    }
}
