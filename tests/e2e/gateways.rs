//! Machines behind gateways, which run no daemon: reached by routes, and policed as workloads.

use crate::support::{Echo, PATIENCE, SILENCE, Stream, mesh, pings, tcp_echoes};
use meshward_lab::{Mesh, Node, Workload, host, output};
use meshward_netns::Netns;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
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
        let cloud = mesh.node("cloud").start().unwrap();
        let web = cloud.attach("shop", "app=web").unwrap();
        let legacy = host().unwrap();
        legacy
            .links(async |links| {
                links.set_up("lo").await?;
                links.add_address("lo", LEGACY, 32).await
            })
            .unwrap();
        let gateways = [1u8, 2].map(|number| {
            let gateway = mesh.node(&format!("gw{number}")).start().unwrap();
            let here = &gateway.site.netns;
            let (own, far) = (Ipv4Addr::new(172, 16, number, 1), Ipv4Addr::new(172, 16, number, 2));
            let name = format!("eth{number}");
            here.links(async |links| {
                links.add_veth("lan", "far").await?;
                links.move_to("far", &legacy, &name).await?;
                links.add_address("lan", own.into(), 24).await?;
                links.set_up("lan").await
            })
            .unwrap();
            mesh.internet.watched().unwrap().lan(here, "lan").unwrap();
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
                links
                    .add_route("eth1", "10.42.0.0/16".parse().unwrap(), Some(back.into()), None)
                    .await
            })
            .unwrap();
        let echo = [Echo::start(&legacy, 5432), Echo::start(&web.netns, 8080)];
        mesh.apply(POLICY).unwrap();
        Self { web, legacy, gateways, _cloud: cloud, mesh, _echo: echo }
    }

    fn forward(&self, number: usize) {
        let here = &self.gateways[number].site.netns;
        here.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap().unwrap();
    }

    fn advertise(&self, number: usize, prefix: &str, labels: &str) -> anyhow::Result<String> {
        self.gateways[number].advertise("shop", &[prefix], labels)
    }

    fn reaches(&self, patience: Duration) -> bool {
        tcp_echoes(&self.web.netns, LEGACY, 5432, 1000, patience)
    }
}

fn other_labels_and_quarantines_hold(dc: &Dc) {
    // Machines of a longer prefix may have other labels, and then other rules hold for them.
    let stream = Stream::start(&dc.web.netns, LEGACY, 5432);
    assert!(stream.flows(PATIENCE));
    dc.advertise(0, "10.8.0.10/32", "dc=dc1,tier=db").unwrap();
    dc.mesh.meshctl(&["route", "approve", "10.8.0.10/32", "--node", "gw1"]).unwrap();
    let narrowed = POLICY.replace("to: { dc: dc1 }", "to: { dc: dc1, tier: { not: db } }");
    dc.mesh.apply(&narrowed).unwrap();
    dc.mesh.wait(|| !stream.flows(SILENCE)).unwrap();
    dc.gateways[0].withdraw("shop", "10.8.0.10/32").unwrap();
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
    let rules =
        output(&dc.gateways[0].site.netns, Command::new("busybox").args(["ip", "rule"])).unwrap();
    assert!(!rules.contains("10.8.0.10 "), "a route that was taken back leaves no rule: {rules}");
}

