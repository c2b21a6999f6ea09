//! Containers of a real Podman, by the CNI plugin; and the plugin by itself.

use crate::{
    docker::{Host, page},
    support::{Echo, PATIENCE, SILENCE, mesh, tcp_echoes},
};
use meshward_lab::{Mesh, Node, Podman, host};
use meshward_netns::Netns;
use serde_json::{Value, json};
use std::{
    io::Write,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

const POLICY: &str = "network: shop
rules:
  - { name: to-web, from: { app: { in: [api, web] } }, to: { app: web }, allow: [tcp/80] }
  - { name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/7000] }
";

#[test]
fn docker_podman_and_a_process_talk_as_policy_says() {
    let host = Host::new(POLICY);
    let podman = Podman::start(
        &host.host.site,
        &host.mesh.folder().join("podman"),
        host.mesh.binaries.folder(),
        &host.host.socket(),
    )
    .unwrap();
    let docker = host.start("docker", &["app=web"], &[]);
    podman.run(&["run", "-d", "--name", "podman", "--network", "shop", "--label", "app=web", "box"]).unwrap();
    host.wait_let_in("podman");
    let workload = host.workload("podman").unwrap();
    assert_eq!(workload["measurement"]["runtime"], "podman");
    let address = |at: usize| workload["addresses"][at].as_str().unwrap().parse::<IpAddr>().unwrap();
    let pid = podman.run(&["inspect", "-f", "{{.State.Pid}}", "podman"]).unwrap();
    let inside = Netns::open(Path::new(&format!("/proc/{pid}/ns/net"))).unwrap();
    let _echo = Echo::start(&host.api.netns, 7000);

    // Every pair, and both families.
    for of in [address(0), address(1)] {
        assert_eq!(page(&host.api.netns, of, PATIENCE).as_deref(), Some("podman\n"));
        assert_eq!(page(&docker.netns, of, PATIENCE).as_deref(), Some("podman\n"));
    }
    assert_eq!(page(&inside, docker.v4(), PATIENCE).as_deref(), Some("box\n"));
    assert!(tcp_echoes(&inside, host.api.v4(), 7000, 50_000, PATIENCE));
    assert!(!tcp_echoes(&inside, host.api.v4(), 7001, 1, SILENCE));
    let shown =
        podman.run(&["inspect", "-f", "{{.NetworkSettings.Networks.shop.IPAddress}}", "podman"]).unwrap();
    assert_eq!(shown, address(0).to_string());

    // Nothing is left of one that is killed.
    podman.run(&["kill", "-s", "KILL", "podman"]).unwrap();
    host.mesh.wait(|| host.workload("podman").is_none()).unwrap();
    podman.run(&["start", "podman"]).unwrap();
    host.wait_let_in("podman");
    podman.run(&["rm", "-f", "-t", "0", "podman"]).unwrap();
    host.mesh.wait(|| host.workload("podman").is_none()).unwrap();
}

/// A node, and the plugin as a runtime would call it.
struct Runtime {
    node: Node,
    mesh: Mesh,
}

impl Runtime {
    fn new() -> Self {
        let mut mesh = mesh();
        let node = mesh.node("host").unwrap();
        mesh.apply(POLICY).unwrap();
        Self { node, mesh }
    }

    fn config(&self, more: &Value) -> Value {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "shop", "type": "meshward-cni", "socket": self.node.socket() });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    /// Calls the plugin; an error is what it printed.
    fn call(&self, command: &str, netns: &str, more: &Value) -> Result<Value, Value> {
        self.call_with(
            &[
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", "c1"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", netns),
            ],
            &self.config(more).to_string(),
        )
    }

    fn call_with(&self, environment: &[(&str, &str)], stdin: &str) -> Result<Value, Value> {
        let mut command = Command::new(self.mesh.binaries.path("meshward-cni"));
        command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let printed = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
        if out.status.success() { Ok(printed) } else { Err(printed) }
    }
}

