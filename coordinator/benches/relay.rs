//! A real relay and five thousand nodes that are connected to it and idle: `cargo xtask bench
//! relay`. Prints figures as JSON.

mod process;

use anyhow::{Context, Result, ensure};
use meshward_bench::{Figures, Row, Target};
use meshward_control_proto::{
    MemberKind,
    relay::{BatchAssembler, MessageBatch, server_name},
};
use meshward_control_state::records::{NodeRecord, Record};
use meshward_coordinator::ca::Ca;
use meshward_runtime::dial::Dial;
use meshward_types::{
    NodeName,
    relay::{RelayId, RelayNetwork},
};
use process::{Process, binary, seed};
use quinn::{Connection, Endpoint};
use rcgen::{CertificateParams, KeyPair};
use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet};

/// How many handshakes are under way at a time.
const AT_ONCE: usize = 64;
/// For how long all are idle before memory is read.
const IDLE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Result<()> {
    let count = if std::env::args().any(|argument| argument == "--quick") { 200 } else { 5000 };
    println!("{}", serde_json::to_string(&measure(count).await?)?);
    Ok(())
}

async fn measure(count: u32) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let (data, of_relay) = (folder.path().join("coordinator"), folder.path().join("relay"));
    fs::create_dir_all(&data)?;
    let ca = Ca::open(&data)?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let sign =
        |name: &NodeName| ca.sign_member(MemberKind::Node, name, &csr, Duration::from_hours(24));
    let known_by = sign(&name(0)?)?.1.key.to_string();
    seed(&data, (0..count).map(|at| record(name(at)?, &known_by)).collect::<Result<_>>()?)?;

    let (coordinator_at, relay_at) = (free_port()?, free_port()?);
    let mut command = Command::new(binary("meshward-coordinator"));
    command.arg("--data-dir").arg(&data).args(["--listen", &coordinator_at.to_string()]);
    command.args(["--metrics-listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"]);
    let _coordinator = Process::start(&mut command, &data.join("log"))?;
    let context = data.join("admin.json");
    until(|| meshctl(&context, &["status"]).is_ok())
        .await
        .context("the coordinator does not answer")?;
    let token = meshctl(&context, &["token", "create", "--relay"])?;
    let invitation = format!("{}@{coordinator_at}", token.trim());
    let joined = Command::new(binary("meshward-relay"))
        .args(["join", &invitation, "--name", "relay", "--data-dir"])
        .arg(&of_relay)
        .output()?;
    ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    let log = folder.path().join("relay.log");
    let mut command = Command::new(binary("meshward-relay"));
    command.args(["--data-dir"]).arg(&of_relay).args(["--listen", &relay_at.to_string()]);
    command.args(["--stun-listen", "127.0.0.1:0", "--advertise", &relay_at.to_string()]);
    let relay = Process::start(&mut command, &log)?;
    let linked =
        || fs::read_to_string(&log).is_ok_and(|text| text.contains("linked to the coordinator"));
    until(linked).await.context("the relay has no link")?;

    let before = relay.resident()?;
    let begun = Instant::now();
    let sockets: Vec<Endpoint> =
        (0..16).map(|_| Ok(Endpoint::client("127.0.0.1:0".parse()?)?)).collect::<Result<_>>()?;
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut connecting: JoinSet<Result<(u32, Connection)>> = JoinSet::new();
    let server = server_name(&"relay".parse()?);
    for at in 0..count {
        let dial =
            Dial::for_relay(&ca.certificate, &sign(&name(at)?)?.0, &key.serialize_der(), &server)?;
        let (socket, server, room) =
            (sockets[at as usize % sockets.len()].clone(), server.clone(), room.clone());
        connecting.spawn(async move {
            let _place = room.acquire_owned().await?;
            let connection = socket.connect_with(dial.quic, relay_at, &server)?.await?;
            let mut first_words = connection.open_uni().await?;
            first_words.write_all(&[0; 16]).await?;
            first_words.finish()?;
            Ok((at, connection))
        });
    }
    let mut connections = vec![None; count as usize];
    while let Some(done) = connecting.join_next().await {
        let (at, connection) = done??;
        connections[at as usize] = Some(connection);
    }
    let connections: Vec<Connection> = connections.into_iter().flatten().collect();
    let took = begun.elapsed().as_secs_f64();
    tokio::time::sleep(IDLE).await;
    let each = (relay.resident()? - before) * 1024.0 * 1024.0 / f64::from(count);
    let alive = connections.iter().filter(|connection| connection.close_reason().is_none()).count();
    let (reached, trips) = relay_between(&connections).await?;
    let case = format!("{count} nodes");
    let row = |metric, unit, ours: &[f64], target| {
        Figures { bench: "relay", case: case.clone(), metric, unit, ours }.absolute(target)
    };
    Ok(vec![
        row("nodes connected", "nodes", &[alive as f64], Target::AtLeast(f64::from(count))),
        row("pairs of them relayed to each other", "%", &[100.0 * reached], Target::AtLeast(99.9)),
        row("memory of the relay for each", "KiB", &[each], Target::AtMost(64.0)),
        row("until all were connected", "s", &[took], Target::None),
        row("one message there, median", "ms", &trips, Target::None),
    ])
}

/// Has every node send one message to another: which part arrives, and how long that takes in
/// milliseconds.
async fn relay_between(connections: &[Connection]) -> Result<(f64, Vec<f64>)> {
    let network = RelayNetwork::of(&"shop".parse()?);
    let (mut arrived, mut trips) = (0, Vec::new());
    for (at, from) in connections.iter().enumerate() {
        let other = (at + connections.len() / 2) % connections.len();
        let to = RelayId::of(&name(other as u32)?);
        let begun = Instant::now();
        let batch = MessageBatch { to, network, number: at as u16, messages: &[7; 148], size: 148 };
        for frame in batch.frames(1200) {
            from.send_datagram(frame.into())?;
        }
        let (mut assembler, source) = (BatchAssembler::default(), RelayId::of(&name(at as u32)?));
        let taken =
            tokio::time::timeout(Duration::from_secs(1), connections[other].read_datagram()).await;
        if let Ok(Ok(frame)) = taken
            && {
                assembler.add(&frame);
                let whole = assembler.drain_complete();
                whole.first().is_some_and(|run| run.from == source && run.messages == [7; 148])
            }
        {
            arrived += 1;
            trips.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    Ok((f64::from(arrived) / connections.len() as f64, trips))
}

fn name(at: u32) -> Result<NodeName> {
    Ok(format!("node-{at}").parse()?)
}

fn record(name: NodeName, key: &str) -> Result<Record> {
    Ok(Record::Node(NodeRecord {
        name,
        site: None,
        labels: Default::default(),
        networks: vec![],
        key: key.into(),
        endpoints: Default::default(),
        blocks: Default::default(),
        problems: Default::default(),
        waiting: false,
        forget_after: None,
    }))
}

fn meshctl(context: &Path, arguments: &[&str]) -> Result<String> {
    let done =
        Command::new(binary("meshctl")).arg("--context").arg(context).args(arguments).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

async fn until(ready: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !ready() {
        ensure!(Instant::now() < deadline, "it did not come to pass within 60 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn free_port() -> Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}
