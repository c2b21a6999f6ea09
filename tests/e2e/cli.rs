//! The experience of a user: answers, mistakes, and the messages about them.

use crate::support::{Shop, allow, mesh};
use meshward_api_types::Context;
use meshward_lab::{Mesh, output};
use meshward_netns::Netns;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Output},
};

/// Runs `meshctl` where it is expected to fail.
fn mistake(mesh: &Mesh, arguments: &[&str]) -> (i32, String) {
    let run = || mesh.meshctl_command(arguments).output();
    let out: Output = mesh.site.netns.run(run).unwrap().unwrap();
    (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
}

/// The arguments of `meshctl`, and a part of the message about the mistake in them.
const MISTAKES: &[(&[&str], &str)] = &[
    (&["network", "create", "shop", "--cidr", "10.9.0.0/16"], "there is a network `shop` already"),
    (
        &["network", "create", "two", "--cidr", "10.42.8.0/24"],
        "10.42.8.0/24 overlaps 10.42.0.0/16 of network `shop`",
    ),
    (&["network", "create", "two", "--cidr", "10.9.0.1/16"], "host bits"),
    (&["network", "create", "Two", "--cidr", "10.9.0.0/16"], "is not a network name"),
    (&["network", "delete", "nope"], "there is no network `nope`"),
    (&["policy", "get", "nope"], "there is no network `nope`"),
    (&["policy", "check", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
    (&["quarantine", "app=(x"], "is not a selector"),
    (&["quarantine", "w-000000000000"], "there is no workload"),
    (
        &["explain", "--from", "app=a", "--to", "app=b", "--port", "tpc/1"],
        "no protocol is called `tpc`",
    ),
    (&["token", "create", "--uses", "0"], "1 to 100000 uses"),
    (&["token", "create", "--network", "nope"], "there is no network `nope`"),
    (&["token", "revoke", "nope"], "there is no join token"),
    (&["nodes", "remove", "nope"], "there is no node `nope`"),
    (&["nonsense"], "unrecognized subcommand"),
    (&["workloads", "--node", "nope"], "there is no node `nope`"),
    (&["quarantine", "app=web"], "selects no workload now. To hold"),
    (&["release"], "name labels, or a workload's id"),
    (&["backup", "/nowhere/file"], "cannot write /nowhere/file:"),
    (&["node", "-w", "remove", "cloud"], "say what to list behind the verb"),
];

#[test]
fn mistakes_are_told_with_their_mend_and_exit_code_2() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").start().unwrap();
    for (arguments, says) in MISTAKES {
        let (code, said) = mistake(&mesh, arguments);
        assert!(code == 2 && said.contains(says), "{arguments:?}: {code}, {said}");
    }
    // What variables say is not shown as if it had been written, and an empty one says nothing.
    let mut command = Command::new(mesh.binaries.path("meshctl"));
    command
        .args(["network", "create"])
        .env("MESHCTL_CONTEXT", mesh.context())
        .env("MESHCTL_SOCKET", "/x");
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(said.contains("Usage: meshctl network create --cidr <PREFIX> <NAME>"), "{said}");
    let mut command = mesh.meshctl_command(&["policy", "get"]);
    let done =
        mesh.site.netns.run(|| command.env("MESHCTL_CONTEXT", "").output()).unwrap().unwrap();
    assert!(done.status.success(), "the only network's: {}", String::from_utf8_lossy(&done.stderr));
    let said = node.meshctl(&["--context", "/nowhere.json", "nodes"]).unwrap_err().to_string();
    assert!(said.contains("no context file /nowhere.json"), "{said}");
    let said = node.attach("nope", "app=a").err().unwrap().to_string();
    assert!(said.contains("does not serve network `nope`") && said.contains("shop"), "{said}");
    let said = node.attach("shop", "meshward/site=x").err().unwrap().to_string();
    assert!(said.contains("cannot be set by hand"), "{said}");
    let said = node
        .meshctl(&["attach", "--network", "shop", "--netns", "/etc/passwd"])
        .unwrap_err()
        .to_string();
    assert!(said.contains("no network namespace"), "{said}");
    let run = |command: &[&str]| {
        let arguments = [&["run", "--network", "shop", "--label", "app=a", "--"], command].concat();
        let out =
            node.site.netns.run(|| node.meshctl_command(&arguments).output()).unwrap().unwrap();
        out.status.code()
    };
    assert_eq!(run(&["sh", "-c", "exit 7"]), Some(7), "the command's exit code is ours");
    assert_eq!(run(&["/nowhere"]), Some(127), "as shells have it");
    assert_eq!(run(&["/etc"]), Some(126));
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]), Some(137));
}

