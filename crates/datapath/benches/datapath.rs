//! The packet path by itself, on one core: `cargo bench -p meshward-datapath`. Prints figures as
//! JSON, in the form of `cargo xtask bench`.

use boringtun::noise::{Tunn, TunnResult};
use meshward_control_proto::{
    Change, Resource, ResourceKey,
    view::{IdentitySpec, NetworkSpec, PeerSpec, WorkloadSpec},
};
use meshward_datapath::{
    Ecn, Endpoint, Filter, FilterInput, GatherList, Headers, LocalWorkload, MAX_FLOWS, Now,
    Offload, Party, QuotaOwner, Received, Rules, SecretKey, SegmentKind, Sink, Tally,
    WorkerScratch, WorkloadIndex,
};
use meshward_types::{
    Acl, AclEntry, IdentityId, NetworkName, NodeName, PortRange, Protocol, WorkloadId,
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const WEB: IdentityId = IdentityId(1);
const API: IdentityId = IdentityId(2);
const PORT: u16 = 5201;
/// Segments of a super-packet of TCP: as many as leave in one call.
const SEGMENTS: usize = 44;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (runs, time) =
        if quick { (1, Duration::from_millis(50)) } else { (7, Duration::from_millis(400)) };
    let mut rows = Vec::new();
    for rules in [1, 10_000] {
        let values: Vec<f64> = (0..runs).map(|_| new_flows(rules, quick)).collect();
        let target = (rules > 1).then_some(500_000.0);
        rows.push(row(
            &format!("filter/{rules} rules"),
            "new flows on one core",
            "1/s",
            &values,
            target,
        ));
    }
    let values: Vec<f64> = (0..runs).map(|_| cached_flow(time)).collect();
    rows.push(row("filter/10000 rules", "packet of a known flow", "ns", &values, None));
    // In turns, so that both meet the same moments of the machine.
    let (mut alone, mut beside_flood) = (Vec::new(), Vec::new());
    let connections_each = if quick { 6_000 } else { 60_000 };
    for _ in 0..runs {
        alone.push(connections(connections_each, false));
        beside_flood.push(connections(connections_each, true));
    }
    let metric = "a new connection while a neighbour opens flows as fast as it can";
    let mut flooded = beside("filter/neighbour", metric, &beside_flood, "alone", &alone);
    flooded["target"] = json!("<= 1.2");
    flooded["met"] = json!(flooded["ratio"].as_f64().is_some_and(|ratio| ratio <= 1.2));
    rows.push(flooded);
    for (case, size) in [("1420 B", 1420), ("92 B", 92)] {
        // In turns, so that all three meet the same moments of the machine.
        let (mut ours, mut theirs, mut floor) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            ours.push(whole_path(size, time));
            theirs.push(boringtun_engine(size, time));
            floor.push(aead(size, time));
        }
        let metric = "sent and received, on one core";
        rows.push(beside(
            &format!("packet/{case}"),
            metric,
            &ours,
            "boringtun's engine alone",
            &theirs,
        ));
        rows.push(beside(&format!("packet/{case}"), metric, &ours, "AEAD floor", &floor));
    }
    println!("{}", Value::Array(rows));
}

fn row(case: &str, metric: &str, unit: &str, values: &[f64], at_least: Option<f64>) -> Value {
    let value = median(values);
    json!({
        "bench": "datapath", "case": case, "metric": metric, "unit": unit, "value": value, "spread": spread(values),
        "against": null, "against_value": null, "ratio": null,
        "target": at_least.map(|least| format!(">= {least}")), "met": at_least.map(|least| value >= least),
    })
}

fn beside(case: &str, metric: &str, ours: &[f64], name: &str, theirs: &[f64]) -> Value {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    json!({
        "bench": "datapath", "case": case, "metric": metric, "unit": "ns", "value": median(ours), "spread": spread(ours),
        "against": name, "against_value": median(theirs), "ratio": median(&ratios), "target": null, "met": null,
    })
}

