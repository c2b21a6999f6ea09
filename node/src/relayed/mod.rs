//! Packets that go by relays: connections of their own, so that they are not in the way of what the
//! coordinator has to say.
//!
//! A node can be reached by the relays that are its *homes* ([`homes`]); it reaches others by
//! theirs.

mod homes;

pub use homes::choose;

use crate::daemon::{Node, Reach};
use anyhow::{Context, Result};
use futures::FutureExt;
use meshward_control_proto::{
    COORDINATOR_NAME,
    relay::{Gathering, RelaySpec, Run, frames, server_name},
};
use meshward_runtime::{
    dial::{Dial, Pauses, Reached},
    member::Credentials,
};
use meshward_types::relay::{RelayId, RelayNetwork, RelayNumber};
use parking_lot::RwLock;
use quinn::Connection;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tracing::{debug, info};

/// The most messages that wait to be sent by one relay; then they are lost, as in any network.
const WAITING: usize = 4096;
/// The most frames that are looked at together.
const MOST_TOGETHER: usize = 128;
/// A connection that nothing has gone by for this long is given up, where it is not kept.
const IDLE: Duration = Duration::from_secs(600);
/// How long it may take to find out that others reach this node directly.
const FOUND_OUT: Duration = Duration::from_secs(2);

/// Messages for a peer.
pub struct Outgoing {
    to: RelayId,
    network: RelayNetwork,
    messages: Vec<u8>,
    size: usize,
}

/// The way to the relays.
#[derive(Clone)]
pub struct Sender {
    queues: Arc<RwLock<HashMap<RelayNumber, mpsc::Sender<Outgoing>>>>,
    /// For relays that nothing was sent by yet.
    others: mpsc::Sender<(RelayNumber, Outgoing)>,
}

/// The other end of the way.
pub struct Orders {
    sender: Sender,
    others: mpsc::Receiver<(RelayNumber, Outgoing)>,
}

/// Makes the way, and its other end.
pub fn channel() -> (Sender, Orders) {
    let (to_others, others) = mpsc::channel(WAITING);
    let sender = Sender { queues: Arc::default(), others: to_others };
    (sender.clone(), Orders { sender, others })
}

impl Sender {
    /// Sends messages by a relay, each of `size` bytes but for the last, which may be shorter;
    /// `false` if they were not taken.
    pub fn send(
        &self,
        by: RelayNumber,
        to: RelayId,
        network: RelayNetwork,
        messages: &[u8],
        size: usize,
    ) -> bool {
        let outgoing = Outgoing { to, network, messages: messages.to_vec(), size };
        match self.queues.read().get(&by) {
            Some(queue) => queue.try_send(outgoing).is_ok(),
            None => self.others.try_send((by, outgoing)).is_ok(),
        }
    }
}

