//! Nodes that go: removed, by their own wish, or because they are not seen any more.

use crate::support::{Echo, PATIENCE, SILENCE, Shop, allow, mesh, tcp_echoes};
use meshward_api_types::local::RemovedNode;
use meshward_lab::output;
use serde::Deserialize;
use std::{fs, process::Command, time::Duration};

fn names(mesh: &meshward_lab::Mesh) -> Vec<String> {
    mesh.nodes().unwrap().iter().map(|node| node.name.to_string()).collect()
}

/// The part of `meshctl status` that is about a node which was removed.
#[derive(Deserialize)]
struct Status {
    removed: RemovedNode,
}

/// Runs `meshward-node` on a node's machine.
fn node_command(shop: &Shop, at: usize, arguments: &[&str]) -> Command {
    let node = &shop.nodes[at];
    let mut command = Command::new(shop.mesh.binaries.path("meshward-node"));
    command.args(arguments).arg("--data-dir").arg(node.data()).arg("--socket").arg(node.socket());
    command
}

#[test]
fn a_removed_node_knows_it_closes_its_workloads_and_ends_with_3() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    shop.mesh.meshctl(&["node", "remove", "rack"]).unwrap();
    shop.nodes[1].process().wait_until_ended(Duration::from_secs(10)).unwrap();
    assert!(
        shop.nodes[1].printed().contains("was removed from the mesh"),
        "{}",
        shop.nodes[1].printed()
    );
    let links = output(&shop.api.netns, Command::new("ip").args(["-o", "link"])).unwrap();
    assert!(!links.contains("mesh0"), "its workload keeps an interface: {links}");
    assert!(!tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, SILENCE));
    let status = |form: &str| {
        let mut command =
            shop.nodes[1].meshctl_command(&["--context", "/dev/null", "status", "-o", form]);
        shop.nodes[1].site.netns.run(|| command.output()).unwrap().unwrap()
    };
    let shown = status("table");
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.code() == Some(1) && text.contains("was removed from mesh"), "{text}");
    let status: Status = serde_json::from_slice(&status("json").stdout).unwrap();
    assert_eq!(status.removed.node.as_str(), "rack");
    // Started again, it knows it still.
    let mut again = node_command(&shop, 1, &["run"]);
    let done = shop.nodes[1].site.netns.run(|| again.output()).unwrap().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(3) && said.contains("meshward-node join"), "{said}");
    // It may join again, as another node of its name.
    let token = shop.mesh.token(&["--site", "rack"]).unwrap();
    shop.mesh.join(&shop.nodes[1].site, &token).unwrap();
    shop.nodes[1].start().unwrap();
    shop.mesh.wait(|| shop.nodes[1].is_connected()).unwrap();
}

#[test]
fn a_node_that_was_removed_while_it_was_away_hears_of_it_when_it_is_back() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    shop.nodes[1].kill();
    shop.mesh.meshctl(&["node", "remove", "rack"]).unwrap();
    shop.nodes[1].start().unwrap();
    shop.nodes[1].process().wait_until_ended(Duration::from_secs(10)).unwrap();
    let links = output(&shop.api.netns, Command::new("ip").args(["-o", "link"])).unwrap();
    assert!(!links.contains("mesh0"), "{links}");
}

#[test]
fn a_node_leaves_by_its_own_wish_running_or_not() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let mut leave = node_command(&shop, 1, &["leave"]);
    let said = output(&shop.nodes[1].site.netns, &mut leave).unwrap();
    assert!(said.contains("node rack has left mesh"), "{said}");
    assert_eq!(names(&shop.mesh), ["cloud"]);
    shop.nodes[1].process().wait_until_ended(Duration::from_secs(10)).unwrap();
    let left: Vec<_> =
        fs::read_dir(shop.nodes[1].data()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "something stays of it: {left:?}");
    shop.nodes[0].kill();
    let mut leave = node_command(&shop, 0, &["leave"]);
    output(&shop.nodes[0].site.netns, &mut leave).unwrap();
    assert_eq!(names(&shop.mesh), Vec::<String>::new());
    let links = output(&shop.web.netns, Command::new("ip").args(["-o", "link"])).unwrap();
    assert!(!links.contains("mesh0"), "{links}");
    let audit = shop.mesh.meshctl(&["audit"]).unwrap();
    assert!(audit.contains("node:rack") && audit.contains("removed node rack"), "{audit}");
}

#[test]
fn an_ephemeral_node_goes_once_it_is_not_seen_any_more() {
    let mut mesh = mesh();
    let token = mesh.token(&["--ephemeral=10s", "--uses", "2"]).unwrap();
    let site = mesh.internet.site("fleeting").unwrap();
    let mut node = mesh.node_at(site).token(&token).start().unwrap();
    let stays = mesh.node("stays").start().unwrap();
    node.kill();
    // Its session has to end first, after nine seconds of silence.
    let gone = || names(&mesh) == ["stays"];
    let _ = mesh.wait(gone);
    mesh.wait(gone).unwrap();
    assert!(stays.is_connected());
    let audit = mesh.meshctl(&["audit"]).unwrap();
    assert!(audit.contains("ephemeral and not seen any more"), "{audit}");
}

/// A case: the name, arguments, and environment variables.
type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)]);

#[test]
fn a_join_token_need_not_stand_on_the_command_line() {
    let mut mesh = mesh();
    let token = mesh.token(&["--uses", "9"]).unwrap();
    let coordinator = mesh.site.v4.to_string();
    let whole = format!("{token}@{coordinator}\n");
    let folder = mesh.folder().to_owned();
    let file = folder.join("meshward.join-token");
    fs::write(&file, &whole).unwrap();
    let alone = folder.join("alone");
    fs::write(&alone, &token).unwrap();
    let (file, alone) = (file.display().to_string(), alone.display().to_string());
    let credentials = folder.display().to_string();
    let beside = ["--token-file", &alone, "--coordinator", &coordinator];
    let cases: [Case; 6] = [
        ("file", &["--token-file", &file], &[]),
        ("beside", &beside, &[]),
        ("stdin", &["--token-file", "-"], &[]),
        ("variable", &[], &[("MESHWARD_JOIN_TOKEN", &whole)]),
        ("named", &[], &[("MESHWARD_JOIN_TOKEN_FILE", &file)]),
        ("systemd", &[], &[("CREDENTIALS_DIRECTORY", &credentials)]),
    ];
    let mut join = |name: &str, arguments: &[&str], variables: &[(&str, &str)]| {
        let site = mesh.internet.site(name).unwrap();
        let mut command = Command::new(mesh.binaries.path("meshward-node"));
        command.args(["join", "--name", name, "--data-dir"]).arg(folder.join(name)).args(arguments);
        command.envs(variables.iter().copied()).stdin(fs::File::open(&file).unwrap());
        let done = site.netns.run(|| command.output()).unwrap().unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    for (name, arguments, variables) in cases {
        let (code, said) = join(name, arguments, variables);
        assert!(code == 0, "{name}: {said}");
    }
    let (code, said) = join("none", &[], &[]);
    assert!(code == 2 && said.contains("--token-file"), "{code} {said}");
    let (code, said) = join("lonely", &["--token-file", &alone], &[]);
    assert!(code == 2 && said.contains("--coordinator"), "{code} {said}");
}
