//! The capture that stands beside all tests sees what it is there for.

use crate::flows::{checksum, header, raw, send, udp};
use meshward_lab::{Internet, Site, host};
use nix::sys::socket::{AddressFamily, SockProtocol};
use std::net::{IpAddr, SocketAddr};

/// Sends a packet from a site to another, with addresses of anybody.
fn put(from: &Site, next: u8, addresses: [IpAddr; 2], body: &[u8]) {
    let (family, [source, to]) = (
        if addresses[0].is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        addresses,
    );
    let mouth = raw(&from.netns, family, SockProtocol::Raw);
    send(&mouth, to, &[&header(source, to, next, body.len(), 0), body].concat());
}

fn datagram(addresses: [IpAddr; 2]) -> Vec<u8> {
    let [from, to] = addresses.map(|address| SocketAddr::new(address, 5353));
    udp(from, to, b"in clear")
}

/// An ICMP error that quotes a packet with these addresses.
fn error(family: [IpAddr; 2], quoted: [IpAddr; 2]) -> (u8, Vec<u8>) {
    let body = datagram(quoted);
    let packet = [header(quoted[0], quoted[1], 17, body.len(), 0), body].concat();
    let (next, kind) = if quoted[0].is_ipv4() { (1, [3, 4]) } else { (58, [2, 0]) };
    let mut message = [&kind[..], &[0, 0, 0, 0, 5, 0], &packet].concat();
    let octets = family.map(|address| match address {
        IpAddr::V4(_) => vec![],
        IpAddr::V6(address) => address.octets().to_vec(),
    });
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = if quoted[0].is_ipv4() { vec![] } else { [&length[..], &[0, 0, 0, 58]].concat() };
    let sum = checksum(&[&octets.concat(), &pseudo, &message]);
    message[2..4].copy_from_slice(&sum);
    (next, message)
}

#[test]
fn a_packet_of_a_mesh_outside_of_it_is_seen_wherever_it_stands() {
    let mut internet = Internet::new().unwrap();
    let [a, b] = ["a", "b"].map(|name| internet.site(name).unwrap());
    internet.watch().unwrap();
    let watch = internet.watched().unwrap();
    let before = [SocketAddr::new(a.v4.into(), 1).ip(), b.v4.into()];
    put(&a, 17, before, &datagram(before));
    for prefix in ["10.42.0.0/16", "10.43.7.0/24", "fd42::/48", "fd43:0:7::/64"] {
        watch.add(prefix.parse().unwrap()).unwrap();
    }
    let own = [[IpAddr::from(a.v4), b.v4.into()], [a.v6.into(), b.v6.into()]];
    let none: [&str; 0] = [];
    assert_eq!(watch.strays(), none);
    let meshes = [["10.42.1.1", "10.43.7.1"], ["fd42::1", "fd43:0:7:0:ffff::1"]];
    let beside = [["10.41.255.255", "10.43.8.0"], ["fd42:0:1::1", "fd43:0:7:1::"]];
    for (own, (mesh, beside)) in own.into_iter().zip(meshes.into_iter().zip(beside)) {
        let [mesh, beside] =
            [mesh, beside].map(|pair| pair.map(|text| text.parse::<IpAddr>().unwrap()));
        for (inner, counts) in [(mesh, true), (beside, false)] {
            let seen = |what: &str| {
                let strays = watch.strays();
                assert_eq!(
                    strays.iter().any(|stray| stray.contains(what)),
                    counts,
                    "{what}: {strays:#?}"
                );
            };
            for inner in inner {
                put(&a, 17, [own[0], inner], &datagram([own[0], inner]));
                seen(&format!("> {inner} on eth0 of a"));
                put(&a, 17, [inner, own[1]], &datagram([inner, own[1]]));
                seen(&format!("{inner} > {} on eth0 of a", own[1]));
                for quoted in [[own[0], inner], [inner, own[1]]] {
                    let (next, message) = error(own, quoted);
                    put(&a, next, own, &message);
                    seen(&format!("{} > {} on eth0 of a", own[0], own[1]));
                }
            }
        }
        // What is sealed, or says something of this only in its payload, is nobody's business.
        put(&a, 17, own, &[0x42; 600]);
        assert_eq!(watch.strays(), none);
    }
}

#[test]
fn behind_a_gateway_only_what_leaves_for_the_mesh_is_astray() {
    let mut internet = Internet::new().unwrap();
    internet.watch().unwrap();
    let (gateway, far) = (internet.site("gw").unwrap(), host().unwrap());
    let join = async |links: &meshward_netns::Links| {
        links.add_veth("lan", "far").await?;
        links.move_to("far", &far, "eth1").await?;
        links.add_address("lan", "172.16.1.1".parse().unwrap(), 24).await?;
        links.set_up("lan").await
    };
    gateway.netns.links(join).unwrap();
    let answer = async |links: &meshward_netns::Links| {
        links.add_address("eth1", "172.16.1.2".parse().unwrap(), 24).await?;
        links.set_up("eth1").await?;
        let (mesh, gateway) = ("10.42.0.0/16".parse().unwrap(), "172.16.1.1".parse().unwrap());
        links.add_route("eth1", mesh, Some(gateway), None).await
    };
    far.links(answer).unwrap();
    let watch = internet.watched().unwrap();
    watch.add("10.42.0.0/16".parse().unwrap()).unwrap();
    watch.lan(&gateway.netns, "lan").unwrap();
    let lan = Site { netns: far, ..gateway.clone() };
    let (mesh, near, far): (IpAddr, IpAddr, IpAddr) = (
        "10.42.1.1".parse().unwrap(),
        "172.16.1.1".parse().unwrap(),
        "172.16.1.2".parse().unwrap(),
    );
    // It comes from behind, for the mesh; and what came from the mesh leaves for there.
    put(&lan, 17, [far, mesh], &datagram([far, mesh]));
    put(&gateway, 17, [mesh, far], &datagram([mesh, far]));
    let none: [&str; 0] = [];
    assert_eq!(watch.strays(), none);
    let to_mesh = async |links: &meshward_netns::Links| {
        links.add_route("lan", "10.42.0.0/16".parse().unwrap(), Some(far), None).await
    };
    gateway.netns.links(to_mesh).unwrap();
    put(&gateway, 17, [near, mesh], &datagram([near, mesh]));
    let strays = watch.strays();
    assert!(strays.iter().any(|stray| stray.contains("> 10.42.1.1 on lan of gw")), "{strays:#?}");
}

#[test]
#[should_panic = "outside of the mesh"]
fn a_test_whose_packets_are_astray_fails() {
    let mut internet = Internet::new().unwrap();
    let a = internet.site("a").unwrap();
    internet.watch().unwrap();
    internet.watched().unwrap().add("10.42.0.0/16".parse().unwrap()).unwrap();
    let addresses = [IpAddr::from(a.v4), "10.42.9.9".parse().unwrap()];
    put(&a, 17, addresses, &datagram(addresses));
}
