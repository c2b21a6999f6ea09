//! Health checks of real instances by their own nodes.

use super::{Group, Teller, WEB_API, checked, open, scrape};
use crate::{
    docker::Host,
    support::{PATIENCE, echo_once, mesh},
};
use meshward_api_types::{
    self as api,
    local::{CheckState, LocalCheck},
};
use meshward_lab::{Containerd, Node, Workload};
use meshward_netns::Netns;
use meshward_types::Serving;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Map, Value, json};
use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// The time within which a change of health is to be everywhere: some intervals of the checks here,
/// on a machine that does much else.
const SOON: Duration = Duration::from_secs(20);

const HTTP: &str = "health: { http: /healthz, port: 9000, every: 300ms, failures: 2 }";

/// Answers requests on port 9000 by its health.
struct Healthz {
    is_well: Arc<AtomicBool>,
}

impl Healthz {
    fn start(netns: &Netns) -> Self {
        let listener = netns.run(|| TcpListener::bind(("::", 9000))).unwrap().unwrap();
        let is_well = Arc::new(AtomicBool::new(true));
        let health = is_well.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let status = if health.load(Relaxed) { "200 OK" } else { "503 Unavailable" };
                let _ = stream.read(&mut [0; 1024]);
                let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(head.as_bytes());
            }
        });
        Self { is_well }
    }
}

