//! Connections through services, on real devices: translation, policy, failover, and restarts.

mod health;

use crate::{
    names::{dig, resolver},
    support::{Echo, PATIENCE, SILENCE, Stream, connect, mesh, tcp_echoes, udp_echoes},
};
use meshward_lab::{Mesh, Node, Workload};
use meshward_netns::Netns;
use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// The service `api`, with these rules.
fn policy(rules: &str) -> String {
    checked("", rules)
}

/// The service `api`, with this health check, as in `health: { tcp: 8080 }`.
fn checked(health: &str, rules: &str) -> String {
    format!(
        "network: shop
services:
  - name: api
    for: {{ app: api }}
    ports: [{{ port: 80, to: 8080 }}, {{ protocol: udp, port: 53, to: 8080 }}]
    fan_out: all
    {health}
rules:
  - {{ name: api-api, from: {{ app: api }}, to: {{ service: api }} }}
{rules}"
    )
}

const WEB_API: &str = "  - { name: web-api, from: { app: web }, to: { service: api } }\n";

/// A client on the first node, and instances on both.
struct Group {
    web: Workload,
    instances: Vec<Workload>,
    nodes: [Node; 2],
    /// The service's virtual addresses, IPv4 first.
    addresses: [IpAddr; 2],
    mesh: Mesh,
}

impl Group {
    /// Starts as many instances on each of the nodes. The client finds the service by its name.
    fn new(counts: [usize; 2]) -> Self {
        Self::with(counts, &policy(WEB_API))
    }

    fn with(counts: [usize; 2], policy: &str) -> Self {
        let mut mesh = mesh();
        let nodes = [mesh.node("cloud").start().unwrap(), mesh.node("rack").start().unwrap()];
        let web = nodes[0].attach("shop", "app=web").unwrap();
        let instances = counts
            .iter()
            .zip(&nodes)
            .flat_map(|(count, node)| (0..*count).map(|_| node.attach("shop", "app=api").unwrap()));
        let instances = instances.collect();
        mesh.apply(policy).unwrap();
        let server = resolver(&nodes[0])[0];
        let address = |kind: &str| -> IpAddr {
            let until = Instant::now() + PATIENCE;
            loop {
                let answer = dig(&web.netns, server, &format!("api.shop.mesh {kind}"));
                match &answer.data()[..] {
                    [address] => return address.parse().unwrap(),
                    other => assert!(Instant::now() < until, "{kind}: {other:?}"),
                }
            }
        };
        let addresses = [address("A"), address("AAAA")];
        Self { web, instances, nodes, addresses, mesh }
    }

    fn v4(&self) -> IpAddr {
        self.addresses[0]
    }

    /// Connects from the client, and returns the address of the instance that has answered.
    fn ask(&self) -> anyhow::Result<IpAddr> {
        Ok(open(&self.web.netns, self.v4(), PATIENCE)?.1)
    }

    /// Attaches an instance to a node.
    fn add(&mut self, at: usize) -> &Workload {
        self.instances.push(self.nodes[at].attach("shop", "app=api").unwrap());
        self.instances.last().unwrap()
    }

    /// Returns the sum of a metric's values at the client's node.
    fn metric(&self, name: &str) -> u64 {
        let text = scrape(&self.nodes[0]);
        let own = text.lines().filter(|line| line.split('{').next() == Some(name));
        own.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }
}

