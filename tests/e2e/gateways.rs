//! Machines behind gateways, which run no daemon: reached by routes, and policed as workloads.

use crate::support::{Echo, PATIENCE, SILENCE, Stream, mesh, pings, tcp_echoes};
use meshward_lab::{Mesh, Node, Workload, host, output};
use meshward_netns::Netns;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::{Duration, Instant},
};

/// Two gateways in front of one machine that knows nothing of the mesh, and a workload elsewhere.
struct Dc {
    web: Workload,
    legacy: Netns,
    gateways: [Node; 2],
    _cloud: Node,
    mesh: Mesh,
    _echo: [Echo; 2],
}

const LEGACY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 8, 0, 10));
const POLICY: &str = "network: shop
rules:
  - { name: web-to-dc, from: { app: web }, to: { dc: dc1 }, allow: [tcp/5432, icmp] }
  - { name: dc-to-web, from: { dc: dc1 }, to: { app: web }, allow: [tcp/8080] }
";

impl Dc {
    fn new() -> Self {
        let mut mesh = mesh();
        let cloud = mesh.node("cloud").unwrap();
        let web = cloud.attach("shop", "app=web").unwrap();
        let legacy = host().unwrap();
        legacy
            .links(async |links| {
                links.set_up("lo").await?;
                links.add_address("lo", LEGACY, 32).await
            })
            .unwrap();
        let gateways = [1u8, 2].map(|number| {
            let gateway = mesh.node(&format!("gw{number}")).unwrap();
            let here = &gateway.site.netns;
            let (own, far) = (Ipv4Addr::new(172, 16, number, 1), Ipv4Addr::new(172, 16, number, 2));
            let name = format!("eth{number}");
            here.links(async |links| {
                links.add_veth("lan", "far").await?;
                links.give("far", &legacy, &name).await?;
                links.add_address("lan", own.into(), 24).await?;
                links.set_up("lan").await
            })
            .unwrap();
            legacy
                .links(async |links| {
                    links.set_up(&name).await?;
                    links.add_address(&name, far.into(), 24).await
                })
                .unwrap();
            here.links(async |links| {
                links.add_route("lan", "10.8.0.0/16".parse().unwrap(), Some(far.into()), None).await
            })
            .unwrap();
            gateway
        });
        // What the operator of the data centre does: the way back.
        legacy
            .links(async |links| {
                let back = Ipv4Addr::new(172, 16, 1, 1);
                links.add_route("eth1", "10.42.0.0/16".parse().unwrap(), Some(back.into()), None).await
            })
            .unwrap();
        let _echo = [Echo::start(&legacy, 5432), Echo::start(&web.netns, 8080)];
        mesh.apply(POLICY).unwrap();
        Self { web, legacy, gateways, _cloud: cloud, mesh, _echo }
    }

    fn forward(&self, number: usize) {
        let here = &self.gateways[number].site.netns;
        here.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap().unwrap();
    }

    fn advertise(&self, number: usize, prefix: &str, labels: &[&str]) -> anyhow::Result<String> {
        let labels = labels.iter().flat_map(|label| ["--label", label]);
        let arguments: Vec<&str> =
            ["route", "advertise", prefix, "--network", "shop"].into_iter().chain(labels).collect();
        self.gateways[number].meshctl(&arguments)
    }

    fn reaches(&self, patience: Duration) -> bool {
        tcp_echoes(&self.web.netns, LEGACY, 5432, 1000, patience)
    }
}