/// Waits until a condition holds.
fn wait(what: &str, mut is_true: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !is_true() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

impl Group {
    /// Returns the check of an instance.
    fn check(&self, instance: usize) -> Option<LocalCheck> {
        let id = self.instances[instance].id.as_str();
        self.nodes.iter().find_map(|node| check_of(node, id))
    }

    /// Waits until an instance is unhealthy and new connections go past it.
    fn wait_passed_over(&self, instance: usize) {
        let state = || self.check(instance).map(|check| check.state);
        wait("its check passes", || state() == Some(CheckState::Unhealthy));
        let instance = self.instances[instance].v4();
        wait("new connections still go there", || (0..20).all(|_| self.ask().unwrap() != instance));
    }

    /// Waits until an instance gets a new connection.
    fn wait_chosen(&self, instance: IpAddr) {
        wait("it gets no connection", || self.ask().unwrap() == instance);
    }

    /// Returns how many instances are ready and unhealthy, as the coordinator knows it.
    fn counts(&self) -> (usize, usize) {
        self.counts_of("api")
    }

    fn counts_of(&self, service: &str) -> (usize, usize) {
        let services: Vec<api::Service> = self.mesh.list("service").unwrap();
        let service = services.iter().find(|own| own.name.as_str() == service).unwrap();
        (service.ready, service.unhealthy)
    }

    /// Returns the IPv4 address of a service.
    fn address_of(&self, service: &str) -> IpAddr {
        let services: Vec<api::Service> = self.mesh.list("service").unwrap();
        services.iter().find(|own| own.name.as_str() == service).unwrap().addresses[0]
    }

    /// Returns the instances that answer connections to an address.
    fn reached_at(&self, address: IpAddr) -> HashSet<IpAddr> {
        (0..30).map(|_| open(&self.web.netns, address, PATIENCE).unwrap().1).collect()
    }
}

fn check_of(node: &Node, id: &str) -> Option<LocalCheck> {
    let mut all = node.attached().unwrap().into_iter();
    all.find(|own| own.id.as_str() == id)?.checks.pop()
}

#[test]
fn an_unhealthy_instance_gets_no_new_connections_keeps_those_it_has_and_returns() {
    let group = Group::with([1, 2], &checked(HTTP, WEB_API));
    let _tellers: Vec<Teller> =
        group.instances.iter().map(|own| Teller::start(&own.netns)).collect();
    let healths: Vec<Healthz> =
        group.instances.iter().map(|own| Healthz::start(&own.netns)).collect();
    wait("all are ready", || group.counts() == (3, 0));
    let ill = &group.instances[1];
    let mut kept = loop {
        let (stream, name) = open(&group.web.netns, group.v4(), PATIENCE).unwrap();
        if name == ill.v4() {
            break stream;
        }
    };
    healths[1].is_well.store(false, Relaxed);
    group.wait_passed_over(1);
    assert!(echo_once(&mut kept, 1000).unwrap(), "its connection goes on");
    let check = group.check(1).unwrap();
    assert_eq!(check.problem.as_deref(), Some("status 503"));
    assert_eq!(check.probe, "http :9000/healthz");
    wait("the coordinator knows", || group.counts() == (2, 1));
    assert!(echo_once(&mut kept, 1000).unwrap());

    healths[1].is_well.store(true, Relaxed);
    group.wait_chosen(ill.v4());
    // If all are unhealthy, all are used.
    for own in &healths {
        own.is_well.store(false, Relaxed);
    }
    wait("all are unhealthy", || group.counts() == (0, 3));
    group.ask().unwrap();
    // Without the check, nothing is held against them.
    group.mesh.apply(&checked("", WEB_API)).unwrap();
    wait("they count as healthy", || group.counts() == (3, 0));
    assert_eq!(group.check(1), None);
}

/// Two services with the same instances, each with a check of its own.
const TWO_SERVICES: &str = "network: shop
services:
  - name: api
    for: { app: api }
    ports: [{ port: 80, to: 8080 }]
    fan_out: all
    health: { http: /healthz, port: 9000, every: 300ms, failures: 2 }
  - name: admin
    for: { app: api }
    ports: [{ port: 80, to: 8080 }]
    fan_out: all
    health: { tcp: 8080, every: 300ms, failures: 2 }
rules:
  - { name: web-api, from: { app: web }, to: { service: api } }
  - { name: web-admin, from: { app: web }, to: { service: admin } }
";

#[test]
fn a_check_of_one_service_takes_an_instance_out_of_that_service_alone() {
    let mut group = Group::with([1, 1], TWO_SERVICES);
    let mut tellers: Vec<Teller> =
        group.instances.iter().map(|own| Teller::start(&own.netns)).collect();
    let healths: Vec<Healthz> =
        group.instances.iter().map(|own| Healthz::start(&own.netns)).collect();
    let both = || (group.counts_of("api"), group.counts_of("admin"));
    wait("all are ready", || both() == ((2, 0), (2, 0)));
    let (well, ill) = (group.instances[0].v4(), group.instances[1].v4());
    healths[1].is_well.store(false, Relaxed);
    wait("it is unhealthy for one service", || both() == ((1, 1), (2, 0)));
    wait("the other instance has all", || group.reached_at(group.v4()) == [well].into());
    let admin = group.address_of("admin");
    assert_eq!(group.reached_at(admin), [well, ill].into(), "it is ready for the other service");

    // People are shown both.
    let state = |service: &str| -> Vec<Serving> {
        let shown: api::ServiceDetails = group.mesh.read_as(&["service", "show", service]).unwrap();
        let of_ill = shown.instances.iter().filter(|own| own.addresses.contains(&ill));
        of_ill.map(|own| own.serving).collect()
    };
    assert_eq!(state("api"), [Serving::Unhealthy]);
    assert_eq!(state("admin"), [Serving::Ready]);
    let workloads = group.mesh.workloads().unwrap();
    let workload = workloads.iter().find(|own| own.addresses.contains(&ill)).unwrap();
    assert_eq!(workload.serving, Some(Serving::Unhealthy));
    assert_eq!(workload.unhealthy.iter().map(ToString::to_string).collect::<Vec<_>>(), ["api"]);
    let listed = group.mesh.meshctl(&["workload", "list"]).unwrap();
    assert!(listed.contains("unhealthy for api"), "{listed}");
    let metrics = scrape(&group.nodes[1]);
    for (service, state) in [("api", "unhealthy"), ("admin", "healthy")] {
        let labels = format!(r#"{{network="shop",service="{service}",state="{state}"}} 1"#);
        assert!(metrics.contains(&format!("meshward_node_health_checks{labels}")), "{metrics}");
    }

    // Both findings survive the daemon, and the coordinator's restart.
    group.nodes[1].process().stop();
    group.nodes[1].start().unwrap();
    group.mesh.coordinator.kill();
    group.mesh.restart_coordinator().unwrap();
    let both = || (group.counts_of("api"), group.counts_of("admin"));
    assert_eq!(both(), ((1, 1), (2, 0)));
    wait("both are reached again", || group.reached_at(admin) == [well, ill].into());
    assert_eq!(group.reached_at(group.v4()), [well].into());

    // The other check fails as well, and the first passes again.
    healths[1].is_well.store(true, Relaxed);
    drop(tellers.pop());
    wait("the services have changed places", || both() == ((2, 0), (1, 1)));
    wait("the other instance has all", || group.reached_at(admin) == [well].into());
}

/// A server of Python's grpcio, with its health service.
struct GrpcServer {
    process: Child,
}

impl GrpcServer {
    fn start(netns: &Netns, port: u16) -> Self {
        let mut process = spawn(netns, python("health.py").arg(port.to_string()));
        let mut said = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "grpcio is not installed; `cargo xtask test` installs it");
        Self { process }
    }

    /// Sets the status of a service; `""`, in quotes, is the server's.
    fn set(&mut self, service: &str, status: &str) {
        let line = format!("{service} {status}\n");
        self.process.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_server_of_grpc_is_asked_whether_a_service_serves() {
    let grpc = "health: { grpc: shop.Api, port: 9090, every: 300ms, failures: 2, timeout: 300ms }";
    let group = Group::with([2, 0], &checked(grpc, WEB_API));
    let _tellers: Vec<Teller> =
        group.instances.iter().map(|own| Teller::start(&own.netns)).collect();
    let mut servers: Vec<GrpcServer> =
        group.instances.iter().map(|own| GrpcServer::start(&own.netns, 9090)).collect();
    let problem = |instance: usize| group.check(instance).and_then(|check| check.problem);
    // The servers do not know the service yet.
    let is_unknown =
        |problem: Option<String>| problem.is_some_and(|own| own.contains("does not know"));
    wait("both are asked", || is_unknown(problem(0)) && is_unknown(problem(1)));
    wait("neither serves", || group.counts() == (0, 2));
    for server in &mut servers {
        server.set("shop.Api", "SERVING");
    }
    wait("both serve", || group.counts() == (2, 0));
    assert_eq!(group.check(0).unwrap().probe, "grpc :9090 shop.Api");
    assert_eq!(problem(0), None);

    servers[1].set("shop.Api", "NOT_SERVING");
    group.wait_passed_over(1);
    assert_eq!(problem(1).as_deref(), Some("it answers NOT_SERVING"));
    wait("the coordinator knows", || group.counts() == (1, 1));
    // Another service of the same server is not the one that is asked about.
    servers[1].set("shop.Other", "SERVING");
    servers[1].set("shop.Api", "SERVING");
    group.wait_chosen(group.instances[1].v4());
    servers[1].set("shop.Other", "NOT_SERVING");
    wait("it still serves", || group.counts() == (2, 0));

    // The server is gone, and comes back.
    drop(servers.pop());
    group.wait_passed_over(1);
    let refused = problem(1).unwrap();
    assert!(refused.contains("refused"), "{refused}");
    let mut again = GrpcServer::start(&group.instances[1].netns, 9090);
    again.set("shop.Api", "SERVING");
    group.wait_chosen(group.instances[1].v4());
    // One that is stopped answers nothing.
    let pid = Pid::from_raw(again.process.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    group.wait_passed_over(1);
    assert_eq!(problem(1).as_deref(), Some("no answer within 300 ms"));
    kill(pid, Signal::SIGCONT).unwrap();
    group.wait_chosen(group.instances[1].v4());
    // All of the server, as `grpc: ""` asks.
    let grpc = grpc.replace("shop.Api", "''");
    group.mesh.apply(&checked(&grpc, WEB_API)).unwrap();
    wait("the server serves", || {
        group.check(0).is_some_and(|own| own.probe == "grpc :9090") && group.counts() == (2, 0)
    });
}

#[test]
fn findings_survive_the_daemon_and_are_made_without_the_coordinator() {
    let mut group = Group::with([2, 0], &checked(HTTP, WEB_API));
    let _tellers: Vec<Teller> =
        group.instances.iter().map(|own| Teller::start(&own.netns)).collect();
    let healths: Vec<Healthz> =
        group.instances.iter().map(|own| Healthz::start(&own.netns)).collect();
    let (well, ill) = (group.instances[0].v4(), group.instances[1].v4());
    wait("both are ready", || group.counts() == (2, 0));
    group.mesh.coordinator.kill();
    healths[1].is_well.store(false, Relaxed);
    group.wait_passed_over(1);
    group.nodes[0].process().stop();
    group.nodes[0].start().unwrap();
    wait("it is checked", || group.check(1).is_some());
    assert_eq!(group.check(1).unwrap().state, CheckState::Unhealthy);
    for _ in 0..20 {
        assert_eq!(group.ask().unwrap(), well);
    }
    healths[1].is_well.store(true, Relaxed);
    group.wait_chosen(ill);
    healths[0].is_well.store(false, Relaxed);
    group.wait_passed_over(0);
    // The coordinator is told when it is back.
    group.mesh.restart_coordinator().unwrap();
    wait("the coordinator knows", || group.counts() == (1, 1));
}

#[test]
fn an_instance_that_starts_is_used_once_it_passes() {
    let mut group = Group::with([1, 0], &checked("health: { tcp: 8080, every: 2s }", WEB_API));
    let _first = Teller::start(&group.instances[0].netns);
    wait("it is ready", || group.counts() == (1, 0));
    let added = group.add(1).v4();
    group.wait_passed_over(1);
    let _second = Teller::start(&group.instances[1].netns);
    group.wait_chosen(added);
}

#[test]
fn commands_are_run_in_containers_if_the_node_lets_them() {
    let exec = "health: { exec: [busybox, test, -e, /well], every: 1s, failures: 1 }";
    let mut host = Host::new(&checked(exec, WEB_API));
    let container = host.start("api", &["app=api"], &[]);
    let check = |host: &Host| {
        let mut all = host.node.attached().unwrap().into_iter();
        all.find(|own| own.addresses.contains(&container.v4()))?.checks.pop()
    };
    wait("it is checked", || check(&host).is_some_and(|own| own.problem.is_some()));
    let said = check(&host).unwrap();
    assert_eq!(said.state, CheckState::Unknown);
    assert!(said.problem.unwrap().contains("health_exec"));
    host.node.environment.push(("MESHWARD_HEALTH_EXEC".into(), "true".into()));
    host.node.kill();
    host.node.start().unwrap();
    let is = |host: &Host, state| check(host).is_some_and(|own| own.state == state);
    wait("there is no such file", || is(&host, CheckState::Unhealthy));
    assert_eq!(check(&host).unwrap().problem.unwrap(), "the command ended with status 1");
    host.docker.run(&["exec", "api", "busybox", "touch", "/well"]).unwrap();
    wait("there is one", || is(&host, CheckState::Healthy));
}

#[test]
fn commands_are_run_beside_that_of_meshctl_run_and_where_nothing_runs_them_that_is_said() {
    let mut mesh = mesh();
    let node = mesh.node("cloud").flags(&["--health-exec", "true"]).start().unwrap();
    let run = node.run("shop", "run", "app=api", &["sleep", "1000"]).unwrap();
    let (well, hang) = (mesh.folder().join("well"), mesh.folder().join("hang"));
    // What it writes is lost, and what it leaves behind ends with it.
    let script = format!(
        "yes | head -c 1000000; if test -e {hang}; then sleep 4711 & wait; fi; test -e {well} && \
         test -n \"$MESHWARD_WORKLOAD\" && grep -q {interface}: /proc/net/dev",
        hang = hang.display(),
        well = well.display(),
        interface = run.interface,
    );
    let script = script.replace('"', "\\\"");
    let exec = format!(
        "health: {{ exec: [sh, -c, \"{script}\"], every: 1s, timeout: 900ms, failures: 1 }}"
    );
    let attached = node.attach("shop", "app=api").unwrap();
    mesh.apply(&checked(&exec, WEB_API)).unwrap();
    let check = |workload: &Workload| check_of(&node, &workload.id);
    let is = |state| check(&run).is_some_and(|own| own.state == state);
    wait("there is no such file", || is(CheckState::Unhealthy));
    assert_eq!(check(&run).unwrap().problem.unwrap(), "the command ended with status 1");
    fs::write(&well, "").unwrap();
    wait("there is one", || is(CheckState::Healthy));
    fs::write(&hang, "").unwrap();
    wait("it hangs", || is(CheckState::Unhealthy));
    let left = || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        lines.filter(|line| line.starts_with(b"sleep\x004711\0")).count()
    };
    assert!(left() <= 1, "one runs at a time");
    fs::remove_file(&hang).unwrap();
    wait("it ends again", || is(CheckState::Healthy));
    wait("nothing is left of those that hung", || left() == 0);

    // A workload that was only attached counts as healthy, and says what is missing.
    let said = check(&attached).unwrap();
    assert_eq!(said.state, CheckState::Unknown);
    let problem = said.problem.unwrap();
    assert!(problem.contains("start it with `meshctl run`"), "{problem}");
    let services: Vec<api::Service> = mesh.list("service").unwrap();
    assert_eq!((services[0].ready, services[0].unhealthy), (2, 0));
}

/// Makes pods over CRI.
struct Pods {
    client: Child,
    made: Vec<String>,
    _containerd: Containerd,
}

impl Pods {
    fn start(node: &Node, folder: &Path, plugins: &Path) -> Self {
        let labels = "app=api".parse().unwrap();
        let socket = node.socket();
        let containerd = Containerd::start(&node.site, folder, plugins, &socket, &labels).unwrap();
        let mut command = python("pod.py");
        command.arg(containerd.socket()).arg(Containerd::IMAGE);
        Self {
            client: spawn(&node.site.netns, &mut command),
            made: vec![],
            _containerd: containerd,
        }
    }

    fn ask(&mut self, wish: &Value) -> Value {
        self.client.stdin.as_mut().unwrap().write_all(format!("{wish}\n").as_bytes()).unwrap();
        // It answers with one line, and nothing more before the next wish.
        let (mut line, mut byte) = (vec![], [0]);
        while self.client.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        serde_json::from_slice(&line).unwrap_or_else(|_| panic!("CRI refuses {wish}"))
    }

    /// Makes a pod, and returns the ids of its containers by their names.
    fn make(&mut self, name: &str, annotations: &Value, containers: &[&str]) -> Value {
        let containers: Map<String, Value> =
            containers.iter().map(|own| ((*own).to_owned(), json!(["sleep", "1000"]))).collect();
        let wish = json!({ "pod": name, "annotations": annotations, "containers": containers });
        let made = self.ask(&wish);
        self.made.push(made["pod"].as_str().unwrap().to_owned());
        made["containers"].clone()
    }

    fn run(&mut self, container: &Value, command: &str) {
        let wish = json!({ "exec": container, "command": ["sh", "-c", command] });
        assert_eq!(self.ask(&wish), 0, "{command}");
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        if !thread::panicking() {
            for pod in std::mem::take(&mut self.made) {
                self.ask(&json!({ "remove": pod }));
            }
        }
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

#[test]
fn commands_are_run_in_pods_by_their_runtime() {
    let mut mesh = mesh();
    let folder = mesh.folder().join("containerd");
    let socket = folder.join("containerd.sock").to_string_lossy().into_owned();
    let flags = ["--health-exec", "true", "--cri-socket", &socket];
    let node = mesh.node("cloud").flags(&flags).start().unwrap();
    let exec = "health: { exec: [sh, -c, 'cat /hang 2>/dev/null && sleep 1000; ls /well'], \
                every: 1s, timeout: 900ms, failures: 1 }";
    mesh.apply(&checked(exec, WEB_API)).unwrap();
    let mut pods = Pods::start(&node, &folder, mesh.binaries.folder());
    let checks = || -> Vec<LocalCheck> {
        node.attached().unwrap().into_iter().filter_map(|mut own| own.checks.pop()).collect()
    };
    let is = |state| checks().iter().any(|own| own.state == state);

    let one = pods.make("one", &json!({}), &["web"]);
    let problem = || checks().pop().and_then(|own| own.problem).unwrap_or_default();
    wait("there is no such file", || problem() == "the command ended with status 1");
    assert!(is(CheckState::Unhealthy));
    pods.run(&one["web"], ": > /well");
    wait("there is one", || is(CheckState::Healthy));
    pods.run(&one["web"], ": > /hang");
    wait("it hangs", || problem() == "no answer within 900 ms");
    pods.run(&one["web"], "busybox rm /hang");
    wait("it ends again", || is(CheckState::Healthy));
    let pod = pods.made.remove(0);
    pods.ask(&json!({ "remove": pod }));
    wait("it is gone", || checks().is_empty());

    // Of several containers, the pod says which one is meant.
    pods.make("two", &json!({}), &["web", "sidecar"]);
    wait("it is told what is missing", || problem().contains("default-container"));
    wait("it is not held against the pod", || is(CheckState::Unknown));
    let pod = pods.made.remove(0);
    pods.ask(&json!({ "remove": pod }));
    wait("it is gone", || checks().is_empty());
    let named = json!({ "kubectl.kubernetes.io/default-container": "web" });
    let three = pods.make("three", &named, &["sidecar", "web"]);
    wait("it is asked in vain", || is(CheckState::Unhealthy));
    pods.run(&three["sidecar"], ": > /well");
    thread::sleep(Duration::from_secs(2));
    assert!(is(CheckState::Unhealthy), "that is the other container");
    pods.run(&three["web"], ": > /well");
    wait("it passes", || is(CheckState::Healthy));
}

/// Returns a program in Python, with the packages that `cargo xtask test` installs.
fn python(script: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let mut command = Command::new(test.ancestors().nth(3).unwrap().join("api-tools/bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("grpc").join(script));
    command
}

fn spawn(netns: &Netns, command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let program = command.get_program().to_owned();
    let spawned = netns.run(|| command.spawn()).unwrap();
    spawned.unwrap_or_else(|error| {
        panic!("{}: {error}; `cargo xtask test` installs it", program.display())
    })
}
