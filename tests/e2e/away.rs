//! Life without the coordinator, and after a node daemon's sudden end.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, tcp_echoes};
use meshward_api_types::{Network, local::State};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::time::Duration;

#[test]
fn without_the_coordinator_traffic_goes_on_and_workloads_start_and_stop() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    let before = shop.mesh.revision().unwrap();
    shop.mesh.coordinator.kill();
    assert!(stream.flows(PATIENCE), "established connections go on");
    assert!(
        tcp_echoes(&shop.web.netns, shop.api.v6(), 8080, 64, PATIENCE),
        "new connections come up"
    );
    shop.mesh.wait(|| !shop.nodes[0].is_connected() && !shop.nodes[1].is_connected()).unwrap();

    let second = shop.nodes[0].attach("shop", "app=web").unwrap();
    assert_eq!(second.state, State::Vouched);
    assert!(
        tcp_echoes(&second.netns, shop.api.v4(), 8080, 64, PATIENCE),
        "a new workload reaches another node"
    );
    assert!(!tcp_echoes(&second.netns, shop.api.v4(), 22, 64, SILENCE), "under the same policy");
    let stranger = shop.nodes[0].attach("shop", "app=stranger").unwrap();
    assert_eq!(stranger.state, State::Waiting);
    assert!(
        !tcp_echoes(&stranger.netns, shop.api.v4(), 8080, 64, SILENCE),
        "an unknown label set stays closed"
    );
    shop.nodes[0].meshctl(&["detach", &stranger.id]).unwrap();
    let third = shop.nodes[1].attach("shop", "app=api").unwrap();
    shop.nodes[1].meshctl(&["detach", &third.id]).unwrap();

    shop.mesh.restart_coordinator().unwrap();
    shop.mesh.wait(|| shop.nodes.iter().all(meshward_lab::Node::is_connected)).unwrap();
    shop.mesh.wait(|| shop.mesh.workloads().unwrap().len() == 3).unwrap();
    assert!(stream.flows(PATIENCE), "its return cuts nothing");
    assert!(tcp_echoes(&second.netns, shop.api.v4(), 8080, 64, PATIENCE));
    let after = shop.mesh.revision().unwrap();
    assert!(after > before, "revisions go on: {before}, {after}");
    let policy = shop.mesh.meshctl(&["policy", "get", "shop"]).unwrap();
    assert_eq!(policy, allow("tcp/8080"), "nothing was lost");
}

#[test]
fn a_workload_starts_at_once_after_the_coordinators_sudden_end() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    shop.mesh.coordinator.kill();
    // The sessions have not noticed yet.
    let second = shop.nodes[0].attach("shop", "app=web").unwrap();
    assert_eq!(second.state, State::Vouched);
    assert!(tcp_echoes(&second.netns, shop.api.v4(), 8080, 64, PATIENCE));
}

#[test]
fn nodes_catch_up_by_deltas_after_the_coordinators_return() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _many: Vec<_> = (0..10).map(|_| shop.nodes[1].attach("shop", "app=api").unwrap()).collect();
    let revision = shop.mesh.revision().unwrap();
    shop.mesh
        .wait(|| shop.nodes[0].status().is_ok_and(|status| status.revision == revision))
        .unwrap();
    shop.nodes[0].kill();
    let pending = shop.mesh.apply(&allow("tcp/9090")).unwrap_err().to_string();
    assert!(pending.contains("not yet: node cloud"), "{pending}");
    shop.mesh.coordinator.kill();
    shop.mesh.restart_coordinator().unwrap();
    let printed = shop.nodes[0].printed().len();
    shop.nodes[0].start().unwrap();
    shop.mesh.wait(|| shop.nodes[0].is_connected()).unwrap();
    let _echoes = [8080, 9090].map(|port| Echo::start(&shop.api.netns, port));
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 9090, 64, PATIENCE));
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE));
    // The link's ACL has changed, and nothing else is sent.
    let log = shop.nodes[0].printed().split_off(printed);
    let changes = |line: &str| line.rsplit_once("changes=")?.1.trim().parse::<usize>().ok();
    let most = log.lines().filter_map(changes).max();
    assert_eq!(most, Some(1), "{log}");
}

#[test]
fn a_node_restarts_from_disk_without_the_coordinator() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    shop.mesh.coordinator.kill();
    shop.nodes[0].kill();
    shop.nodes[1].kill();
    shop.nodes[0].start().unwrap();
    shop.nodes[1].start().unwrap();
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 22, 64, SILENCE));
}

#[test]
fn a_killed_node_takes_its_workloads_up_again_and_connections_survive() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    assert!(stream.flows(PATIENCE));
    for node in [1, 0] {
        shop.nodes[node].kill();
        std::thread::sleep(Duration::from_millis(300));
        shop.nodes[node].start().unwrap();
        assert!(
            stream.flows(Duration::from_secs(15)),
            "the connection went on after node {node} came back"
        );
    }
    let attached = shop.nodes[0].meshctl(&["attached", "-o", "json"]).unwrap();
    assert!(
        attached.contains(&shop.web.id) && attached.contains(&shop.web.interface),
        "{attached}"
    );
}

#[test]
fn a_workload_whose_namespace_ended_while_the_node_was_down_is_not_taken_up() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let run = shop.nodes[0].run("shop", "sleeper", "app=web", &["sleep", "10"]).unwrap();
    shop.nodes[0].kill();
    drop(run);
    shop.nodes[0].start().unwrap();
    shop.mesh.wait(|| shop.mesh.workloads().unwrap().len() == 2).unwrap();
}

#[test]
fn what_the_coordinator_acknowledged_survives_its_sudden_end() {
    let mut mesh = crate::support::mesh();
    for number in 0..20 {
        let cidr = format!("10.{}.0.0/16", 100 + number);
        mesh.meshctl(&["network", "create", &format!("n{number}"), "--cidr", &cidr]).unwrap();
        if number % 5 == 4 {
            mesh.coordinator.kill();
            mesh.restart_coordinator().unwrap();
        }
    }
    assert_eq!(mesh.list::<Network>("networks").unwrap().len(), 21);
}

#[test]
fn a_stuck_node_delays_nobody_and_catches_up() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let edge = shop.mesh.node("edge").start().unwrap();
    let third = edge.attach("shop", "app=web").unwrap();
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&third.netns, shop.api.v4(), 8080);
    assert!(stream.flows(PATIENCE));
    let stuck = Pid::from_raw(shop.nodes[0].process().pid() as i32);
    kill(stuck, Signal::SIGSTOP).unwrap();
    let before = std::time::Instant::now();
    let pending = shop.mesh.meshctl(&["quarantine", "app=api"]).unwrap_err().to_string();
    assert!(pending.contains("not yet: node cloud does not answer"), "{pending}");
    assert!(before.elapsed() < Duration::from_secs(5), "the answer does not wait for ever");
    assert!(!stream.flows(SILENCE), "the others enforce it");
    kill(stuck, Signal::SIGCONT).unwrap();
    let enforces = || {
        let newest = shop.mesh.revision().unwrap();
        shop.mesh.node_named("cloud").unwrap().enforced == Some(newest)
    };
    shop.mesh.wait(enforces).unwrap();
}
