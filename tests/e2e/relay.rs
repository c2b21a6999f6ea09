//! Relays on machines of their own.

use crate::{
    nat::Pair,
    support::{PATIENCE, Stream, mesh, tcp_echoes, udp_echoes},
};
use meshward_api_types as api;
use meshward_lab::{NatProfile, Node, Relay, Uplink};
use meshward_types::relay::RelayId;
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// Two nodes that cannot meet directly, and two relays beside the coordinator.
fn pair_with_relays() -> (Pair, [Relay; 2]) {
    let mut mesh = mesh();
    let relays = ["relay-a", "relay-b"].map(|name| mesh.relay(name).unwrap());
    let pair = Pair::of(mesh, [Uplink::Nat(NatProfile::APDM_APDF); 2]);
    let chosen = |node: &Node| node.printed().matches("relay reached").count() >= 2;
    pair.mesh.wait(|| pair.nodes.iter().all(chosen)).unwrap();
    (pair, relays)
}

/// The number of the relay by which a node sends.
fn used(node: &Node) -> Option<u16> {
    Some(RelayId::at(&node.peer().ok()?.address?)?.1.0)
}

#[test]
fn a_relay_that_is_killed_under_load_is_replaced_by_another() {
    let (mut pair, mut relays) = pair_with_relays();
    assert!(tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1_000_000, PATIENCE));
    assert!(udp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1380, PATIENCE));
    let stream = Stream::start(&pair.web.netns, pair.api.v4(), 7000);
    assert!(stream.flows(PATIENCE));
    let shown: Vec<api::Relay> = pair.mesh.list("relays").unwrap();
    let numbers = [0, 1].map(|at| shown[at].number);
    // All but the last of three, the coordinator being one.
    for _ in 0..2 {
        let by = used(&pair.nodes[0]).unwrap();
        let killed = numbers.iter().position(|number| *number == by);
        match killed {
            Some(at) => relays[at].process.kill(),
            None => pair.mesh.coordinator.kill(),
        }
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(50));
        assert!(stream.flows(PATIENCE), "the transfer goes on");
        println!("relay {by} was killed: the stall was {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(3));
        assert!(stream.flows(PATIENCE));
        if killed.is_none() {
            // Nobody is left to tell peers of other relays: those that they know may be one.
            break;
        }
        // Nodes look for others, for when the next one is lost.
        let homes = |node: &Node| {
            !node
                .printed()
                .lines()
                .rev()
                .find(|line| line.contains("home_relays="))
                .unwrap_or("")
                .contains(&format!("RelayNumber({by})"))
        };
        pair.mesh.wait(|| pair.nodes.iter().all(homes)).unwrap();
        // Until the peers have been told of those, a second loss would leave them none.
        std::thread::sleep(Duration::from_secs(2));
    }
}

#[test]
fn a_relay_goes_on_without_the_coordinator_and_cuts_who_was_removed() {
    let (mut pair, relays) = pair_with_relays();
    let stream = Stream::start(&pair.web.netns, pair.api.v4(), 7000);
    assert!(stream.flows(PATIENCE));
    pair.mesh.coordinator.kill();
    for _ in 0..10 {
        assert!(stream.flows(Duration::from_secs(3)), "relays need no coordinator");
        std::thread::sleep(Duration::from_millis(200));
    }
    pair.mesh.restart_coordinator().unwrap();
    let linked =
        |relay: &Relay| relay.process.printed().matches("linked to the coordinator").count() >= 2;
    pair.mesh
        .wait(|| relays.iter().all(linked) && pair.nodes.iter().all(Node::is_connected))
        .unwrap();
    pair.mesh.meshctl(&["nodes", "remove", "rack"]).unwrap();
    let begun = Instant::now();
    pair.mesh.wait(|| !stream.flows(Duration::from_millis(500))).unwrap();
    println!("cut after {:?}", begun.elapsed());
    let cut = |relay: &Relay| relay.process.printed().contains("removed from the mesh: cut");
    pair.mesh.wait(|| relays.iter().all(cut)).unwrap();
    assert!(!tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1, Duration::from_secs(1)));
}

#[test]
fn tokens_of_relays_and_nodes_are_not_taken_for_each_other() {
    let mut mesh = mesh();
    let relay = mesh.relay("relay-a").unwrap();
    let shown = mesh.meshctl(&["relay", "list"]).unwrap();
    assert!(shown.contains("relay-a") && shown.contains("connected"), "{shown}");
    assert!(shown.contains(&format!("{}:7443", relay.site.v4)), "{shown}");

    let site = mesh.internet.site("cloud").unwrap();
    let token = mesh.token(&["--relay"]).unwrap();
    let refused = mesh.join(&site, &token).unwrap_err();
    assert!(format!("{refused:#}").contains("meshward-relay join"), "{refused:#}");
    let refused = mesh.token(&["--relay", "--network", "shop"]).unwrap_err();
    assert!(format!("{refused:#}").contains("cannot be used with"), "{refused:#}");
    let gone = mesh.meshctl(&["relay", "remove", "relay-x"]).unwrap_err();
    assert!(format!("{gone:#}").contains("there is no relay `relay-x`"), "{gone:#}");
    mesh.meshctl(&["relay", "remove", "relay-a"]).unwrap();
    mesh.wait(|| relay.process.printed().contains("this relay was removed from the mesh")).unwrap();
}

#[test]
fn a_relay_says_in_metrics_who_is_there_and_what_it_turns_away() {
    let mut mesh = mesh();
    let relay = mesh.relay("relay-a").unwrap();
    let _node = mesh.node("cloud").start().unwrap();
    let scrape = || {
        let ask =
            || Command::new("curl").args(["--silent", "http://127.0.0.1:7482/metrics"]).output();
        let answer = relay.site.netns.run(ask).unwrap().unwrap();
        String::from_utf8_lossy(&answer.stdout).into_owned()
    };
    mesh.wait(|| scrape().contains("meshward_relay_members 1\n")).unwrap();
    let text = scrape();
    for name in [
        "connected 1",
        "relay_duplicates_total 0",
        "handshakes_refused_total 0",
        "authentications_failed_total 0",
    ] {
        assert!(text.contains(&format!("meshward_relay_{name}\n")), "{name}: {text}");
    }
}
