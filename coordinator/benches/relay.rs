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
use meshward_coordinator::ca::{Ca, SignedCertificate};
use meshward_runtime::dial::Dial;
use meshward_types::{
    Labels, NodeName,
    relay::{RelayId, RelayNetwork},
};
use process::{Process, binary, seed};
use quinn::{Connection, Endpoint};
use rcgen::{CertificateParams, KeyPair};
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet};

/// The number of handshakes at a time.
const MAX_HANDSHAKES: usize = 64;
/// The time for which all are idle before memory is read.
const IDLE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Result<()> {
    let count = if std::env::args().any(|argument| argument == "--quick") { 200 } else { 5000 };
    println!("{}", serde_json::to_string(&measure(count).await?)?);
    Ok(())
}

/// The certificate authority of the mesh, and the one key that all nodes have.
struct Nodes {
    ca: Ca,
    key: KeyPair,
    csr: Vec<u8>,
}

impl Nodes {
    /// Seeds a coordinator's data folder with nodes.
    fn seed(data: &Path, count: u32) -> Result<Self> {
        fs::create_dir_all(data)?;
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        let nodes = Self { ca: Ca::open(data)?, key, csr };
        let key = nodes.sign(&name(0)?)?.certificate.key.to_string();
        seed(data, (0..count).map(|at| Ok(record(name(at)?, &key))).collect::<Result<_>>()?)?;
        Ok(nodes)
    }

    fn sign(&self, name: &NodeName) -> Result<SignedCertificate> {
        self.ca.sign_member(MemberKind::Node, name, &self.csr, Duration::from_hours(24))
    }

    /// Connects all nodes to a relay, [`MAX_HANDSHAKES`] at a time.
    async fn connect(&self, relay: SocketAddr, count: u32) -> Result<Vec<Connection>> {
        let sockets: Vec<Endpoint> = (0..16)
            .map(|_| Ok(Endpoint::client("127.0.0.1:0".parse()?)?))
            .collect::<Result<_>>()?;
        let permits = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let mut connecting: JoinSet<Result<(u32, Connection)>> = JoinSet::new();
        let server = server_name(&"relay".parse()?);
        for at in 0..count {
            let certificate = self.sign(&name(at)?)?.der;
            let key = self.key.serialize_der();
            let dial = Dial::for_relay(&self.ca.certificate, &certificate, &key, &server)?;
            let (socket, server, permits) =
                (sockets[at as usize % sockets.len()].clone(), server.clone(), permits.clone());
            connecting.spawn(async move {
                let _permit = permits.acquire_owned().await?;
                let connection = socket.connect_with(dial.quic, relay, &server)?.await?;
                let mut instance = connection.open_uni().await?;
                instance.write_all(&[0; 16]).await?;
                instance.finish()?;
                Ok((at, connection))
            });
        }
        let mut connections = vec![None; count as usize];
        while let Some(done) = connecting.join_next().await {
            let (at, connection) = done??;
            connections[at as usize] = Some(connection);
        }
        Ok(connections.into_iter().flatten().collect())
    }
}

/// A coordinator and a relay that is connected to it.
struct Daemons {
    _coordinator: Process,
    relay: Process,
    /// The relay's address.
    address: SocketAddr,
}

impl Daemons {
    async fn start(data: &Path, relay_data: &Path) -> Result<Self> {
        let (listen, address) = (free_port()?, free_port()?);
        let mut command = Command::new(binary("meshward-coordinator"));
        command.arg("--data-dir").arg(data).args(["--listen", &listen.to_string()]);
        command.args(["--metrics-listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"]);
        let coordinator = Process::start(&mut command, &data.join("log"))?;
        let context = data.join("admin.json");
        until(|| meshctl(&context, &["status"]).is_ok())
            .await
            .context("the coordinator does not answer")?;
        let token = meshctl(&context, &["token", "create", "--relay"])?;
        let invitation = format!("{}@{listen}", token.trim());
        let joined = Command::new(binary("meshward-relay"))
            .args(["join", &invitation, "--name", "relay", "--data-dir"])
            .arg(relay_data)
            .output()?;
        ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        let log = data.join("relay.log");
        let mut command = Command::new(binary("meshward-relay"));
        command.args(["--data-dir"]).arg(relay_data).args(["--listen", &address.to_string()]);
        command.args(["--stun-listen", "127.0.0.1:0", "--advertise", &address.to_string()]);
        let relay = Process::start(&mut command, &log)?;
        let is_linked = || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("linked to the coordinator"))
        };
        until(is_linked).await.context("the relay has no link")?;
        Ok(Self { _coordinator: coordinator, relay, address })
    }
}

