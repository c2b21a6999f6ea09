//! DNS queries that the node answers for its workloads, beside unbound and dnsmasq, which have the
//! same names and are asked over a veth.
//!
//! The client has one core and the server another, so that rates are those of one core.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    measure::{cpu_seconds, pin_threads},
    report::{Row, median, p99},
};
use anyhow::{Context, Result, ensure};
use meshward_lab::{Mesh, Node, Process, Workload, back_to_back};
use meshward_netns::Netns;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// The cores of the client and of the server.
const CLIENT_CORE: usize = 0;
const SERVER_CORE: usize = 1;
/// Queries that are on their way at the same time when the rate is measured.
const WINDOW: usize = 64;
/// The time within which a query is answered, at worst.
const LOST: Duration = Duration::from_secs(1);

/// The amount of work.
#[derive(Clone, Copy)]
struct Amount {
    runs: usize,
    /// Names that exist.
    names: usize,
    /// Queries one after the other.
    single: usize,
    /// The time for which queries are sent as fast as they are answered.
    flood: Duration,
}

/// A server that is asked.
struct Server {
    name: &'static str,
    client: Netns,
    address: SocketAddr,
    pid: u32,
}

/// The figures of one run.
struct Outcome {
    p50: f64,
    p99: f64,
    /// Queries a second.
    rate: f64,
    /// Queries for each second of the server's processor time, its own part of the kernel included.
    for_cpu: f64,
}

/// A quantity of a run.
struct Quantity {
    metric: &'static str,
    unit: &'static str,
    value: fn(&Outcome) -> f64,
    /// The target beside the others.
    target: Target,
    /// The target by itself.
    bound: Option<Target>,
}

const QUANTITIES: [Quantity; 4] = [
    Quantity {
        metric: "latency, p50",
        unit: "us",
        value: |outcome| outcome.p50,
        target: Target::AtMost(1.0),
        bound: None,
    },
    Quantity {
        metric: "latency, p99",
        unit: "us",
        value: |outcome| outcome.p99,
        target: Target::AtMost(1.0),
        bound: Some(Target::AtMost(1000.0)),
    },
    Quantity {
        metric: "queries a second",
        unit: "",
        value: |outcome| outcome.rate,
        target: Target::AtLeast(1.0),
        bound: None,
    },
    Quantity {
        metric: "queries for a second of the server's processor time",
        unit: "",
        value: |outcome| outcome.for_cpu,
        target: Target::AtLeast(1.0),
        bound: None,
    },
];

/// Measures queries of a workload. `quick` does so with few, to see that it works.
///
/// # Errors
/// Fails if a server does not start or leaves a query unanswered.
pub fn dns(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    let amount = match quick {
        true => Amount { runs: 1, names: 20, single: 1000, flood: Duration::from_millis(500) },
        false => Amount { runs: 7, names: 200, single: 20_000, flood: Duration::from_secs(2) },
    };
    let mesh = Named::start(tools, amount.names)?;
    let ours = mesh.server()?;
    let unbound = Other::unbound(folder, amount.names)?;
    let dnsmasq = Other::dnsmasq(folder, amount.names)?;
    let servers = [&ours, &unbound.server, &dnsmasq.server];
    let mut outcomes: [Vec<Outcome>; 3] = Default::default();
    for run in 0..amount.runs {
        // The order alternates, so that none has the better part.
        for turn in 0..servers.len() {
            let which = (run + turn) % servers.len();
            eprintln!("{}, run {}", servers[which].name, run + 1);
            outcomes[which].push(servers[which].measure(amount)?);
        }
    }
    let of = |which: usize, quantity: &Quantity| -> Vec<f64> {
        outcomes[which].iter().map(quantity.value).collect()
    };
    let mut rows = vec![];
    for quantity in &QUANTITIES {
        let (case, ours) = (format!("{} names", amount.names), of(0, quantity));
        let Quantity { metric, unit, target, bound, .. } = *quantity;
        let figures = Figures { bench: "dns", case, metric, unit, ours: &ours };
        rows.extend(bound.map(|bound| figures.absolute(bound)));
        for which in [1, 2] {
            rows.push(figures.against(servers[which].name, &of(which, quantity), target));
        }
    }
    Ok(rows)
}

/// A mesh of one node whose workloads have names.
struct Named {
    client: Workload,
    _workloads: Vec<Workload>,
    node: Node,
    _mesh: Mesh,
    pid: u32,
}

impl Named {
    fn start(tools: &Tools, names: usize) -> Result<Self> {
        let mut mesh = Mesh::start(tools.ours.clone())?;
        mesh.meshctl(&["network", "create", "shop", "--cidr", "10.42.0.0/16"])?;
        mesh.apply(
            "network: shop
rules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]
",
        )?;
        let site = mesh.internet.site("host")?;
        let mut node = mesh.node_at(site).flags(&["--workers", "1"]).start()?;
        let pid = node.process().pid();
        pin_threads(pid, SERVER_CORE)?;
        let named = |number: usize| {
            let name = format!("name-{number}");
            node.workload("shop", "app=api").named(&name).attach()
        };
        let workloads = (0..names).map(named).collect::<Result<Vec<_>>>()?;
        let client = node.attach("shop", "app=web")?;
        Ok(Self { client, _workloads: workloads, node, _mesh: mesh, pid })
    }

    fn server(&self) -> Result<Server> {
        let resolver = self.node.endpoint()?.resolver;
        let address = *resolver.first().context("the network has no resolver address")?;
        let client = self.client.netns.clone();
        Ok(Server {
            name: "meshward",
            client,
            address: SocketAddr::new(address, 53),
            pid: self.pid,
        })
    }
}

