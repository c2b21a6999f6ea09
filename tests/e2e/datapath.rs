//! The data path's offloads and path MTU discovery, on real devices.

use crate::support::{Echo, PATIENCE, Shop, allow, mesh, tcp_echoes, udp_echoes};
use meshward_netns::Netns;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
        sockopt,
    },
    time::TimeVal,
};
use std::{
    net::UdpSocket,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

#[test]
fn traffic_passes_whatever_of_the_offloads_is_missing() {
    let all = ["tso", "uso", "udp-segment", "udp-gro"];
    let sets = all.iter().map(|one| vec![*one]).chain([all.to_vec()]);
    for disabled in sets {
        let mut mesh = mesh();
        let flags: Vec<&str> =
            disabled.iter().flat_map(|name| ["--disable-offload", *name]).collect();
        // One side lacks what the other has.
        let nodes =
            [mesh.node("cloud").flags(&flags).start().unwrap(), mesh.node("rack").start().unwrap()];
        let web = nodes[0].attach("shop", "app=web").unwrap();
        let api = nodes[1].attach("shop", "app=api").unwrap();
        mesh.apply(&allow("tcp/8080, udp/8080")).unwrap();
        let _echo = Echo::start(&api.netns, 8080);
        for address in [api.v4(), api.v6()] {
            assert!(
                tcp_echoes(&web.netns, address, 8080, 4 << 20, PATIENCE),
                "without {disabled:?}"
            );
            assert!(udp_echoes(&web.netns, address, 8080, 1300, PATIENCE), "without {disabled:?}");
        }
        let used: Vec<&&str> = all.iter().filter(|name| !disabled.contains(name)).collect();
        assert!(nodes[0].endpoint().unwrap().offloads.iter().eq(used.into_iter().copied()));
    }
}

#[test]
fn several_workers_or_one_carry_the_same_traffic() {
    for workers in ["1", "4"] {
        let mut mesh = mesh();
        let flags = ["--workers", workers];
        let nodes = [
            mesh.node("cloud").flags(&flags).start().unwrap(),
            mesh.node("rack").flags(&flags).start().unwrap(),
        ];
        let web: Vec<_> = (0..4).map(|_| nodes[0].attach("shop", "app=web").unwrap()).collect();
        let api = nodes[1].attach("shop", "app=api").unwrap();
        mesh.apply(&allow("tcp/8080")).unwrap();
        let _echo = Echo::start(&api.netns, 8080);
        thread::scope(|scope| {
            for web in &web {
                scope.spawn(|| assert!(tcp_echoes(&web.netns, api.v4(), 8080, 4 << 20, PATIENCE)));
            }
        });
        assert_eq!(nodes[0].status().unwrap().workers.to_string(), workers);
    }
}

#[test]
fn congestion_marks_cross_the_tunnel_and_service_classes_stay_inside() {
    let shop = Shop::new(&allow("udp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(udp_echoes(&shop.web.netns, shop.api.v4(), 8080, 100, PATIENCE));
    let outside = datagrams_from_outside(&shop.nodes[1].site.netns);
    let sender = shop.web.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    // DSCP EF, and ECT(0).
    setsockopt(&sender, sockopt::Ipv4Tos, &(0xb8 | 2)).unwrap();
    sender.send_to(&[7; 777], (shop.api.v4(), 8080)).unwrap();
    let mut packet = [0; 2048];
    let deadline = Instant::now() + PATIENCE;
    let outer = loop {
        assert!(Instant::now() < deadline, "nothing came");
        let Ok(length) = recv(outside.as_raw_fd(), &mut packet, MsgFlags::empty()) else {
            continue;
        };
        // IPv4, UDP, WireGuard around IPv4 and UDP, padded to 16.
        if length == 20 + 8 + 32 + (20 + 8 + 777_usize).next_multiple_of(16) {
            break packet[1];
        }
    };
    assert_eq!(outer, 2, "the class outside");
}

#[test]
fn a_sender_beyond_the_mtu_is_told_and_goes_on() {
    let shop = Shop::new(&allow("udp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    // Somebody has changed the workload's interface: only the endpoint knows better.
    shop.web.netns.links(async |links| links.set_mtu(&shop.web.interface, 9000).await).unwrap();
    for address in [shop.api.v4(), shop.api.v6()] {
        let before = shop.nodes[0].drops("packet_too_big");
        let deadline = Instant::now() + PATIENCE;
        while !udp_echoes(&shop.web.netns, address, 8080, 4000, Duration::from_millis(100)) {
            assert!(
                Instant::now() < deadline,
                "the sender to {address} has not learned the path's MTU"
            );
        }
        assert!(shop.nodes[0].drops("packet_too_big") > before, "{address}");
    }
}

/// A socket that sees the datagrams which reach a node, with their outer headers.
fn datagrams_from_outside(netns: &Netns) -> OwnedFd {
    let open = || {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Udp)?;
        setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::new(0, 200_000))?;
        nix::Result::Ok(raw)
    };
    netns.run(open).unwrap().unwrap()
}
