//! A real coordinator and ten thousand simulated nodes that speak the real protocol to it over
//! loopback: `cargo xtask bench propagate`. Prints figures as JSON.

mod process;
mod shape;
mod simulated;

use anyhow::{Context, Result, ensure};
use meshward_api_types::QuarantineResult;
use meshward_bench::{Figures, Row, Target, p99};
use meshward_control_proto::MemberKind;
use meshward_control_state::world::World;
use meshward_coordinator::ca::Ca;
use meshward_types::Revision;
use process::{Process, binary, seed};
use rcgen::{CertificateParams, KeyPair};
use shape::{APPS, NODES, Shape};
use simulated::{Fleet, FleetCredentials, Order};
use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// Starts and stops together, each second of the churn.
const CHURN: u32 = 2000;
/// The pause between a release and the next quarantine under churn: a release goes to all nodes,
/// too.
const PAUSE: Duration = Duration::from_secs(1);

struct Size {
    shape: Shape,
    repetitions: u32,
    churn_seconds: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let size = match quick {
        true => Size { shape: Shape { tenants: 5 }, repetitions: 5, churn_seconds: 3 },
        false => Size { shape: Shape::FULL, repetitions: 100, churn_seconds: 60 },
    };
    let rows = measure(&size).await?;
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

/// A seeded mesh: the coordinator's data folder, and nodes that can connect to it.
struct Seeded {
    data: PathBuf,
    listen: SocketAddr,
    case: String,
    fleet: Fleet,
}

impl Seeded {
    fn create(folder: &Path, shape: Shape) -> Result<Self> {
        let data = folder.join("coordinator");
        fs::create_dir_all(&data)?;
        let ca = Ca::open(&data)?;
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        let sign = |at: u32| {
            ca.sign_member(MemberKind::Node, &shape::node(at), &csr, Duration::from_hours(24))
        };
        eprintln!("seeding {} nodes ...", shape.nodes());
        let records = shape.records(&sign(0)?.certificate.key.to_string());
        seed(&data, records.clone())?;
        let world = World::load(Revision(1), records).map_err(anyhow::Error::msg)?;
        let case = format!("{} nodes, {} workloads", shape.nodes(), world.workloads().count());
        let listen = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let credentials = FleetCredentials {
            ca: &ca.certificate,
            key: &key.serialize_der(),
            certificate: &|at| Ok(sign(at)?.der),
        };
        let fleet = Fleet::new(&Arc::new(world), shape, listen, &credentials)?;
        Ok(Self { data, listen, case, fleet })
    }
}

/// The rows of the report, printed as they come.
struct Report {
    case: String,
    rows: Vec<Row>,
}

impl Report {
    fn add(&mut self, metric: &'static str, unit: &'static str, ours: &[f64], target: Target) {
        let case = self.case.clone();
        let row = Figures { bench: "propagate", case, metric, unit, ours }.absolute(target);
        eprintln!("{metric}: {:.2} {unit}", row.value);
        self.rows.push(row);
    }
}

async fn measure(size: &Size) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let Seeded { data, listen, case, fleet } = Seeded::create(folder.path(), size.shape)?;
    let mut report = Report { case, rows: Vec::new() };
    let mut coordinator = Coordinator::start(&data, listen).await?;
    eprintln!("connecting ...");
    let begun = Instant::now();
    fleet.connect();
    fleet.all_current(Duration::from_mins(5)).await?;
    let seconds = begun.elapsed().as_secs_f64();
    report.add("all nodes connected", "s", &[seconds], Target::None);
    let memory = coordinator.process.resident()?;
    report.add("resident memory", "GiB", &[memory], Target::AtMost(3.0));
    measure_quarantines(&coordinator, &fleet, size, &mut report).await?;
    measure_churn(&coordinator, &fleet, size, &mut report).await?;
    let memory = coordinator.process.resident()?;
    report.add("resident memory after churn", "GiB", &[memory], Target::AtMost(3.0));
    // Deltas that are not urgent are held back for up to two seconds. A coordinator that is killed
    // before has more to send after its restart.
    tokio::time::sleep(Duration::from_secs(4)).await;
    eprintln!("restarting the coordinator ...");
    coordinator.process.end()?;
    measure_restart(&data, listen, &fleet, &mut report).await?;
    Ok(report.rows)
}

