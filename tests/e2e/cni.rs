//! Containers of a real Podman, by the CNI plugin; and the plugin by itself.

use crate::{
    docker::{Host, page},
    support::{Echo, PATIENCE, SILENCE, mesh, tcp_echoes},
};
use meshward_lab::{Kubernetes, Mesh, Node, Podman, host};
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
        &host.node.site,
        &host.mesh.folder().join("podman"),
        host.mesh.binaries.folder(),
        &host.node.socket(),
    )
    .unwrap();
    let docker = host.start("docker", &["app=web"], &[]);
    podman
        .run(&["run", "-d", "--name", "podman", "--network", "shop", "--label", "app=web", "box"])
        .unwrap();
    host.wait_let_in("podman");
    let workload = host.workload("podman").unwrap();
    assert_eq!(workload.measurement.unwrap().runtime, "podman");
    let addresses = workload.addresses;
    let pid = podman.run(&["inspect", "-f", "{{.State.Pid}}", "podman"]).unwrap();
    let inside = Netns::open(Path::new(&format!("/proc/{pid}/ns/net"))).unwrap();
    let _echo = Echo::start(&host.api.netns, 7000);

    // Every pair, and both families.
    for of in [addresses[0], addresses[1]] {
        assert_eq!(page(&host.api.netns, of, PATIENCE).as_deref(), Some("podman\n"));
        assert_eq!(page(&docker.netns, of, PATIENCE).as_deref(), Some("podman\n"));
    }
    assert_eq!(page(&inside, docker.v4(), PATIENCE).as_deref(), Some("box\n"));
    assert!(tcp_echoes(&inside, host.api.v4(), 7000, 50_000, PATIENCE));
    assert!(!tcp_echoes(&inside, host.api.v4(), 7001, 1, SILENCE));
    let shown = podman
        .run(&["inspect", "-f", "{{.NetworkSettings.Networks.shop.IPAddress}}", "podman"])
        .unwrap();
    assert_eq!(shown, addresses[0].to_string());

    // Nothing is left of one that is killed.
    podman.run(&["kill", "-s", "KILL", "podman"]).unwrap();
    host.mesh.wait(|| host.workload("podman").is_none()).unwrap();
    podman.run(&["start", "podman"]).unwrap();
    host.wait_let_in("podman");
    podman.run(&["rm", "-f", "-t", "0", "podman"]).unwrap();
    host.mesh.wait(|| host.workload("podman").is_none()).unwrap();
}

#[test]
fn what_shares_the_namespace_of_a_container_of_podman_is_measured_with_it() {
    let host = Host::new(POLICY);
    let podman = Podman::start(
        &host.node.site,
        &host.mesh.folder().join("podman"),
        host.mesh.binaries.folder(),
        &host.node.socket(),
    )
    .unwrap();
    podman
        .run(&["run", "-d", "--name", "web", "--network", "shop", "--label", "app=web", "box"])
        .unwrap();
    host.wait_let_in("web");
    let names = || -> Vec<String> {
        let measured = host.workload("web").unwrap().measurement.unwrap();
        measured.sharing.into_iter().map(|other| other.name).collect()
    };
    assert_eq!(names(), Vec::<String>::new());
    podman
        .run(&[
            "run",
            "-d",
            "--name",
            "debug",
            "--network",
            "container:web",
            "box",
            "sleep",
            "1000",
        ])
        .unwrap();
    host.mesh.wait(|| names() == ["debug"]).unwrap();

    // A rule that neither of them fits closes it, and says so of both.
    let rule = "admission: [{ name: ours, for: { app: web }, images: [registry.example/*] }]\n";
    host.mesh.apply(&format!("{POLICY}{rule}")).unwrap();
    host.wait_refused("web");
    let why = host.workload("web").unwrap().refused.join("; ");
    assert!(why.contains("ours: image ") && why.contains("ours: container debug ("), "{why}");
    podman.run(&["rm", "-f", "-t", "0", "debug"]).unwrap();
    host.mesh.wait(|| names().is_empty()).unwrap();
    let why = host.workload("web").unwrap().refused.join("; ");
    assert!(!why.contains("debug"), "{why}");
}

/// A node, and the plugin as a runtime would call it.
struct Runtime {
    node: Node,
    mesh: Mesh,
}

impl Runtime {
    fn new() -> Self {
        let mut mesh = mesh();
        let node = mesh.node("host").start().unwrap();
        mesh.apply(POLICY).unwrap();
        Self { node, mesh }
    }

