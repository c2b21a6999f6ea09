//! The tools of diagnosis: pings, netchecks, bundles, the audit log, completions.

use crate::{
    nat::Pair,
    support::{Echo, PATIENCE, Shop, allow, mesh, tcp_echoes},
};
use meshward_api_types::{
    AuditEntry, Credential, Policy,
    diagnosis::{NatMapping, Netcheck, PathKind, Pong},
};
use meshward_lab::{Mesh, NatProfile, Node, Uplink, hex, output};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    fs,
    io::Read,
    net::IpAddr,
    process::{Command, Output, Stdio},
    time::Duration,
};

/// Runs `meshctl` on a node's machine, with the operator's context.
fn run(mesh: &Mesh, node: &Node, arguments: &[&str]) -> Output {
    let mut command = node.meshctl_command(arguments);
    command.arg("--context").arg(mesh.context()).stdin(Stdio::null());
    node.site.netns.run(|| command.output()).unwrap().unwrap()
}

fn said(done: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&done.stdout), text(&done.stderr))
}

/// The answers of one `meshctl ping`.
#[derive(Debug, Deserialize)]
struct PingReport {
    sent: usize,
    answered: usize,
    pings: Vec<Pong>,
}

/// Runs `meshctl` as [`run`] does, and reads its JSON.
fn read<T: DeserializeOwned>(mesh: &Mesh, node: &Node, arguments: &[&str]) -> T {
    let done = run(mesh, node, &[arguments, &["-o", "json"]].concat());
    serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|error| panic!("{error}: {:?}", said(&done)))
}

#[test]
fn a_ping_finds_the_way_to_a_node_or_workload_and_says_what_policy_says() {
    let shop = Shop::new(&allow("tcp/8080"));
    let (mesh, node) = (&shop.mesh, &shop.nodes[0]);
    // No session has come about yet: a ping begins one.
    let found: PingReport = read(mesh, node, &["ping", "rack", "-c", "3", "-i", "100ms"]);
    assert_eq!((found.sent, found.answered), (3, 3), "{found:?}");
    let last = &found.pings[2];
    assert_eq!(last.path, PathKind::Direct, "{last:?}");
    // Whichever candidate has answered first.
    let site = &shop.nodes[1].site;
    let address = last.address.unwrap();
    assert!([IpAddr::from(site.v4), site.v6.into()].contains(&address.ip()), "{last:?}");
    assert!((1..1_000_000).contains(&last.round_trip_us.unwrap()), "{last:?}");
    // By name, which the coordinator knows; by id; by address.
    let by_address = shop.api.v4().to_string();
    let workloads = mesh.workloads().unwrap();
    let api = workloads.iter().find(|own| own.id.as_str() == shop.api.id).unwrap();
    let name = api.name.to_string();
    for target in [&name, &shop.api.id, &by_address] {
        let (out, err) = said(&run(mesh, node, &["ping", target, "-c", "1"]));
        assert!(out.contains(&format!("workload {}", shop.api.id)), "{target}: {out}{err}");
        assert!(
            out.contains("node rack") && out.contains("answer in") && out.contains("direct"),
            "{out}"
        );
        assert!(out.contains("to it tcp/8080, from it nothing"), "{out}");
    }
    mesh.meshctl(&["quarantine", "app=api"]).unwrap();
    let (out, _) = said(&run(mesh, node, &["ping", &shop.api.id, "-c", "1"]));
    assert!(
        out.contains("answer in") && out.contains("quarantined"),
        "the node is there all the same: {out}"
    );
    // This node itself, nobody, and somebody who is not there any more.
    let own: PingReport = read(mesh, node, &["ping", "cloud"]);
    assert_eq!(own.pings[0].path, PathKind::Local, "{own:?}");
    let nobody = run(mesh, node, &["ping", "nobody"]);
    assert!(
        nobody.status.code() == Some(2) && said(&nobody).1.contains("`nobody`"),
        "{:?}",
        said(&nobody)
    );
    let no_network = run(mesh, node, &["ping", "rack", "--network", "nowhere"]);
    assert_eq!(no_network.status.code(), Some(2), "{:?}", said(&no_network));
}

#[test]
fn a_ping_of_a_node_that_is_down_has_no_answer_and_one_that_begins_anew_has() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let answered = |shop: &Shop| {
        read::<PingReport>(&shop.mesh, &shop.nodes[0], &["ping", "rack", "-c", "1"]).answered == 1
    };
    assert!(answered(&shop));
    shop.nodes[1].kill();
    let done = run(&shop.mesh, &shop.nodes[0], &["ping", "rack", "-c", "1"]);
    assert!(
        done.status.code() == Some(1) && said(&done).0.contains("no answer"),
        "{:?}",
        said(&done)
    );
    shop.nodes[1].start().unwrap();
    shop.mesh.wait(|| answered(&shop)).unwrap();
}

