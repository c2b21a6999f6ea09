//! The coordinator under attack: the effect of strangers on members, and the resources that one
//! hostile node uses of its memory.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    report::Row,
};
use anyhow::{Context, Result, ensure};
use meshward_control_proto::{Channel, FromCoordinator, FromNode, WorkloadReport};
use meshward_lab::{CraftedSession, HandshakeFlood, Mesh, Node, idle_connections};
use std::{
    fs,
    net::SocketAddrV4,
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 7443;
/// Forged first packets of QUIC handshakes a second.
const FORGED: u32 = 50_000;
/// TCP connections on which nothing is said.
const IDLE: usize = 5_000;
const NETWORK: [&str; 5] = ["network", "create", "shop", "--cidr", "10.42.0.0/16"];

/// Floods a coordinator from a stranger's site, and has a hostile node use all that its limits
/// permit. `quick` does so for a short time.
///
/// # Errors
/// Fails if a daemon does not start.
pub fn control(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let mut rows = under_flood(tools, quick)?;
    rows.extend(hostile_node(tools, quick)?);
    Ok(rows)
}

fn figures<'a>(
    case: &str,
    metric: &'static str,
    unit: &'static str,
    ours: &'a [f64],
) -> Figures<'a> {
    Figures { bench: "control", case: case.to_owned(), metric, unit, ours }
}

fn under_flood(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let mut mesh = Mesh::start(tools.ours.clone())?;
    mesh.meshctl(&NETWORK)?;
    let member = mesh.node("cloud").start()?;
    let stranger = mesh.internet.site("stranger")?;
    let times = if quick { 1 } else { 5 };
    let mut joining = Vec::new();
    for at in 0..times {
        joining.push((mesh.token(&[])?, mesh.internet.site(&format!("new-{at}"))?));
    }
    let to = SocketAddrV4::new(mesh.site.v4, PORT);
    let flood = HandshakeFlood::start(&stranger.netns, to, FORGED, &Channel::Session.alpn()[0])?;
    let idle = idle_connections(&stranger.netns, to.into(), IDLE)?;
    let begun = (Instant::now(), flood.sent());
    let (mut joined, mut downs, mut looks) = (Vec::new(), 0, 0);
    for (token, site) in joining {
        let asked = Instant::now();
        drop(mesh.node_at(site).token(&token).start()?);
        joined.push(asked.elapsed().as_secs_f64());
        for _ in 0..if quick { 10 } else { 40 } {
            looks += 1;
            downs += u32::from(!member.is_connected());
            thread::sleep(Duration::from_millis(100));
        }
    }
    let rate = (flood.sent() - begun.1) as f64 / begun.0.elapsed().as_secs_f64();
    drop((flood, idle));
    ensure!(looks > 0, "nobody has looked");
    let lost = member.printed().matches("no session with the coordinator").count() as f64;
    let case = format!("{rate:.0} forged first packets/s, {IDLE} idle TCP connections");
    Ok(vec![
        figures(&case, "sessions that a member lost", "", &[lost + f64::from(downs)])
            .absolute(Target::AtMost(0.0)),
        figures(&case, "from join to session of a new member", "s", &joined)
            .absolute(Target::AtMost(5.0)),
    ])
}

fn hostile_node(tools: &Tools, quick: bool) -> Result<Vec<Row>> {
    let mut mesh = Mesh::start(tools.ours.clone())?;
    mesh.meshctl(&NETWORK)?;
    let member = mesh.node("cloud").start()?;
    let token = mesh.token(&[])?;
    let site = mesh.internet.site("hostile")?;
    mesh.join(&site, &token)?;
    let block = block(&mesh, "hostile")?;
    let data = mesh.folder().join("hostile/data");
    thread::sleep(Duration::from_secs(1));
    let before = resident(mesh.coordinator.pid())?;
    let mut most = before;
    let mut begun = Vec::new();
    for round in 0..if quick { 1 } else { 4u32 } {
        let workloads = (0..6000)
            .map(|at| greedy(round * 6000 + at, at, &block))
            .collect::<Result<Vec<_>>>()?;
        let mut session = CraftedSession::begin(&site.netns, &data, workloads)?;
        session.hear(Duration::from_secs(20), |message| {
            matches!(message, FromCoordinator::Update { .. }).then_some(())
        })?;
        // It goes on as long as it is listened to, and changes all that it has.
        let until = Instant::now() + Duration::from_secs(if quick { 3 } else { 10 });
        for at in 0u32.. {
            let report = greedy(round * 6000 + at % 4000, at, &block)?;
            let said = session.say(&FromNode::Started(report)).is_ok();
            most = most.max(resident(mesh.coordinator.pid())?);
            if !said || Instant::now() > until {
                break;
            }
        }
        begun.push(session);
    }
    let worst = longest_quarantine(&mesh, &member)?;
    ensure!(member.is_connected(), "the member has lost its session");
    let case = "one hostile node at all its limits";
    Ok(vec![
        figures(case, "memory of the coordinator, more than before", "MiB", &[most - before])
            .absolute(Target::AtMost(64.0)),
        figures(case, "quarantine of another's workload meanwhile", "ms", &worst)
            .absolute(Target::None),
    ])
}

/// A workload as big as one may be.
fn greedy(id: u32, labels: u32, block: &str) -> Result<WorkloadReport> {
    let all: Vec<String> =
        (0..60).map(|at| format!("key-{at}={}-{labels}", "x".repeat(40))).collect();
    let base: u32 = block.parse::<std::net::Ipv4Addr>()?.to_bits();
    Ok(WorkloadReport::of_process(
        format!("w-{id}").parse()?,
        "shop".parse()?,
        format!("greedy-{id}").parse()?,
        all.join(",").parse()?,
        vec![std::net::Ipv4Addr::from_bits(base + 2 + id % 250).into()],
    ))
}

/// The first address of a node's block.
fn block(mesh: &Mesh, node: &str) -> Result<String> {
    let found = mesh.node_named(node)?;
    let prefix = found.blocks.first().and_then(|block| block.prefixes.first());
    Ok(prefix.context("the node has no block")?.addr().to_string())
}

fn longest_quarantine(mesh: &Mesh, member: &Node) -> Result<Vec<f64>> {
    let workload = member.attach("shop", "app=web")?;
    let mut all = Vec::new();
    for _ in 0..10 {
        let begun = Instant::now();
        mesh.meshctl(&["quarantine", &workload.id])?;
        all.push(begun.elapsed().as_secs_f64() * 1000.0);
        mesh.meshctl(&["release", &workload.id])?;
    }
    Ok(all)
}

/// The resident memory of a process, in MiB.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