async fn measure(count: u32) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("coordinator");
    let nodes = Nodes::seed(&data, count)?;
    let daemons = Daemons::start(&data, &folder.path().join("relay")).await?;
    let before = daemons.relay.resident()?;
    let begun = Instant::now();
    let connections = nodes.connect(daemons.address, count).await?;
    let took = begun.elapsed().as_secs_f64();
    tokio::time::sleep(IDLE).await;
    let each = (daemons.relay.resident()? - before) * 1024.0 * 1024.0 / f64::from(count);
    let alive = connections.iter().filter(|connection| connection.close_reason().is_none()).count();
    let Relayed { share, milliseconds } = Relayed::between(&connections).await?;
    let case = format!("{count} nodes");
    let row = |metric, unit, ours: &[f64], target| {
        Figures { bench: "relay", case: case.clone(), metric, unit, ours }.absolute(target)
    };
    Ok(vec![
        row("nodes connected", "nodes", &[alive as f64], Target::AtLeast(f64::from(count))),
        row("pairs of them relayed to each other", "%", &[100.0 * share], Target::AtLeast(99.9)),
        row("memory of the relay for each", "KiB", &[each], Target::AtMost(64.0)),
        row("until all were connected", "s", &[took], Target::None),
        row("one message there, median", "ms", &milliseconds, Target::None),
    ])
}

/// Messages that were relayed from every node to another.
struct Relayed {
    /// The share that arrived, from 0 to 1.
    share: f64,
    /// The time that each of them took.
    milliseconds: Vec<f64>,
}

impl Relayed {
    async fn between(connections: &[Connection]) -> Result<Self> {
        let network = RelayNetwork::of(&"shop".parse()?);
        let (mut arrived, mut milliseconds) = (0, Vec::new());
        for (at, from) in connections.iter().enumerate() {
            let other = (at + connections.len() / 2) % connections.len();
            let to = RelayId::of(&name(other as u32)?);
            let begun = Instant::now();
            let batch =
                MessageBatch { to, network, number: at as u16, messages: &[7; 148], size: 148 };
            for frame in batch.frames(1200) {
                from.send_datagram(frame.into())?;
            }
            let (mut assembler, source) =
                (BatchAssembler::default(), RelayId::of(&name(at as u32)?));
            let received =
                tokio::time::timeout(Duration::from_secs(1), connections[other].read_datagram())
                    .await;
            if let Ok(Ok(frame)) = received
                && {
                    assembler.add(&frame);
                    let whole = assembler.drain_complete();
                    whole.first().is_some_and(|run| run.from == source && run.messages == [7; 148])
                }
            {
                arrived += 1;
                milliseconds.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
        }
        let share = f64::from(arrived) / connections.len() as f64;
        Ok(Self { share, milliseconds })
    }
}

fn name(at: u32) -> Result<NodeName> {
    Ok(format!("node-{at}").parse()?)
}

fn record(name: NodeName, key: &str) -> Record {
    Record::Node(NodeRecord {
        name,
        site: None,
        labels: Labels::default(),
        networks: vec![],
        key: key.into(),
        endpoints: BTreeMap::default(),
        blocks: BTreeMap::default(),
        problems: BTreeMap::default(),
        waiting: false,
        forget_after: None,
    })
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
        ensure!(Instant::now() < deadline, "the condition did not hold within 60 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn free_port() -> Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}
