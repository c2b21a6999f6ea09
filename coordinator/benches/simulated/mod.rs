//! Nodes without a data plane: they hold sessions with the coordinator as real ones do, and follow
//! their views.
//!
//! A simulated node begins with the view that the seeded mesh gives it, of which it keeps only the
//! digest; what changes, it keeps resource by resource. So ten thousand of them fit into one
//! process, and yet each of them is compared with the coordinator by the digest of all that it
//! would hold.

use crate::shape::{self, Shape};
use anyhow::{Context, Result, ensure};
use meshward_control_proto::{
    COORDINATOR_NAME, Change, ENFORCED_WITHIN, EndpointReport, FromCoordinator, FromNode,
    InstanceId, MAX_UPDATE, Resource, ResourceKey, WorkloadReport,
    view::{Digest, Hash128},
};
use meshward_control_state::{
    records::WorkloadRef,
    world::{WorkloadState, World},
};
use meshward_runtime::{dial::Dial, frames, random, tls::clock};
use meshward_types::{NodeName, Revision, WorkloadId};
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, TokioRuntime};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, mpsc};

/// Sockets that the nodes share. Each node of a real mesh has one of its own, so none of these may
/// overflow.
const SOCKETS: usize = 64;
const RECEIVE_BUFFER: usize = 16 << 20;
/// The pauses of a real node between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// An order to a node.
pub(crate) enum Order {
    Start(Box<WorkloadReport>),
    Stop(WorkloadId),
}

/// All simulated nodes.
pub(crate) struct Fleet {
    orders: Vec<mpsc::UnboundedSender<Order>>,
    waiting: Mutex<Vec<Node>>,
    shared: Arc<Shared>,
}

/// The counters that all nodes share.
struct Shared {
    world: Arc<World>,
    coordinator: SocketAddr,
    watched: Mutex<Option<Arc<Watched>>>,
    current: AtomicU32,
    /// Grows with each restart of the coordinator: only sessions that begin after it count as
    /// current.
    epoch: AtomicU32,
    compared: AtomicU32,
    lost: AtomicU32,
    stuck: AtomicU32,
    unstuck: Notify,
    admitted: AtomicU32,
    admissions: Mutex<Vec<f64>>,
}

struct Watched {
    workload: WorkloadId,
    /// `true` to wait for a quarantine, `false` for a release.
    is_quarantined: bool,
    /// The number of nodes that enforce it.
    enforced: AtomicU32,
    last: Mutex<Instant>,
    progress: Notify,
}

/// A change that is waited for.
pub(crate) struct Watch(Arc<Watched>);

struct Node {
    number: u32,
    name: NodeName,
    endpoint: Endpoint,
    config: ClientConfig,
    revision: Revision,
    digest: Digest,
    /// The hashes of resources that were put since the beginning; `None` for dropped ones.
    changed: HashMap<ResourceKey, Option<Hash128>>,
    workloads: HashMap<WorkloadId, WorkloadReport>,
    started: HashMap<WorkloadId, Instant>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// The epoch in which the session began, and the last one in which the node was current.
    epoch: u32,
    current_in: u32,
    /// The time at which it is to acknowledge a revision, if one is not acknowledged yet.
    unsaid: Option<tokio::time::Instant>,
    shared: Arc<Shared>,
}

/// The credentials of simulated nodes.
pub(crate) struct FleetCredentials<'a> {
    /// The mesh's CA (DER).
    pub(crate) ca: &'a [u8],
    /// The private key of all nodes (DER).
    pub(crate) key: &'a [u8],
    /// Returns the certificate of a node, by its number.
    pub(crate) certificate: &'a dyn Fn(u32) -> Result<Vec<u8>>,
}