fn spread(values: &[f64]) -> [f64; 2] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    [least, values.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Runs something for some time: nanoseconds for each of the `each` things that one run does.
fn nanoseconds(time: Duration, each: usize, mut run: impl FnMut()) -> f64 {
    for _ in 0..16 {
        run();
    }
    let (begun, mut count) = (Instant::now(), 0u64);
    while begun.elapsed() < time {
        for _ in 0..16 {
            run();
        }
        count += 16;
    }
    begun.elapsed().as_nanos() as f64 / (count as f64 * each as f64)
}

/// An ACL of so many entries of which no two touch, the load's among them.
fn acl(rules: u16) -> Acl {
    let entry =
        |port| AclEntry { protocol: Protocol::Udp, ports: PortRange { first: port, last: port } };
    let tcp = AclEntry { protocol: Protocol::Tcp, ports: PortRange { first: PORT, last: PORT } };
    Acl::new((0..rules).map(|rule| entry(PORT + 2 * rule)).chain([tcp]).collect())
}

fn rules(count: u16) -> Rules {
    let mut rules = Rules::default();
    rules.set_identity(WEB, Some(false));
    rules.set_identity(API, Some(false));
    rules.set_link(WEB, API, Some(acl(count)));
    rules
}

fn party(identity: IdentityId) -> Party {
    Party {
        identity,
        quarantined: false,
        reset: false,
        owner: QuotaOwner::Workload(WorkloadIndex(identity.0)),
    }
}

/// An IPv4 packet of `length` bytes.
fn packet(protocol: u8, source_port: u16, length: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; length];
    packet[..20].copy_from_slice(&[
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 42, 0, 1, 10, 42, 1, 1,
    ]);
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    let sum = checksum(&packet[..20], 0);
    packet[10..12].copy_from_slice(&sum);
    packet[20..22].copy_from_slice(&source_port.to_be_bytes());
    packet[22..24].copy_from_slice(&PORT.to_be_bytes());
    if protocol == 17 {
        packet[24..26].copy_from_slice(&((length - 20) as u16).to_be_bytes());
        packet[26..28].fill(0);
        let sum = checksum(&packet[12..], u32::from(protocol) + (length - 20) as u32);
        packet[26..28].copy_from_slice(&sum);
    } else {
        packet[32..34].copy_from_slice(&[5 << 4, 0x10]);
    }
    packet
}

fn checksum(bytes: &[u8], seed: u32) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum = seed + words.sum::<u32>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Has the filter check a packet, which may pass.
fn check(filter: &Filter, rules: &Rules, now: Instant, packet: &[u8], [from, to]: [IdentityId; 2]) {
    let headers = Headers::parse(packet).expect("a valid packet");
    let tally = Tally { packets: 1, bytes: packet.len() as u64 };
    let (source, destination) = (party(from), party(to));
    let input = FilterInput { packet, headers: &headers, source, destination, tally };
    filter.check(rules, now, &input).expect("the link is open");
}

/// First packets of flows a second: headers read, the link's ACL checked, the flow begun.
fn new_flows(count: u16, quick: bool) -> f64 {
    let (rules, now) = (rules(count), Instant::now());
    let filter = Filter::new(now, Duration::ZERO);
    let flows = if quick { 20_000u32 } else { 600_000 };
    let mut packet = packet(17, 0, 92);
    let begun = Instant::now();
    for flow in 0..flows {
        packet[15] = (flow >> 16) as u8;
        packet[20..22].copy_from_slice(&(flow as u16).to_be_bytes());
        check(&filter, &rules, now, &packet, [WEB, API]);
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(filter.flows(), flows as usize);
    f64::from(flows) / seconds
}

/// Nanoseconds for the three packets of a connection's handshake and one of data: the median of
/// connections of which none has been there before. `flooded`: a neighbour has filled the table,
/// and goes on with it. None may be refused.
fn connections(count: u16, flooded: bool) -> f64 {
    const FLOODER: IdentityId = IdentityId(3);
    let (mut rules, now) = (rules(1), Instant::now());
    rules.set_identity(FLOODER, Some(false));
    rules.set_link(FLOODER, API, Some(acl(1)));
    let filter = Filter::new(now, Duration::ZERO);
    let flood = |flow: u32| {
        let mut packet = packet(17, flow as u16, 92);
        packet[15] = 9;
        packet[18..20].copy_from_slice(&((flow >> 16) as u16 | 0x8000).to_be_bytes());
        check(&filter, &rules, now, &packet, [FLOODER, API]);
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if flooded {
            (0..MAX_FLOWS as u32).for_each(flood);
            scope.spawn(|| {
                (MAX_FLOWS as u32..).take_while(|_| !stop.load(Relaxed)).for_each(flood);
            });
        }
        let opened = (0..count).map(|port| {
            let begun = Instant::now();
            for (number, flags) in [2u8, 0x12, 0x10, 0x10].into_iter().enumerate() {
                let mut packet = packet(6, port, 92);
                let back = flags == 0x12;
                packet[33] = flags;
                packet[24..32].copy_from_slice(&[
                    0,
                    0,
                    0,
                    u8::from(number > 1),
                    0,
                    0,
                    0,
                    u8::from(number > 0),
                ]);
                if back {
                    let (source, destination) = packet[12..20].split_at_mut(4);
                    source.swap_with_slice(destination);
                    let (source, destination) = packet[20..24].split_at_mut(2);
                    source.swap_with_slice(destination);
                    check(&filter, &rules, now, &packet, [API, WEB]);
                } else {
                    check(&filter, &rules, now, &packet, [WEB, API]);
                }
            }
            begun.elapsed().as_nanos() as f64
        });
        let opened: Vec<f64> = opened.collect();
        stop.store(true, Relaxed);
        median(&opened)
    })
}

fn cached_flow(time: Duration) -> f64 {
    let (rules, now) = (rules(10_000), Instant::now());
    let (filter, packet) = (Filter::new(now, Duration::ZERO), packet(17, 4000, 92));
    nanoseconds(time, 1, || check(&filter, &rules, now, &packet, [WEB, API]))
}

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