#[test]
fn a_route_is_used_once_it_is_approved_and_policed_by_its_labels() {
    let dc = Dc::new();
    let refused = dc.advertise(0, "10.8.0.0/24", "dc=dc1").unwrap_err();
    assert!(format!("{refused:#}").contains("sysctl -w net.ipv4.ip_forward=1"), "{refused:#}");
    dc.forward(0);
    let refused = dc.advertise(0, "10.42.9.0/24", "dc=dc1").unwrap_err();
    assert!(format!("{refused:#}").contains("overlaps with 10.42.0.0/16"), "{refused:#}");
    let said = dc.advertise(0, "10.8.0.0/24", "dc=dc1").unwrap();
    assert!(
        said.contains("waits") && said.contains("meshctl route approve 10.8.0.0/24 --node gw1"),
        "said {said}"
    );
    assert!(!dc.reaches(SILENCE));
    let refused = dc.advertise(0, "10.8.0.0/24", "dc=dc1").unwrap_err();
    assert!(format!("{refused:#}").contains("is advertised already"), "{refused:#}");

    let said = dc
        .mesh
        .meshctl(&["route", "approve", "10.8.0.0/24", "--node", "gw1", "--dry-run"])
        .unwrap();
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
    let table = "table ip source {
chain out {
type nat hook postrouting priority 100
oifname eth1 ip daddr 10.42.0.0/16 snat to 10.8.0.10
}
}
";
    output(&dc.legacy, Command::new("nft").arg(table)).unwrap();
    assert!(from_legacy(8080));
    let shown = dc.mesh.meshctl(&["route", "list"]).unwrap();
    assert!(
        shown.contains("10.8.0.0/24") && shown.contains("open") && shown.contains("by hand"),
        "{shown}"
    );
    let explained = dc
        .mesh
        .meshctl(&["explain", "--from", "app=web", "--to", "dc=dc1", "--port", "tcp/5432"])
        .unwrap();
    assert!(explained.contains("web-to-dc"), "{explained}");
    other_labels_and_quarantines_hold(&dc);
}

#[test]
fn a_rule_of_the_policy_approves_and_a_restart_keeps_the_route() {
    let mut dc = Dc::new();
    dc.forward(0);
    dc.mesh
        .apply(&format!(
            "{POLICY}routes:\n  - {{ name: dc1, for: {{ dc: dc1 }}, within: [10.8.0.0/16] }}\n"
        ))
        .unwrap();
    let said = dc.advertise(0, "10.8.0.0/24", "dc=dc1").unwrap();
    assert!(!said.contains("waits"), "{said}");
    dc.mesh.wait(|| dc.reaches(SILENCE)).unwrap();
    let other = dc.advertise(0, "10.9.0.0/24", "dc=dc1").unwrap();
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
        let table = "table ip nat {
chain out {
type nat hook postrouting priority 100
oifname lan masquerade
}
}
";
        output(&dc.gateways[number].site.netns, Command::new("nft").arg(table)).unwrap();
    }
    dc.advertise(0, "10.8.0.0/24", "dc=dc1").unwrap();
    // A claim that nobody has approved stands in nobody's way, whatever its labels; approved, it
    // would be another's prefix.
    let waits = dc.advertise(1, "10.8.0.0/24", "dc=other").unwrap();
    assert!(waits.contains("and waits"), "{waits}");
    for gateway in ["gw1", "gw2"] {
        dc.mesh.meshctl(&["route", "approve", "10.8.0.0/24", "--node", gateway]).unwrap();
    }
    let refused = dc.mesh.read(&["workloads"]).unwrap().to_string();
    assert!(refused.contains("all gateways of a prefix give it the same"), "{refused}");
    dc.gateways[1].withdraw("shop", "10.8.0.0/24").unwrap();
    dc.advertise(1, "10.8.0.0/24", "dc=dc1").unwrap();
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

/// A router behind the gateway, and a machine behind that, by a link that takes only 1,280 bytes.
pub(crate) struct Behind {
    router: Netns,
    pub far: Netns,
}

impl Behind {
    /// Has the machine speak from its addresses that are advertised, and not from those of its
    /// link.
    pub(crate) fn speak_from_advertised(&self) {
        let ways = [("-4", "10.42.0.0/16", "172.16.2.1"), ("-6", "fd42::/48", "fd16:2::1")];
        for ((family, to, by), from) in ways.into_iter().zip(FAR) {
            let mut replace = Command::new("ip");
            replace.args([family, "route", "replace", to, "via", by, "dev", "up2", "src"]);
            output(&self.far, replace.arg(from.to_string())).unwrap();
        }
    }
}

