//! Containers of a real Docker beside processes.

use crate::support::{Echo, PATIENCE, SILENCE, Stream, mesh, tcp_echoes};
use anyhow::Result;
use meshward_api_types as api;
use meshward_lab::{Docker, Mesh, Node, Workload};
use meshward_netns::Netns;
use serde_json::Value;
use std::{
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// A node with Docker and one without; `api`, a process on the second.
pub(crate) struct Host {
    pub docker: Docker,
    pub node: Node,
    pub api: Workload,
    pub mesh: Mesh,
    pub other: Node,
}

impl Host {
    pub(crate) fn new(policy: &str) -> Self {
        let mut mesh = mesh();
        mesh.apply(policy).unwrap();
        let site = mesh.internet.site("host").unwrap();
        let docker = Docker::start(&site, &mesh.folder().join("docker")).unwrap();
        let flags = docker.node_flags();
        let node = mesh.node_at(site).flags(&flags).start().unwrap();
        let other = mesh.node("other").start().unwrap();
        docker.create_network("shop").unwrap();
        let api = other.attach("shop", "app=api").unwrap();
        Self { docker, node, api, mesh, other }
    }

    /// Starts a container that serves a page, and waits until it is let in.
    pub(crate) fn start(&self, name: &str, labels: &[&str], more: &[&str]) -> Container {
        let id = self.start_waiting(name, labels, more).unwrap();
        self.wait_let_in(name);
        self.container(name, id)
    }

    /// Starts a container. Its image is `box`, if `more` names none.
    pub(crate) fn start_waiting(
        &self,
        name: &str,
        labels: &[&str],
        more: &[&str],
    ) -> Result<String> {
        let labels: Vec<&str> = labels.iter().flat_map(|label| ["--label", label]).collect();
        let named = more.iter().any(|word| word.starts_with("localhost:"));
        let image = if named { &[][..] } else { &["box"] };
        self.docker.run(
            &[&["run", "-d", "--name", name, "--network", "shop"], &labels[..], more, image]
                .concat(),
        )
    }

    /// A container as it is now.
    pub(crate) fn container(&self, name: &str, id: String) -> Container {
        let pid = self.docker.run(&["inspect", "-f", "{{.State.Pid}}", name]).unwrap();
        let netns = Netns::open(Path::new(&format!("/proc/{pid}/ns/net"))).unwrap();
        let workload = self.workload(name).unwrap();
        Container { id, netns, addresses: workload.addresses }
    }

    /// Waits until a workload is let in.
    pub(crate) fn wait_let_in(&self, name: &str) {
        let let_in = || self.workload(name).is_some_and(|own| own.refused.is_empty());
        self.mesh.wait(let_in).unwrap();
    }

    /// Waits until a workload is refused, and gives why.
    pub(crate) fn wait_refused(&self, name: &str) -> String {
        let why = || self.workload(name)?.refused.into_iter().next();
        self.mesh.wait(|| why().is_some()).unwrap();
        why().unwrap()
    }

    /// Returns the workload as the coordinator lists it.
    pub(crate) fn workload(&self, name: &str) -> Option<api::Workload> {
        self.mesh.workload_named(name).ok()
    }
}

pub(crate) struct Container {
    pub id: String,
    pub netns: Netns,
    pub addresses: Vec<IpAddr>,
}

impl Container {
    pub(crate) fn v4(&self) -> IpAddr {
        self.addresses[0]
    }
}

const POLICY: &str = "network: shop
rules:
  - { name: api-to-web, from: { app: api }, to: { app: web }, allow: [tcp/80] }
  - { name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/7000] }
";

/// Asks for the page that a container serves.
pub(crate) fn page(from: &Netns, of: IpAddr, patience: Duration) -> Option<String> {
    let mut command = std::process::Command::new("curl");
    command.args(["-s", "-g", "--max-time", &patience.as_secs_f32().to_string()]);
    command.arg(match of {
        IpAddr::V4(of) => format!("http://{of}/"),
        IpAddr::V6(of) => format!("http://[{of}]/"),
    });
    let out = from.run(|| command.output()).unwrap().unwrap();
    out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
}

