//! Health checks of hundreds of instances on one node: what they cost the daemon, how evenly they
//! are spread over time, and what instances that hang do to the others.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    measure::cpu_seconds,
    report::{Row, p99},
};
use anyhow::{Context, Result, ensure};
use meshward_api_client::Client;
use meshward_api_types::{
    Service,
    local::{Attach, CheckState, LocalWorkload, State},
};
use meshward_lab::{Mesh, Node, host};
use meshward_netns::Netns;
use std::{
    net::TcpListener,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    time::sleep,
};

const PORT: u16 = 8080;
/// The time until checks have found their pace.
const SETTLE: Duration = Duration::from_secs(6);
/// The time within which all instances are found healthy.
const FOUND_WITHIN: Duration = Duration::from_mins(1);
/// The time for which an instance that hangs keeps a connection: longer than a probe waits.
const HANG: Duration = Duration::from_secs(5);
/// The span in which probes count as made at once.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Measures checks of 500 instances of one node. `quick` does so with a tenth.
///
/// # Errors
/// Fails if a part does not start, or an instance is not found healthy.
pub fn checks(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let (count, time) = match quick {
        true => (50, Duration::from_secs(4)),
        false => (500, Duration::from_secs(20)),
    };
    let mut bench = Bench::start(tools, count)?;
    let mut rows = vec![];
    bench.apply(None)?;
    thread::sleep(SETTLE);
    let idle = bench.share(time)?;
    rows.push(row(format!("{count} instances, no check"), "daemon's CPU", "%", &[idle]));
    for every in [2, 1] {
        let case = format!("{count} instances, http every {every} s");
        bench.apply(Some(every))?;
        bench.wait_ready()?;
        thread::sleep(SETTLE);
        bench.server.begin();
        let share = bench.share(time)?;
        let probes = bench.server.end();
        rows.push(row(case.clone(), "daemon's CPU, of one core", "%", &[share - idle]));
        let per_second = probes.len() as f64 / time.as_secs_f64();
        rows.push(row(case.clone(), "probes a second", "", &[per_second]));
        let most = most_at_once(&probes) as f64;
        rows.push(row(case, "most probes in 10 ms", "", &[most]));
    }
    bench.server.hangs.store(true, Relaxed);
    thread::sleep(SETTLE);
    bench.server.begin();
    let share = bench.share(time)?;
    let probes = bench.server.end();
    let case = format!("every second one of {count} instances hangs, http every 1 s");
    rows.push(row(case.clone(), "daemon's CPU, of one core", "%", &[share - idle]));
    let pauses = pauses(&probes);
    let late = [p99(&pauses)];
    let late = Figures {
        bench: "checks",
        case,
        metric: "time between two probes of the others, p99",
        unit: "s",
        ours: &late,
    };
    rows.push(late.absolute(Target::AtMost(1.15)));
    Ok(rows)
}

fn row(case: String, metric: &'static str, unit: &'static str, ours: &[f64]) -> Row {
    Figures { bench: "checks", case, metric, unit, ours }.absolute(Target::None)
}

/// A node with instances of one service.
struct Bench {
    mesh: Mesh,
    node: Node,
    count: usize,
    server: Server,
    namespaces: Vec<Netns>,
}

impl Bench {
    fn start(tools: &Tools, count: usize) -> Result<Self> {
        let mut mesh = Mesh::start(tools.ours.clone())?;
        let network = ["network", "create", "shop", "--cidr", "10.42.0.0/16", "--block-v4", "20"];
        mesh.meshctl(&network)?;
        let node = mesh.node("host").start()?;
        let namespaces: Vec<Netns> = (0..count).map(|_| host()).collect::<Result<_, _>>()?;
        let server = Server::start(&namespaces)?;
        let bench = Self { mesh, node, count, server, namespaces };
        bench.apply(None)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(bench.attach())?;
        Ok(bench)
    }

    async fn attach(&self) -> Result<()> {
        let client = Client::node(&self.node.socket());
        for netns in &self.namespaces {
            let wanted = Attach {
                network: "shop".parse()?,
                name: None,
                labels: "app=api".parse()?,
                accepts: vec![],
                netns: netns.path(),
                owner: None,
                host: false,
            };
            let workload: LocalWorkload = client.post("/v1/workloads", &wanted).await?;
            ensure!(workload.state == State::Open, "a workload is {:?}", workload.state);
        }
        Ok(())
    }

