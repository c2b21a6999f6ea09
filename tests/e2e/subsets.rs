//! Subsets of a service's instances: what nodes know of each other, and how that follows the load.

use crate::support::{PATIENCE, SILENCE, connect, mesh};
use meshward_api_types as api;
use meshward_lab::{Mesh, Node, Workload, idle_connections};
use meshward_netns::Netns;
use meshward_types::NodeName;
use std::{
    collections::{BTreeSet, HashSet},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

/// Connections that bring two instances near their limit, of 256 each.
const MUCH: usize = 450;

fn policy(fan_out: &str) -> String {
    format!(
        "network: shop
services:
  - {{ name: api, for: {{ app: api }}, ports: [{{ port: 80, to: 8080 }}], fan_out: {fan_out} }}
rules:
  - {{ name: web-api, from: {{ app: web }}, to: {{ service: api }} }}
"
    )
}

/// A client, and six instances on nodes of their own.
struct Fleet {
    web: Workload,
    instances: Vec<Workload>,
    client: Node,
    nodes: Vec<Node>,
    service: IpAddr,
    mesh: Mesh,
}

impl Fleet {
    fn new(fan_out: &str) -> Self {
        let mut mesh = mesh();
        let client = mesh.node("client").start().unwrap();
        let nodes: Vec<Node> =
            (1..=6).map(|at| mesh.node(&format!("rack{at}")).start().unwrap()).collect();
        let web = client.attach("shop", "app=web").unwrap();
        let instances: Vec<Workload> =
            nodes.iter().map(|node| node.attach("shop", "app=api").unwrap()).collect();
        mesh.apply(&policy(fan_out)).unwrap();
        let services: Vec<api::Service> = mesh.list("service").unwrap();
        let service = *services[0].addresses.iter().find(|address| address.is_ipv4()).unwrap();
        for own in &instances {
            serve(&own.netns);
        }
        Self { web, instances, client, nodes, service, mesh }
    }

    /// Returns the nodes that the client's node knows.
    fn known(&self) -> BTreeSet<NodeName> {
        let peers = self.client.endpoint().unwrap().peers;
        peers.into_iter().map(|peer| peer.node).collect()
    }

    /// Waits until the client's node knows so many nodes, and returns them.
    fn wait_for(&self, count: impl Fn(usize) -> bool) -> BTreeSet<NodeName> {
        self.mesh.wait(|| count(self.known().len())).unwrap();
        self.known()
    }

    /// Connects through the service.
    fn ask(&self) -> Connection {
        let mut stream = connect(&self.web.netns, self.service, 80, PATIENCE).unwrap();
        let mut length = [0];
        stream.read_exact(&mut length).unwrap();
        let mut name = vec![0; length[0].into()];
        stream.read_exact(&mut name).unwrap();
        let instance = String::from_utf8(name).unwrap().parse().unwrap();
        Connection { instance, stream }
    }

    /// Returns the node of an instance.
    fn node_of(&self, instance: IpAddr) -> NodeName {
        let at = self.instances.iter().position(|own| own.v4() == instance).unwrap();
        format!("rack{}", at + 1).parse().unwrap()
    }
}

fn name(node: &Node) -> NodeName {
    node.site.name.parse().unwrap()
}

/// A connection, and the instance that has accepted it.
struct Connection {
    instance: IpAddr,
    stream: TcpStream,
}

impl Connection {
    fn echoes(&mut self) -> bool {
        let mut back = [0; 5];
        let exchanged =
            self.stream.write_all(b"hello").and_then(|()| self.stream.read_exact(&mut back));
        exchanged.is_ok() && back == *b"hello"
    }
}

/// Accepts connections: says at which address, after its length, and echoes what comes.
fn serve(netns: &Netns) {
    let listener = netns.run(|| TcpListener::bind(("::", 8080))).unwrap().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let name = stream.local_addr().unwrap().ip().to_canonical().to_string();
            let serve = move || {
                let mut said = vec![name.len() as u8];
                said.extend(name.bytes());
                let mut buffer = [0; 64];
                let mut sent = stream.write_all(&said);
                while let (Ok(()), Ok(length @ 1..)) = (&sent, stream.read(&mut buffer)) {
                    sent = stream.write_all(&buffer[..length]);
                }
            };
            thread::Builder::new().stack_size(64 << 10).spawn(serve).unwrap();
        }
    });
}

#[test]
fn nodes_know_their_subset_alone_and_a_rule_by_labels_shows_them_all() {
    let fleet = Fleet::new("2");
    let known = fleet.wait_for(|count| count == 2);
    let answered: HashSet<IpAddr> = (0..30).map(|_| fleet.ask().instance).collect();
    assert_eq!(answered.len(), 2, "both are used");
    for own in &fleet.instances {
        let is_known = known.contains(&fleet.node_of(own.v4()));
        assert_eq!(answered.contains(&own.v4()), is_known);
        // The rule opens the port of every instance; the others are not known to the client's node.
        let reached = connect(&fleet.web.netns, own.v4(), 8080, SILENCE).is_ok();
        assert_eq!(reached, is_known, "{}", own.v4());
    }
    for node in &fleet.nodes {
        let knows_client = node.endpoint().unwrap().peers.len() == 1;
        assert_eq!(knows_client, known.contains(&name(node)), "{}", name(node));
    }
    // One that goes is replaced by another.
    let gone = fleet.nodes.iter().position(|node| known.contains(&name(node))).unwrap();
    fleet.nodes[gone].meshctl(&["detach", &fleet.instances[gone].id]).unwrap();
    fleet.mesh.wait(|| !fleet.known().contains(&name(&fleet.nodes[gone]))).unwrap();
    fleet.wait_for(|count| count == 2);
    let by_labels =
        "  - { name: by-labels, from: { app: web }, to: { app: api }, allow: [tcp/9] }\n";
    fleet.mesh.apply(&format!("{}{by_labels}", policy("2"))).unwrap();
    fleet.wait_for(|count| count == 5);
}

#[test]
fn subsets_grow_and_shrink_with_load_and_no_connection_is_cut() {
    let mut fleet = Fleet::new("2-4");
    let first = fleet.wait_for(|count| count == 2);
    let to = SocketAddr::new(fleet.service, 80);
    let many = idle_connections(&fleet.web.netns, to, MUCH).unwrap();
    let grown = fleet.wait_for(|count| count > 2);
    assert!(grown.len() <= 4 && grown.is_superset(&first), "{first:?}, then {grown:?}");
    let more: Vec<Connection> = (0..100).map(|_| fleet.ask()).collect();
    let is_new = |own: &Connection| !first.contains(&fleet.node_of(own.instance));
    let mut kept = more.into_iter().find(is_new).expect("the new instance gets its share");

    drop(many);
    let instance = kept.instance;
    let is_idle = || {
        let asked: Vec<IpAddr> = (0..8).map(|_| fleet.ask().instance).collect();
        asked.iter().all(|own| *own != instance)
    };
    fleet.mesh.wait(is_idle).unwrap();
    // It stays known for as long as the connection is open, across restarts of the coordinator.
    thread::sleep(Duration::from_secs(7));
    assert!(kept.echoes());
    fleet.mesh.coordinator.kill();
    fleet.mesh.restart_coordinator().unwrap();
    let all = fleet.nodes.iter().chain([&fleet.client]);
    fleet.mesh.wait(|| all.clone().all(Node::is_connected)).unwrap();
    thread::sleep(Duration::from_secs(7));
    assert!(kept.echoes());
    assert!(fleet.known().contains(&fleet.node_of(instance)));
    drop(kept);
    assert_eq!(fleet.wait_for(|count| count == 2), first);
}
