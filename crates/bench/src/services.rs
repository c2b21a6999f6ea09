//! Services between real nodes: an instance that answers late, beside `haproxy` (round-robin); and
//! a rolling restart of all instances under load.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    report::{Row, p99},
};
use anyhow::{Context, Result, ensure};
use meshward_api_types::ServiceDetails;
use meshward_lab::{Mesh, Node, Process, Workload};
use meshward_netns::Netns;
use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    time::{interval, sleep, timeout},
};

const INSTANCES: usize = 5;
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const HAPROXY: u16 = 8000;
/// Connections a second while an instance is late.
const SHORT_RATE: u32 = 1000;
/// Requests a second during the rolling restart.
const RESTART_RATE: u32 = 2000;
/// The delay of the late instance.
const LATE: Duration = Duration::from_millis(200);
/// The time that a service has to find out that an instance is late.
const SETTLE: Duration = Duration::from_secs(2);
/// The time after which a request has failed.
const PATIENCE: Duration = Duration::from_secs(5);

const QUESTION: &[u8] = b"how are you?\n";
const ANSWER: &[u8] = b"well\n";

const POLICY: &str = "network: shop
services: [{ name: api, for: { app: api }, ports: [{ port: 80, to: 8080 }] }]
rules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/8080] }]
";

/// Measures services between real nodes. `quick` does so for seconds, to see that it works.
///
/// # Errors
/// Fails if a part does not start, or an instance is not reached.
pub fn services(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    let (runs, time) = match quick {
        true => (1, Duration::from_secs(2)),
        false => (5, Duration::from_secs(5)),
    };
    let mut shop = Shop::start(tools)?;
    let haproxy = shop.haproxy(folder)?;
    let service = SocketAddr::new(shop.address, PORT);
    let balancer = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), HAPROXY);
    let [mut ours, mut theirs] = [LateFigures::default(), LateFigures::default()];
    for run in 0..runs {
        eprintln!("a late instance, run {}", run + 1);
        // The order alternates, so that none has the better part.
        let mut turns = [(service, &mut ours), (balancer, &mut theirs)];
        turns.rotate_left(run % 2);
        for (to, late) in turns {
            late.measure(&shop, to, time)?;
        }
    }
    drop(haproxy);
    let figures = |metric, unit, ours| Figures {
        bench: "services",
        case: format!("one of {INSTANCES} instances 200 ms late"),
        metric,
        unit,
        ours,
    };
    let late = figures("p99 after 2 s, against all healthy", "x", &ours.ratios);
    let mut rows = vec![
        late.absolute(Target::AtMost(1.2)),
        late.against("HAProxy", &theirs.ratios, Target::None),
    ];
    for (metric, own, other) in [
        ("p99, all healthy", &ours.healthy, &theirs.healthy),
        ("p99, one late", &ours.degraded, &theirs.degraded),
    ] {
        rows.push(figures(metric, "ms", own).against("HAProxy", other, Target::None));
    }
    eprintln!("a rolling restart");
    let failed: Vec<f64> = (0..runs).map(|_| shop.rolling_restart()).collect::<Result<Vec<_>>>()?;
    let figures = Figures {
        bench: "services",
        case: format!("{INSTANCES} instances drained and restarted in turn"),
        metric: "failed of 2,000 requests a second",
        unit: "",
        ours: &failed,
    };
    rows.push(figures.absolute(Target::AtMost(0.0)));
    Ok(rows)
}

/// The figures beside a late instance, run by run.
#[derive(Default)]
struct LateFigures {
    /// In milliseconds.
    healthy: Vec<f64>,
    /// In milliseconds, while one instance is late.
    degraded: Vec<f64>,
    ratios: Vec<f64>,
}