    /// Applies a policy with a check at this interval in seconds, or with none.
    fn apply(&self, every: Option<u32>) -> Result<()> {
        let health = every.map(|every| format!(", health: {{ http: /healthz, every: {every}s }}"));
        let policy = format!(
            "network: shop
services: [{{ name: api, for: {{ app: api }}, ports: [{{ port: 80, to: {PORT} }}]{} }}]
rules: [{{ name: a, from: {{ app: web }}, to: {{ service: api }} }}]
",
            health.unwrap_or_default()
        );
        self.mesh.apply(&policy).map(drop)
    }

    /// Waits until each instance has passed its check.
    fn wait_ready(&self) -> Result<()> {
        let until = Instant::now() + FOUND_WITHIN;
        loop {
            let services: Vec<Service> = self.mesh.list("service")?;
            let ready = services.first().context("there is no service")?.ready;
            let attached = self.node.attached()?;
            let is_found = |own: &&LocalWorkload| {
                own.checks.iter().any(|own| own.state == CheckState::Healthy)
            };
            let found = attached.iter().filter(is_found);
            if ready == self.count && found.count() == self.count {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{ready} of {} instances are ready", self.count);
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Returns the share of a core that the daemon uses during a time, in percent.
    fn share(&mut self, time: Duration) -> Result<f64> {
        let pid = self.node.process().pid();
        let before = cpu_seconds(pid)?;
        thread::sleep(time);
        Ok((cpu_seconds(pid)? - before) / time.as_secs_f64() * 100.0)
    }
}

/// A probe that has come to an instance.
#[derive(Debug, Clone, Copy)]
struct Probe {
    instance: usize,
    at: Instant,
}

/// The programs of all instances.
struct Server {
    /// `true` if every second instance answers nothing.
    hangs: Arc<AtomicBool>,
    probes: Arc<Mutex<Vec<Probe>>>,
    _runtime: Runtime,
}

impl Server {
    fn start(namespaces: &[Netns]) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (hangs, probes) = (Arc::new(AtomicBool::new(false)), Arc::default());
        for (instance, netns) in namespaces.iter().enumerate() {
            let listener = netns.run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
            listener.set_nonblocking(true)?;
            let (hangs, probes) = (hangs.clone(), Arc::clone(&probes));
            runtime.spawn(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                while let Ok((stream, _)) = listener.accept().await {
                    note(&probes, instance);
                    let does_hang = instance % 2 == 1 && hangs.load(Relaxed);
                    tokio::spawn(answer(stream, does_hang));
                }
            });
        }
        Ok(Self { hangs, probes, _runtime: runtime })
    }

    /// Begins to note probes.
    fn begin(&self) {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Returns the probes since [`Self::begin`].
    fn end(&self) -> Vec<Probe> {
        std::mem::take(&mut self.probes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn note(probes: &Mutex<Vec<Probe>>, instance: usize) {
    let probe = Probe { instance, at: Instant::now() };
    probes.lock().unwrap_or_else(PoisonError::into_inner).push(probe);
}

async fn answer(mut stream: TcpStream, does_hang: bool) {
    let mut request = [0; 1024];
    if stream.read(&mut request).await.is_err() {
        return;
    }
    if does_hang {
        sleep(HANG).await;
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
}

/// Returns the largest number of probes within [`AT_ONCE`].
fn most_at_once(probes: &[Probe]) -> usize {
    let mut times: Vec<Instant> = probes.iter().map(|probe| probe.at).collect();
    times.sort_unstable();
    let within = |(first, from): (usize, &Instant)| {
        times[first..].iter().take_while(|at| **at - *from < AT_ONCE).count()
    };
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

/// Returns the seconds between two probes of the same instance, of those that do not hang.
fn pauses(probes: &[Probe]) -> Vec<f64> {
    let mut sorted: Vec<Probe> =
        probes.iter().copied().filter(|probe| probe.instance % 2 == 0).collect();
    sorted.sort_by_key(|probe| (probe.instance, probe.at));
    let pairs = sorted.windows(2).filter(|pair| pair[0].instance == pair[1].instance);
    pairs.map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect()
}
