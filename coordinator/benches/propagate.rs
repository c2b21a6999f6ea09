//! A real coordinator and ten thousand simulated nodes that speak the real protocol to it over
//! loopback: `cargo xtask bench propagate`. Prints figures as JSON.

mod process;
mod shape;
mod simulated;

use anyhow::{Result, ensure};
use meshward_bench::{Figures, Row, Target, p99};
use meshward_control_proto::MemberKind;
use meshward_control_state::world::World;
use meshward_coordinator::ca::Ca;
use meshward_types::Revision;
use process::{Process, binary, seed};
use rcgen::{CertificateParams, KeyPair};
use shape::{APPS, NODES, Shape};
use simulated::{Fleet, Order};
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
/// How long after a quarantine was lifted the next is imposed under churn: to lift one is to tell
/// all nodes, too.
const BETWEEN: Duration = Duration::from_secs(1);

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

async fn measure(size: &Size) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("coordinator");
    fs::create_dir_all(&data)?;
    let ca = Ca::open(&data)?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    eprintln!("seeding {} nodes ...", size.shape.nodes());
    let (_, read) =
        ca.sign_member(MemberKind::Node, &shape::node(0), &csr, Duration::from_hours(24))?;
    let records = size.shape.records(&read.key.to_string());
    seed(&data, records.clone())?;
    let world = World::load(Revision(1), records).map_err(anyhow::Error::msg)?;
    let nodes = size.shape.nodes();
    let case = format!("{nodes} nodes, {} workloads", world.workloads().count());
    let row = |metric, unit, ours: &[f64], target| {
        let row =
            Figures { bench: "propagate", case: case.clone(), metric, unit, ours }.absolute(target);
        eprintln!("{metric}: {:.2} {unit}", row.value);
        row
    };
    let mut rows = Vec::new();

    let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let mut coordinator = Coordinator::start(&data, port).await?;
    let sign = |at: u32| {
        Ok(ca.sign_member(MemberKind::Node, &shape::node(at), &csr, Duration::from_hours(24))?.0)
    };
    let fleet =
        Fleet::new(Arc::new(world), size.shape, port, &ca.certificate, sign, &key.serialize_der())?;
    eprintln!("connecting ...");
    let begun = Instant::now();
    fleet.connect();
    fleet.all_current(Duration::from_mins(5)).await?;
    rows.push(row("all nodes connected", "s", &[begun.elapsed().as_secs_f64()], Target::None));
    rows.push(row(
        "resident memory",
        "GiB",
        &[coordinator.process.resident()?],
        Target::AtMost(3.0),
    ));

    let everywhere =
        quarantines(&coordinator, &fleet, "w-dns-0", nodes, size.repetitions, "everywhere").await?;
    rows.push(row(
        "quarantine known on every node, last node, p99",
        "ms",
        &[p99(&everywhere)],
        Target::AtMost(1000.0),
    ));
    rows.push(row("quarantine known on every node, last node", "ms", &everywhere, Target::None));
    let id = shape::workload_id(1, 7, 3);
    let few = quarantines(&coordinator, &fleet, id.as_str(), NODES + 3, size.repetitions, "on few")
        .await?;
    rows.push(row(
        "quarantine known on 103 nodes, last node, p99",
        "ms",
        &[p99(&few)],
        Target::AtMost(50.0),
    ));
    rows.push(row("quarantine known on 103 nodes, last node", "ms", &few, Target::None));

    let stuck = nodes / 100;
    fleet.stick(stuck);
    let others = quarantines(
        &coordinator,
        &fleet,
        "w-dns-1",
        nodes - stuck,
        size.repetitions / 5,
        "with stuck nodes",
    )
    .await?;
    fleet.unstick();
    rows.push(row("the same with one node in a hundred stuck", "ms", &others, Target::None));

    let churn = churn(&coordinator, &fleet, size).await?;
    rows.push(row(
        "churn: starts and stops a second",
        "1/s",
        &[churn.rate],
        Target::AtLeast(0.98 * f64::from(CHURN)),
    ));
    rows.push(row(
        "churn: from start to admission, p99",
        "ms",
        &[p99(&churn.admissions)],
        Target::None,
    ));
    rows.push(row("churn: from start to admission", "ms", &churn.admissions, Target::None));
    rows.push(row("churn: until the last was taken", "s", &[churn.behind], Target::AtMost(1.0)));
    rows.push(row(
        "churn: quarantine known on every node, p99",
        "ms",
        &[p99(&churn.quarantines)],
        Target::AtMost(1000.0),
    ));
    rows.push(row(
        "resident memory after churn",
        "GiB",
        &[coordinator.process.resident()?],
        Target::AtMost(3.0),
    ));

    // What is not urgent is held back for up to two seconds. Who is killed before has more to tell
    // after its restart.
    tokio::time::sleep(Duration::from_secs(4)).await;
    eprintln!("restarting the coordinator ...");
    coordinator.process.end()?;
    fleet.begin_epoch();
    let begun = Instant::now();
    let again = Coordinator::start(&data, port).await?;
    let started = begun.elapsed().as_secs_f64();
    fleet.all_current(Duration::from_mins(5)).await?;
    rows.push(row("restart: until the coordinator serves", "s", &[started], Target::None));
    rows.push(row(
        "restart: until all nodes are current",
        "s",
        &[begun.elapsed().as_secs_f64()],
        Target::AtMost(60.0),
    ));
    let compared = f64::from(fleet.compared());
    rows.push(row(
        "restart: nodes that had to be told anew",
        "nodes",
        &[compared],
        Target::AtMost(0.0),
    ));
    rows.push(row(
        "restart: rules that a node lost meanwhile",
        "rules",
        &[f64::from(fleet.lost())],
        Target::AtMost(0.0),
    ));
    drop(again);
    Ok(rows)
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
            let said = || fs::read_to_string(&log_file).unwrap_or_default();
            ensure!(started.process.try_wait()?.is_none(), "the coordinator ended: {}", said());
            ensure!(Instant::now() < deadline, "the coordinator does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(started)
    }

    async fn meshctl(&self, arguments: &[&str]) -> Result<bool> {
        let mut command = tokio::process::Command::new(binary("meshctl"));
        command.arg("--context").arg(&self.context).args(arguments);
        Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status().await?.success())
    }
}