#[test]
fn a_ping_and_a_netcheck_show_nats_and_relays() {
    let mut own = mesh();
    let _relay = own.relay("relay-a").unwrap();
    let pair = Pair::of(own, [Uplink::Nat(NatProfile::APDM_APDF); 2]);
    assert!(tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1, PATIENCE));
    let (out, err) =
        said(&run(&pair.mesh, &pair.nodes[0], &["ping", "rack", "-c", "2", "-i", "200ms"]));
    assert!(out.contains("relayed, by relay"), "{out}{err}");
    let direct = run(
        &pair.mesh,
        &pair.nodes[0],
        &["ping", "rack", "-c", "2", "-i", "200ms", "--until-direct"],
    );
    assert_eq!(direct.status.code(), Some(1), "{:?}", said(&direct));
    let found: Netcheck = read(&pair.mesh, &pair.nodes[0], &["netcheck"]);
    assert_eq!(
        (found.udp, found.nat.mapping),
        (Some(true), NatMapping::EndpointDependent),
        "{found:?}"
    );
    assert_eq!(found.relays.len(), 2, "{found:?}");
    assert!(found.relays.iter().all(|relay| relay.udp_us.is_some()), "{found:?}");
    let (out, _) = said(&run(&pair.mesh, &pair.nodes[0], &["netcheck"]));
    assert!(out.contains("endpoint-dependent mapping") && out.contains("coordinator"), "{out}");
}

#[test]
fn one_server_shows_that_there_is_a_nat_and_not_its_mapping() {
    let mut mesh = mesh();
    for (name, uplink) in [
        ("home", Uplink::Nat(NatProfile::EIM_APDF)),
        ("office", Uplink::Nat(NatProfile::APDM_APDF)),
    ] {
        let (site, _) = mesh.internet.site_with_uplink(name, uplink).unwrap();
        let node = mesh.node_at(site).token(&mesh.token(&[]).unwrap()).start().unwrap();
        mesh.wait(|| node.is_connected()).unwrap();
        let found: Netcheck = read(&mesh, &node, &["netcheck"]);
        assert_eq!(
            (found.udp, found.nat.mapping),
            (Some(true), NatMapping::Undetermined),
            "{found:?}"
        );
        assert!(found.nat.preserves_port.is_some() && found.ipv4.is_some(), "{found:?}");
        let (out, _) = said(&run(&mesh, &node, &["netcheck"]));
        assert!(out.contains("mapping unknown") && !out.contains("dependent"), "{out}");
    }
}

#[test]
fn a_netcheck_says_where_udp_does_not_pass_and_where_there_is_no_nat() {
    let mut mesh = mesh();
    let open = mesh.node("open").start().unwrap();
    let token = mesh.token(&[]).unwrap();
    let (site, _) = mesh.internet.site_with_uplink("walled", Uplink::TcpOnly).unwrap();
    let walled = mesh.node_at(site).token(&token).start().unwrap();
    mesh.wait(|| walled.is_connected()).unwrap();
    let found: Netcheck = read(&mesh, &open, &["netcheck"]);
    assert_eq!((found.udp, found.nat.mapping), (Some(true), NatMapping::None), "{found:?}");
    assert_eq!(found.ipv4.unwrap().ip(), IpAddr::from(open.site.v4), "{found:?}");
    let found: Netcheck = read(&mesh, &walled, &["netcheck"]);
    assert_eq!((found.udp, found.nat.mapping), (Some(false), NatMapping::Unknown), "{found:?}");
    let relay = &found.relays[0];
    assert!(relay.udp_us.is_none() && relay.tcp_us.is_some(), "{found:?}");
    let (out, _) = said(&run(&mesh, &walled, &["netcheck"]));
    assert!(out.contains("blocked"), "{out}");
}

