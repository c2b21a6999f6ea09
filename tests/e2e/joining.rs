//! Machines that join, and those that are refused.

use crate::support::{mesh, mesh_with};
use meshward_api_types::Token;
use meshward_lab::{Binaries, Mesh};
use std::{thread, time::Duration};

fn refusal(mesh: &mut Mesh, name: &str, token: &str) -> String {
    let site = mesh.internet.site(name).unwrap();
    mesh.join(&site, token).unwrap_err().to_string()
}

#[test]
fn a_wrong_spent_expired_tampered_or_revoked_token_is_refused_with_the_reason() {
    let mut mesh = mesh();
    let spent = mesh.token(&[]).unwrap();
    let site = mesh.internet.site("first").unwrap();
    mesh.join(&site, &spent).unwrap();
    let said = refusal(&mut mesh, "second", &spent);
    assert!(said.contains("spent"), "{said}");

    let short = mesh.token(&["--ttl", "1s"]).unwrap();
    thread::sleep(Duration::from_millis(2100));
    let said = refusal(&mut mesh, "third", &short);
    assert!(said.contains("expired"), "{said}");

    let good = mesh.token(&[]).unwrap();
    let middle = good.len() / 2;
    let other = if good.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let tampered = format!("{}{other}{}", &good[..middle], &good[middle + 1..]);
    let said = refusal(&mut mesh, "fourth", &tampered);
    assert!(said.contains("damaged"), "{said}");

    for token in mesh.list::<Token>("tokens").unwrap() {
        mesh.meshctl(&["token", "revoke", &token.id]).unwrap();
    }
    let said = refusal(&mut mesh, "fifth", &good);
    assert!(said.contains("unknown"), "{said}");
}

#[test]
fn a_coordinator_with_another_ca_is_refused() {
    let mut mesh = mesh();
    let other = Mesh::start(Binaries::beside_this_test().unwrap()).unwrap();
    let foreign = other.token(&[]).unwrap();
    let said = refusal(&mut mesh, "node", &foreign);
    assert!(said.contains("another CA"), "{said}");
}

#[test]
fn a_name_is_taken_once_and_a_machine_joins_once() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    let token = mesh.token(&[]).unwrap();
    let said = mesh.join(&node.site, &token).unwrap_err().to_string();
    assert!(said.contains("already"), "{said}");
    let mut elsewhere = mesh.internet.site("cloud").unwrap();
    elsewhere.name = "cloud".into();
    std::fs::rename(mesh.folder().join("cloud"), mesh.folder().join("cloud-first")).unwrap();
    let said = mesh.join(&elsewhere, &token).unwrap_err().to_string();
    assert!(said.contains("a node `cloud` already"), "{said}");
}

#[test]
fn a_host_without_a_name_of_its_own_becomes_no_node_by_it() {
    let mut mesh = mesh();
    let token = mesh.token(&[]).unwrap();
    let site = mesh.internet.site("host").unwrap();
    let coordinator = mesh.site.v4;
    let join = |host: &str, more: &str| {
        let folder = mesh.folder().join("host-data");
        let node = mesh.binaries.path("meshward-node");
        let script = format!(
            "hostname '{host}' && exec {} join '{token}@{coordinator}' --data-dir {} {more}",
            node.display(),
            folder.display()
        );
        let mut command = std::process::Command::new("unshare");
        command.args(["--uts", "sh", "-c", &script]);
        meshward_lab::output(&site.netns, &mut command)
    };
    for host in ["localhost", "localhost.localdomain", "192.168.1.5"] {
        let said = join(host, "").unwrap_err().to_string();
        assert!(said.contains("--name"), "{host}: {said}");
    }
    assert_eq!(mesh.nodes().unwrap().len(), 0);
    let said = join("localhost", "--name rack-7").unwrap();
    assert!(said.contains("rack-7"), "{said}");
}

#[test]
fn a_removed_node_is_told_so_and_gets_no_session() {
    let mut mesh = mesh();
    let mut node = mesh.node("cloud").start().unwrap();
    node.attach("shop", "app=web").unwrap();
    mesh.meshctl(&["nodes", "remove", "cloud"]).unwrap();
    mesh.wait(|| !node.is_connected()).unwrap();
    mesh.wait(|| node.printed().contains("removed from the mesh")).unwrap();
    assert_eq!(mesh.workloads().unwrap().len(), 0);
    assert!(node.process().runs());
}

#[test]
fn a_node_keeps_its_certificate_renewed() {
    let mut mesh = mesh_with(&["--certificate-seconds", "30"]);
    let node = mesh.node("cloud").start().unwrap();
    let left = || node.status().unwrap().certificate_seconds;
    assert!(left() <= 30);
    thread::sleep(Duration::from_secs(22));
    mesh.wait(|| left() > 20).unwrap();
    assert!(node.is_connected());
}

#[test]
fn a_certificate_that_ended_while_the_coordinator_was_away_is_renewed_at_its_return() {
    let mut mesh = mesh_with(&["--certificate-seconds", "30"]);
    let node = mesh.node("cloud").start().unwrap();
    mesh.coordinator.kill();
    thread::sleep(Duration::from_secs(31));
    assert!(node.status().unwrap().certificate_seconds < 0);
    mesh.restart_coordinator().unwrap();
    mesh.wait(|| node.is_connected()).unwrap();
    assert!(node.status().unwrap().certificate_seconds > 0);
}

#[test]
fn a_token_limits_the_networks_of_its_nodes() {
    let mut mesh = mesh();
    mesh.meshctl(&["network", "create", "lab", "--cidr", "10.43.0.0/16"]).unwrap();
    let token = mesh.token(&["--network", "lab"]).unwrap();
    let site = mesh.internet.site("rack").unwrap();
    let node = mesh.node_at(site).token(&token).start().unwrap();
    mesh.wait(|| node.attach("lab", "app=a").is_ok()).unwrap();
    let said = node.attach("shop", "app=a").err().unwrap().to_string();
    assert!(said.contains("does not serve network `shop`"), "{said}");
}