impl Fleet {
    pub(crate) fn new(
        world: &Arc<World>,
        shape: Shape,
        coordinator: SocketAddr,
        credentials: &FleetCredentials<'_>,
    ) -> Result<Self> {
        let FleetCredentials { ca, key, certificate } = credentials;
        let shared = Arc::new(Shared {
            world: world.clone(),
            coordinator,
            watched: Mutex::default(),
            current: AtomicU32::new(0),
            epoch: AtomicU32::new(1),
            compared: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            stuck: AtomicU32::new(0),
            unstuck: Notify::new(),
            admitted: AtomicU32::new(0),
            admissions: Mutex::default(),
        });
        let sockets: Vec<Endpoint> = (0..SOCKETS).map(|_| socket()).collect::<Result<_>>()?;
        let (mut orders, mut nodes) = (Vec::new(), Vec::new());
        for number in 0..shape.nodes() {
            let (to_node, received) = mpsc::unbounded_channel();
            let name = shape::node(number);
            let own = world
                .workloads_on(&name)
                .map(|record| (record.id.clone(), WorkloadRef::Admitted(record).report().into()));
            nodes.push(Node {
                number,
                endpoint: sockets[number as usize % SOCKETS].clone(),
                config: Dial::for_session(ca, &certificate(number)?, key)?.quic,
                revision: world.revision,
                digest: world.digest_of(&name),
                changed: HashMap::new(),
                workloads: own.collect(),
                started: HashMap::new(),
                orders: received,
                epoch: 0,
                current_in: 0,
                unsaid: None,
                shared: shared.clone(),
                name,
            });
            orders.push(to_node);
        }
        Ok(Self { orders, waiting: Mutex::new(nodes), shared })
    }

    /// Has all nodes connect at once.
    pub(crate) fn connect(&self) {
        for node in self.waiting.lock().drain(..) {
            tokio::spawn(node.live());
        }
    }

    pub(crate) fn order(&self, node: u32, order: Order) {
        let _ = self.orders[node as usize].send(order);
    }

    /// Waits until every node has a session and is current in it.
    pub(crate) async fn all_current(&self, timeout: Duration) -> Result<()> {
        let nodes = self.orders.len() as u32;
        self.until(timeout, "nodes are current", nodes, &self.shared.current).await
    }

    /// Waits until so many starts have been admitted.
    pub(crate) async fn all_admitted(&self, starts: u32, timeout: Duration) -> Result<()> {
        self.until(timeout, "workloads are admitted", starts, &self.shared.admitted).await
    }