#[test]
fn an_unreachable_coordinator_is_a_failure_with_exit_code_1() {
    let mut mesh = mesh();
    mesh.coordinator.kill();
    let (code, said) = mistake(&mesh, &["nodes"]);
    assert!(code == 1 && said.contains("cannot reach the coordinator"), "{code}, {said}");
}

#[test]
fn a_dry_run_changes_nothing() {
    let shop = Shop::new("network: shop");
    let revision = || shop.mesh.revision().unwrap();
    let before = revision();
    let file = shop.mesh.folder().join("dry.yaml");
    std::fs::write(&file, allow("tcp/8080")).unwrap();
    let said =
        shop.mesh.meshctl(&["policy", "apply", &file.to_string_lossy(), "--dry-run"]).unwrap();
    assert!(said.contains("opens") && said.contains("tcp/8080"), "{said}");
    for arguments in [
        &["network", "create", "two", "--cidr", "10.9.0.0/16", "--dry-run"][..],
        &["token", "create", "--dry-run"],
        &["nodes", "remove", "cloud", "--dry-run"],
        &["quarantine", "app=web", "--dry-run"],
    ] {
        shop.mesh.meshctl(arguments).unwrap();
    }
    assert_eq!(revision(), before);
    assert!(shop.nodes[0].is_connected());
}

#[test]
fn explain_names_the_rule_that_decides() {
    let shop = Shop::new(&allow("tcp/8080"));
    let explain = |to: &str, port: &str| {
        shop.mesh.meshctl(&["explain", "--from", "app=web", "--to", to, "--port", port]).unwrap()
    };
    let said = explain("app=api", "tcp/8080");
    assert!(said.contains("allowed") && said.contains("rule `web-to-api`"), "{said}");
    let said = explain("app=api", "tcp/22");
    assert!(said.contains("denied") && said.contains("default deny"), "{said}");
    let said = explain("app=db", "tcp/5432");
    assert!(said.contains("denied") && said.contains("taken as given"), "{said}");
    let said = explain("app=api", "tcp");
    assert!(said.contains("only a part passes: tcp/8080"), "{said}");
}

#[test]
fn a_bad_policy_is_refused_with_line_and_column_and_changes_nothing() {
    let shop = Shop::new(&allow("tcp/8080"));
    let file = shop.mesh.folder().join("bad.yaml");
    let try_it = |text: &str, verb: &str| {
        std::fs::write(&file, text).unwrap();
        mistake(&shop.mesh, &["policy", verb, &file.to_string_lossy()])
    };
    for verb in ["apply", "check"] {
        let (code, said) = try_it(&allow("tcp/8080").replace("allow:", "alow:"), verb);
        assert!(
            code == 2
                && said.contains("`alow` is not known here")
                && said.contains("bad.yaml:2:67:"),
            "{said}"
        );
        let failing = allow("tcp/8080")
            + "tests: [{ from: { app: web }, to: { app: api }, port: tcp/8080, expect: deny }]";
        let (code, said) = try_it(&failing, verb);
        assert!(
            code == 2 && said.contains("policy test 1 failed") && said.contains("web-to-api"),
            "{said}"
        );
    }
    assert_eq!(shop.mesh.meshctl(&["policy", "get", "shop"]).unwrap(), allow("tcp/8080"));
}

