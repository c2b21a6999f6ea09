//! Egress gateways: workloads reach what is outside of the mesh, as policy says, with the address
//! of the gateway.

mod names;

use crate::support::{Echo, PATIENCE, SILENCE, Stream, mesh, pings, tcp_echoes, udp_echoes};
use meshward_lab::{Hop, Mesh, Node, Site, Workload, output};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::{Duration, Instant},
};

const POLICY: &str = "network: shop
routes: [{ name: halves, within: [0.0.0.0/1, 128.0.0.0/1, \"::/1\", \"8000::/1\"] }]
rules:
  - { name: web-out, from: { app: web }, to: { role: egress }, allow: [tcp/443, udp/443, icmp] }
";

/// The resolver of each node's host, where a test starts one.
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// A workload on one node, gateways on others, and a machine that knows nothing of the mesh.
struct Outside {
    web: Workload,
    other: Workload,
    gateways: Vec<Node>,
    cloud: Node,
    server: Site,
    mesh: Mesh,
    _echo: [Echo; 2],
}

impl Outside {
    fn new(gateways: &[&str]) -> Self {
        let mut mesh = mesh();
        mesh.apply(POLICY).unwrap();
        let file = mesh.folder().join("resolv.conf");
        fs::write(&file, format!("nameserver {UPSTREAM}\n")).unwrap();
        let flags = ["--resolv-conf".to_owned(), file.to_string_lossy().into_owned()];
        let server = mesh.internet.site("server").unwrap();
        let cloud = mesh.node("cloud").flags(&flags).start().unwrap();
        let web = cloud.attach("shop", "app=web").unwrap();
        let other = cloud.attach("shop", "app=other").unwrap();
        let gateways: Vec<Node> =
            gateways.iter().map(|name| mesh.node(name).flags(&flags).start().unwrap()).collect();
        let echo = [Echo::start(&server.netns, 443), Echo::start(&server.netns, 22)];
        Self { web, other, gateways, cloud, server, mesh, _echo: echo }
    }

    fn start(&self, number: usize) -> anyhow::Result<String> {
        self.gateways[number].meshctl(&[
            "egress",
            "start",
            "--network",
            "shop",
            "--label",
            "role=egress",
        ])
    }

    /// Makes a node an approved gateway.
    fn open(&self, number: usize) {
        forward(&self.gateways[number]);
        self.start(number).unwrap();
        let name = &self.gateways[number].site.name;
        self.mesh.meshctl(&["egress", "approve", name]).unwrap();
    }

    fn addresses(&self) -> [IpAddr; 2] {
        [self.server.v4.into(), self.server.v6.into()]
    }

    fn reaches(&self, to: IpAddr, patience: Duration) -> bool {
        tcp_echoes(&self.web.netns, to, 443, 1000, patience)
    }
}

fn forward(gateway: &Node) {
    for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/net/{file}");
        gateway.site.netns.run(|| fs::write(path, "1")).unwrap().unwrap();
    }
}

/// The routing rules and the rules of nftables in a gateway's kernel.
fn rules(gateway: &Node) -> String {
    let run = |command: &str| {
        let mut words = command.split(' ');
        let mut command = Command::new(words.next().unwrap());
        output(&gateway.site.netns, command.args(words)).unwrap()
    };
    ["ip -4 rule", "ip -6 rule", "nft list ruleset"].map(run).concat()
}

fn default_routes(workload: &Workload) -> String {
    let run = |family: &str| {
        let mut ip = Command::new("ip");
        output(&workload.netns, ip.args([family, "route", "show", "default"])).unwrap()
    };
    format!("{}{}", run("-4"), run("-6"))
}

#[test]
fn workloads_reach_what_is_outside_as_policy_says() {
    let mut outside = Outside::new(&["gw"]);
    let refused = outside.start(0).unwrap_err();
    assert!(format!("{refused:#}").contains("sysctl -w net.ipv4.ip_forward=1"), "{refused:#}");
    forward(&outside.gateways[0]);
    let before = rules(&outside.gateways[0]);
    let said = outside.start(0).unwrap();
    // Rules for prefixes do not approve it, even if they cover everything.
    assert!(said.contains("and waits"), "{said}");
    let [v4, v6] = outside.addresses();
    assert!(!outside.reaches(v4, SILENCE));
    outside.mesh.meshctl(&["egress", "approve", "gw"]).unwrap();
    let shown = outside.mesh.meshctl(&["egress", "list"]).unwrap();
    assert!(shown.contains("0.0.0.0/0") && shown.contains("::/0"), "{shown}");
    assert!(shown.contains("open"), "{shown}");

    for to in [v4, v6] {
        outside.mesh.wait(|| outside.reaches(to, SILENCE)).unwrap();
        assert!(pings(&outside.web.netns, to, PATIENCE), "{to}");
        assert!(udp_echoes(&outside.web.netns, to, 443, 1000, PATIENCE), "{to}");
        assert!(!tcp_echoes(&outside.web.netns, to, 22, 1, SILENCE), "policy does not allow it");
        assert!(!tcp_echoes(&outside.other.netns, to, 443, 1, SILENCE));
    }
    assert_eq!(default_routes(&outside.other), "");
    // An address of the network that nobody has is not outside.
    assert!(!tcp_echoes(&outside.web.netns, "10.42.250.9".parse().unwrap(), 443, 1, SILENCE));

    restarts_and_the_end(&mut outside, &before);
}

fn restarts_and_the_end(outside: &mut Outside, before: &str) {
    let [v4, v6] = outside.addresses();
    let streams = [v4, v6].map(|to| Stream::start(&outside.web.netns, to, 443));
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));
    let during = rules(&outside.gateways[0]);
    outside.gateways[0].kill();
    outside.gateways[0].start().unwrap();
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)), "connections go on");
    assert_eq!(rules(&outside.gateways[0]), during, "nothing is doubled or lost");

    let elsewhere = outside.gateways[0].meshctl(&["egress", "stop", "--network", "none"]);
    assert!(elsewhere.is_err());
    outside.gateways[0].meshctl(&["egress", "stop", "--network", "shop"]).unwrap();
    outside.mesh.wait(|| default_routes(&outside.web).is_empty()).unwrap();
    outside.mesh.wait(|| rules(&outside.gateways[0]) == *before).unwrap();
    assert!(streams.iter().all(|stream| !stream.flows(SILENCE)));

    // What a daemon that was killed has left behind goes.
    let table = "table inet meshward { }";
    output(&outside.gateways[0].site.netns, Command::new("nft").arg(table)).unwrap();
    outside.gateways[0].kill();
    outside.gateways[0].start().unwrap();
    outside.mesh.wait(|| rules(&outside.gateways[0]) == *before).unwrap();
}

