//! Packets: what passes, what does not, and in what sizes.

use crate::support::{
    Echo, PATIENCE, SILENCE, Shop, allow, connect, mesh, pings, tcp_echoes, udp_echoes,
};
use meshward_lab::host;
use std::{net::UdpSocket, thread, time::Duration};

#[test]
fn allowed_protocols_pass_in_both_families_and_nothing_else_does() {
    let shop = Shop::new(&allow("tcp/8080, udp/5353, icmp"));
    let (web, api) = (&shop.web, &shop.api);
    let _echoes = [8080, 5353, 22].map(|port| Echo::start(&api.netns, port));
    let _back = Echo::start(&web.netns, 8080);
    for to in [api.v4(), api.v6()] {
        assert!(tcp_echoes(&web.netns, to, 8080, 64, PATIENCE), "tcp to {to}");
        assert!(udp_echoes(&web.netns, to, 5353, 64, PATIENCE), "udp to {to}");
        assert!(pings(&web.netns, to, PATIENCE), "icmp to {to}");
        assert!(!tcp_echoes(&web.netns, to, 22, 64, SILENCE), "tcp/22 to {to}");
        assert!(!udp_echoes(&web.netns, to, 8080, 64, SILENCE), "udp/8080 to {to}");
    }
    for to in [web.v4(), web.v6()] {
        assert!(!tcp_echoes(&api.netns, to, 8080, 64, SILENCE), "tcp back to {to}");
        assert!(!udp_echoes(&api.netns, to, 8080, 64, SILENCE), "udp back to {to}");
        assert!(!pings(&api.netns, to, SILENCE), "icmp back to {to}");
    }
    assert!(shop.nodes[0].drops("denied") > 0);
}

#[test]
fn nothing_passes_before_there_is_a_policy() {
    let shop = Shop::new("network: shop");
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE));
    assert!(!pings(&shop.web.netns, shop.api.v6(), SILENCE));
    let peers = shop.nodes[0].endpoint().unwrap().peers;
    assert!(peers.is_empty(), "a node without links is told of no peer");
}

#[test]
fn payloads_of_every_size_arrive_whole() {
    let shop = Shop::new(&allow("tcp/8080, udp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    for to in [shop.api.v4(), shop.api.v6()] {
        for size in [64, 1000, 1380, 1393, 1500, 9000, 65_000] {
            assert!(
                udp_echoes(&shop.web.netns, to, 8080, size, PATIENCE),
                "{size} bytes over UDP to {to}"
            );
        }
        for size in [1, 64, 1460, 65_536, 4 << 20] {
            assert!(
                tcp_echoes(&shop.web.netns, to, 8080, size, PATIENCE),
                "{size} bytes over TCP to {to}"
            );
        }
    }
}

#[test]
fn the_mtu_of_the_network_is_that_of_its_interfaces() {
    let mut mesh = mesh();
    mesh.meshctl(&["network", "create", "small", "--cidr", "10.50.0.0/16", "--mtu", "1280"])
        .unwrap();
    let node = mesh.node("cloud").start().unwrap();
    for (network, mtu) in [("shop", 1420), ("small", 1280)] {
        let workload = node.attach(network, "app=web").unwrap();
        let name = &workload.interface;
        assert_eq!(workload.netns.links(async |links| links.mtu(name).await).unwrap(), mtu);
    }
}

#[test]
fn workloads_of_one_node_are_policed_too() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    let (web, api) =
        (node.attach("shop", "app=web").unwrap(), node.attach("shop", "app=api").unwrap());
    mesh.apply(&allow("tcp/8080")).unwrap();
    let _echoes = (Echo::start(&api.netns, 8080), Echo::start(&web.netns, 8080));
    assert!(tcp_echoes(&web.netns, api.v4(), 8080, 100_000, PATIENCE));
    assert!(tcp_echoes(&web.netns, api.v6(), 8080, 100_000, PATIENCE));
    assert!(!tcp_echoes(&api.netns, web.v4(), 8080, 64, SILENCE));
}