/// The addresses of that machine.
pub(crate) const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 8, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 10)),
];

/// Puts a machine behind a gateway and a router. `mtu`: of the link between these, and of the one
/// behind the router.
pub(crate) fn behind(mesh: &Mesh, gateway: &Node, mtu: [u32; 2]) -> Behind {
    let Behind { router, far } = Behind { router: host().unwrap(), far: host().unwrap() };
    let v6 = |text: &str| -> IpAddr { text.parse().unwrap() };
    let v4 = |third, host| IpAddr::from(Ipv4Addr::new(172, 16, third, host));
    for netns in [&gateway.site.netns, &router] {
        netns.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap().unwrap();
        netns.run(|| fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")).unwrap().unwrap();
    }
    for netns in [&gateway.site.netns, &router, &far] {
        // Addresses may be used at once: nobody looks whether others have them (RFC 4862 §5.4).
        netns
            .run(|| fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0"))
            .unwrap()
            .unwrap();
    }
    let joined = [(&gateway.site.netns, &router, 1u8, mtu[0]), (&router, &far, 2, mtu[1])];
    for (near, beyond, number, mtu) in joined {
        let (down, up) = (format!("down{number}"), format!("up{number}"));
        near.links(async |links| {
            links.add_veth(&down, "far").await?;
            links.move_to("far", beyond, &up).await?;
            links.set_mtu(&down, mtu).await
        })
        .unwrap();
        for (netns, name, host) in [(near, &down, 1), (beyond, &up, 2)] {
            netns
                .links(async |links| {
                    links.set_mtu(name, mtu).await?;
                    links.add_address(name, v4(number, host), 24).await?;
                    links.add_address(name, v6(&format!("fd16:{number}::{host}")), 64).await?;
                    links.set_up(name).await
                })
                .unwrap();
        }
    }
    mesh.internet.watched().unwrap().lan(&gateway.site.netns, "down1").unwrap();
    let route = |netns: &Netns, name: &str, to: &str, by: IpAddr| {
        let to = to.parse().unwrap();
        netns.links(async |links| links.add_route(name, to, Some(by), None).await).unwrap();
    };
    far.links(async |links| {
        links.set_up("lo").await?;
        links.add_address("lo", FAR[0], 32).await?;
        links.add_address("lo", FAR[1], 128).await
    })
    .unwrap();
    for (to, one, two) in
        [("10.8.0.0/24", v4(1, 2), v4(2, 2)), ("fd08::/64", v6("fd16:1::2"), v6("fd16:2::2"))]
    {
        route(&gateway.site.netns, "down1", to, one);
        route(&router, "down2", to, two);
    }
    for (to, one, two) in
        [("10.42.0.0/16", v4(1, 1), v4(2, 1)), ("fd42::/48", v6("fd16:1::1"), v6("fd16:2::1"))]
    {
        route(&router, "up1", to, one);
        route(&far, "up2", to, two);
    }
    Behind { router, far }
}

const BEHIND_POLICY: &str = "network: shop
routes: [{ name: dc, within: [10.8.0.0/16, fd08::/32] }]
rules: [{ name: all, from: {}, to: {}, allow: [any] }]
";

#[test]
fn errors_of_a_gateway_and_of_routers_behind_it_come_to_the_sender() {
    for mtu in [[1280, 1500], [1500, 1280]] {
        let mut mesh = mesh();
        mesh.apply(BEHIND_POLICY).unwrap();
        let cloud = mesh.node("cloud").start().unwrap();
        let gateway = mesh.node("gw").start().unwrap();
        let web = cloud.attach("shop", "app=web").unwrap();
        let near = gateway.attach("shop", "app=near").unwrap();
        let behind = behind(&mesh, &gateway, mtu);
        let _echo = Echo::start(&behind.far, 5432);
        gateway.advertise("shop", &["10.8.0.0/24", "fd08::/64"], "dc=dc1").unwrap();
        for from in [&web, &near] {
            for to in FAR {
                mesh.wait(|| tcp_echoes(&from.netns, to, 5432, 1, SILENCE)).unwrap();
                // A large transfer passes, in both directions, as soon as the first error has come.
                assert!(tcp_echoes(&from.netns, to, 5432, 3 << 20, PATIENCE), "{to} with {mtu:?}");
            }
            // Behind the router nobody is there, and on its link neither.
            for to in ["10.8.0.99", "fd08::99"] {
                let to: IpAddr = to.parse().unwrap();
                let route = [
                    format!("{to}/{}", if to.is_ipv4() { 32 } else { 128 }),
                    "dev".into(),
                    "down2".into(),
                ];
                let mut add = Command::new("ip");
                add.args([if to.is_ipv4() { "-4" } else { "-6" }, "route", "replace"]).args(route);
                output(&behind.router, &mut add).unwrap();
                let error = crate::support::connect(&from.netns, to, 5432, Duration::from_secs(8))
                    .unwrap_err();
                let kind = error.downcast::<std::io::Error>().unwrap().kind();
                assert_eq!(kind, std::io::ErrorKind::HostUnreachable, "{to}");
            }
        }
        let rules =
            || output(&gateway.site.netns, Command::new("ip").args(["-4", "rule"])).unwrap();
        assert!(rules().contains("ipproto icmp"), "{}", rules());
        gateway.withdraw("shop", "10.8.0.0/24").unwrap();
        mesh.wait(|| !rules().contains("ipproto icmp")).unwrap();
    }
}

#[test]
fn what_is_for_behind_a_gateway_does_not_leave_by_its_uplink_when_the_link_there_goes() {
    let mut mesh = mesh();
    mesh.apply(BEHIND_POLICY).unwrap();
    let cloud = mesh.node("cloud").start().unwrap();
    let mut gateway = mesh.node("gw").start().unwrap();
    let web = cloud.attach("shop", "app=web").unwrap();
    let behind = behind(&mesh, &gateway, [1500, 1500]);
    let _echo = Echo::start(&behind.far, 5432);
    // A route that is longer than what leads there.
    gateway.advertise("shop", &["10.8.0.0/25", "fd08::/65"], "dc=dc1").unwrap();
    let link = |state: &str| {
        let mut set = Command::new("ip");
        output(&gateway.site.netns, set.args(["link", "set", "down1", state])).unwrap();
    };
    let streams = FAR.map(|to| {
        mesh.wait(|| tcp_echoes(&web.netns, to, 5432, 1, SILENCE)).unwrap();
        Stream::start(&web.netns, to, 5432)
    });
    link("down");
    for to in FAR {
        let error = crate::support::connect(&web.netns, to, 5432, PATIENCE).unwrap_err();
        let kind = error.downcast::<std::io::Error>().unwrap().kind();
        assert!(
            matches!(
                kind,
                std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable
            ),
            "{to}: {kind}"
        );
    }
    assert!(streams.iter().all(|stream| !stream.flows(SILENCE)));
    // Neither after a restart of the daemon, which finds no way there.
    gateway.kill();
    gateway.start().unwrap();
    for to in FAR {
        assert!(!tcp_echoes(&web.netns, to, 5432, 1, SILENCE));
    }
    drop(streams);
    assert_eq!(mesh.internet.watched().unwrap().strays(), Vec::<String>::new());
    let rules = |family: &str| {
        output(&gateway.site.netns, Command::new("ip").args([family, "rule"])).unwrap()
    };
    assert!(
        rules("-4").contains("suppress_prefixlength 0")
            && rules("-6").contains("suppress_prefixlength 0")
    );
    gateway.withdraw("shop", "10.8.0.0/25").unwrap();
    mesh.wait(|| !rules("-4").contains("1013") && !rules("-6").contains("1013")).unwrap();
}
