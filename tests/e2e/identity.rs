//! Two machines with one identity, and clocks that are wrong.

use crate::support::mesh;
use meshward_lab::Mesh;
use std::{path::Path, process::Command, time::Duration};

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

fn problems(mesh: &Mesh, node: &str) -> String {
    let nodes = mesh.read(&["nodes"]).unwrap();
    let found = nodes.as_array().unwrap().iter().find(|found| found["name"] == node).unwrap().clone();
    found["problems"].to_string()
}

#[test]
fn a_copied_disk_gets_no_session_while_the_first_is_there_and_a_restart_does() {
    let mut mesh = mesh();
    let mut node = mesh.node("cloud").unwrap();
    copy(&mesh.folder().join("cloud"), &mesh.folder().join("copy"));
    let _ = std::fs::remove_file(mesh.folder().join("copy/node.sock"));
    let _ = std::fs::remove_file(mesh.folder().join("copy/node.log"));
    let site = mesh.internet.site("copy").unwrap();
    let copied = mesh.start_copy(site).unwrap();
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
    let mut node = mesh.node("cloud").unwrap();
    for _ in 0..4 {
        node.kill();
        node.start().unwrap();
        mesh.wait(|| node.is_connected()).unwrap();
    }
    assert!(!problems(&mesh, "cloud").contains("same identity"));
    assert!(!node.printed().contains("held back"));
}