#[test]
fn the_plugin_does_what_the_specification_says() {
    let runtime = Runtime::new();
    let netns = host().unwrap();
    let path = netns.path().to_string_lossy().into_owned();
    let labels = json!({ "labels": { "app": "web" } });
    let versions = runtime.call_with(&[("CNI_COMMAND", "VERSION")], "{\"cniVersion\":\"1.0.0\"}").unwrap();
    assert!(versions["supportedVersions"].as_array().unwrap().contains(&"1.1.0".into()));
    assert_eq!(runtime.call("STATUS", "", &json!({})), Ok(Value::Null));

    let added = runtime.call("ADD", &path, &labels).unwrap();
    assert_eq!(
        (added["cniVersion"].as_str(), added["interfaces"][0]["name"].as_str()),
        (Some("1.1.0"), Some("eth0"))
    );
    assert_eq!(runtime.call("ADD", &path, &labels).unwrap(), added, "asked again");
    let previous = json!({ "prevResult": added });
    assert_eq!(runtime.call("CHECK", &path, &previous), Ok(Value::Null));
    let address: IpAddr =
        added["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    let other = runtime.node.attach("shop", "app=api").unwrap();
    let _echo = Echo::start(&netns, 80);
    assert!(tcp_echoes(&other.netns, address, 80, 1000, PATIENCE));

    // The interface is gone, though nobody said so.
    let second = host().unwrap();
    let elsewhere = second.path().to_string_lossy().into_owned();
    assert_eq!(
        runtime.call("ADD", &elsewhere, &labels).unwrap_err()["code"],
        100,
        "it is attached elsewhere"
    );
    netns.links(async |links| links.set_down("eth0").await).unwrap();
    assert_eq!(runtime.call("DEL", &path, &json!({})), Ok(Value::Null));
    assert_eq!(runtime.call("DEL", &path, &json!({})), Ok(Value::Null), "nothing to do");
    assert_eq!(runtime.call("CHECK", &path, &previous).unwrap_err()["code"], 3);

    // What the runtime does not know any more is collected.
    runtime.call("ADD", &path, &labels).unwrap();
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0" }] });
    runtime.call_with(&[("CNI_COMMAND", "GC")], &runtime.config(&valid).to_string()).unwrap();
    assert_eq!(runtime.call("CHECK", &path, &previous), Ok(Value::Null));
    runtime
        .call_with(
            &[("CNI_COMMAND", "GC")],
            &runtime.config(&json!({ "cni.dev/valid-attachments": [] })).to_string(),
        )
        .unwrap();
    assert_eq!(runtime.call("CHECK", &path, &previous).unwrap_err()["code"], 3);
}

#[test]
fn an_address_may_be_asked_for_and_another_plugin_may_come_first() {
    let runtime = Runtime::new();
    let netns = host().unwrap();
    let path = netns.path().to_string_lossy().into_owned();
    let blocks = runtime.node.status().unwrap()["endpoints"][0]["blocks"].clone();
    let wanted = format!("{}.99", blocks[0].as_str().unwrap().rsplit_once('.').unwrap().0);
    let previous =
        json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }], "ips": [], "routes": [] });
    let more =
        json!({ "prevResult": previous, "runtimeConfig": { "ips": [wanted] }, "labels": { "app": "web" } });
    let added = runtime.call("ADD", &path, &more).unwrap();
    assert_eq!(added["interfaces"][1]["name"], "mesh0");
    assert_eq!(added["ips"][0], json!({ "address": format!("{wanted}/32"), "interface": 1 }));
    let taken = json!({ "runtimeConfig": { "ips": [wanted] } });
    let second = host().unwrap();
    let environment = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c2"), ("CNI_IFNAME", "eth0")];
    let elsewhere = second.path().to_string_lossy().into_owned();
    let said = runtime.call_with(
        &[&environment[..], &[("CNI_NETNS", &elsewhere)]].concat(),
        &runtime.config(&taken).to_string(),
    );
    let said = said.unwrap_err();
    assert_eq!(said["code"], 100);
    assert!(said["details"].as_str().unwrap().contains("in use"), "{said}");
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c3"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/nowhere"),
    ];
    let nowhere = runtime.call_with(&environment, &runtime.config(&json!({})).to_string()).unwrap_err();
    assert!(nowhere["details"].as_str().unwrap().contains("no network namespace"), "{nowhere}");
}

#[test]
fn without_the_daemon_the_plugin_says_so_and_lets_go_of_what_is_gone() {
    let mut runtime = Runtime::new();
    let netns = host().unwrap();
    let path = netns.path().to_string_lossy().into_owned();
    runtime.call("ADD", &path, &json!({ "labels": { "app": "web" } })).unwrap();
    runtime.node.kill();
    assert_eq!(runtime.call("ADD", &path, &json!({})).unwrap_err()["code"], 11);
    assert_eq!(runtime.call("STATUS", &path, &json!({})).unwrap_err()["code"], 50);
    assert_eq!(
        runtime.call("DEL", &path, &json!({})).unwrap_err()["code"],
        11,
        "its namespace is still there"
    );
    assert_eq!(runtime.call("DEL", "/run/netns/gone", &json!({})), Ok(Value::Null));
    drop(netns);
    runtime.node.start().unwrap();
    let none = || runtime.node.meshctl(&["attached", "-o", "json"]).is_ok_and(|all| all.trim() == "[]");
    runtime.mesh.wait(none).unwrap();
}
