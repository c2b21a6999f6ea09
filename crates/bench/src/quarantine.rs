//! The time until a quarantine stops a running TCP connection, on the real data path: three nodes,
//! real daemons, real packets.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    report::Row,
};
use anyhow::{Result, ensure};
use meshward_api_client::{Client, Error};
use meshward_api_types::local::{Attach, LocalWorkload};
use meshward_lab::{Mesh, Node, Workload, host};
use meshward_netns::Netns;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 8080;
/// The time for which a stopped connection is watched.
const WATCHED: Duration = Duration::from_millis(150);

/// Quarantines the receiver of a running connection, again and again. `quick` does so three times.
///
/// # Errors
/// Fails if a daemon does not start, or the connection does not run.
pub fn quarantine(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let mut mesh = Mesh::start(tools.ours.clone())?;
    mesh.meshctl(&["network", "create", "shop", "--cidr", "10.42.0.0/16"])?;
    let nodes = ["cloud", "rack", "edge"].map(|name| mesh.node(name).start());
    let [cloud, rack, edge] = nodes;
    let (cloud, rack, edge) = (cloud?, rack?, edge?);
    let web = cloud.attach("shop", "app=web")?;
    let api = rack.attach("shop", "app=api")?;
    let _other = edge.attach("shop", "app=web")?;
    mesh.apply(&format!(
        "network: shop
rules: [{{ name: a, from: {{ app: web }}, to: {{ app: api }}, allow: [tcp/{PORT}] }}]
"
    ))?;
    let stops = stop_connection(&mesh, &web, &api, if quick { 3 } else { 100 })?;
    let attaching = beside_attaching(&mesh, &rack, &api.id, quick)?;
    let beside = beside_viewers(&mesh, &api.id, if quick { 5 } else { 100 })?;
    let mut rows = Vec::from(attaching.rows());
    rows.extend(stops.rows());
    let row = |metric, value: f64, target| {
        let case = format!("3 nodes, {} times", stops.since_return.len());
        Figures { bench: "quarantine", case, metric, unit: "ms", ours: &[value] }.absolute(target)
    };
    rows.push(row("enforced everywhere, on an idle coordinator, p99", beside.idle, Target::None));
    rows.push(row(
        "more than that while four viewers run the largest dry runs that are allowed, p99",
        beside.busy - beside.idle,
        Target::AtMost(50.0),
    ));
    Ok(rows)
}

/// Milliseconds until the last packet of a connection that a quarantine stops.
struct Stops {
    /// From the start of the command.
    since_start: Vec<f64>,
    /// From its return.
    since_return: Vec<f64>,
}

/// Quarantines the receiver of a running connection `times` times.
fn stop_connection(mesh: &Mesh, web: &Workload, api: &Workload, times: usize) -> Result<Stops> {
    let received = Received::listen(&api.netns)?;
    let to = SocketAddr::new(api.v4(), PORT);
    let mut stream =
        web.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    thread::spawn(move || while stream.write_all(&[0x5a; 16 << 10]).is_ok() {});
    let mut stops = Stops { since_start: vec![], since_return: vec![] };
    for _ in 0..times {
        received.wait_running()?;
        let begun = Instant::now();
        mesh.meshctl(&["quarantine", &api.id])?;
        let returned = Instant::now();
        thread::sleep(WATCHED);
        let last = received.last();
        ensure!(last + WATCHED / 2 < Instant::now(), "the connection goes on under quarantine");
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        stops.since_return.push(milliseconds(last.saturating_duration_since(returned)));
        stops.since_start.push(milliseconds(last.saturating_duration_since(begun)));
        mesh.meshctl(&["release", &api.id])?;
    }
    Ok(stops)
}

impl Stops {
    fn rows(&self) -> [Row; 3] {
        let row = |metric, ours: &[f64], target| {
            let case = format!("3 nodes, {} times", self.since_return.len());
            Figures { bench: "quarantine", case, metric, unit: "ms", ours }.absolute(target)
        };
        [
            row(
                "from the command's return to the last packet, p99",
                &[crate::report::p99(&self.since_return)],
                Target::AtMost(50.0),
            ),
            row("from the command's return to the last packet", &self.since_return, Target::None),
            row("from the command's start to the last packet", &self.since_start, Target::None),
        ]
    }
}