#[test]
fn a_container_is_on_the_mesh_as_what_its_labels_say() {
    let host = Host::new(POLICY);
    let web = host.start("web", &["app=web", "env=prod"], &[]);
    let _echo = Echo::start(&host.api.netns, 7000);
    for address in &web.addresses {
        assert_eq!(
            page(&host.api.netns, *address, PATIENCE).as_deref(),
            Some("box\n"),
            "{address}"
        );
    }
    assert!(tcp_echoes(&web.netns, host.api.v4(), 7000, 100_000, PATIENCE));
    assert!(!tcp_echoes(&web.netns, host.api.v4(), 7001, 1, SILENCE), "what no rule allows");
    let workload = host.workload("web").unwrap();
    assert_eq!(workload.labels.get("env"), Some("prod"));
    assert_eq!(workload.measurement.unwrap().runtime, "docker");

    // Two containers of one node are policed, too.
    let db = host.start("db", &["app=db"], &[]);
    assert!(page(&db.netns, web.v4(), SILENCE).is_none());
    let inner = host.start("api2", &["app=api"], &[]);
    assert_eq!(page(&inner.netns, web.v4(), PATIENCE).as_deref(), Some("box\n"));

    // Docker shows the address that it has, finds it by name, and a container without a way around
    // the mesh has none.
    let shown = host
        .docker
        .run(&["inspect", "-f", "{{.NetworkSettings.Networks.shop.IPAddress}}", "web"])
        .unwrap();
    assert_eq!(shown, web.v4().to_string());
    let asked = host.docker.run(&["exec", "api2", "wget", "-q", "-O", "-", "http://web/"]).unwrap();
    assert_eq!(asked, "box");
    assert!(!host.docker.run(&["exec", "web", "ip", "route"]).unwrap().contains("default"));
}

#[test]
fn an_address_can_be_asked_for_and_networks_come_and_go_while_a_container_runs() {
    let host = Host::new(POLICY);
    let block = host.node.endpoint().unwrap().blocks[0].to_string();
    let wanted = format!("{}.77", block.rsplit_once('.').unwrap().0);
    // Docker itself wants the subnet to be named for that.
    host.docker.run(&["network", "rm", "shop"]).unwrap();
    let plugin = host.docker.plugin.as_str();
    let create = ["network", "create", "-d", plugin, "-o", "network=shop", "--ipam-driver", plugin];
    host.docker.run(&[&create[..], &["--subnet", "10.42.0.0/16", "shop"]].concat()).unwrap();
    let web = host.start("web", &["app=web"], &["--ip", &wanted]);
    assert_eq!(web.v4().to_string(), wanted);
    for (address, says) in
        [(wanted.as_str(), "in use"), ("10.42.250.9", "not in this node's block")]
    {
        let error = host.start_waiting("other", &[], &["--ip", address]).unwrap_err();
        assert!(format!("{error:#}").contains(says), "{error:#}");
        host.docker.run(&["rm", "-f", "other"]).unwrap();
    }

    host.docker.run(&["network", "disconnect", "shop", "web"]).unwrap();
    host.mesh.wait(|| host.workload("web").is_none()).unwrap();
    assert!(page(&host.api.netns, web.v4(), SILENCE).is_none());
    host.docker.run(&["network", "connect", "bridge", "web"]).unwrap();
    host.docker.run(&["network", "connect", "shop", "web"]).unwrap();
    host.mesh.wait(|| host.workload("web").is_some()).unwrap();
    let web = host.container("web", web.id);
    assert_eq!(page(&host.api.netns, web.v4(), PATIENCE).as_deref(), Some("box\n"));
}