/// Milliseconds from before `meshctl quarantine` is started until the last of the nodes that know
/// the workload enforces it.
async fn quarantines(
    coordinator: &Coordinator,
    fleet: &Fleet,
    workload: &str,
    nodes: u32,
    repetitions: u32,
    what: &str,
) -> Result<Vec<f64>> {
    let mut milliseconds = Vec::new();
    for at in 0..repetitions.max(1) {
        eprint!("\rquarantine {what}: {at}/{repetitions} ");
        milliseconds.push(quarantine(coordinator, fleet, workload, nodes).await?);
    }
    eprintln!();
    Ok(milliseconds)
}

async fn quarantine(
    coordinator: &Coordinator,
    fleet: &Fleet,
    workload: &str,
    nodes: u32,
) -> Result<f64> {
    let mut taken = 0.0;
    for (verb, held) in [("quarantine", true), ("release", false)] {
        let watch = fleet.watch(workload, held);
        let begun = Instant::now();
        let arguments = [verb, workload];
        let command = coordinator.meshctl(&arguments);
        let (done, last) = tokio::join!(command, watch.seen_by(nodes, Duration::from_mins(1)));
        ensure!(done?, "meshctl {verb} failed");
        if held {
            taken = last?.duration_since(begun).as_secs_f64() * 1000.0;
        }
    }
    Ok(taken)
}

struct Churn {
    rate: f64,
    admissions: Vec<f64>,
    behind: f64,
    quarantines: Vec<f64>,
}

/// Has workloads started and stopped all over the mesh, and now and then one quarantined that every
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
            let taken = quarantine(coordinator, fleet, "w-dns-2", nodes).await?;
            eprint!("\rchurn: {} s, a quarantine took {taken:.0} ms ", begun.elapsed().as_secs());
            milliseconds.push(taken);
            tokio::time::sleep(BETWEEN).await;
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