#[test]
fn paths_behind_an_egress_gateway_may_be_narrow() {
    let outside = Outside::new(&["gw"]);
    outside.mesh.internet.set_mtu("server", Hop::Last, 1280).unwrap();
    outside.open(0);
    for to in outside.addresses() {
        outside.mesh.wait(|| outside.reaches(to, SILENCE)).unwrap();
        // A large transfer passes in both directions once the first error has come.
        assert!(tcp_echoes(&outside.web.netns, to, 443, 3 << 20, PATIENCE), "{to}");
    }
}

#[test]
fn a_workload_keeps_a_default_route_of_its_own() {
    let outside = Outside::new(&["gw"]);
    let own = &outside.web.netns;
    own.links(async |links| {
        links.add_veth("own", "far").await?;
        links.add_address("own", "172.31.0.2".parse().unwrap(), 24).await?;
        links.set_up("far").await?;
        links.set_up("own").await
    })
    .unwrap();
    let mut add = Command::new("ip");
    output(own, add.args(["route", "add", "default", "via", "172.31.0.1", "metric", "2000"]))
        .unwrap();
    outside.open(0);
    let [v4, v6] = outside.addresses();
    outside.mesh.wait(|| outside.reaches(v6, SILENCE)).unwrap();
    let way = |to: IpAddr| {
        output(own, Command::new("ip").args(["route", "get", &to.to_string()])).unwrap()
    };
    assert!(way(v4).contains("dev own"), "{}", way(v4));
    let mut remove = Command::new("ip");
    output(own, remove.args(["route", "del", "default", "dev", "own"])).unwrap();
    assert!(outside.reaches(v4, PATIENCE));
}