#[test]
fn docker_publishes_ports_for_a_container_that_is_on_its_bridge_too() {
    let host = Host::new(POLICY);
    host.docker
        .run(&[
            "create",
            "--name",
            "web",
            "--network",
            "bridge",
            "-p",
            "8081:80",
            "--label",
            "app=web",
            "box",
        ])
        .unwrap();
    host.docker.run(&["network", "connect", "shop", "web"]).unwrap();
    host.docker.run(&["start", "web"]).unwrap();
    host.mesh.wait(|| host.workload("web").is_some()).unwrap();
    let published = || page_at(&host.node.site.netns, "http://127.0.0.1:8081/");
    host.mesh.wait(|| published().as_deref() == Some("box\n")).unwrap();
    let web = host.container("web", String::new());
    assert_eq!(page(&host.api.netns, web.v4(), PATIENCE).as_deref(), Some("box\n"));
}

fn page_at(from: &Netns, url: &str) -> Option<String> {
    let mut command = std::process::Command::new("curl");
    let out = from.run(|| command.args(["-s", "--max-time", "2", url]).output()).unwrap().unwrap();
    out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
}

#[test]
fn a_container_that_is_killed_is_gone_and_its_place_is_nobody_elses() {
    let host = Host::new(POLICY);
    let web = host.start("web", &["app=web"], &[]);
    let before = host.workload("web").unwrap();
    let pid = host.docker.run(&["inspect", "-f", "{{.State.Pid}}", "web"]).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    host.mesh.wait(|| host.workload("web").is_none()).unwrap();
    host.docker.run(&["rm", "web"]).unwrap();
    // Another one by the same name and labels is another workload.
    let again = host.start("web", &["app=web"], &[]);
    assert_ne!(host.workload("web").unwrap().id, before.id);
    assert_eq!(page(&host.api.netns, again.v4(), PATIENCE).as_deref(), Some("box\n"));
    assert_ne!(web.v4(), again.v4(), "a freed address comes last");
}

