//! From which address what answers leaves, and by which interface what is for a mesh does not.

use crate::support::{Echo, PATIENCE, Shop, Stream, allow, mesh, tcp_echoes};
use meshward_lab::{Node, output};
use meshward_netns::Netns;
use nix::errno::Errno;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

/// Returns the address of a node's only peer, as the node sees it.
fn peer_address(node: &Node) -> Option<SocketAddr> {
    node.peer().ok()?.address
}

#[test]
fn a_node_that_is_reached_by_its_second_address_answers_from_that() {
    let mut mesh = mesh();
    let cloud = mesh.node("cloud").start().unwrap();
    let rack = mesh.node("rack").start().unwrap();
    let [a, b, c, _] = rack.site.v4.octets();
    let seconds = [IpAddr::from(Ipv4Addr::new(a, b, c, 77)), IpAddr::from(second_v6(rack.site.v6))];
    rack.site
        .netns
        .links(async |links| {
            links.add_address("eth0", seconds[0], 24).await?;
            links.add_address("eth0", seconds[1], 64).await
        })
        .unwrap();
    // A stateful firewall of the first node, which cannot send to the second's first addresses.
    let rules = format!(
        "table inet stateful {{\n\
         chain in {{ type filter hook input priority 0; iif lo accept; ct state \
         established,related accept; icmpv6 type {{ nd-router-solicit, nd-router-advert, \
         nd-neighbor-solicit, nd-neighbor-advert }} accept; drop; }}\n\
         chain out {{ type filter hook output priority 0; ip daddr {} udp dport 51820 drop; ip6 \
         daddr {} udp dport 51820 drop; }}\n}}\n",
        rack.site.v4, rack.site.v6
    );
    let file = mesh.folder().join("stateful.nft");
    fs::write(&file, rules).unwrap();
    output(&cloud.site.netns, Command::new("nft").arg("-f").arg(&file)).unwrap();
    let web = cloud.attach("shop", "app=web").unwrap();
    let api = rack.attach("shop", "app=api").unwrap();
    mesh.apply(&allow("tcp/8080")).unwrap();
    let _echo = Echo::start(&api.netns, 8080);
    let stream = Stream::start(&web.netns, api.v4(), 8080);
    let is_second = |address: SocketAddr| seconds.contains(&address.ip().to_canonical());
    mesh.wait(|| peer_address(&cloud).is_some_and(is_second)).unwrap();
    // The path stays what it is.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        assert!(stream.flows(PATIENCE));
        assert!(peer_address(&cloud).is_some_and(is_second), "{:?}", peer_address(&cloud));
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn second_v6(first: Ipv6Addr) -> Ipv6Addr {
    let mut segments = first.segments();
    segments[7] = 0x77;
    segments.into()
}

/// Returns the kernel's error for a UDP socket that connects there; `None` if there is none.
fn refusal(netns: &Netns, to: IpAddr) -> Option<Errno> {
    let own = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let tried = netns.run(|| UdpSocket::bind(own)?.connect((to, 9))).unwrap();
    tried.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw)
}

#[test]
fn nothing_for_a_mesh_leaves_by_another_interface_while_the_daemon_is_up_and_down() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    // Without that, the host's default route would take them, and a workload's, if it has another
    // interface.
    let unrelated: IpAddr = "198.18.77.7".parse().unwrap();
    assert_eq!(refusal(&shop.nodes[0].site.netns, unrelated), None);
    for up in [true, false] {
        if !up {
            shop.nodes[0].kill();
        }
        for to in [shop.api.v4(), shop.api.v6()] {
            let said = refusal(&shop.nodes[0].site.netns, to);
            assert_eq!(said, Some(Errno::EHOSTUNREACH), "the host's own packets to {to}");
        }
    }
    let routes = |netns: &Netns| {
        let all = ["-4", "-6"]
            .map(|family| output(netns, Command::new("ip").args([family, "route"])).unwrap());
        all.concat().matches("unreachable ").count()
    };
    assert_eq!(
        routes(&shop.web.netns),
        2,
        "also in the workload's namespace, for when its interface is gone"
    );
    shop.nodes[0].start().unwrap();
    assert!(tcp_echoes(&shop.web.netns, shop.api.v6(), 8080, 64, PATIENCE));
}
