//! A bad day: who enforces what, who does not, and working from another machine.

use crate::support::{Shop, allow, mesh};
use meshward_api_types::{Context, Quarantine, QuarantineResult};
use meshward_lab::{Mesh, Node, Process, Site};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn tries(mesh: &Mesh, arguments: &[&str]) -> (i32, String, String) {
    let run = || mesh.meshctl_command(arguments).output();
    told(&mesh.site.netns.run(run).unwrap().unwrap())
}

fn told(out: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

#[test]
fn what_is_not_enforced_everywhere_names_the_nodes_and_ends_with_1() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let hung = Pid::from_raw(shop.nodes[1].process().pid() as i32);
    kill(hung, Signal::SIGSTOP).unwrap();
    let (code, out, said) = tries(&shop.mesh, &["quarantine", "app=api"]);
    assert!(
        code == 1 && out.contains("1 workload is quarantined; 1 of 2 nodes enforce it"),
        "{code} {out}"
    );
    assert!(said.contains("node rack does not answer, and was heard last at 20"), "{said}");
    assert!(said.contains("its only peer enforces it at its end"), "{said}");
    // Said again while it stands, it is no better enforced.
    let (code, out, _) = tries(&shop.mesh, &["quarantine", "app=api", "-o", "json"]);
    let result: QuarantineResult = serde_json::from_str(&out).unwrap();
    let silent = &result.enforcement.nodes_silent[0];
    assert!(code == 1 && silent.node.as_str() == "rack", "{out}");
    assert!(silent.peers_enforcing == 1 && result.enforcement.nodes_enforcing == 1, "{out}");
    shop.nodes[1].kill();
    shop.mesh
        .wait(|| {
            let nodes = shop.mesh.nodes().unwrap();
            nodes.iter().any(|node| !node.connected)
        })
        .unwrap();
    let (code, _, said) = tries(&shop.mesh, &["release", "app=api"]);
    assert!(code == 1 && said.contains("node rack is away since 20"), "{code} {said}");
    let file = shop.mesh.folder().join("next.yaml");
    fs::write(&file, allow("tcp/9090")).unwrap();
    let apply = ["policy", "apply", &file.to_string_lossy()].map(ToOwned::to_owned);
    let apply: Vec<&str> = apply.iter().map(String::as_str).collect();
    let (code, _, said) = tries(&shop.mesh, &apply);
    assert!(code == 1 && said.contains("node rack is away since 20"), "{code} {said}");
    shop.nodes[1].start().unwrap();
    shop.mesh.wait(|| shop.nodes[1].is_connected()).unwrap();
    let (code, _, said) = tries(&shop.mesh, &["quarantine", "app=api"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_selector_that_fits_nothing_is_a_mistake_unless_it_is_on_purpose() {
    let shop = Shop::new(&allow("tcp/8080"));
    for (wrong, meant) in
        [("app=wbe", "`app=web`"), ("ap=web", "`app=web`"), ("app=apii", "`app=api`")]
    {
        let (code, _, said) = tries(&shop.mesh, &["quarantine", wrong]);
        assert!(
            code == 2 && said.contains(&format!("did you mean {meant}?")),
            "{wrong}: {code} {said}"
        );
    }
    let (code, _, said) = tries(&shop.mesh, &["quarantine", "team=nobody"]);
    assert!(
        code == 2 && said.contains("--even-if-none") && !said.contains("did you mean"),
        "{code} {said}"
    );
    let quarantines: Vec<Quarantine> = shop.mesh.list("quarantines").unwrap();
    assert_eq!(quarantines, [], "none of them stands");
    let (code, out, _) = tries(&shop.mesh, &["quarantine", "team=nobody", "--even-if-none"]);
    assert!(code == 0 && out.contains("0 workloads are quarantined"), "{code} {out}");
    for bare in ["list", "ls"] {
        let (code, out, _) = tries(&shop.mesh, &["quarantine", bare]);
        assert!(code == 0 && out.contains("team=nobody"), "{code} {out}");
    }
    let (code, _, said) = tries(&shop.mesh, &["quarantine", "app"]);
    assert!(code == 2 && said.contains("--label-exists app"), "{code} {said}");
    let (code, out, _) = tries(&shop.mesh, &["quarantine", "--label-exists", "app"]);
    assert!(code == 0 && out.contains("2 workloads are quarantined"), "{code} {out}");
}

/// `meshctl` on a machine, for a user with a home of their own.
fn at(mesh: &Mesh, site: &Site, home: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(mesh.binaries.path("meshctl"));
    command.args(arguments).env("HOME", home).env_remove("MESHCTL_CONTEXT");
    told(&site.netns.run(|| command.output()).unwrap().unwrap())
}

#[test]
fn a_context_is_good_on_another_machine_and_there_can_be_several() {
    let mut mesh = mesh();
    let laptop = mesh.internet.site("laptop").unwrap();
    let home = mesh.folder().join("home");
    fs::create_dir_all(&home).unwrap();
    let on_laptop = |arguments: &[&str]| at(&mesh, &laptop, &home, arguments);
    let (code, _, said) = on_laptop(&["network", "list"]);
    assert!(code == 2 && said.contains("meshctl context import"), "{code} {said}");
    let admin = mesh.context().display().to_string();
    let (code, out, said) = on_laptop(&["context", "import", &admin, "--name", "prod"]);
    assert!(code == 0 && out.contains("context prod") && out.contains("in use"), "{out} {said}");
    let (code, out, said) = on_laptop(&["network", "list"]);
    assert!(code == 0 && out.contains("shop"), "{code} {out} {said}");
    // What is made on one machine is good on another.
    let made = mesh
        .meshctl(&["credential", "create", "guest", "--role", "viewer", "--server", "203.0.113.9"])
        .unwrap();
    let guest = home.join("guest.json");
    fs::write(&guest, &made).unwrap();
    let guest = guest.display().to_string();
    // The first place that it names does not answer; the next one does.
    let (code, _, said) = on_laptop(&["--context", &guest, "network", "list"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(on_laptop(&["context", "import", &guest]).0, 0);
    let (_, listed, _) = on_laptop(&["context", "list"]);
    assert!(listed.contains("prod") && listed.contains("203.0.113.9"), "{listed}");
    let (code, _, said) =
        on_laptop(&["--context", "203.0.113.9", "network", "create", "x", "--cidr", "10.9.0.0/16"]);
    assert!(code == 2 && said.contains("viewer"), "{code} {said}");
    assert_eq!(on_laptop(&["context", "rename", "203.0.113.9", "guest"]).0, 0);
    assert_eq!(on_laptop(&["context", "use", "guest"]).0, 0);
    let (_, shown, _) = on_laptop(&["context", "show", "-o", "json"]);
    let value: Value = serde_json::from_str(&shown).unwrap();
    assert!(
        value["name"] == "guest" && value["in_use"] == true && !shown.contains("token"),
        "{shown}"
    );
    let (code, _, said) = on_laptop(&["context", "import", &admin, "--name", "guest"]);
    assert!(code == 2 && said.contains("--replace"), "{code} {said}");
    assert_eq!(on_laptop(&["context", "delete", "guest"]).0, 0);
    let (code, _, said) = on_laptop(&["context", "use", "guest"]);
    assert!(code == 2 && said.contains("there are prod"), "{code} {said}");
    // Nothing is in use but the only one that is left.
    assert_eq!(on_laptop(&["network", "list"]).0, 0);
}

#[test]
fn the_operators_file_follows_the_names_of_the_coordinator() {
    let mut mesh = crate::support::mesh_with(&["--name", "mesh.example"]);
    let before = mesh.read_context().unwrap();
    assert_eq!(before.server, "mesh.example:7443");
    let address = format!("{}:7443", mesh.site.v4);
    assert!(before.more_servers.contains(&address), "{:?}", before.more_servers);
    mesh.coordinator.kill();
    // It was written by a coordinator of another name.
    let other = Context { server: "old.example:7443".into(), ..before.clone() };
    fs::write(mesh.context(), serde_json::to_vec(&other).unwrap()).unwrap();
    mesh.restart_coordinator().unwrap();
    assert!(mesh.read_context().unwrap() == before);
}

fn at_node(node: &Node, arguments: &[&str]) -> (i32, String, String) {
    told(&node.site.netns.run(|| node.meshctl_command(arguments).output()).unwrap().unwrap())
}

#[test]
fn what_only_has_to_be_waited_for_is_waited_for() {
    let mut mesh = mesh();
    let mut node = mesh.node("cloud").start().unwrap();
    node.kill();
    let _ = fs::remove_file(node.socket());
    // Forgotten: what it serves is to be told anew.
    for file in ["view", "view.log"] {
        let _ = fs::remove_file(node.data().join(file));
    }
    let folder = mesh.folder().join("early.log");
    let arguments = ["run", "--network", "shop", "--wait", "15s", "--", "true"];
    let mut early =
        Process::start(&node.site.netns, &mut node.meshctl_command(&arguments), &folder).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(early.runs(), "{}", early.printed());
    node.start().unwrap();
    early.wait_until_ended(std::time::Duration::from_secs(20)).unwrap();
    assert!(!early.printed().contains("meshctl:"), "{}", early.printed());
    // What is wrong for good is said at once, and without a daemon there is an end.
    let (code, _, said) =
        at_node(&node, &["run", "--network", "nope", "--wait", "60s", "--", "true"]);
    assert!(code == 2 && said.contains("does not serve network `nope`"), "{code} {said}");
    // After a boot with the coordinator away, what was told before is enough.
    mesh.coordinator.kill();
    node.kill();
    node.start().unwrap();
    let (code, _, said) = at_node(&node, &["run", "--network", "shop", "--", "true"]);
    assert!(code == 0, "{code} {said}");
    let (code, _, said) =
        at_node(&node, &["run", "--network", "nope", "--wait", "300ms", "--", "true"]);
    assert!(
        code == 1 && said.contains("has not been heard since the daemon's start"),
        "{code} {said}"
    );
    let own = format!("/proc/{}/ns/net", node.process().pid());
    let told =
        node.meshctl(&["attach", "--network", "shop", "--netns", &own]).unwrap_err().to_string();
    assert!(told.contains("namespace of this host itself") && told.contains("--host"), "{told}");
}