async fn measure_quarantines(
    coordinator: &Coordinator,
    fleet: &Fleet,
    size: &Size,
    report: &mut Report,
) -> Result<()> {
    let (nodes, repetitions) = (size.shape.nodes(), size.repetitions);
    let everywhere = Quarantines { workload: "w-dns-0", nodes, repetitions, label: "everywhere" };
    let everywhere = everywhere.measure(coordinator, fleet).await?;
    report.add(
        "quarantine known on every node, last node, p99",
        "ms",
        &[p99(&everywhere)],
        Target::AtMost(1000.0),
    );
    report.add("quarantine known on every node, last node", "ms", &everywhere, Target::None);
    let id = shape::workload_id(1, 7, 3);
    let few = Quarantines { workload: id.as_str(), nodes: NODES + 3, repetitions, label: "on few" };
    let few = few.measure(coordinator, fleet).await?;
    report.add(
        "quarantine known on 103 nodes, last node, p99",
        "ms",
        &[p99(&few)],
        Target::AtMost(50.0),
    );
    report.add("quarantine known on 103 nodes, last node", "ms", &few, Target::None);
    let stuck = nodes / 100;
    fleet.stick(stuck);
    let others = Quarantines {
        workload: "w-dns-1",
        nodes: nodes - stuck,
        repetitions: repetitions / 5,
        label: "with stuck nodes",
    };
    let others = others.measure(coordinator, fleet).await?;
    fleet.unstick();
    report.add("the same with one node in a hundred stuck", "ms", &others, Target::None);
    Ok(())
}

async fn measure_churn(
    coordinator: &Coordinator,
    fleet: &Fleet,
    size: &Size,
    report: &mut Report,
) -> Result<()> {
    let churn = churn(coordinator, fleet, size).await?;
    report.add(
        "churn: starts and stops a second",
        "1/s",
        &[churn.rate],
        Target::AtLeast(0.98 * f64::from(CHURN)),
    );
    let p99_admission = p99(&churn.admissions);
    report.add("churn: from start to admission, p99", "ms", &[p99_admission], Target::None);
    report.add("churn: from start to admission", "ms", &churn.admissions, Target::None);
    report.add("churn: until the last was taken", "s", &[churn.behind], Target::AtMost(1.0));
    report.add(
        "churn: quarantine known on every node, p99",
        "ms",
        &[p99(&churn.quarantines)],
        Target::AtMost(1000.0),
    );
    Ok(())
}

async fn measure_restart(
    data: &Path,
    listen: SocketAddr,
    fleet: &Fleet,
    report: &mut Report,
) -> Result<()> {
    fleet.begin_epoch();
    let begun = Instant::now();
    let again = Coordinator::start(data, listen).await?;
    let started = begun.elapsed().as_secs_f64();
    fleet.all_current(Duration::from_mins(5)).await?;
    report.add("restart: until the coordinator serves", "s", &[started], Target::None);
    report.add(
        "restart: until all nodes are current",
        "s",
        &[begun.elapsed().as_secs_f64()],
        Target::AtMost(60.0),
    );
    let compared = f64::from(fleet.compared());
    report.add(
        "restart: nodes that had to be told anew",
        "nodes",
        &[compared],
        Target::AtMost(0.0),
    );
    report.add(
        "restart: rules that a node lost meanwhile",
        "rules",
        &[f64::from(fleet.lost())],
        Target::AtMost(0.0),
    );
    drop(again);
    Ok(())
}

/// The coordinator that users run.
struct Coordinator {
    process: Process,
    context: PathBuf,
}

impl Coordinator {
    async fn start(data: &Path, listen: SocketAddr) -> Result<Self> {
        let log_file = data.join("log");
        let mut command = Command::new(binary("meshward-coordinator"));
        command.arg("--data-dir").arg(data).env("RUST_LOG", "warn");
        command.args(["--listen", &listen.to_string(), "--metrics-listen", "127.0.0.1:0"]);
        let process = Process::start(&mut command, &log_file)?;
        let mut started = Self { process, context: data.join("admin.json") };
        let deadline = Instant::now() + Duration::from_mins(2);
        while !started.meshctl(&["status"]).await? {
            let log = || fs::read_to_string(&log_file).unwrap_or_default();
            ensure!(started.process.try_wait()?.is_none(), "the coordinator ended: {}", log());
            ensure!(Instant::now() < deadline, "the coordinator does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(started)
    }

    async fn meshctl(&self, arguments: &[&str]) -> Result<bool> {
        let mut command = self.command(arguments);
        Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status().await?.success())
    }

    /// Quarantines or releases. By its exit code, `meshctl` says that some nodes have not answered,
    /// too: stuck nodes are no failure here.
    async fn change(&self, arguments: &[&str]) -> Result<QuarantineResult> {
        let output = self.command(arguments).args(["--output", "json"]).output().await?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            format!("meshctl {} failed: {stderr}", arguments.join(" "))
        })
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(binary("meshctl"));
        command.arg("--context").arg(&self.context).args(arguments);
        command
    }
}

