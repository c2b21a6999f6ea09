//! The network away, clocks that step, descriptors used up.

use super::witness::Witness;
use crate::support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, tcp_echoes};
use meshward_lab::output;
use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// Longer than a session lives in silence.
const AWAY: Duration = Duration::from_secs(10);

#[test]
fn a_node_whose_network_was_away_comes_back_by_itself_and_has_the_policy_of_now() {
    let shop = Shop::new(&allow("tcp/8080, udp/7000"));
    let witness = Witness::start(&shop.api, &[7000, 7001], &[&shop.web]);
    let _echoes = [8080, 9090].map(|port| Echo::start(&shop.api.netns, port));
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    let uplink = |state: &str| {
        let away = &shop.nodes[1].site;
        output(&away.netns, Command::new("ip").args(["link", "set", "eth0", state])).unwrap();
        if state == "up" {
            // A link that goes takes its routes along; whoever manages the host's network brings
            // them back.
            let router = format!("198.18.{}.1", away.v4.octets()[2]);
            output(
                &away.netns,
                Command::new("ip").args(["route", "replace", "default", "via", &router]),
            )
            .unwrap();
        }
    };
    uplink("down");
    // A session ends nine seconds after the first of its packets that is not answered.
    // Either end finds that out for itself; the coordinator is the one that is asked.
    let is_away = || shop.mesh.node_named("rack").is_ok_and(|node| !node.connected);
    shop.mesh.wait(|| is_away() && !shop.nodes[1].is_connected()).unwrap();
    let pending = shop.mesh.apply(&allow("tcp/9090, udp/7000")).unwrap_err().to_string();
    assert!(pending.contains("not yet: node rack is away since"), "{pending}");
    let before = witness.count();
    uplink("up");
    shop.mesh.wait(|| shop.nodes[1].is_connected()).unwrap();
    shop.mesh.wait(|| witness.count() > before).unwrap();
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 9090, 64, PATIENCE));
    assert!(
        !tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE),
        "that was the policy of before"
    );
    assert_eq!(witness.arrived(), [(shop.web.v4(), 7000)]);
}

/// libfaketime, which steps the clock of whoever is started with it.
pub(super) fn fake_time() -> PathBuf {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    let library = folders.map(|folder| Path::new(folder).join("faketime/libfaketimeMT.so.1"));
    library
        .into_iter()
        .find(|path| path.exists())
        .expect("libfaketime is missing; install the package `faketime`")
}

#[test]
fn sessions_come_up_whatever_a_nodes_clock_says_after_its_restart() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    let library = fake_time().to_string_lossy().into_owned();
    for step in ["-1h", "+20m", "-3h"] {
        for at in [0, 1] {
            shop.nodes[at].kill();
            let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            shop.nodes[at].environment = vec![
                set("LD_PRELOAD", &library),
                set("FAKETIME", step),
                set("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ];
            shop.nodes[at].start().unwrap();
            let comes = tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, 2 * PATIENCE);
            assert!(comes, "the clock of {} says {step}", shop.nodes[at].site.name);
            assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 22, 64, SILENCE));
        }
    }
}

/// Sets how many descriptors a process may have.
fn allow_descriptors(pid: u32, most: &str) {
    let limit = format!("--nofile={most}");
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
    assert!(status.unwrap().success(), "prlimit of util-linux is needed");
}

#[test]
fn a_coordinator_without_descriptors_keeps_its_sessions_and_serves_again_when_there_are_some() {
    let shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    let pid = shop.mesh.coordinator.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    allow_descriptors(pid, &format!("{}:", open + 3));
    let stranger = &shop.nodes[0].site.netns;
    let place = (shop.mesh.site.v4, 7443).into();
    let connect = || TcpStream::connect_timeout(&place, Duration::from_secs(1));
    let held: Vec<_> = stranger.run(|| (0..64).filter_map(|_| connect().ok()).collect()).unwrap();
    assert!(held.len() > 3, "there are more than it has descriptors for");
    thread::sleep(AWAY + Duration::from_secs(1));
    assert!(
        shop.nodes.iter().all(meshward_lab::Node::is_connected),
        "sessions need no descriptors of their own"
    );
    assert!(stream.flows(PATIENCE));
    drop(held);
    allow_descriptors(pid, "1024:");
    shop.mesh.wait(|| shop.mesh.meshctl(&["nodes"]).is_ok()).unwrap();
    shop.mesh.meshctl(&["quarantine", "app=web"]).unwrap();
    assert!(!stream.flows(SILENCE));
}

#[test]
fn a_node_without_descriptors_refuses_workloads_with_a_reason_and_carries_on_with_those_it_has() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    let pid = shop.nodes[0].process().pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    allow_descriptors(pid, &format!("{}:", open + 1));
    let refused = (0..4).find_map(|_| shop.nodes[0].attach("shop", "app=more").err());
    let said = refused.expect("there are no descriptors for four").to_string();
    assert!(!said.is_empty());
    assert!(stream.flows(PATIENCE), "those that are there go on: {said}");
    allow_descriptors(pid, "1024:");
    shop.mesh.wait(|| shop.nodes[0].attach("shop", "app=web").is_ok()).unwrap();
    shop.mesh.wait(|| shop.nodes[0].is_connected()).unwrap();
    assert!(stream.flows(PATIENCE));
}