#[test]
fn a_route_is_used_once_it_is_approved_and_policed_by_its_labels() {
    let dc = Dc::new();
    let refused = dc.advertise(0, "10.8.0.0/24", &["dc=dc1"]).unwrap_err();
    assert!(format!("{refused:#}").contains("sysctl -w net.ipv4.ip_forward=1"), "{refused:#}");
    dc.forward(0);
    let refused = dc.advertise(0, "10.42.9.0/24", &["dc=dc1"]).unwrap_err();
    assert!(format!("{refused:#}").contains("overlaps with 10.42.0.0/16"), "{refused:#}");
    let said = dc.advertise(0, "10.8.0.0/24", &["dc=dc1"]).unwrap();
    assert!(
        said.contains("waits") && said.contains("meshctl route approve 10.8.0.0/24 --node gw1"),
        "said {said}"
    );
    assert!(!dc.reaches(SILENCE));
    let refused = dc.advertise(0, "10.8.0.0/24", &["dc=dc1"]).unwrap_err();
    assert!(format!("{refused:#}").contains("is advertised already"), "{refused:#}");

    let said = dc.mesh.meshctl(&["route", "approve", "10.8.0.0/24", "--node", "gw1", "--dry-run"]).unwrap();
    assert!(said.contains("would approve 10.8.0.0/24 behind gw1"), "{said}");
    assert!(!dc.reaches(SILENCE));
    dc.mesh.meshctl(&["route", "approve", "10.8.0.0/24", "--node", "gw1"]).unwrap();
    dc.mesh.wait(|| dc.reaches(SILENCE)).unwrap();
    assert!(pings(&dc.web.netns, LEGACY, PATIENCE));
    let _closed = Echo::start(&dc.legacy, 22);
    assert!(!tcp_echoes(&dc.web.netns, LEGACY, 22, 1, SILENCE), "policy does not allow it");
    assert!(
        !tcp_echoes(&dc.web.netns, "10.8.1.10".parse().unwrap(), 5432, 1, SILENCE),
        "nobody advertises it"
    );

    // And the other way: the machine begins.
    let from_legacy = |port| {
        let to = dc.web.v4();
        tcp_echoes(&dc.legacy, to, port, 1000, PATIENCE)
    };
    let table = "table ip source {\nchain out {\ntype nat hook postrouting priority 100\noifname eth1 ip daddr 10.42.0.0/16 snat to 10.8.0.10\n}\n}\n";
    output(&dc.legacy, Command::new("nft").arg(table)).unwrap();
    assert!(from_legacy(8080));
    let shown = dc.mesh.meshctl(&["route", "list"]).unwrap();
    assert!(shown.contains("10.8.0.0/24") && shown.contains("open") && shown.contains("by hand"), "{shown}");
    let explained =
        dc.mesh.meshctl(&["explain", "--from", "app=web", "--to", "dc=dc1", "--port", "tcp/5432"]).unwrap();
    assert!(explained.contains("web-to-dc"), "{explained}");

    // Machines of a longer prefix may have other labels, and then other rules hold for them.
    let stream = Stream::start(&dc.web.netns, LEGACY, 5432);
    assert!(stream.flows(PATIENCE));
    dc.advertise(0, "10.8.0.10/32", &["dc=dc1", "tier=db"]).unwrap();
    dc.mesh.meshctl(&["route", "approve", "10.8.0.10/32", "--node", "gw1"]).unwrap();
    let narrowed = POLICY.replace("to: { dc: dc1 }", "to: { dc: dc1, tier: { not: db } }");
    dc.mesh.apply(&narrowed).unwrap();
    dc.mesh.wait(|| !stream.flows(SILENCE)).unwrap();
    dc.gateways[0].meshctl(&["route", "withdraw", "10.8.0.10/32", "--network", "shop"]).unwrap();
    dc.mesh.wait(|| dc.reaches(SILENCE)).unwrap();

    // A quarantine and the end of an approval cut what runs.
    let stream = Stream::start(&dc.web.netns, LEGACY, 5432);
    assert!(stream.flows(PATIENCE));
    dc.mesh.meshctl(&["quarantine", "dc=dc1"]).unwrap();
    assert!(!stream.flows(SILENCE));
    dc.mesh.meshctl(&["release", "dc=dc1"]).unwrap();
    dc.mesh.wait(|| dc.reaches(SILENCE)).unwrap();
    dc.mesh.meshctl(&["route", "disapprove", "10.8.0.0/24", "--node", "gw1"]).unwrap();
    dc.mesh.wait(|| !dc.reaches(SILENCE)).unwrap();
    let rules = output(&dc.gateways[0].site.netns, Command::new("busybox").args(["ip", "rule"])).unwrap();
    assert!(!rules.contains("10.8.0.10 "), "a route that was taken back leaves no rule: {rules}");
}