#[test]
fn a_workload_cannot_send_from_an_address_that_is_not_its_own() {
    let shop = Shop::new(&allow("udp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let forged = [
        "10.42.0.200".parse().unwrap(),
        "fd42::200".parse().unwrap(),
        "192.0.2.7".parse().unwrap(),
    ];
    shop.web
        .netns
        .links(async |links| {
            for address in forged {
                links
                    .add_address(
                        &shop.web.interface,
                        address,
                        if address.is_ipv4() { 32 } else { 128 },
                    )
                    .await?;
            }
            Ok(())
        })
        .unwrap();
    for source in forged {
        let socket = shop.web.netns.run(|| UdpSocket::bind((source, 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        let to = if source.is_ipv4() { shop.api.v4() } else { shop.api.v6() };
        socket.send_to(b"forged", (to, 8080)).unwrap();
        assert!(socket.recv_from(&mut [0; 16]).is_err(), "{source} got an answer");
    }
    assert_eq!(shop.nodes[0].drops("spoofed_by_workload"), 3);
    assert!(udp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
}

#[test]
fn a_mesh_works_where_its_nodes_have_only_ipv6() {
    let mut mesh = mesh();
    let nodes = [
        mesh.node("cloud").over_ipv6().start().unwrap(),
        mesh.node("rack").over_ipv6().start().unwrap(),
    ];
    let (web, api) =
        (nodes[0].attach("shop", "app=web").unwrap(), nodes[1].attach("shop", "app=api").unwrap());
    mesh.apply(&allow("tcp/8080, udp/8080")).unwrap();
    let _echo = Echo::start(&api.netns, 8080);
    for to in [api.v4(), api.v6()] {
        assert!(tcp_echoes(&web.netns, to, 8080, 1 << 20, PATIENCE));
        assert!(udp_echoes(&web.netns, to, 8080, 1380, PATIENCE));
    }
    let peer = nodes[0].peer().unwrap().address.unwrap();
    assert_eq!(peer.ip(), nodes[1].site.v6);
}

#[test]
fn a_path_that_takes_only_1280_bytes_works() {
    let shop = Shop::new(&allow("tcp/8080, udp/8080"));
    shop.mesh.internet.narrow(&shop.nodes[1].site, 1280).unwrap();
    let _echo = Echo::start(&shop.api.netns, 8080);
    for to in [shop.api.v4(), shop.api.v6()] {
        assert!(
            tcp_echoes(&shop.web.netns, to, 8080, 4 << 20, Duration::from_secs(20)),
            "TCP to {to}"
        );
        assert!(udp_echoes(&shop.web.netns, to, 8080, 1380, PATIENCE), "UDP to {to}");
        assert!(udp_echoes(&shop.web.netns, to, 8080, 9000, PATIENCE), "fragments to {to}");
    }
}

#[test]
fn super_packets_are_used_and_shown() {
    let shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 8 << 20, PATIENCE));
    let offloads = shop.nodes[0].endpoint().unwrap().offloads;
    assert_eq!(offloads, ["tso", "uso", "udp-segment", "udp-gro"]);
    let packets = shop.mesh.links().unwrap().items[0].packets;
    assert!(
        packets >= 2 * (8 << 20) / 1420,
        "counters count the packets that super-packets stand for: {packets}"
    );
}

#[test]
fn two_networks_with_the_same_labels_do_not_leak() {
    let mut mesh = mesh();
    mesh.meshctl(&["network", "create", "lab", "--cidr", "10.43.0.0/16", "--cidr", "fd43::/48"])
        .unwrap();
    let nodes = [mesh.node("cloud").start().unwrap(), mesh.node("rack").start().unwrap()];
    for network in ["shop", "lab"] {
        let policy = allow("any").replace("network: shop", &format!("network: {network}"));
        mesh.apply(&policy).unwrap();
    }
    let attach = |node: usize, network: &str, app: &str| {
        nodes[node].attach(network, &format!("app={app}")).unwrap()
    };
    let (web, api) = (attach(0, "shop", "web"), attach(1, "shop", "api"));
    let (lab_web, lab_api) = (attach(0, "lab", "web"), attach(1, "lab", "api"));
    let _echoes = (Echo::start(&api.netns, 8080), Echo::start(&lab_api.netns, 8080));
    assert!(tcp_echoes(&web.netns, api.v4(), 8080, 64, PATIENCE));
    assert!(tcp_echoes(&lab_web.netns, lab_api.v6(), 8080, 64, PATIENCE));
    // Even with a route into the other network's range, nothing gets there.
    for (from, to) in [(&web, &lab_api), (&lab_web, &api)] {
        let everything = "10.0.0.0/8".parse().unwrap();
        from.netns
            .links(async |links| links.add_route(&from.interface, everything, None, None).await)
            .unwrap();
        assert!(connect(&from.netns, to.v4(), 8080, SILENCE).is_err());
    }
    assert!(nodes[0].drops("unknown_address") > 0);
}

#[test]
fn one_workload_may_be_in_two_networks() {
    let mut mesh = mesh();
    mesh.meshctl(&["network", "create", "lab", "--cidr", "10.43.0.0/16"]).unwrap();
    let node = mesh.node("cloud").start().unwrap();
    let netns = host().unwrap();
    let first = node.workload("shop", "app=web").netns(netns.clone()).attach().unwrap();
    let second = node.workload("lab", "app=web").netns(netns.clone()).attach().unwrap();
    assert_ne!(first.interface, second.interface);
    let twice = node.workload("shop", "app=web").netns(netns).attach().err().unwrap().to_string();
    assert!(twice.contains("already"), "{twice}");
}

#[test]
fn a_namespace_in_which_ipv6_is_turned_off_has_it_on_the_mesh() {
    let shop = Shop::new(&allow("tcp/8080"));
    let netns = host().unwrap();
    for which in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        netns.run(|| std::fs::write(path, "1")).unwrap().unwrap();
    }
    let web = shop.nodes[0].workload("shop", "app=web").netns(netns).attach().unwrap();
    let _echo = Echo::start(&shop.api.netns, 8080);
    for address in [shop.api.v4(), shop.api.v6()] {
        assert!(tcp_echoes(&web.netns, address, 8080, 1000, PATIENCE), "{address}");
    }
}

#[test]
fn a_detached_or_ended_workload_leaves_nothing_behind() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    let workload = node.attach("shop", "app=web").unwrap();
    node.meshctl(&["detach", &workload.id]).unwrap();
    let gone = || {
        !workload.netns.links(async |links| Ok(links.exists(&workload.interface).await)).unwrap()
    };
    mesh.wait(gone).unwrap();
    let mut run = node.run("shop", "sleeper", "app=web", &["sleep", "10"]).unwrap();
    run.process.as_mut().unwrap().kill();
    drop(run);
    mesh.wait(|| mesh.workloads().unwrap().is_empty()).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(node.attached().unwrap().is_empty());
}