    fn config(&self, more: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "shop",
            "type": "meshward-cni",
            "socket": self.node.socket(),
        });
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
    let versions =
        runtime.call_with(&[("CNI_COMMAND", "VERSION")], "{\"cniVersion\":\"1.0.0\"}").unwrap();
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
    let servers = runtime.node.endpoint().unwrap().resolver;
    assert_eq!(added["dns"], json!({ "nameservers": servers }));
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

/// A namespace under a name of its own, as container runtimes make them.
struct Named {
    path: std::path::PathBuf,
    netns: Option<Netns>,
}

impl Named {
    fn new(runtime: &Runtime, name: &str) -> Self {
        let mut own = Self { path: runtime.mesh.folder().join(name), netns: None };
        own.make_anew();
        own
    }

    /// Has another namespace stand under the same name.
    fn make_anew(&mut self) {
        self.remove();
        let netns = host().unwrap();
        std::fs::write(&self.path, "").unwrap();
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&netns.path()), &self.path, None::<&str>, bind, None::<&str>)
            .unwrap();
        self.netns = Some(netns);
    }

    fn remove(&mut self) {
        if self.netns.take().is_some() {
            nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH).unwrap();
            std::fs::remove_file(&self.path).unwrap();
        }
    }

    fn netns(&self) -> &Netns {
        self.netns.as_ref().unwrap()
    }

    fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.remove();
    }
}

fn address(added: &Value) -> IpAddr {
    added["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story of one container")]
fn what_is_added_again_is_there_whatever_was_done_to_it_meanwhile() {
    let mut runtime = Runtime::new();
    let mut web = Named::new(&runtime, "web");
    let path = web.path();
    let labels = json!({ "labels": { "app": "web" } });
    let client = runtime.node.attach("shop", "app=api").unwrap();
    let first = runtime.call("ADD", &path, &labels).unwrap();
    let of = address(&first);
    let previous = json!({ "prevResult": first });
    let _echo = Echo::start(web.netns(), 80);
    let answers = || tcp_echoes(&client.netns, of, 80, 1000, PATIENCE);
    assert!(answers());

    // Its interface is there, and is not as it was made.
    web.netns().links(async |links| links.set_down("eth0").await).unwrap();
    assert_eq!(runtime.call("CHECK", &path, &previous).unwrap_err()["code"], 3, "it is down");
    assert_eq!(runtime.call("ADD", &path, &labels).unwrap(), first);
    assert!(answers(), "it is up again");
    web.netns().links(async |links| links.remove_address("eth0", of).await).unwrap();
    assert_eq!(
        runtime.call("CHECK", &path, &previous).unwrap_err()["code"],
        3,
        "its address is gone"
    );
    assert_eq!(runtime.call("ADD", &path, &labels).unwrap(), first);
    assert_eq!(runtime.call("CHECK", &path, &previous), Ok(Value::Null));
    let other = json!({ "runtimeConfig": { "ips": ["10.42.0.99"] } });
    assert_eq!(
        runtime.call("ADD", &path, &other).unwrap_err()["code"],
        100,
        "another address than it has"
    );

    // Its interface was deleted, and is another one by the same name in the end.
    web.netns().links(async |links| links.delete("eth0").await).unwrap();
    assert_eq!(runtime.call("CHECK", &path, &previous).unwrap_err()["code"], 3);
    assert_eq!(runtime.call("ADD", &path, &labels).unwrap(), first, "with the same addresses");
    assert!(answers());
    web.netns()
        .links(async |links| {
            links.delete("eth0").await?;
            links.add_veth("eth0", "other").await?;
            links.set_up("eth0").await
        })
        .unwrap();
    assert_eq!(runtime.call("CHECK", &path, &previous).unwrap_err()["code"], 3, "it is not ours");
    let taken = runtime.call("ADD", &path, &labels).unwrap_err()["details"].to_string();
    assert!(taken.contains("does not belong to the mesh"), "success is not told: {taken}");
    web.netns().links(async |links| links.delete("eth0").await).unwrap();
    let back = runtime.call("ADD", &path, &labels).unwrap();
    assert_eq!(runtime.call("CHECK", &path, &json!({ "prevResult": back })), Ok(Value::Null));

    // Another namespace stands under the same name.
    web.make_anew();
    assert_eq!(
        runtime.call("CHECK", &path, &json!({ "prevResult": back })).unwrap_err()["code"],
        3
    );
    let again = runtime.call("ADD", &path, &labels).unwrap();
    assert!(
        tcp_echoes(&client.netns, address(&again), 80, 1, SILENCE).eq(&false),
        "nothing listens there"
    );
    let _echo = Echo::start(web.netns(), 80);
    assert!(tcp_echoes(&client.netns, address(&again), 80, 1000, PATIENCE), "in the new one");

    // It is gone with its namespace; the same container comes back in another one.
    let mut second = Named::new(&runtime, "second");
    assert_eq!(
        runtime.call("ADD", &second.path(), &labels).unwrap_err()["code"],
        100,
        "it lives elsewhere"
    );
    web.remove();
    let moved = runtime.call("ADD", &second.path(), &labels).unwrap();
    let _echo = Echo::start(second.netns(), 80);
    assert!(tcp_echoes(&client.netns, address(&moved), 80, 1000, PATIENCE));
    second.remove();
    assert_eq!(runtime.call("DEL", &second.path(), &json!({})), Ok(Value::Null));
    assert_eq!(runtime.call("DEL", "", &json!({})), Ok(Value::Null));

    // And all of that while nobody looked.
    second.make_anew();
    runtime.call("ADD", &second.path(), &labels).unwrap();
    runtime.node.kill();
    second.make_anew();
    runtime.node.start().unwrap();
    runtime.mesh.wait(|| runtime.node.is_connected()).unwrap();
    let added = runtime.call("ADD", &second.path(), &labels).unwrap();
    assert_eq!(
        runtime.call("CHECK", &second.path(), &json!({ "prevResult": added })),
        Ok(Value::Null)
    );
    runtime.node.kill();
    second.netns().links(async |links| links.delete("eth0").await).unwrap();
    runtime.node.start().unwrap();
    runtime.mesh.wait(|| runtime.node.is_connected()).unwrap();
    let added = runtime.call("ADD", &second.path(), &labels).unwrap();
    assert_eq!(
        runtime.call("CHECK", &second.path(), &json!({ "prevResult": added })),
        Ok(Value::Null)
    );
}