#[test]
fn a_bundle_has_what_helps_and_neither_tokens_nor_keys() {
    let shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    let (mesh, node) = (&shop.mesh, &shop.nodes[0]);
    let join = mesh.token(&[]).unwrap();
    let bearer = mesh.read_context().unwrap().token;
    // A log that has what no log should have.
    let key = fs::read(node.data().join("node.key")).unwrap();
    let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIDqs\n-----END PRIVATE KEY-----";
    let log = mesh.folder().join("daemon.log");
    let text = format!(
        "{}\njoining with {join}@host\nauthorization: Bearer {bearer}\n{pem}\nthe end\n",
        node.printed()
    );
    fs::write(&log, text).unwrap();
    let file = mesh.folder().join("bundle.tar.gz");
    let (file_name, log_name) = (file.display().to_string(), log.display().to_string());
    let done = run(mesh, node, &["debug", "bundle", &file_name, "--log", &log_name]);
    assert!(done.status.success(), "{:?}", said(&done));
    let listed = output(&mesh.site.netns, Command::new("tar").args(["-tzf", &file_name])).unwrap();
    for part in [
        "mesh/nodes.json",
        "mesh/audit.json",
        "node/status.json",
        "node/metrics.txt",
        "node/netcheck.json",
        "machine/addresses.txt",
        "logs/daemon.log",
    ] {
        assert!(listed.contains(&format!("meshward-debug/{part}")), "no {part} in\n{listed}");
    }
    let folder = mesh.folder().join("unpacked");
    fs::create_dir(&folder).unwrap();
    output(&mesh.site.netns, Command::new("tar").args(["-xzf", &file_name, "-C"]).arg(&folder))
        .unwrap();
    let everything = all_text(&folder);
    assert!(
        everything.contains("session begun") || everything.contains("node ready"),
        "the log is in it"
    );
    assert!(everything.contains("the end") && everything.contains("meshward_node_packets_total"));
    let secret = join.split('_').next_back().unwrap().to_owned();
    let endpoint = fs::read(node.data().join("endpoints/shop.key")).unwrap();
    for (what, secret) in [
        ("the join token", secret),
        ("the bearer token", bearer),
        ("a private key", "MC4CAQAwBQYDK2VwBCIEIDqs".into()),
        ("the node's key", hex(&key)),
        ("the endpoint's key", hex(&endpoint)),
    ] {
        assert!(!secret.is_empty() && !everything.contains(&secret), "{what} is in the bundle");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // What is there is not overwritten.
    let again = run(mesh, node, &["debug", "bundle", &file_name]);
    assert!(
        again.status.code() == Some(2) && said(&again).1.contains("must not be there"),
        "{:?}",
        said(&again)
    );
}

fn all_text(folder: &std::path::Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            text += &all_text(&entry.path());
        } else {
            text += &String::from_utf8_lossy(&fs::read(entry.path()).unwrap());
        }
    }
    text
}

#[test]
fn the_audit_log_is_read_on_from_where_it_was_left() {
    let mesh = mesh();
    for number in 1..=6 {
        mesh.meshctl(&[
            "network",
            "create",
            &format!("n{number}"),
            "--cidr",
            &format!("10.{number}.0.0/16"),
        ])
        .unwrap();
    }
    let lines = |arguments: &[&str]| -> Vec<u64> {
        let read: Vec<AuditEntry> = mesh.read_as(&[&["audit"], arguments].concat()).unwrap();
        read.iter().map(|line| line.revision.0).collect()
    };
    let all = lines(&[]);
    assert!(all.len() >= 7 && all.is_sorted_by(|a, b| a > b), "{all:?}");
    let middle = all[3].to_string();
    assert_eq!(lines(&["--after", &middle]), all[..3]);
    assert_eq!(lines(&["--after", &middle, "--limit", "2"]), all[..2]);
    assert_eq!(lines(&["--before", &middle]), all[4..]);
    assert_eq!(lines(&["--limit", "2"]), all[..2]);
    assert_eq!(lines(&["--actor", "user:nobody"]), [0; 0]);
    // Followed, lines come as they are made, the oldest first.
    let mut command = mesh.meshctl_command(&["audit", "--follow", "--limit", "1", "-o", "json"]);
    let mut follow =
        mesh.site.netns.run(|| command.stdout(Stdio::piped()).spawn()).unwrap().unwrap();
    let mut out = follow.stdout.take().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    mesh.meshctl(&["network", "delete", "n1"]).unwrap();
    mesh.meshctl(&["network", "delete", "n2"]).unwrap();
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while text.lines().count() < 3 {
        let length = out.read(&mut buffer).unwrap();
        assert!(length > 0, "it ended: {text}");
        text += std::str::from_utf8(&buffer[..length]).unwrap();
    }
    drop(out);
    let ended = follow.wait().unwrap();
    assert!(ended.success(), "it ends once nobody reads: {ended}");
    let revisions: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<AuditEntry>(line).unwrap().revision.0)
        .collect();
    assert!(revisions[0] == all[0] && revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
}