#[test]
fn a_rule_of_the_policy_approves_and_a_restart_keeps_the_route() {
    let mut dc = Dc::new();
    dc.forward(0);
    dc.mesh
        .apply(&format!("{POLICY}routes:\n  - {{ name: dc1, for: {{ dc: dc1 }}, within: [10.8.0.0/16] }}\n"))
        .unwrap();
    let said = dc.advertise(0, "10.8.0.0/24", &["dc=dc1"]).unwrap();
    assert!(!said.contains("waits"), "{said}");
    dc.mesh.wait(|| dc.reaches(SILENCE)).unwrap();
    let other = dc.advertise(0, "10.9.0.0/24", &["dc=dc1"]).unwrap();
    assert!(other.contains("waits"), "{other}");
    let stream = Stream::start(&dc.web.netns, LEGACY, 5432);
    assert!(stream.flows(PATIENCE));
    dc.gateways[0].kill();
    dc.gateways[0].start().unwrap();
    assert!(stream.flows(PATIENCE), "the connection goes on");
    dc.mesh.wait(|| dc.reaches(SILENCE)).unwrap();
    dc.mesh.apply(POLICY).unwrap();
    dc.mesh.wait(|| !dc.reaches(SILENCE)).unwrap();
    assert!(!stream.flows(SILENCE), "without the rule it is cut");
}

#[test]
fn another_gateway_of_the_same_prefix_takes_over() {
    let mut dc = Dc::new();
    for number in [0, 1] {
        dc.forward(number);
        // So that the way back is that of the way there.
        let table = "table ip nat {\nchain out {\ntype nat hook postrouting priority 100\noifname lan masquerade\n}\n}\n";
        output(&dc.gateways[number].site.netns, Command::new("nft").arg(table)).unwrap();
    }
    dc.advertise(0, "10.8.0.0/24", &["dc=dc1"]).unwrap();
    // A claim that nobody has approved stands in nobody's way, whatever its labels; approved, it would be another's prefix.
    let waits = dc.advertise(1, "10.8.0.0/24", &["dc=other"]).unwrap();
    assert!(waits.contains("and waits"), "{waits}");
    for gateway in ["gw1", "gw2"] {
        dc.mesh.meshctl(&["route", "approve", "10.8.0.0/24", "--node", gateway]).unwrap();
    }
    let refused = dc.mesh.read(&["workloads"]).unwrap().to_string();
    assert!(refused.contains("all gateways of a prefix give it the same"), "{refused}");
    dc.gateways[1].meshctl(&["route", "withdraw", "10.8.0.0/24", "--network", "shop"]).unwrap();
    dc.advertise(1, "10.8.0.0/24", &["dc=dc1"]).unwrap();
    dc.mesh.wait(|| dc.reaches(SILENCE)).unwrap();
    // Whichever is killed, the other one is there; the coordinator is not needed for that.
    dc.mesh.coordinator.kill();
    for number in [0, 1] {
        dc.gateways[number].kill();
        let begun = Instant::now();
        while !dc.reaches(Duration::from_millis(250)) {
            assert!(begun.elapsed() < Duration::from_secs(20), "gateway {number} is not replaced");
        }
        println!("gateway {number} was killed: it took {:?}", begun.elapsed());
        dc.gateways[number].start().unwrap();
        // It is used again once it answers.
        let until = Instant::now() + Duration::from_secs(8);
        while Instant::now() < until {
            assert!(dc.reaches(PATIENCE));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