#[test]
fn docker_and_the_daemon_may_go_and_come_back_while_connections_run() {
    let mut host = Host::new(POLICY);
    let web = host.start("web", &["app=web"], &[]);
    let _echo = Echo::start(&host.api.netns, 7000);
    let stream = Stream::start(&web.netns, host.api.v4(), 7000);
    assert!(stream.flows(PATIENCE));

    host.docker.kill();
    assert!(stream.flows(PATIENCE), "Docker is not needed for packets");
    host.docker.restart().unwrap();
    assert!(stream.flows(PATIENCE));
    assert_eq!(host.docker.run(&["exec", "web", "cat", "/www/index.html"]).unwrap(), "box");

    host.node.kill();
    host.node.start().unwrap();
    host.mesh.wait(|| host.node.is_connected()).unwrap();
    assert!(stream.flows(PATIENCE), "the daemon takes up the interface that it had");
    assert_eq!(page(&host.api.netns, web.v4(), PATIENCE).as_deref(), Some("box\n"));

    // What begins afterwards is on the mesh, and what was there goes as it should.
    let second = host.start("second", &["app=web"], &[]);
    assert_eq!(page(&host.api.netns, second.v4(), PATIENCE).as_deref(), Some("box\n"));
    host.docker.run(&["rm", "-f", "web"]).unwrap();
    host.mesh.wait(|| host.workload("web").is_none()).unwrap();
    host.docker.run(&["restart", "-t", "0", "second"]).unwrap();
    host.mesh.wait(|| host.workload("second").is_some()).unwrap();
    let second = host.container("second", second.id);
    let deadline = Instant::now() + PATIENCE;
    while page(&host.api.netns, second.v4(), SILENCE).is_none() {
        assert!(Instant::now() < deadline, "a restarted container is back");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn containers_that_come_and_go_leave_no_warning_behind() {
    let host = Host::new(POLICY);
    let gone = |name: &str| host.mesh.wait(|| host.workload(name).is_none()).unwrap();
    host.start("removed", &["app=web"], &[]);
    host.docker.run(&["rm", "-f", "removed"]).unwrap();
    gone("removed");
    host.start("stopped", &["app=web"], &[]);
    host.docker.run(&["stop", "-t", "0", "stopped"]).unwrap();
    host.docker.run(&["rm", "stopped"]).unwrap();
    gone("stopped");
    host.docker.run(&["run", "--rm", "--network", "shop", "box", "ls", "/"]).unwrap();
    host.start("restarted", &["app=web"], &[]);
    host.docker.run(&["restart", "-t", "0", "restarted"]).unwrap();
    host.wait_let_in("restarted");
    host.docker.run(&["network", "disconnect", "-f", "shop", "restarted"]).unwrap();
    gone("restarted");
    host.docker.run(&["rm", "-f", "restarted"]).unwrap();
    // What looks after namespaces has looked twice by then.
    thread::sleep(Duration::from_millis(2500));
    let printed = host.node.printed();
    let warnings: Vec<&str> =
        printed.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}

/// Calls of Docker that need a body.
const CALLS: &[&str] = &[
    "NetworkDriver.CreateNetwork",
    "NetworkDriver.CreateEndpoint",
    "NetworkDriver.Join",
    "IpamDriver.RequestPool",
    "IpamDriver.RequestAddress",
];
/// Bodies that say nothing that can be done.
const BODIES: &[&str] = &[
    "",
    "{",
    "[]",
    "null",
    r#"{"NetworkID":7}"#,
    r#"{"NetworkID":"x","EndpointID":"y","SandboxKey":"/z"}"#,
    r#"{"PoolID":"../../x/4","Address":"no"}"#,
    r#"{"Pool":"10.42.0.0/99","V6":"perhaps"}"#,
    r#"{"Options":{"com.docker.network.generic":{"network":"A B"}},"NetworkID":"x"}"#,
];

#[test]
fn whatever_is_asked_of_the_plugin_is_answered_in_dockers_form() {
    let host = Host::new(POLICY);
    let socket = format!("/run/docker/plugins/{}.sock", host.docker.plugin);
    let ask = |call: &str, body: &str| -> (String, Value) {
        let url = format!("http://plugin/{call}");
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "-s",
            "--unix-socket",
            &socket,
            "-X",
            "POST",
            "-w",
            "\n%{http_code}",
            "--data-binary",
            body,
            &url,
        ]);
        let out = curl.output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), serde_json::from_str(body).unwrap())
    };
    for call in CALLS {
        for body in BODIES {
            let (status, answer) = ask(call, body);
            // What leaves out the network means the only one.
            if status == "200" {
                assert!(
                    ["IpamDriver.RequestPool", "NetworkDriver.CreateNetwork"].contains(call),
                    "{call} {body}"
                );
                continue;
            }
            assert!(!answer["Err"].as_str().unwrap().is_empty(), "{call} {body}: {answer}");
        }
    }
    let (status, answer) = ask("NetworkDriver.Dance", "{}");
    assert_eq!((status.as_str(), answer["Err"].as_str().is_some()), ("404", true));
    // What is gone can go again.
    for call in
        ["NetworkDriver.DeleteNetwork", "NetworkDriver.DeleteEndpoint", "NetworkDriver.Leave"]
    {
        assert_eq!(ask(call, r#"{"NetworkID":"x","EndpointID":"y"}"#).0, "200");
    }
    host.start("web", &["app=web"], &[]);
}

#[test]
fn a_compose_file_puts_its_services_on_the_mesh() {
    let host = Host::new(POLICY);
    host.docker.run(&["network", "rm", "shop"]).unwrap();
    let plugin = &host.docker.plugin;
    let file = format!(
        "version: '3.3'\n\
         services:\n  web: {{ image: box, labels: {{ app: web }}, networks: [shop] }}\n  api: {{ \
         image: box, labels: {{ app: api }}, networks: [shop] }}\n\
         networks:\n  shop: {{ driver: {plugin}, driver_opts: {{ network: shop }}, ipam: {{ \
         driver: {plugin}, options: {{ network: shop }} }} }}\n"
    );
    let folder = host.mesh.folder().join("compose");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("docker-compose.yml"), file).unwrap();
    let compose = |arguments: &[&str]| {
        let mut command = host.docker.compose_command(&folder);
        meshward_lab::output(&host.node.site.netns, command.args(arguments)).unwrap()
    };
    compose(&["up", "-d"]);
    let id = compose(&["ps", "-q", "api"]).trim().to_owned();
    let name = |service: &str| format!("compose-{service}-1");
    host.wait_let_in(&name("web"));
    host.wait_let_in(&name("api"));
    assert_eq!(
        host.docker.run(&["exec", &id, "wget", "-q", "-O", "-", "http://web/"]).unwrap(),
        "box"
    );
    compose(&["down", "-t", "0"]);
    host.mesh.wait(|| host.workload(&name("web")).is_none()).unwrap();
}