/// Holds connections to relays, for ever. Those to the homes are held from the start on where
/// others do not reach this node directly, elsewhere once somebody calls; all others once there is
/// something to send. So a relay that comes back is not asked by everybody at once.
pub async fn hold(node: Arc<Node>, mut orders: Orders) {
    let (mut specs, mut homes) = (node.relays.subscribe(), node.homes.subscribe());
    let (mut ways, mut tasks) = (Ways::default(), JoinSet::new());
    let found_out = tokio::time::sleep(FOUND_OUT);
    tokio::pin!(found_out);
    let mut begun = false;
    loop {
        let known = specs.borrow_and_update().clone();
        ways.forget_others(&orders.sender, &known);
        let chosen = homes.borrow_and_update().clone();
        let keep = node.reach() == Reach::Hidden || begun && node.reach() == Reach::Unknown;
        for number in &chosen {
            ways.start(&node, &orders.sender, &mut tasks, *number, &known);
        }
        for (number, way) in &ways.0 {
            way.keep.send_if_modified(|kept| {
                let wanted = keep && chosen.contains(number);
                std::mem::replace(kept, wanted) != wanted
            });
        }
        tokio::select! {
            Ok(()) = specs.changed() => {}
            Ok(()) = homes.changed() => {}
            () = node.relay_wanted.notified() => {
                chosen.iter().filter_map(|number| ways.0.get(number)).for_each(|way| way.wanted.notify_one());
            }
            () = &mut found_out, if !begun => begun = true,
            Some((number, outgoing)) = orders.others.recv() => {
                ways.start(&node, &orders.sender, &mut tasks, number, &known);
                if let Some(queue) = orders.sender.queues.read().get(&number) {
                    let _ = queue.try_send(outgoing);
                }
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// The relays that are or may be connected.
#[derive(Default)]
struct Ways(HashMap<RelayNumber, Way>);

struct Way {
    spec: Option<RelaySpec>,
    /// Whether the connection is held though nothing goes by it.
    keep: watch::Sender<bool>,
    wanted: Arc<Notify>,
    task: AbortHandle,
}

impl Ways {
    fn start(
        &mut self,
        node: &Arc<Node>,
        sender: &Sender,
        tasks: &mut JoinSet<()>,
        number: RelayNumber,
        known: &[RelaySpec],
    ) {
        let spec = known.iter().find(|spec| spec.number == number).cloned();
        if self.0.contains_key(&number) || spec.is_none() && number != RelayNumber::COORDINATOR {
            return;
        }
        let (queue, outgoing) = mpsc::channel(WAITING);
        let (keep, kept) = watch::channel(false);
        let wanted = Arc::new(Notify::new());
        let relay = Relay { number, spec: spec.clone(), kept, wanted: wanted.clone() };
        let task = tasks.spawn(relay.hold(node.clone(), outgoing));
        sender.queues.write().insert(number, queue);
        self.0.insert(number, Way { spec, keep, wanted, task });
    }

    /// Ends what is there of relays that are gone, or elsewhere.
    fn forget_others(&mut self, sender: &Sender, known: &[RelaySpec]) {
        self.0.retain(|number, way| {
            let same =
                way.spec.is_none() || known.iter().any(|spec| Some(spec) == way.spec.as_ref());
            if !same {
                way.task.abort();
                sender.queues.write().remove(number);
            }
            same
        });
    }
}

/// One relay.
struct Relay {
    number: RelayNumber,
    /// `None`: the coordinator.
    spec: Option<RelaySpec>,
    kept: watch::Receiver<bool>,
    wanted: Arc<Notify>,
}

impl Relay {
    async fn hold(mut self, node: Arc<Node>, mut outgoing: mpsc::Receiver<Outgoing>) {
        let mut pauses = Pauses::default();
        loop {
            let mut first = None;
            if !*self.kept.borrow_and_update() {
                tokio::select! {
                    next = outgoing.recv() => match next {
                        Some(next) => first = Some(next),
                        None => return,
                    },
                    () = self.wanted.notified() => {}
                    Ok(()) = self.kept.changed() => continue,
                }
            }
            let begun = Instant::now();
            match self.hold_one(&node, &mut outgoing, first).await {
                Ok(()) => debug!(relay = %self.number, "not needed any more"),
                Err(error) => {
                    debug!(relay = %self.number, "no relay: {error:#}");
                    node.relay_lost.notify_one();
                }
            }
            pauses.wait(begun).await;
            // What waited meanwhile is too old.
            while outgoing.try_recv().is_ok() {}
        }
    }

    async fn dial(&self, node: &Node) -> Result<Reached> {
        let Credentials { ca, certificate, key } = node.folder.credentials()?;
        let Some(spec) = &self.spec else {
            let dial = Dial::for_relay(&ca, &certificate, &key, COORDINATOR_NAME)?;
            return dial.dial(&node.membership.coordinator).await;
        };
        let dial = Dial::for_relay(&ca, &certificate, &key, &server_name(&spec.name))?;
        let mut failure = anyhow::anyhow!("relay {} has no address", spec.name);
        for address in &spec.addresses {
            match dial.dial(address).await {
                Ok(reached) => return Ok(reached),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Holds one connection until it ends, or is not needed any more.
    async fn hold_one(
        &self,
        node: &Arc<Node>,
        outgoing: &mut mpsc::Receiver<Outgoing>,
        first: Option<Outgoing>,
    ) -> Result<()> {
        let reached = self.dial(node).await?;
        let connection = reached.connection.clone();
        let mut first_words = connection.open_uni().await?;
        first_words.write_all(&node.instance().0).await?;
        first_words.finish()?;
        info!(relay = %self.number, at = %connection.remote_address(), tunnelled = reached.tunnelled, "relay reached");
        let used = Arc::new(AtomicBool::new(true));
        // Ends with the set.
        let mut receiving = JoinSet::new();
        receiving.spawn(receive(node.clone(), self.number, connection.clone(), used.clone()));
        let mut number = 0u16;
        if let Some(first) = first {
            send(&connection, &mut number, first).await?;
        }
        let mut look = tokio::time::interval(IDLE);
        look.reset();
        loop {
            tokio::select! {
                closed = connection.closed() => return Err(closed.into()),
                next = outgoing.recv() => {
                    used.store(true, Relaxed);
                    send(&connection, &mut number, next.context("the relay is gone")?).await?;
                }
                _ = look.tick() => {
                    if !used.swap(false, Relaxed) && !*self.kept.borrow() {
                        connection.close(0u32.into(), b"not needed any more");
                        return Ok(());
                    }
                }
            }
        }
    }
}

async fn send(connection: &Connection, number: &mut u16, outgoing: Outgoing) -> Result<()> {
    let Outgoing { to, network, messages, size } = outgoing;
    let most = connection.max_datagram_size().unwrap_or_default();
    *number = number.wrapping_add(1);
    for frame in frames(to, network, *number, &messages, size, most) {
        // Waits for room: the queue in front of it is what is bounded.
        connection.send_datagram_wait(frame.into()).await?;
    }
    Ok(())
}

async fn receive(
    node: Arc<Node>,
    relay: RelayNumber,
    connection: Connection,
    used: Arc<AtomicBool>,
) {
    let mut gathering = Gathering::default();
    let mut injector = node.injector();
    while let Ok(frame) = connection.read_datagram().await {
        gathering.take(&frame);
        // What has come with it goes on with it.
        for _ in 0..MOST_TOGETHER {
            let Some(Ok(frame)) = connection.read_datagram().now_or_never() else { break };
            gathering.take(&frame);
        }
        for Run { from, network, mut messages, size } in gathering.take_whole() {
            used.store(true, Relaxed);
            injector.inject(network, from.address(relay), &mut messages, size);
        }
    }
}