#[test]
fn a_namespace_that_lost_its_interface_or_was_made_anew_can_be_attached_again() {
    let runtime = Runtime::new();
    let mut web = Named::new(&runtime, "web");
    let path = web.path();
    let attach = || {
        runtime.node.meshctl(&[
            "attach",
            "--network",
            "shop",
            "--netns",
            &path,
            "--label",
            "app=web",
        ])
    };
    attach().unwrap();
    let twice = attach().unwrap_err().to_string();
    assert!(twice.contains("is attached to shop already"), "{twice}");
    web.netns().links(async |links| links.delete("mesh0").await).unwrap();
    attach().unwrap();
    assert!(web.netns().links(async |links| Ok(links.exists("mesh0").await)).unwrap());
    web.make_anew();
    attach().unwrap();
    assert!(web.netns().links(async |links| Ok(links.exists("mesh0").await)).unwrap());
    runtime.mesh.wait(|| runtime.node.attached().unwrap().len() == 1).unwrap();
}

#[test]
fn an_address_may_be_asked_for_and_another_plugin_may_come_first() {
    let runtime = Runtime::new();
    let netns = host().unwrap();
    let path = netns.path().to_string_lossy().into_owned();
    let block = runtime.node.endpoint().unwrap().blocks[0].to_string();
    let wanted = format!("{}.99", block.rsplit_once('.').unwrap().0);
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0" }],
        "ips": [],
        "routes": [],
    });
    let more = json!({
        "prevResult": previous,
        "runtimeConfig": { "ips": [wanted] },
        "labels": { "app": "web" },
    });
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
    let nowhere =
        runtime.call_with(&environment, &runtime.config(&json!({})).to_string()).unwrap_err();
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
    let none = || runtime.node.attached().is_ok_and(|all| all.is_empty());
    runtime.mesh.wait(none).unwrap();
}