impl LateFigures {
    fn measure(&mut self, shop: &Shop, to: SocketAddr, time: Duration) -> Result<()> {
        let p99_of = |samples: &[Sample]| -> Result<f64> {
            ensure!(samples.iter().all(|sample| sample.is_answered), "requests have failed");
            let times: Vec<f64> =
                samples.iter().map(|sample| sample.took.as_secs_f64() * 1e3).collect();
            Ok(p99(&times))
        };
        let client = &shop.client.netns;
        let healthy = p99_of(&load(client, to, SHORT_RATE, time)?)?;
        let slow = &shop.instances[0];
        slow.set_delay(LATE);
        let samples = load(client, to, SHORT_RATE, SETTLE + time)?;
        slow.set_delay(Duration::ZERO);
        let first = samples.first().context("nothing was asked")?.begun;
        let later = samples.iter().position(|sample| sample.begun >= first + SETTLE);
        let late = p99_of(&samples[later.unwrap_or(0)..])?;
        self.healthy.push(healthy);
        self.degraded.push(late);
        self.ratios.push(late / healthy);
        // Whoever has found it slow finds out that it is well again.
        load(client, to, SHORT_RATE, SETTLE).map(drop)
    }
}

/// A service with its instances on two nodes, and a client on a third one.
struct Shop {
    address: IpAddr,
    client: Workload,
    instances: Vec<Instance>,
    mesh: Mesh,
    _nodes: Vec<Node>,
}

impl Shop {
    fn start(tools: &Tools) -> Result<Self> {
        let mut mesh = Mesh::start(tools.ours.clone())?;
        mesh.meshctl(&["network", "create", "shop", "--cidr", "10.42.0.0/16"])?;
        mesh.apply(POLICY)?;
        let nodes = ["cloud", "rack", "edge"]
            .map(|name| {
                let site = mesh.internet.site(name)?;
                mesh.node_at(site).start()
            })
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let instances = (0..INSTANCES)
            .map(|number| Instance::start(nodes[1 + number % 2].attach("shop", "app=api")?))
            .collect::<Result<Vec<_>>>()?;
        let client = nodes[0].attach("shop", "app=web")?;
        let service: ServiceDetails = mesh.read_as(&["service", "show", "api"])?;
        let address = *service.service.addresses.first().context("the service has no address")?;
        let shop = Self { address, client, instances, mesh, _nodes: nodes };
        let to = SocketAddr::new(address, PORT);
        shop.mesh.wait(|| {
            let samples = load(&shop.client.netns, to, 100, Duration::from_millis(300));
            samples.is_ok_and(|all| all.iter().all(|sample| sample.is_answered))
        })?;
        Ok(shop)
    }

    /// Starts `haproxy` beside the client, with the same instances.
    fn haproxy(&self, folder: &Path) -> Result<Process> {
        let mut config = format!(
            "global
  maxconn 8000
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen api
  bind 127.0.0.1:{HAPROXY}
  balance roundrobin
"
        );
        for (number, instance) in self.instances.iter().enumerate() {
            writeln!(config, "  server s{number} {}:{TARGET}", instance.workload.v4())?;
        }
        let path = folder.join("haproxy.cfg");
        fs::write(&path, config)?;
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&path);
        let netns = &self.client.netns;
        let mut process = Process::start(netns, &mut command, &folder.join("haproxy.log"))?;
        let at = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), HAPROXY);
        process.wait_until(|| {
            let answers = load(netns, at, 100, Duration::from_millis(50));
            answers.is_ok_and(|all| all.iter().all(|sample| sample.is_answered))
        })?;
        Ok(process)
    }

    /// Drains each instance, ends and starts its server, and takes it back, under load. Returns how
    /// many requests have failed.
    fn rolling_restart(&mut self) -> Result<f64> {
        let (netns, to) = (self.client.netns.clone(), SocketAddr::new(self.address, PORT));
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let client = thread::spawn(move || {
            let (mut asked, mut failed) = (0, 0);
            while !end.load(Relaxed) {
                let samples = load(&netns, to, RESTART_RATE, Duration::from_millis(500))?;
                asked += samples.len();
                failed += samples.iter().filter(|sample| !sample.is_answered).count();
            }
            anyhow::Ok((asked, failed))
        });
        thread::sleep(Duration::from_secs(1));
        for instance in &mut self.instances {
            let id = instance.workload.id.clone();
            self.mesh.meshctl(&["drain", &id])?;
            instance.restart()?;
            self.mesh.meshctl(&["undrain", &id])?;
        }
        thread::sleep(Duration::from_secs(1));
        ended.store(true, Relaxed);
        let (asked, failed) = client.join().ok().context("the client has panicked")??;
        eprintln!("{failed} of {asked} requests have failed");
        Ok(failed as f64)
    }
}

