//! The cost of attaching workloads to a node by the thousand, and a check that nothing is left of
//! them.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    report::Row,
};
use anyhow::{Context, Result, ensure};
use meshward_api_client::Client;
use meshward_api_types::local::{Attach, LocalWorkload, State};
use meshward_lab::{Mesh, Node, host};
use meshward_netns::Netns;
use meshward_types::WorkloadId;
use std::{
    fs,
    time::{Duration, Instant},
};

/// The time within which the kernel has to release everything.
const RELEASED_WITHIN: Duration = Duration::from_mins(2);
/// The time within which the kernel releases one workload.
const RELEASE: Duration = Duration::from_millis(500);

/// Attaches and detaches a thousand workloads one after the other. `quick` does so with a
/// twentieth.
///
/// # Errors
/// Fails if the daemon refuses one, or does not release it.
pub fn attach(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let count = if quick { 50 } else { 1000 };
    let mut mesh = Mesh::start(tools.ours.clone())?;
    mesh.meshctl(&[
        "network",
        "create",
        "shop",
        "--cidr",
        "10.42.0.0/16",
        "--cidr",
        "fd42::/48",
        "--block-v4",
        "20",
    ])?;
    let mut node = mesh.node("host").start()?;
    mesh.apply(
        "network: shop
rules: [{ name: a, from: { app: web }, to: { app: api }, allow: [tcp/80] }]
",
    )?;
    let namespaces: Vec<Netns> = (0..count).map(|_| host()).collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // What the daemon opens once, such as the log of its view, is open then.
    let first = host()?;
    runtime.block_on(async {
        let client = Client::node(&node.socket());
        let workload: LocalWorkload = client.post("/v1/workloads", &wanted(0, &first)?).await?;
        detach(&client, &workload.id).await
    })?;
    std::thread::sleep(RELEASE);
    let before = Resources::by(&mut node)?;
    let Turn { attached, detached, most } =
        runtime.block_on(attach_and_detach(&mut node, &namespaces))?;
    let left = wait_for_release(&mut node, &before, &namespaces)?;
    let each = (most.memory - before.memory) * 1024.0 / f64::from(count);
    let case = format!("{count} workloads, one after the other");
    Ok(rows(&case, &attached, &detached, each, &left))
}

fn rows(case: &str, attached: &[f64], detached: &[f64], each: f64, left: &Left) -> Vec<Row> {
    let row = |metric, unit, ours: &[f64], target| {
        Figures { bench: "attach", case: case.to_owned(), metric, unit, ours }.absolute(target)
    };
    vec![
        row("attach, until it is let in", "ms", attached, Target::None),
        row("attach, until it is let in, p99", "ms", &[crate::report::p99(attached)], Target::None),
        row("detach", "ms", detached, Target::None),
        row("resident memory of the daemon for each", "KiB", &[each], Target::None),
        row("descriptors left open", "", &[left.descriptors], Target::AtMost(0.0)),
        row("interfaces left in their namespaces", "", &[left.interfaces], Target::AtMost(0.0)),
        row("files left in the data folder", "", &[left.files], Target::AtMost(0.0)),
        row("routes left on the host", "", &[left.routes], Target::AtMost(0.0)),
    ]
}

/// The milliseconds that each workload took, and the daemon's resources with all of them.
struct Turn {
    attached: Vec<f64>,
    detached: Vec<f64>,
    most: Resources,
}

async fn attach_and_detach(node: &mut Node, namespaces: &[Netns]) -> Result<Turn> {
    let client = Client::node(&node.socket());
    let (mut ids, mut attached, mut detached) = (Vec::new(), Vec::new(), Vec::new());
    for (at, netns) in namespaces.iter().enumerate() {
        progress("attached", at, namespaces.len());
        let begun = Instant::now();
        let workload: LocalWorkload = client.post("/v1/workloads", &wanted(at, netns)?).await?;
        attached.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(workload.state == State::Open, "workload {at} is {:?}", workload.state);
        ids.push(workload.id);
    }
    let most = Resources::by(node)?;
    for (at, id) in ids.iter().enumerate() {
        progress("detached", at, namespaces.len());
        detached.push(detach(&client, id).await?);
    }
    eprintln!();
    Ok(Turn { attached, detached, most })
}

fn progress(what: &str, at: usize, count: usize) {
    if at.is_multiple_of(50) {
        eprint!("\r{what}: {at}/{count} ");
    }
}

fn wanted(at: usize, netns: &Netns) -> Result<Attach> {
    Ok(Attach {
        network: "shop".parse()?,
        name: None,
        labels: if at.is_multiple_of(2) { "app=web" } else { "app=api" }.parse()?,
        accepts: vec![],
        netns: netns.path(),
        owner: None,
        host: false,
    })
}

async fn detach(client: &Client, id: &WorkloadId) -> Result<f64> {
    let begun = Instant::now();
    client.delete(&format!("/v1/workloads/{id}")).await?;
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}

/// The resources of a daemon.
struct Resources {
    descriptors: f64,
    /// MiB.
    memory: f64,
    files: f64,
    routes: f64,
}

impl Resources {
    fn by(node: &mut Node) -> Result<Self> {
        let pid = node.process().pid();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let memory: f64 = memory.trim().trim_end_matches(" kB").parse()?;
        let files = fs::read_dir(node.data().join("workloads"))?.count();
        let routes = node
            .site
            .netns
            .run(|| fs::read_to_string("/proc/thread-self/net/route"))??
            .lines()
            .count();
        let (descriptors, files, routes) = (descriptors as f64, files as f64, routes as f64);
        Ok(Self { descriptors, memory: memory / 1024.0, files, routes })
    }
}

struct Left {
    descriptors: f64,
    interfaces: f64,
    files: f64,
    routes: f64,
}

/// Waits until nothing is left, for [`RELEASED_WITHIN`] at most, and returns what is left.
fn wait_for_release(node: &mut Node, before: &Resources, namespaces: &[Netns]) -> Result<Left> {
    let begun = Instant::now();
    loop {
        let now = Resources::by(node)?;
        let mut interfaces = 0;
        for netns in namespaces {
            interfaces += usize::from(netns.links(async |links| Ok(links.exists("mesh0").await))?);
        }
        let left = Left {
            descriptors: (now.descriptors - before.descriptors).max(0.0),
            interfaces: interfaces as f64,
            files: now.files - before.files,
            routes: now.routes - before.routes,
        };
        let none = left.descriptors + left.interfaces + left.files + left.routes == 0.0;
        if none || begun.elapsed() > RELEASED_WITHIN {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
