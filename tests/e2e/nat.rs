//! Nodes behind NATs meet directly, where that is possible.

use crate::support::{Echo, PATIENCE, allow, mesh, tcp_echoes, udp_echoes};
use meshward_lab::{Mesh, Nat, Node, Workload};
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// For how long two nodes may look for each other.
const MEET: Duration = Duration::from_secs(5);

/// Two nodes, each behind a NAT or not, and a workload on each.
struct Pair {
    web: Workload,
    api: Workload,
    nodes: [Node; 2],
    routers: [Option<Ipv4Addr>; 2],
    _echo: Echo,
    _mesh: Mesh,
}

impl Pair {
    fn new(nats: [Option<Nat>; 2]) -> Self {
        let mut mesh = mesh();
        let mut routers = [None; 2];
        let mut nodes = Vec::new();
        for (at, nat) in nats.into_iter().enumerate() {
            let name = ["cloud", "rack"][at];
            let token = mesh.token(&["--site", name]).unwrap();
            let site = match nat {
                None => mesh.internet.site(name).unwrap(),
                Some(nat) => {
                    let (site, router) = mesh.internet.site_behind(name, nat).unwrap();
                    routers[at] = Some(router);
                    site
                }
            };
            nodes.push(mesh.node_at(site, &token).unwrap());
        }
        let nodes: [Node; 2] = nodes.try_into().ok().unwrap();
        let web = nodes[0].attach("shop", "app=web").unwrap();
        let api = nodes[1].attach("shop", "app=api").unwrap();
        // Each has found out how it is seen.
        for (node, router) in nodes.iter().zip(routers) {
            let seen = router.map(|router| router.to_string());
            mesh.wait(|| {
                seen.as_ref().is_none_or(|seen| node.printed().contains(&format!("seen_as=Some({seen}:")))
            })
            .unwrap();
        }
        mesh.apply(&allow("tcp/7000, udp/7000")).unwrap();
        let _echo = Echo::start(&api.netns, 7000);
        Self { web, api, nodes, routers, _echo, _mesh: mesh }
    }

    /// Whether the workloads meet within some time, and each node then knows the other by its router.
    fn meet(&self) -> bool {
        let begun = Instant::now();
        while !tcp_echoes(&self.web.netns, self.api.v4(), 7000, 1000, MEET) {
            if begun.elapsed() > MEET {
                return false;
            }
        }
        println!("first byte after {:?}", begun.elapsed());
        for (node, router) in self.nodes.iter().zip([self.routers[1], self.routers[0]]) {
            let Some(router) = router else { continue };
            let direct = || {
                let address = node.status().unwrap()["endpoints"][0]["peers"][0]["address"].clone();
                address.as_str().is_some_and(|address| address.contains(&router.to_string()))
            };
            while !direct() {
                assert!(begun.elapsed() < MEET, "the path is direct in time");
                std::thread::sleep(Duration::from_millis(20));
            }
            println!("direct after {:?}", begun.elapsed());
        }
        true
    }
}

#[test]
fn nodes_behind_cone_nats_meet() {
    assert!(Pair::new([Some(Nat::Cone), Some(Nat::Cone)]).meet());
}

#[test]
fn a_node_behind_a_nat_meets_one_that_is_open_in_both_directions() {
    assert!(Pair::new([Some(Nat::Cone), None]).meet());
    assert!(Pair::new([None, Some(Nat::Cone)]).meet());
}

#[test]
fn a_node_behind_a_symmetric_nat_meets_one_that_is_open_in_both_directions() {
    assert!(Pair::new([Some(Nat::Symmetric), None]).meet());
    assert!(Pair::new([None, Some(Nat::Symmetric)]).meet());
}

#[test]
fn nodes_that_cannot_meet_directly_are_relayed() {
    let pair = Pair::new([Some(Nat::Symmetric), Some(Nat::Symmetric)]);
    let begun = Instant::now();
    assert!(tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, 300_000, PATIENCE));
    println!("300 kB there and back after {:?}", begun.elapsed());
    assert!(udp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1380, PATIENCE), "a packet of the full MTU");
    let shown = pair.nodes[0].meshctl(&["--context", "/dev/null", "status"]).unwrap();
    assert!(shown.contains("relay"), "{shown}");
}

#[test]
fn what_a_nat_knows_is_kept_while_nobody_speaks() {
    let pair = Pair::new([Some(Nat::Cone), Some(Nat::Cone)]);
    assert!(pair.meet());
    std::thread::sleep(Duration::from_secs(25));
    let begun = Instant::now();
    assert!(tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1000, PATIENCE));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
