//! Two machines with one identity, and clocks that are wrong.

use crate::{
    nat::Pair,
    support::{PATIENCE, Stream, mesh},
};
use meshward_lab::{Mesh, NatProfile, Node, Uplink};
use std::{path::Path, process::Command, time::Duration};

/// Copies a folder, as often as it takes: a daemon that writes into it renames files meanwhile.
fn copy(from: &Path, to: &Path) {
    let copied = || {
        let _ = std::fs::remove_dir_all(to);
        Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success()
    };
    assert!((0..10).any(|_| copied()), "{} changes all the time", from.display());
}

fn problems(mesh: &Mesh, node: &str) -> String {
    format!("{:?}", mesh.node_named(node).unwrap().problems)
}

/// Starts a copy of a node's disk on a site of its own.
fn start_copy(mesh: &mut Mesh, node: &str) -> Node {
    copy(&mesh.folder().join(node), &mesh.folder().join("copy"));
    let _ = std::fs::remove_file(mesh.folder().join("copy/node.sock"));
    let _ = std::fs::remove_file(mesh.folder().join("copy/node.log"));
    let site = mesh.internet.site("copy").unwrap();
    mesh.node_at(site).has_joined().start_alone().unwrap()
}

/// A number of the coordinator's metrics.
fn metric(mesh: &Mesh, name: &str) -> u64 {
    let ask = || Command::new("curl").args(["--silent", "http://127.0.0.1:7480/metrics"]).output();
    let text = mesh.site.netns.run(ask).unwrap().unwrap().stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

#[test]
fn a_copied_disk_is_relayed_nothing_and_takes_nothing_from_the_first() {
    let Pair { mut mesh, echo: _echo, nodes, api, web } =
        Pair::new([Uplink::Nat(NatProfile::APDM_APDF); 2]);
    let stream = Stream::start(&web.netns, api.v4(), 7000);
    assert!(stream.flows(PATIENCE));
    let copied = start_copy(&mut mesh, "cloud");
    mesh.wait(|| copied.printed().contains("held back")).unwrap();
    mesh.wait(|| metric(&mesh, "meshward_coordinator_relay_duplicates_total") > 0).unwrap();
    for _ in 0..30 {
        assert!(stream.flows(Duration::from_millis(1500)), "the first is relayed to as before");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(nodes.iter().all(meshward_lab::Node::is_connected) && !copied.is_connected());
    assert_eq!(metric(&mesh, "meshward_coordinator_relay_nodes"), 2);
}

#[test]
fn a_copied_disk_gets_no_session_while_the_first_is_there_and_a_restart_does() {
    let mut mesh = mesh();
    let mut node = mesh.node("cloud").start().unwrap();
    let copied = start_copy(&mut mesh, "cloud");
    mesh.wait(|| copied.printed().contains("held back")).unwrap();
    assert!(copied.printed().contains("meshward-node join"), "the way out is told");
    assert!(node.is_connected() && !copied.is_connected());
    let said = problems(&mesh, "cloud");
    assert!(said.contains("same identity"), "{said}");
    let audit = mesh.meshctl(&["audit"]).unwrap();
    assert!(audit.contains("second machine with the identity of node cloud"), "{audit}");
    assert_eq!(
        node.printed().matches("no session with the coordinator").count(),
        0,
        "the first notices nothing"
    );

    // The first is started again: it is not held for long, though the copy is still there.
    for _ in 0..3 {
        node.kill();
        node.start().unwrap();
        mesh.wait(|| node.is_connected()).unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    assert!(node.is_connected() && !copied.is_connected());
}

#[test]
fn a_node_that_is_killed_and_started_again_is_back_at_once() {
    let mut mesh = mesh();
    let mut node = mesh.node("cloud").start().unwrap();
    for _ in 0..4 {
        node.kill();
        node.start().unwrap();
        mesh.wait(|| node.is_connected()).unwrap();
    }
    assert!(!problems(&mesh, "cloud").contains("same identity"));
    assert!(!node.printed().contains("held back"));
}