#[test]
fn a_credential_with_a_lifetime_is_refused_once_it_is_over() {
    let mesh = mesh();
    let made = mesh
        .meshctl(&["credential", "create", "ci", "--role", "viewer", "--lifetime", "2s"])
        .unwrap();
    let file = mesh.folder().join("ci.json");
    fs::write(&file, made).unwrap();
    let path = file.display().to_string();
    let nodes = || {
        let mut command = Command::new(mesh.binaries.path("meshctl"));
        command.args(["--context", &path, "nodes"]);
        let done = mesh.site.netns.run(|| command.output()).unwrap().unwrap();
        (done.status.code(), said(&done).1)
    };
    assert_eq!(nodes().0, Some(0));
    let listed: Vec<Credential> = mesh.list("credentials").unwrap();
    let expires = |name: &str| {
        let credential = listed.iter().find(|credential| credential.name == name).unwrap();
        credential.expires.is_some()
    };
    assert!(expires("ci") && !expires("admin"), "{listed:?}");
    let over = || nodes().0 == Some(2);
    mesh.wait(over).unwrap();
    let (_, text) = nodes();
    assert!(text.contains("`ci` expired at") && text.contains("--lifetime"), "{text}");
    mesh.meshctl(&["credential", "change", "ci", "--lifetime", "1h"]).unwrap();
    assert_eq!(nodes().0, Some(0), "the same token is good again");
}

#[test]
fn a_policy_is_overwritten_only_in_the_state_that_was_seen() {
    let mesh = mesh();
    let file = mesh.folder().join("p.yaml").display().to_string();
    let apply = |ports: &str, revision: u64| {
        fs::write(&file, allow(ports)).unwrap();
        mesh.meshctl(&["policy", "apply", &file, "--if-revision", &revision.to_string()])
    };
    let revision = || {
        let policy: Policy = mesh.read_as(&["policy", "get", "shop"]).unwrap();
        policy.revision.unwrap().0
    };
    // There is none yet.
    apply("tcp/80", 0).unwrap();
    let first = revision();
    apply("tcp/81", first).unwrap();
    for stale in [0, first] {
        let refused = apply("tcp/82", stale).unwrap_err().to_string();
        assert!(refused.contains("any more") && refused.contains("policy diff"), "{refused}");
    }
    assert!(mesh.meshctl(&["policy", "get", "shop"]).unwrap().contains("tcp/81"));
    let back = |seen: u64| {
        let (to, seen) = (first.to_string(), seen.to_string());
        mesh.meshctl(&["policy", "rollback", &to, "--if-revision", &seen])
    };
    assert!(back(first).is_err());
    back(revision()).unwrap();
    assert!(mesh.meshctl(&["policy", "get", "shop"]).unwrap().contains("tcp/80"));
}

#[test]
fn a_shell_is_offered_live_names() {
    let shop = Shop::new(&allow("tcp/8080"));
    let offered = |words: &[&str]| -> String {
        let mut command = Command::new(shop.mesh.binaries.path("meshctl"));
        // As the script of `meshctl completions bash` asks.
        command
            .env("MESHCTL_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        command
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_COMPLETE_SPACE", "true")
            .env("_CLAP_IFS", "\n");
        command
            .env("MESHCTL_CONTEXT", shop.mesh.context())
            .env("MESHCTL_SOCKET", shop.nodes[0].socket());
        command.args(["--", "meshctl"]).args(words);
        let done = shop.mesh.site.netns.run(|| command.output()).unwrap().unwrap();
        assert!(done.status.success(), "{:?}", said(&done));
        said(&done).0
    };
    let has = |text: &str, name: &str| text.lines().any(|line| line == name);
    assert!(has(&offered(&["node", "remove", ""]), "rack"));
    assert!(
        has(&offered(&["node", "remove", "ra"]), "rack")
            && !has(&offered(&["node", "remove", "ra"]), "cloud")
    );
    assert!(has(&offered(&["workloads", "--network", ""]), "shop"));
    assert!(has(&offered(&["ping", ""]), "cloud") && has(&offered(&["ping", ""]), &shop.api.id));
    assert!(has(&offered(&["quarantine", "app"]), "app=web"));
    assert!(has(&offered(&["credential", "revoke", ""]), "admin"));
    assert!(has(&offered(&["detach", ""]), &shop.web.id));
    assert!(has(&offered(&["no"]), "node"));
    let script = shop.mesh.meshctl(&["completions", "bash"]).unwrap();
    assert!(script.contains("MESHCTL_COMPLETE"), "{script}");
}