    async fn until(
        &self,
        timeout: Duration,
        what: &str,
        wanted: u32,
        count: &AtomicU32,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while count.load(SeqCst) < wanted {
            ensure!(Instant::now() < deadline, "only {} of {wanted} {what}", count.load(SeqCst));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Milliseconds from start to admission.
    pub(crate) fn admissions(&self) -> Vec<f64> {
        std::mem::take(&mut *self.shared.admissions.lock())
    }

    /// Watches for the quarantine of a workload, or its end.
    pub(crate) fn watch(&self, workload: &str, is_quarantined: bool) -> Watch {
        let watched = Arc::new(Watched {
            workload: workload.parse().expect("an id"),
            is_quarantined,
            enforced: AtomicU32::new(0),
            last: Mutex::new(Instant::now()),
            progress: Notify::new(),
        });
        *self.shared.watched.lock() = Some(watched.clone());
        Watch(watched)
    }

    /// Has the first nodes stop reading.
    pub(crate) fn stick(&self, nodes: u32) {
        self.shared.stuck.store(nodes, SeqCst);
    }

    pub(crate) fn unstick(&self) {
        self.shared.stuck.store(0, SeqCst);
        self.shared.unstuck.notify_waiters();
    }

    /// The coordinator is gone: counts anew who is current in a session with the next, is told anew
    /// and loses rules.
    pub(crate) fn begin_epoch(&self) {
        self.shared.epoch.fetch_add(1, SeqCst);
        self.shared.current.store(0, SeqCst);
        self.shared.compared.store(0, SeqCst);
        self.shared.lost.store(0, SeqCst);
    }

    pub(crate) fn compared(&self) -> u32 {
        self.shared.compared.load(SeqCst)
    }

    pub(crate) fn lost(&self) -> u32 {
        self.shared.lost.load(SeqCst)
    }
}

fn socket() -> Result<Endpoint> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok(Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?)
}

impl Watch {
    /// Waits until so many nodes enforce it; returns the time of the last one.
    pub(crate) async fn wait(&self, nodes: u32, timeout: Duration) -> Result<Instant> {
        let all = async {
            loop {
                let progress = self.0.progress.notified();
                if self.0.enforced.load(SeqCst) >= nodes {
                    return *self.0.last.lock();
                }
                let _ = tokio::time::timeout(Duration::from_millis(20), progress).await;
            }
        };
        let enforced = || self.0.enforced.load(SeqCst);
        tokio::time::timeout(timeout, all)
            .await
            .with_context(|| format!("only {} of {nodes} nodes enforce it", enforced()))
    }
}

impl Node {
    async fn live(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            // Why it ended makes no difference to a node: it comes again.
            let _ = self.hold().await;
            if begun.elapsed() > MAX_PAUSE {
                pause = FIRST_PAUSE;
            }
            let jitter =
                f64::from(self.number.wrapping_mul(2_654_435_761) >> 16) / f64::from(1 << 16);
            tokio::time::sleep(pause / 2 + (pause / 2).mul_f64(jitter)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn hold(&mut self) -> Result<()> {
        self.epoch = self.shared.epoch.load(SeqCst);
        let connecting = self.endpoint.connect_with(
            self.config.clone(),
            self.shared.coordinator,
            COORDINATOR_NAME,
        )?;
        let connection = tokio::time::timeout(Duration::from_secs(5), connecting).await??;
        let (mut send, mut receive) = connection.open_bi().await?;
        for message in self.hello() {
            frames::send(&mut send, &message).await?;
        }
        let (read, mut incoming) = mpsc::channel(16);
        let (shared, number) = (self.shared.clone(), self.number);
        let reader = tokio::spawn(async move {
            loop {
                while number < shared.stuck.load(SeqCst) {
                    shared.unstuck.notified().await;
                }
                let message = frames::receive::<FromCoordinator>(&mut receive, MAX_UPDATE).await;
                if message.is_err() || read.send(message).await.is_err() {
                    return;
                }
            }
        });
        let _reader = AbortAtEnd(reader, connection);
        self.unsaid = None;
        loop {
            let due = self.unsaid.unwrap_or_else(tokio::time::Instant::now);
            tokio::select! {
                () = tokio::time::sleep_until(due), if self.unsaid.is_some() => {
                    self.unsaid = None;
                    frames::send(&mut send, &FromNode::Enforced(self.revision)).await?;
                }
                message = incoming.recv() => {
                    let message = message.context("the session ended")??;
                    for answer in self.take(message)? {
                        frames::send(&mut send, &answer).await?;
                    }
                }
                Some(order) = self.orders.recv() => {
                    let message = match order {
                        Order::Start(report) => {
                            self.started.insert(report.id.clone(), Instant::now());
                            self.workloads.insert(report.id.clone(), (*report).clone());
                            FromNode::Started(*report)
                        }
                        Order::Stop(id) => {
                            self.workloads.remove(&id);
                            FromNode::Stopped(id)
                        }
                    };
                    frames::send(&mut send, &message).await?;
                }
            }
        }
    }

    fn hello(&self) -> Vec<FromNode> {
        let record = &self.shared.world.nodes[&self.name];
        let endpoints = record.endpoints.iter().map(|(network, endpoint)| EndpointReport {
            relays: vec![],
            network: network.clone(),
            public_key: endpoint.public_key,
            port: 51820,
            advertised: endpoint.candidates.clone(),
            reflexive: vec![],
            interfaces: vec![],
        });
        let hello = FromNode::Hello {
            version: "simulated".into(),
            instance: InstanceId(random()),
            clock: clock(),
            revision: self.revision,
            digest: self.digest,
        };
        let has =
            FromNode::inventory(endpoints.collect(), self.workloads.values().cloned().collect());
        std::iter::once(hello).chain(has).collect()
    }

    fn take(&mut self, message: FromCoordinator) -> Result<Vec<FromNode>> {
        match message {
            FromCoordinator::Update { revision, changes, urgent } => {
                for change in changes {
                    self.follow(change)?;
                }
                self.revision = revision;
                let epoch = self.shared.epoch.load(SeqCst);
                if self.epoch == epoch && std::mem::replace(&mut self.current_in, epoch) != epoch {
                    self.shared.current.fetch_add(1, SeqCst);
                }
                if !urgent {
                    self.unsaid
                        .get_or_insert_with(|| tokio::time::Instant::now() + ENFORCED_WITHIN);
                    return Ok(vec![]);
                }
                self.unsaid = None;
                Ok(vec![FromNode::Enforced(revision)])
            }
            FromCoordinator::Compare => {
                self.shared.compared.fetch_add(1, SeqCst);
                let mut shadow = self.shared.world.view_of(&self.name).resource_hashes();
                for (key, hash) in &self.changed {
                    match hash {
                        Some(hash) => shadow.insert(key.clone(), *hash),
                        None => shadow.remove(key),
                    };
                }
                Ok(FromNode::resource_hashes(shadow))
            }
            FromCoordinator::Refused { workload, reason } => {
                anyhow::bail!("{workload} was refused: {reason}")
            }
            FromCoordinator::RefusedEndpoint { network, reason } => {
                anyhow::bail!("the endpoint of {network} was refused: {reason}")
            }
            FromCoordinator::PunchHole { .. }
            | FromCoordinator::Renewed { .. }
            | FromCoordinator::Relays(_)
            | FromCoordinator::OverBudget { .. }
            | FromCoordinator::StandBy { .. }
            | FromCoordinator::RotateKeys { .. } => Ok(vec![]),
        }
    }

    fn follow(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Put(key, resource) => {
                let hash = Hash128::of(&key, &resource);
                if let Some(before) = self.hash_of(&key) {
                    self.digest.remove(before);
                }
                self.digest.add(hash);
                self.notice(&key, &resource);
                self.changed.insert(key, Some(hash));
            }
            Change::Drop(key) => {
                if matches!(key, ResourceKey::Link(..)) {
                    self.shared.lost.fetch_add(1, SeqCst);
                }
                if let Some(before) = self.hash_of(&key) {
                    self.digest.remove(before);
                }
                // What was not there at the beginning is as it was then. Kept, it would have the
                // maps of all nodes grow at the same moment, which real nodes do each by itself.
                match self.at_first(&key) {
                    Some(_) => self.changed.insert(key, None),
                    None => self.changed.remove(&key),
                };
            }
            Change::Forget(..) => anyhow::bail!("no scenario here ends an identity"),
        }
        Ok(())
    }

    fn notice(&mut self, key: &ResourceKey, resource: &Resource) {
        let (ResourceKey::Workload(_, id), Resource::Workload(spec)) = (key, resource) else {
            return;
        };
        if let Some(started) = self.started.remove(id) {
            self.shared.admissions.lock().push(started.elapsed().as_secs_f64() * 1000.0);
            self.shared.admitted.fetch_add(1, SeqCst);
        }
        let watched = self.shared.watched.lock().clone();
        if let Some(watched) = watched
            .filter(|watched| watched.workload == *id && watched.is_quarantined == spec.quarantined)
        {
            *watched.last.lock() = Instant::now();
            watched.enforced.fetch_add(1, SeqCst);
            watched.progress.notify_one();
        }
    }

    /// Returns the hash of a resource before a change.
    fn hash_of(&self, key: &ResourceKey) -> Option<Hash128> {
        if let Some(changed) = self.changed.get(key) {
            return *changed;
        }
        self.at_first(key)
    }

    /// Returns the hash of a resource at the beginning.
    fn at_first(&self, key: &ResourceKey) -> Option<Hash128> {
        let ResourceKey::Workload(network, id) = key else { return None };
        let record = self.shared.world.networks.get(network)?.workloads.get(id)?;
        let resource =
            meshward_control_state::world::workload_resource(record, WorkloadState::default());
        Some(Hash128::of(&resource.0, &resource.1))
    }
}

struct AbortAtEnd(tokio::task::JoinHandle<()>, Connection);

impl Drop for AbortAtEnd {
    fn drop(&mut self) {
        self.0.abort();
        self.1.close(0u32.into(), b"ended");
    }
}