/// Quarantines of one workload, each of which is released again.
struct Quarantines<'a> {
    workload: &'a str,
    /// The number of nodes that know the workload.
    nodes: u32,
    repetitions: u32,
    /// The words for the progress line.
    label: &'a str,
}

impl Quarantines<'_> {
    /// Returns the milliseconds from before `meshctl quarantine` is started until the last of the
    /// nodes that know the workload enforces it.
    async fn measure(&self, coordinator: &Coordinator, fleet: &Fleet) -> Result<Vec<f64>> {
        let Self { workload, nodes, repetitions, label } = *self;
        let mut milliseconds = Vec::new();
        for at in 0..repetitions.max(1) {
            eprint!("\rquarantine {label}: {at}/{repetitions} ");
            milliseconds.push(quarantine(coordinator, fleet, workload, nodes).await?);
        }
        eprintln!();
        Ok(milliseconds)
    }
}

async fn quarantine(
    coordinator: &Coordinator,
    fleet: &Fleet,
    workload: &str,
    nodes: u32,
) -> Result<f64> {
    let mut milliseconds = 0.0;
    for (verb, is_quarantined) in [("quarantine", true), ("release", false)] {
        let watch = fleet.watch(workload, is_quarantined);
        let begun = Instant::now();
        let arguments = [verb, workload];
        let command = coordinator.change(&arguments);
        let (result, last) = tokio::join!(command, watch.wait(nodes, Duration::from_mins(1)));
        ensure!(result?.workloads.len() == 1, "meshctl {verb} did not find {workload}");
        if is_quarantined {
            milliseconds = last?.duration_since(begun).as_secs_f64() * 1000.0;
        }
    }
    Ok(milliseconds)
}

struct Churn {
    rate: f64,
    admissions: Vec<f64>,
    behind: f64,
    quarantines: Vec<f64>,
}

/// Starts and stops workloads all over the mesh, and from time to time quarantines one that every
/// node knows.
async fn churn(coordinator: &Coordinator, fleet: &Fleet, size: &Size) -> Result<Churn> {
    let (nodes, starts) = (size.shape.nodes(), CHURN / 2 * size.churn_seconds);
    let begun = Instant::now();
    let driver = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for at in 0..starts {
            if at.is_multiple_of(CHURN / 200) {
                ticks.tick().await;
            }
            let node = (at.wrapping_mul(7919)) % nodes;
            // A workload lives for a second.
            let host = 201 + (at / nodes) % 40;
            let labels = shape::labels(node / NODES, at % APPS);
            fleet.order(node, Order::Start(shape::report(node, "churn", host, labels).into()));
            if let Some(before) = at.checked_sub(CHURN / 2) {
                let node = (before.wrapping_mul(7919)) % nodes;
                let host = 201 + (before / nodes) % 40;
                fleet.order(node, Order::Stop(format!("churn-{node}-{host}").parse()?));
            }
        }
        anyhow::Ok(begun.elapsed())
    };
    let cutting = async {
        let mut milliseconds = Vec::new();
        while begun.elapsed() < Duration::from_secs(size.churn_seconds.into()) {
            let latency = quarantine(coordinator, fleet, "w-dns-2", nodes).await?;
            let seconds = begun.elapsed().as_secs();
            eprint!("\rchurn: {seconds} s, a quarantine took {latency:.0} ms ");
            milliseconds.push(latency);
            tokio::time::sleep(PAUSE).await;
        }
        eprintln!();
        anyhow::Ok(milliseconds)
    };
    let (driven, cut) = tokio::join!(driver, cutting);
    let driven = driven?;
    let ordered = Instant::now();
    fleet.all_admitted(starts, Duration::from_mins(2)).await?;
    let changes = f64::from(starts + starts.saturating_sub(CHURN / 2));
    let expected = f64::from(2 * starts) / f64::from(CHURN);
    Ok(Churn {
        rate: changes / driven.as_secs_f64().max(expected) * f64::from(2 * starts) / changes,
        admissions: fleet.admissions(),
        behind: ordered.elapsed().as_secs_f64(),
        quarantines: cut?,
    })
}