#[test]
fn another_egress_gateway_takes_over() {
    let mut outside = Outside::new(&["gw1", "gw2"]);
    outside.open(0);
    outside.open(1);
    let [v4, _] = outside.addresses();
    outside.mesh.wait(|| outside.reaches(v4, SILENCE)).unwrap();
    outside.mesh.coordinator.kill();
    for number in [0, 1] {
        outside.gateways[number].kill();
        let begun = Instant::now();
        while !outside.reaches(v4, Duration::from_millis(250)) {
            assert!(begun.elapsed() < Duration::from_secs(20), "gateway {number} is not replaced");
        }
        println!("gateway {number} was killed: it took {:?}", begun.elapsed());
        outside.gateways[number].start().unwrap();
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            assert!(outside.reaches(v4, PATIENCE));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Rules that name the server's addresses, with ports as given.
fn by_address(outside: &Outside, ports: &str) -> String {
    let [v4, v6] = outside.addresses();
    format!(
        "network: shop
routes: [{{ name: out, within: [0.0.0.0/0, \"::/0\"] }}]
rules:
  - {{ name: server, from: {{ app: web }}, to: {{ cidr: [{v4}, \"{v6}/128\"] }}, allow: [{ports}] }}
guardrails:
  - {{ name: not-the-router, from: {{}}, to: {{ cidr: 198.18.0.1/32 }}, deny: [any] }}
tests:
  - {{ from: {{ app: web }}, to: {{ cidr: {v4} }}, port: tcp/443, expect: allow }}
  - {{ from: {{ app: web }}, to: {{ cidr: 192.0.2.1 }}, port: tcp/443, expect: deny }}
"
    )
}

#[test]
fn rules_name_addresses_outside_and_both_nodes_judge() {
    let mut outside = Outside::new(&["gw"]);
    forward(&outside.gateways[0]);
    outside.mesh.apply(&by_address(&outside, "tcp/443, icmp")).unwrap();
    let said = outside.start(0).unwrap();
    assert!(!said.contains("waits"), "the policy names the default routes: {said}");
    let elsewhere = outside.mesh.internet.site("elsewhere").unwrap();
    let _echo = Echo::start(&elsewhere.netns, 443);
    for to in outside.addresses() {
        outside.mesh.wait(|| outside.reaches(to, SILENCE)).unwrap();
        assert!(pings(&outside.web.netns, to, PATIENCE));
        assert!(!tcp_echoes(&outside.web.netns, to, 22, 1, SILENCE));
        assert!(!tcp_echoes(&outside.other.netns, to, 443, 1, SILENCE));
    }
    for to in [IpAddr::from(elsewhere.v4), elsewhere.v6.into()] {
        assert!(!tcp_echoes(&outside.web.netns, to, 443, 1, SILENCE), "no rule names it");
    }
    assert_eq!(default_routes(&outside.other), "");

    let [v4, v6] = outside.addresses();
    let explain = |to: &str| {
        let asked = ["explain", "--from", "app=web", "--outside", to, "--port", "tcp/443"];
        outside.mesh.meshctl(&asked).unwrap()
    };
    let said = explain(&v4.to_string());
    assert!(said.contains("allowed") && said.contains("rule `server`"), "{said}");
    let said = explain("192.0.2.1");
    assert!(said.contains("denied") && said.contains("default deny"), "{said}");
    let said = explain("198.18.0.1");
    assert!(said.contains("guardrail `not-the-router`"), "{said}");
    let links = outside.mesh.meshctl(&["links"]).unwrap();
    assert!(links.contains(&format!("to {v4}/32")), "{links}");

    // The daemons' files have the rules as well, and a change cuts what runs.
    let streams = [v4, v6].map(|to| Stream::start(&outside.web.netns, to, 443));
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));
    outside.gateways[0].kill();
    outside.cloud.kill();
    outside.gateways[0].start().unwrap();
    outside.cloud.start().unwrap();
    assert!(streams.iter().all(|stream| stream.flows(PATIENCE)));
    let narrowed = by_address(&outside, "tcp/8443, icmp").replace("expect: allow", "expect: deny");
    outside.mesh.apply(&narrowed).unwrap();
    assert!(streams.iter().all(|stream| !stream.flows(SILENCE)));
    assert!(pings(&outside.web.netns, v4, PATIENCE));
}