#[test]
fn a_configuration_mistake_names_key_and_file() {
    let mut mesh = mesh();
    let file = mesh.folder().join("bad.toml");
    std::fs::write(&file, "lisen = \"0.0.0.0:1\"").unwrap();
    for daemon in ["meshward-coordinator", "meshward-node"] {
        let mut command = Command::new(mesh.binaries.path(daemon));
        command.arg("--config").arg(&file);
        let out = mesh.site.netns.run(|| command.output()).unwrap().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(
            out.status.code() == Some(2) && said.contains("lisen") && said.contains("bad.toml"),
            "{said}"
        );
    }
    let site = mesh.internet.site("lonely").unwrap();
    let mut node = Command::new(mesh.binaries.path("meshward-node"));
    node.arg("--data-dir").arg(mesh.folder().join("lonely"));
    let said = output(&site.netns, &mut node).unwrap_err().to_string();
    assert!(
        said.contains("has not joined a mesh") && said.contains("meshctl token create"),
        "{said}"
    );
}

fn scrape(from: &Netns, port: u16) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = from.run(|| TcpStream::connect(address)).unwrap().unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn both_daemons_serve_metrics() {
    let shop = Shop::new(&allow("tcp/8080"));
    let text = scrape(&shop.mesh.site.netns, 7480);
    for line in [
        "meshward_coordinator_nodes_connected 2",
        "meshward_coordinator_links{network=\"shop\"} 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "no `{line}` in {text}");
    }
    let text = scrape(&shop.nodes[0].site.netns, 7481);
    for line in [
        "meshward_node_connected 1",
        "meshward_node_workloads{state=\"open\"} 1",
        "reason=\"denied\"",
    ] {
        assert!(text.contains(line), "no `{line}` in {text}");
    }
}

#[test]
fn the_api_refuses_strangers_and_nonsense_with_a_sentence() {
    let mesh = mesh();
    let Context { server, ca: certificate, token, .. } = mesh.read_context().unwrap();
    let ca = mesh.folder().join("ca.pem");
    std::fs::write(&ca, certificate).unwrap();
    let good = format!("authorization: Bearer {token}");
    let call = |path: &str, headers: &[&str], body: Option<&str>| {
        let mut curl = Command::new("curl");
        curl.arg("--silent").arg("--cacert").arg(&ca).args(["--write-out", " %{http_code}"]);
        let host = format!("coordinator.meshward.internal:{}", server.rsplit(':').next().unwrap());
        curl.args(["--connect-to", &format!("{host}:{server}")])
            .arg(format!("https://{host}{path}"));
        for header in headers {
            curl.args(["--header", header]);
        }
        if let Some(body) = body {
            curl.args(["--header", "content-type: application/json", "--data", body]);
        }
        output(&mesh.site.netns, &mut curl).unwrap()
    };
    for (path, headers, body, says, status) in [
        ("/v1/nodes", &[][..], None, "a credential is missing", "401"),
        ("/v1/nodes", &["authorization: Bearer wrong"], None, "unknown", "401"),
        ("/v1/nothing", &[&good], None, "there is no /v1/nothing", "404"),
        ("/v1/networks", &[&good], Some("{"), "EOF", "400"),
        (
            "/v1/networks",
            &[&good],
            Some(r#"{"name":"x","prefixes":["10.9.0.0/16"],"mtv":1}"#),
            "unknown field `mtv`; did you mean `mtu`?",
            "400",
        ),
        (
            "/v1/networks",
            &[&good],
            Some(r#"{"name":"x","prefixes":[]}"#),
            "`prefixes` is empty",
            "400",
        ),
        ("/v1/openapi.json", &[], None, "Meshward coordinator", "200"),
    ] {
        let said = call(path, headers, body);
        assert!(said.contains(says) && said.ends_with(status), "{path}: {said}");
    }
}