/// Milliseconds until a quarantine is enforced, p99.
struct Beside {
    idle: f64,
    busy: f64,
}

/// Workloads that are attached in a second, and by how many at once: each waits to be let in.
const ATTACHED_PER_SECOND: u32 = 100;
const ATTACHERS: u32 = 8;
/// Quarantines before it is changed whether the node attaches.
const BLOCK: usize = 10;

/// Quarantines of a workload whose node attaches others, and whose node is at rest.
struct Attaching {
    idle: f64,
    busy: f64,
    /// Workloads that were attached in a second.
    rate: f64,
}

impl Attaching {
    fn rows(&self) -> [Row; 4] {
        let row = |metric, unit, ours: f64, target| {
            let case = "its node attaches workloads".to_owned();
            Figures { bench: "quarantine", case, metric, unit, ours: &[ours] }.absolute(target)
        };
        let (idle, busy) = (self.idle, self.busy);
        [
            row("workloads attached", "/s", self.rate, Target::None),
            row("enforced everywhere, at rest, p99", "ms", idle, Target::None),
            row("enforced everywhere, while it attaches, p99", "ms", busy, Target::None),
            row("while it attaches / at rest, p99", "", busy / idle, Target::AtMost(1.5)),
        ]
    }
}

/// Quarantines in turns while the node of the workload is at rest, and while it attaches.
fn beside_attaching(mesh: &Mesh, node: &Node, workload: &str, quick: bool) -> Result<Attaching> {
    let admin =
        Client::coordinator(serde_json::from_str(&std::fs::read_to_string(mesh.context())?)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (attaches, attached) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let ended = Arc::new(AtomicBool::new(false));
    let attachers: Vec<_> = (0..ATTACHERS)
        .map(|_| {
            let (socket, netns) = (node.socket(), host()?);
            let (attaches, attached, ended) = (attaches.clone(), attached.clone(), ended.clone());
            Ok(thread::spawn(move || {
                attach_on_and_on(&socket, &netns, &attaches, &attached, &ended)
            }))
        })
        .collect::<Result<_>>()?;
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    let (mut busy_time, mut busy_count) = (Duration::ZERO, 0);
    for turn in 0..if quick { 2 } else { 40 } {
        let is_busy = turn % 2 == 1;
        attaches.store(is_busy, Relaxed);
        // What the turn before has begun ends, and what this one begins is at it.
        thread::sleep(Duration::from_millis(700));
        let begun = Instant::now();
        let before = attached.load(Relaxed);
        let times =
            mesh.site.netns.run(|| quarantine_each(&runtime, &admin, workload, BLOCK))??;
        if is_busy {
            busy.extend(times);
            busy_time += begun.elapsed();
            busy_count += attached.load(Relaxed) - before;
        } else {
            idle.extend(times);
        }
    }
    ended.store(true, Relaxed);
    for attacher in attachers {
        attacher.join().map_err(|_| anyhow::anyhow!("an attacher panicked"))??;
    }
    ensure!(busy_count > 0, "nothing was attached");
    let rate = busy_count as f64 / busy_time.as_secs_f64();
    Ok(Attaching { idle: crate::report::p99(&idle), busy: crate::report::p99(&busy), rate })
}

/// Attaches a namespace and detaches it, at its part of the rate, until it is stopped.
fn attach_on_and_on(
    socket: &Path,
    netns: &Netns,
    attaches: &AtomicBool,
    attached: &AtomicU64,
    ended: &AtomicBool,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::node(socket);
    let wanted = Attach {
        network: "shop".parse()?,
        name: None,
        labels: "app=web".parse()?,
        accepts: vec![],
        netns: netns.path(),
        owner: None,
        host: false,
    };
    let interval = Duration::from_secs(1) * ATTACHERS / ATTACHED_PER_SECOND;
    while !ended.load(Relaxed) {
        let begun = Instant::now();
        if attaches.load(Relaxed) {
            let workload: LocalWorkload =
                runtime.block_on(client.post("/v1/workloads", &wanted))?;
            attached.fetch_add(1, Relaxed);
            runtime.block_on(client.delete(&format!("/v1/workloads/{}", workload.id)))?;
        }
        thread::sleep(interval.saturating_sub(begun.elapsed()));
    }
    Ok(())
}

/// Rules and tests of the largest dry run that is allowed: each test is checked against all rules.
const RULES: usize = 4000;
const TESTS: usize = 3500;
const VIEWERS: usize = 4;

fn largest() -> String {
    let mut text = "network: shop\nrules:\n".to_owned();
    for at in 1..=RULES {
        let _ = writeln!(text, "  - {{ name: r{at}, from: {{}}, to: {{}}, allow: [tcp/{at}] }}");
    }
    text += "tests:\n";
    for at in 1..=TESTS {
        let _ = writeln!(text, "  - {{ from: {{}}, to: {{}}, port: tcp/{at}, expect: allow }}");
    }
    text
}

/// Quarantines while nobody asks for anything, and while viewers run dry runs one after the other.
fn beside_viewers(mesh: &Mesh, workload: &str, times: usize) -> Result<Beside> {
    let context =
        |path: &Path| -> Result<_> { Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?) };
    let admin = Client::coordinator(context(&mesh.context())?);
    // As `meshctl` does in this benchmark, from the coordinator's site: its address means something
    // else elsewhere.
    let site = &mesh.site.netns;
    let idle = site.run(|| quarantine_times(&admin, workload, times))??;
    let (stop, runs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let body =
        Arc::new(json!({ "files": [{ "name": "shop.yaml", "text": largest() }], "prune": false }));
    let mut viewers = Vec::new();
    for at in 0..VIEWERS {
        let printed =
            mesh.meshctl(&["credential", "create", &format!("viewer-{at}"), "--role", "viewer"])?;
        let client = Client::coordinator(serde_json::from_str(&printed)?).dry(true);
        let (stop, runs, body, site) = (stop.clone(), runs.clone(), body.clone(), site.clone());
        let run = move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            while !stop.load(Relaxed) {
                match runtime.block_on(client.post::<Value>("/v1/policies", &*body)) {
                    Ok(_) => runs.fetch_add(1, Relaxed),
                    // Its share of time is used up for now: that is how it is meant.
                    Err(Error::Refused { status: Some(429), .. }) => {
                        thread::sleep(Duration::from_millis(100));
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
            }
            Ok(())
        };
        viewers.push(thread::spawn(move || site.run(run)?));
    }
    // They are at it.
    thread::sleep(Duration::from_secs(1));
    let busy = site.run(|| quarantine_times(&admin, workload, times))??;
    stop.store(true, Relaxed);
    for viewer in viewers {
        viewer.join().map_err(|_| anyhow::anyhow!("a viewer panicked"))??;
    }
    ensure!(runs.load(Relaxed) > 0, "no dry run came to its end");
    Ok(Beside { idle, busy })
}

fn quarantine_times(client: &Client, workload: &str, times: usize) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(crate::report::p99(&quarantine_each(&runtime, client, workload, times)?))
}

/// Quarantines a workload and releases it, again and again; returns the milliseconds until each
/// quarantine is enforced everywhere.
fn quarantine_each(
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    workload: &str,
    times: usize,
) -> Result<Vec<f64>> {
    let mut milliseconds = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        let _: Value =
            runtime.block_on(client.post("/v1/quarantines", &json!({ "workload": workload })))?;
        milliseconds.push(begun.elapsed().as_secs_f64() * 1000.0);
        let _: Value = runtime
            .block_on(client.post("/v1/quarantines/release", &json!({ "workload": workload })))?;
    }
    Ok(milliseconds)
}

/// The state of the connection's receiver.
struct Received {
    start: Instant,
    /// Microseconds from the start to the last bytes.
    last: Arc<AtomicU64>,
}

impl Received {
    fn listen(netns: &meshward_netns::Netns) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
        let (start, last) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let writer = last.clone();
        thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut buffer = vec![0; 256 << 10];
            while let Ok(1..) = stream.read(&mut buffer) {
                writer.store(start.elapsed().as_micros() as u64, Relaxed);
            }
        });
        Ok(Self { start, last })
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_micros(self.last.load(Relaxed))
    }

    fn wait_running(&self) -> Result<()> {
        let begun = Instant::now();
        while self.last() < begun + Duration::from_millis(20) {
            ensure!(begun.elapsed() < Duration::from_secs(20), "the connection does not run");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}