#[test]
fn mistakes_with_docker_are_explained() {
    let host = Host::new(POLICY);
    let plugin = host.docker.plugin.as_str();
    let said = |arguments: &[&str]| format!("{:#}", host.docker.run(arguments).unwrap_err());
    let plain = said(&["network", "create", "-d", plugin, "-o", "network=shop", "plain"]);
    assert!(plain.contains("--ipam-driver meshward --ipam-opt network=shop"), "{plain}");
    let unknown = said(&[
        "network",
        "create",
        "-d",
        plugin,
        "--ipam-driver",
        plugin,
        "--ipam-opt",
        "network=shp",
        "x",
    ]);
    assert!(
        unknown.contains("does not serve network `shp`") && unknown.contains("it serves: shop"),
        "{unknown}"
    );
    let subnet = said(&[
        "network",
        "create",
        "-d",
        plugin,
        "--ipam-driver",
        plugin,
        "--subnet",
        "192.0.2.0/24",
        "x",
    ]);
    assert!(subnet.contains("no network of the mesh has the prefix 192.0.2.0/24"), "{subnet}");

    // A label that cannot be kept leaves the container closed, and says why.
    host.start_waiting("web", &["app=web", "meshward/site=aws"], &[]).unwrap();
    host.mesh.wait(|| host.workload("web").is_some()).unwrap();
    let refused = host.workload("web").unwrap().refused.join("; ");
    assert!(refused.contains("cannot be set by hand"), "{refused}");
    let web = host.container("web", String::new());
    assert!(page(&host.api.netns, web.v4(), SILENCE).is_none());
}

#[test]
fn a_restart_of_the_daemon_resets_nothing_though_what_is_cut_is_to_be_reset() {
    let mut host = Host::new(&format!("{POLICY}on_deny: reject\non_revoke: reset\n"));
    let web = host.start("web", &["app=web"], &[]);
    let _echo = Echo::start(&host.api.netns, 7000);
    let streams = [host.api.v4(), host.api.v6()].map(|to| Stream::start(&web.netns, to, 7000));
    // Who comes into its namespace, and goes, is measured with it.
    let shared =
        ["run", "-d", "--name", "guest", "--network", "container:web", "box", "sleep", "1000"];
    for change in [&shared[..], &["rm", "-f", "guest"]] {
        host.docker.run(change).unwrap();
        thread::sleep(Duration::from_secs(1));
        assert!(streams.iter().all(|stream| stream.flows(PATIENCE)), "{change:?}");
    }
    for way in 0..4 {
        let node = if way % 2 == 0 { &mut host.node } else { &mut host.other };
        if way < 2 {
            node.process().stop();
        } else {
            node.kill();
        }
        node.start().unwrap();
        // Longer than it takes until the coordinator has told what is new, and the container is
        // measured again.
        thread::sleep(Duration::from_secs(2));
        assert!(streams.iter().all(|stream| stream.flows(PATIENCE)), "restart {way}");
    }
}