/// Returns the metrics of a node, from the unix socket of its local API.
fn scrape(node: &Node) -> String {
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: node\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Answers each connection with a line, the address that it was accepted at, then echoes what
/// comes, until it is dropped.
struct Teller {
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Teller {
    fn start(netns: &Netns) -> Self {
        let listener = netns.run(|| TcpListener::bind(("::", 8080))).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let tell = move || {
            while !until.load(Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                };
                thread::spawn(move || {
                    let name = stream.local_addr().unwrap().ip().to_canonical();
                    let _ = stream.write_all(format!("{name}\n").as_bytes());
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        };
        Self { ended, thread: Some(thread::spawn(tell)) }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        // The socket closes with its thread.
        _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Connects, and returns the connection and the address of the instance that has answered.
fn open(from: &Netns, to: IpAddr, patience: Duration) -> anyhow::Result<(TcpStream, IpAddr)> {
    let stream = connect(from, to, 80, patience)?;
    let mut name = String::new();
    BufReader::new(&stream).read_line(&mut name)?;
    Ok((stream, name.trim_end().parse()?))
}

#[test]
fn a_service_is_reached_over_tcp_and_udp_in_both_families_and_in_any_size() {
    let group = Group::new([1, 2]);
    let _echoes: Vec<Echo> =
        group.instances.iter().map(|own| Echo::start(&own.netns, 8080)).collect();
    let web = &group.web.netns;
    for &to in &group.addresses {
        for size in [1, 1460, 65_536, 4 << 20] {
            assert!(tcp_echoes(web, to, 80, size, PATIENCE), "{size} bytes over TCP to {to}");
        }
        // Some of them come in fragments.
        for size in [64, 1380, 1500, 9000, 65_000] {
            assert!(udp_echoes(web, to, 53, size, PATIENCE), "{size} bytes over UDP to {to}");
        }
        assert!(!tcp_echoes(web, to, 8080, 64, SILENCE), "a port that it does not have");
        assert!(!udp_echoes(web, to, 80, 64, SILENCE));
        // Instances are clients, too, at times of themselves.
        for (number, own) in group.instances.iter().enumerate() {
            for turn in 0..6 {
                let tcp = tcp_echoes(&own.netns, to, 80, 100_000, PATIENCE);
                let udp = udp_echoes(&own.netns, to, 53, 3000, PATIENCE);
                assert!(tcp && udp, "instance {number}, {turn}: {to}, TCP {tcp}, UDP {udp}");
            }
        }
    }
}

#[test]
fn connections_are_spread_over_instances_on_both_nodes() {
    let group = Group::new([1, 2]);
    let _tellers: Vec<Teller> =
        group.instances.iter().map(|own| Teller::start(&own.netns)).collect();
    let answered: HashSet<IpAddr> = (0..40).map(|_| group.ask().unwrap()).collect();
    let instances: HashSet<IpAddr> = group.instances.iter().map(Workload::v4).collect();
    assert_eq!(answered, instances);
    assert_eq!(group.metric("meshward_node_service_connections_total"), 40);
}

#[test]
fn a_service_opens_nothing_that_policy_denies() {
    let mut group = Group::new([1, 1]);
    let secret = group.nodes[1].attach("shop", "app=api,tier=secret").unwrap();
    group.instances.push(secret);
    let _tellers: Vec<Teller> =
        group.instances.iter().map(|own| Teller::start(&own.netns)).collect();
    let web = &group.web.netns;
    group.ask().unwrap();
    // A denial of one of the instances is stronger than the rule about the service.
    let secret = group.instances[2].v4();
    let deny = "  - { name: no-secrets, from: { app: web }, to: { tier: secret }, deny: [any] }\n";
    group.mesh.apply(&policy(&format!("{WEB_API}{deny}"))).unwrap();
    let mut answered = 0;
    for _ in 0..20 {
        if let Ok((_, name)) = open(web, group.v4(), SILENCE) {
            assert_ne!(name, secret);
            answered += 1;
        }
    }
    assert!(answered > 0);
    // A rule about another port of the instances does not open the service.
    let other = "  - { name: web-api, from: { app: web }, to: { app: api }, allow: [tcp/81] }\n";
    for rules in [other, ""] {
        group.mesh.apply(&policy(rules)).unwrap();
        for &to in &group.addresses {
            assert!(connect(web, to, 80, SILENCE).is_err(), "{rules}");
        }
    }
    group.mesh.apply(&policy(WEB_API)).unwrap();
    group.ask().unwrap();
}

#[test]
fn an_instance_that_ends_is_passed_over_and_a_new_one_is_used() {
    let mut group = Group::new([1, 2]);
    // The third one refuses connections: the client hears nothing of it.
    let mut tellers: Vec<Teller> =
        group.instances[..2].iter().map(|own| Teller::start(&own.netns)).collect();
    let deaf = group.instances[2].v4();
    for _ in 0..60 {
        assert_ne!(group.ask().unwrap(), deaf);
    }
    assert!(group.metric("meshward_node_service_refused_total") > 0);
    assert!(group.metric("meshward_node_service_moved_total") > 0);
    // Neither does it hear of one that ends while it is used.
    drop(tellers.pop());
    for _ in 0..20 {
        assert_eq!(group.ask().unwrap(), group.instances[0].v4());
    }
    // One that is added takes its part.
    let added = group.add(1).v4();
    let _more = Teller::start(&group.instances[3].netns);
    let until = Instant::now() + Duration::from_secs(20);
    while group.ask().unwrap() != added {
        assert!(Instant::now() < until, "the new instance gets nothing");
    }
    // One that is detached takes no new connection with it.
    let gone = group.instances.remove(0);
    let address = gone.v4();
    group.nodes[0].meshctl(&["detach", &gone.id]).unwrap();
    for _ in 0..20 {
        assert_ne!(group.ask().unwrap(), address);
    }
}

#[test]
fn connections_go_on_across_a_restart_of_the_daemon_and_without_the_coordinator() {
    let mut group = Group::new([0, 3]);
    let _echoes: Vec<Echo> =
        group.instances.iter().map(|own| Echo::start(&own.netns, 8080)).collect();
    let streams: Vec<Stream> = (0..9)
        .map(|number| Stream::start(&group.web.netns, group.addresses[number % 2], 80))
        .collect();
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));
    group.mesh.coordinator.kill();
    group.nodes[0].process().stop();
    group.nodes[0].start().unwrap();
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));
    for &to in &group.addresses {
        assert!(tcp_echoes(&group.web.netns, to, 80, 1000, PATIENCE), "a new connection");
        assert!(udp_echoes(&group.web.netns, to, 53, 1000, PATIENCE), "a new conversation");
    }
}

#[test]
fn an_instance_that_alone_speaks_goes_on_after_a_crash_of_its_clients_node() {
    // One instance is on the client's own node, two are elsewhere.
    let mut group = Group::new([1, 2]);
    let listeners: Vec<TcpListener> = group
        .instances
        .iter()
        .map(|own| own.netns.run(|| TcpListener::bind(("::", 8080))).unwrap().unwrap())
        .collect();
    let accept = |listeners: &[TcpListener]| {
        let until = Instant::now() + PATIENCE;
        loop {
            for listener in listeners {
                listener.set_nonblocking(true).unwrap();
                if let Ok((server, _)) = listener.accept() {
                    server.set_nonblocking(false).unwrap();
                    return server;
                }
            }
            assert!(Instant::now() < until, "no instance is asked");
        }
    };
    let targets = (0..12).map(|number| (group.addresses[number % 2], 80));
    // Two connections go to an instance itself.
    let instances = [&group.instances[1], &group.instances[0]];
    let targets = targets.chain(instances.map(|own| (own.v4(), 8080)));
    let mut ends: Vec<(TcpStream, TcpStream)> = targets
        .map(|(to, port)| {
            let client = connect(&group.web.netns, to, port, PATIENCE).unwrap();
            (client, accept(&listeners))
        })
        .collect();
    group.nodes[0].kill();
    group.nodes[0].start().unwrap();
    for round in 0..2 {
        for (number, (client, server)) in ends.iter_mut().enumerate() {
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            server.write_all(b"news").unwrap();
            let mut heard = [0; 4];
            let read = client.read_exact(&mut heard);
            assert!(read.is_ok() && heard == *b"news", "{number}, round {round}: {read:?}");
        }
        for (number, (client, server)) in ends.iter_mut().enumerate() {
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(b"more").unwrap();
            let mut heard = [0; 4];
            let read = server.read_exact(&mut heard);
            assert!(read.is_ok() && heard == *b"more", "{number}, round {round}: {read:?}");
        }
    }
}