#[test]
fn a_pod_is_what_its_labels_of_now_say_also_after_the_api_was_away() {
    let runtime = Runtime::new();
    let policy = "network: shop
rules:
  - { name: prod, from: { app: api }, to: { env: prod, io.kubernetes.namespace/team: pay }, allow: \
        [tcp/80] }
admission:
  - { name: ours, for: { env: prod }, images: [registry.example/shop/*] }
";
    runtime.mesh.apply(policy).unwrap();
    let api =
        Kubernetes::start(&runtime.node.site.netns, &runtime.mesh.folder().join("kubernetes"))
            .unwrap();
    let image = |repository: &str| format!("{repository}@sha256:{}", "ab".repeat(32));
    let (ours, other) = (image("registry.example/shop/web"), image("elsewhere.example/proxy"));
    let put = |env: &str, containers: &[(&str, &str)]| {
        api.put_pod("front", "web-0", &json!({ "app": "web", "env": env }), containers);
    };
    api.put_namespace("front", &json!({ "team": "pay" }));
    put("prod", &[("web", &ours)]);
    let netns = host().unwrap();
    let path = netns.path().to_string_lossy().into_owned();
    let arguments =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=front;K8S_POD_NAME=web-0;K8S_POD_UID=uid-web-0";
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "sandbox"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", path.as_str()),
        ("CNI_ARGS", arguments),
    ];
    let config = runtime.config(&json!({ "kubernetes": api.config() })).to_string();
    let added = runtime.call_with(&environment, &config).unwrap();
    let workload = || runtime.mesh.workload_named("web-0").ok();
    let is = |env: &str, team: &str, refused: bool| {
        workload().is_some_and(|own| {
            own.labels.get("env") == Some(env)
                && own.labels.get("io.kubernetes.namespace/team") == Some(team)
                && own.refused.is_empty() != refused
        })
    };
    runtime.mesh.wait(|| is("prod", "pay", false)).unwrap();
    let client = runtime.node.attach("shop", "app=api").unwrap();
    let _echo = Echo::start(&netns, 80);
    let answers = |patience| tcp_echoes(&client.netns, address(&added), 80, 1000, patience);
    assert!(answers(PATIENCE));

    put("dev", &[("web", &ours)]);
    runtime.mesh.wait(|| is("dev", "pay", false)).unwrap();
    assert!(!answers(SILENCE), "it is another now");
    put("prod", &[("web", &ours)]);
    runtime.mesh.wait(|| is("prod", "pay", false)).unwrap();
    assert!(answers(PATIENCE));
    api.put_namespace("front", &json!({ "team": "search" }));
    runtime.mesh.wait(|| is("prod", "search", false)).unwrap();
    assert!(!answers(SILENCE), "its namespace is another's");

    // It is judged anew: by its labels, and by what else is in it.
    api.put_namespace("front", &json!({ "team": "pay" }));
    put("prod", &[("web", &ours), ("proxy", &other)]);
    runtime.mesh.wait(|| is("prod", "pay", true)).unwrap();
    let why = workload().unwrap().refused.join("; ");
    assert!(why.contains("ours: container proxy (elsewhere.example/proxy@"), "{why}");
    assert!(!answers(SILENCE));
    put("dev", &[("web", &ours), ("proxy", &other)]);
    runtime.mesh.wait(|| is("dev", "pay", false)).unwrap();

    api.set_away(true);
    put("prod", &[("web", &ours)]);
    std::thread::sleep(SILENCE);
    assert!(is("dev", "pay", false), "nobody has said so yet");
    api.set_away(false);
    runtime.mesh.wait(|| is("prod", "pay", false)).unwrap();
    assert!(answers(PATIENCE));
}

#[test]
fn labels_of_a_pod_that_changed_while_the_daemon_was_away_are_known_when_it_is_back() {
    let mut runtime = Runtime::new();
    let api =
        Kubernetes::start(&runtime.node.site.netns, &runtime.mesh.folder().join("kubernetes"))
            .unwrap();
    let image = format!("registry.example/shop/web@sha256:{}", "ab".repeat(32));
    let put = |env: &str| api.put_pod("front", "web-0", &json!({ "env": env }), &[("web", &image)]);
    api.put_namespace("front", &json!({}));
    put("prod");
    let netns = host().unwrap();
    let path = netns.path().to_string_lossy().into_owned();
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "sandbox"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", path.as_str()),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=front;K8S_POD_NAME=web-0"),
    ];
    runtime
        .call_with(
            &environment,
            &runtime.config(&json!({ "kubernetes": api.config() })).to_string(),
        )
        .unwrap();
    let is = |mesh: &Mesh, env: &str| {
        mesh.workloads().unwrap().iter().any(|own| own.labels.get("env") == Some(env))
    };
    runtime.mesh.wait(|| is(&runtime.mesh, "prod")).unwrap();
    runtime.node.kill();
    put("dev");
    api.set_away(true);
    runtime.node.start().unwrap();
    runtime.mesh.wait(|| runtime.node.is_connected()).unwrap();
    assert!(is(&runtime.mesh, "prod"));
    api.set_away(false);
    runtime.mesh.wait(|| is(&runtime.mesh, "dev")).unwrap();
    put("test");
    runtime.mesh.wait(|| is(&runtime.mesh, "test")).unwrap();
}