fn node_name(at: usize) -> NodeName {
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

/// What the coordinator says to node `at`: the network, its peer, two workloads and the link.
fn view(at: usize) -> Vec<Change> {
    let network: NetworkName = "bench".parse().expect("a name");
    let other = 1 - at;
    let peer = PeerSpec {
        public_key: secret(other).public(),
        candidates: vec![address(other)],
        prefixes: vec![format!("10.42.{other}.0/24").parse().expect("a prefix")],
    };
    let spec = NetworkSpec::with_mtu(1420);
    let mut changes = vec![
        Change::Put(ResourceKey::Network(network.clone()), Resource::Network(spec)),
        Change::Put(ResourceKey::Peer(network.clone(), node_name(other)), Resource::Peer(peer)),
        Change::Put(ResourceKey::Link(network.clone(), WEB, API), Resource::Link(acl(10_000))),
    ];
    for (at, identity) in [(0, WEB), (1, API)] {
        let spec = IdentitySpec {
            labels: format!("app=a{at}").parse().expect("labels"),
            accepts: vec![],
            quarantined: false,
            reset: false,
        };
        let key = ResourceKey::Identity(network.clone(), identity);
        changes.push(Change::Put(key, Resource::Identity(spec)));
        let spec = WorkloadSpec {
            prefixes: vec![],
            node: node_name(at),
            addresses: vec![workload_address(at)],
            identity,
            quarantined: false,
            reset: false,
        };
        let key = ResourceKey::Workload(network.clone(), workload_id(at));
        changes.push(Change::Put(key, Resource::Workload(spec)));
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
            endpoint.apply(instant, &view(at));
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
                    address(1 - at),
                    &message,
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
        let place = 0..datagrams.len();
        let mut batch = self.nodes[at].begin_batch(&mut self.scratches[at], self.now.instant);
        batch.ingress(
            Received {
                from: address(1 - at),
                ecn: Ecn::NotCapable,
                range: place,
                size: self.wire.size,
            },
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

/// A packet from one workload to another through two endpoints: read, checked, cut, summed, sealed;
/// opened, merged, checked.
fn whole_path(size: usize, time: Duration) -> f64 {
    let mut pair = Pair::new();
    if size < 1000 {
        // Small ones come one by one, and leave together.
        let mut small = packet(17, 4000, size);
        return nanoseconds(time, 64, || {
            let mut batch = pair.nodes[0].begin_batch(&mut pair.scratches[0], pair.now.instant);
            for _ in 0..64 {
                batch.egress(WorkloadIndex(0), Offload::None, &mut small, &mut pair.wire);
            }
            batch.finish(&mut pair.wire);
            pair.receive(1);
        });
    }
    let mut super_packet = packet(6, 4000, 40 + SEGMENTS * (size - 40));
    let offload = Offload::Segment {
        kind: SegmentKind::TcpV4,
        size: (size - 40) as u16,
        headers: 40,
        start: 20,
    };
    let before = pair.wire.delivered;
    let each = nanoseconds(time, SEGMENTS, || {
        pair.send(&mut super_packet, offload);
        pair.receive(1);
    });
    assert!(
        (pair.wire.delivered - before).is_multiple_of(super_packet.len()),
        "everything arrived"
    );
    each
}

/// What boringtun takes to seal and open a packet, with nothing around it.
fn boringtun_engine(size: usize, time: Duration) -> f64 {
    let key = |byte: u8| x25519_dalek::StaticSecret::from([byte; 32]);
    let public = |byte| x25519_dalek::PublicKey::from(&key(byte));
    let mut sender = Tunn::new(key(1), public(2), None, None, 1, None);
    let mut receiver = Tunn::new(key(2), public(1), None, None, 2, None);
    let (mut sealed, mut opened) = (vec![0; size + 200], vec![0; size + 200]);
    let packet = packet(17, 4000, size);
    let written = |result: TunnResult| match result {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("no message: {other:?}"),
    };
    let initiation = written(sender.format_handshake_initiation(&mut sealed, false));
    let response = written(receiver.decapsulate(None, &initiation, &mut sealed));
    let keepalive = written(sender.decapsulate(None, &response, &mut sealed));
    receiver.decapsulate(None, &keepalive, &mut opened);
    nanoseconds(time, 1, || {
        let TunnResult::WriteToNetwork(datagram) = sender.encapsulate(&packet, &mut sealed) else {
            panic!("nothing was sealed");
        };
        let TunnResult::WriteToTunnelV4(..) = receiver.decapsulate(None, datagram, &mut opened)
        else {
            panic!("nothing was opened");
        };
    })
}

/// ring's seal and open on as many bytes.
fn aead(size: usize, time: Duration) -> f64 {
    let key =
        LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("a key of 32 bytes"));
    let mut buffer = vec![0; size];
    let mut number = 0u64;
    nanoseconds(time, 1, || {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        number += 1;
        buffer.truncate(size);
        let seal = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(seal, Aad::empty(), &mut buffer).expect("it can be sealed");
        let open = Nonce::assume_unique_for_key(nonce);
        key.open_in_place(open, Aad::empty(), &mut buffer).expect("it can be opened");
    })
}