/// A server behind a veth.
struct Other {
    server: Server,
    _process: Process,
    _netns: Netns,
}

impl Other {
    fn unbound(folder: &Path, names: usize) -> Result<Self> {
        let mut config = format!(
            "server:
  interface: 0.0.0.0
  access-control: 0.0.0.0/0 allow
  do-daemonize: no
  num-threads: 1
  username: \"\"
  chroot: \"\"
  directory: \"{}\"
  pidfile: \"\"
  use-syslog: no
  module-config: iterator
  local-zone: mesh. static
",
            folder.display()
        );
        for number in 0..names {
            let address = address_of(number);
            writeln!(config, "  local-data: \"name-{number}.shop.mesh. 5 IN A {address}\"")?;
        }
        let path = folder.join("unbound.conf");
        fs::write(&path, config)?;
        let mut command = Command::new("unbound");
        command.args(["-d", "-c"]).arg(&path);
        Self::start("unbound", &mut command, folder)
    }

    fn dnsmasq(folder: &Path, names: usize) -> Result<Self> {
        let mut hosts = String::new();
        for number in 0..names {
            writeln!(hosts, "{} name-{number}.shop.mesh", address_of(number))?;
        }
        let path = folder.join("hosts");
        fs::write(&path, hosts)?;
        let mut command = Command::new("dnsmasq");
        command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root"]);
        command.args(["--conf-file=/dev/null", "--pid-file=", "--local-ttl=5"]);
        command.args(["--log-facility=-"]).arg(format!("--addn-hosts={}", path.display()));
        Self::start("dnsmasq", &mut command, folder)
    }

    fn start(name: &'static str, command: &mut Command, folder: &Path) -> Result<Self> {
        let [client, server] = back_to_back(["client", name])?;
        let (client, netns, address) = (client.netns, server.netns, IpAddr::V4(server.v4));
        let log = folder.join(format!("{name}.log"));
        let mut process = Process::start(&netns, command, &log)?;
        let pid = process.pid();
        pin_threads(pid, SERVER_CORE)?;
        let server = Server { name, client, address: SocketAddr::new(address, 53), pid };
        process.wait_until(|| server.answers())?;
        Ok(Self { server, _process: process, _netns: netns })
    }
}

fn address_of(number: usize) -> IpAddr {
    IpAddr::from([10, 42, (number >> 8) as u8, number as u8])
}

impl Server {
    fn answers(&self) -> bool {
        let asked = || -> Result<bool> {
            let socket = self.socket()?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            socket.send(&query(0, 0))?;
            Ok(is_answer(&socket, 0).is_ok())
        };
        asked().unwrap_or(false)
    }

    fn socket(&self) -> Result<UdpSocket> {
        let connect = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(LOST))?;
            socket.connect(self.address)?;
            std::io::Result::Ok(socket)
        };
        Ok(self.client.run(connect)??)
    }

    fn measure(&self, amount: Amount) -> Result<Outcome> {
        let socket = self.socket()?;
        let mut core = CpuSet::new();
        core.set(CLIENT_CORE)?;
        sched_setaffinity(Pid::from_raw(0), &core)?;
        let queries: Vec<Vec<u8>> = (0..amount.names).map(|name| query(0, name)).collect();
        let mut latencies = Vec::with_capacity(amount.single);
        for number in 0..amount.single {
            let mut query = queries[number % queries.len()].clone();
            query[..2].copy_from_slice(&(number as u16).to_be_bytes());
            let begun = Instant::now();
            socket.send(&query)?;
            is_answer(&socket, number as u16)?;
            latencies.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let (rate, for_cpu) = self.flood(&socket, &queries, amount.flood)?;
        Ok(Outcome { p50: median(&latencies), p99: p99(&latencies), rate, for_cpu })
    }

    /// Keeps a window of queries on their way. Returns the answers a second, and for each second of
    /// the server's processor time.
    fn flood(&self, socket: &UdpSocket, queries: &[Vec<u8>], time: Duration) -> Result<(f64, f64)> {
        let (mut sent, mut answers, mut buffer) = (0, 0, [0; 512]);
        let cpu = cpu_seconds(self.pid)?;
        let begun = Instant::now();
        while begun.elapsed() < time {
            while sent - answers < WINDOW {
                socket.send(&queries[sent % queries.len()])?;
                sent += 1;
            }
            socket.recv(&mut buffer).with_context(|| format!("{} has lost a query", self.name))?;
            answers += 1;
        }
        let (passed, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds(self.pid)? - cpu);
        Ok((answers as f64 / passed, answers as f64 / cpu.max(1e-3)))
    }
}

/// Receives the answer to the query with a number: an address.
fn is_answer(socket: &UdpSocket, id: u16) -> Result<()> {
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    let answer = &buffer[..length];
    let (rcode, answers) = (answer.get(3).map(|flags| flags % 16), answer.get(7));
    let has_address = length > 12 && rcode == Some(0) && answers.is_some_and(|count| *count > 0);
    ensure!(has_address && answer[..2] == id.to_be_bytes(), "that is no answer: {answer:?}");
    Ok(())
}

/// A query for the IPv4 address of a name (RFC 1035 §4).
fn query(id: u16, name: usize) -> Vec<u8> {
    let mut query = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in [format!("name-{name}").as_str(), "shop", "mesh"] {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}