/// An instance of the service.
struct Instance {
    workload: Workload,
    server: Server,
}

/// A server that reads a line, and answers with one.
struct Server {
    /// In milliseconds.
    delay: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Instance {
    fn start(workload: Workload) -> Result<Self> {
        let server = Server::start(&workload.netns)?;
        Ok(Self { workload, server })
    }

    fn set_delay(&self, delay: Duration) {
        self.server.delay.store(delay.as_millis() as u64, Relaxed);
    }

    fn restart(&mut self) -> Result<()> {
        self.server.end();
        self.server = Server::start(&self.workload.netns)?;
        Ok(())
    }
}

impl Server {
    fn start(netns: &Netns) -> Result<Self> {
        let (delay, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let listen = || std::net::TcpListener::bind(("0.0.0.0", TARGET));
        let listener = netns.run(listen)??;
        listener.set_nonblocking(true)?;
        let (own_delay, end) = (delay.clone(), ended.clone());
        let thread = thread::spawn(move || {
            let Ok(runtime) = runtime() else { return };
            let _ = runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                while !end.load(Relaxed) {
                    let accepted = timeout(Duration::from_millis(10), listener.accept()).await;
                    if let Ok(Ok((stream, _))) = accepted {
                        tokio::spawn(answer(stream, own_delay.clone()));
                    }
                }
                std::io::Result::Ok(())
            });
        });
        Ok(Self { delay, ended, thread: Some(thread) })
    }

    /// Stops listening; when this returns, the port is free.
    fn end(&mut self) {
        self.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

async fn answer(mut stream: TcpStream, delay: Arc<AtomicU64>) -> std::io::Result<()> {
    let mut request = [0; QUESTION.len()];
    stream.read_exact(&mut request).await?;
    let delay = delay.load(Relaxed);
    if delay > 0 {
        sleep(Duration::from_millis(delay)).await;
    }
    stream.write_all(ANSWER).await
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A request.
struct Sample {
    begun: Instant,
    took: Duration,
    is_answered: bool,
}

/// Asks so many times a second, on a connection each, whether or not there are answers. Returns the
/// requests in the order in which they were begun.
fn load(from: &Netns, to: SocketAddr, rate: u32, time: Duration) -> Result<Vec<Sample>> {
    let work = || -> Result<Vec<Sample>> {
        let all = async {
            let (mut tick, begun) = (interval(Duration::from_secs(1) / rate), Instant::now());
            let mut asked = Vec::new();
            while begun.elapsed() < time {
                tick.tick().await;
                asked.push(tokio::spawn(ask(to)));
            }
            let mut samples = Vec::with_capacity(asked.len());
            for request in asked {
                samples.push(request.await?);
            }
            anyhow::Ok(samples)
        };
        runtime()?.block_on(all)
    };
    from.run(work)?
}

async fn ask(to: SocketAddr) -> Sample {
    let begun = Instant::now();
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(QUESTION).await?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await?;
        std::io::Result::Ok(text == ANSWER)
    };
    let answer = timeout(PATIENCE, exchange).await;
    Sample { begun, took: begun.elapsed(), is_answered: matches!(answer, Ok(Ok(true))) }
}
