//! Connections to relays, of their own, so that relayed packets are not in the way of the session
//! with the coordinator.
//!
//! A node can be reached by its home relays ([`super::home_relays`]); it reaches others by theirs.

use super::Reachability;
use crate::relay_queue::{CAPACITY, Outgoing, Receiver, Sender};
use anyhow::{Context, Result};
use futures::FutureExt;
use meshward_control_proto::{
    COORDINATOR_NAME,
    relay::{BatchAssembler, MessageBatch, MessageRun, RelaySpec, server_name},
};
use meshward_runtime::{
    dial::{Dial, Pauses, Reached},
    member::Credentials,
};
use meshward_types::relay::RelayNumber;
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

/// The largest number of frames that are handled together.
const MOST_TOGETHER: usize = 128;
/// The time after which an idle connection is closed, if it is not kept.
const IDLE: Duration = Duration::from_mins(10);
/// The time to find out that others reach this node directly.
const FOUND_OUT: Duration = Duration::from_secs(2);

/// Holds connections to relays, for ever. Those to the `home_relays` are open from the start on
/// where others do not reach this node directly, elsewhere once somebody calls; all others once
/// there is something to send. So a relay that comes back is not asked by everybody at once.
pub async fn keep_connections(reachability: Arc<Reachability>, mut orders: Receiver) {
    let (mut specs, mut home_relays) =
        (reachability.relays.subscribe(), reachability.home_relays.subscribe());
    let mut connections = Connections::new(reachability.clone(), orders.sender.clone());
    let found_out = tokio::time::sleep(FOUND_OUT);
    tokio::pin!(found_out);
    let mut begun = false;
    loop {
        let known = specs.borrow_and_update().clone();
        connections.forget_others(&known);
        let chosen = home_relays.borrow_and_update().clone();
        let keep = reachability.needs_relays(begun);
        for number in &chosen {
            connections.start(*number, &known);
        }
        for (number, connection) in &connections.by_relay {
            connection.keep.send_if_modified(|kept| {
                let wanted = keep && chosen.contains(number);
                std::mem::replace(kept, wanted) != wanted
            });
        }
        tokio::select! {
            Ok(()) = specs.changed() => {}
            Ok(()) = home_relays.changed() => {}
            () = reachability.relay_wanted.notified() => {
                let wanted = chosen.iter().filter_map(|number| connections.by_relay.get(number));
                for connection in wanted {
                    connection.wanted.notify_one();
                }
            }
            () = &mut found_out, if !begun => begun = true,
            Some((number, outgoing)) = orders.others.recv() => {
                connections.start(number, &known);
                if let Some(queue) = orders.sender.queues.read().get(&number) {
                    let _ = queue.try_send(outgoing);
                }
            }
            Some(_) = connections.tasks.join_next() => {}
        }
    }
}

/// The tasks of the relays that are or may be connected.
struct Connections {
    reachability: Arc<Reachability>,
    sender: Sender,
    tasks: JoinSet<()>,
    by_relay: HashMap<RelayNumber, RelayConnection>,
}

struct RelayConnection {
    spec: Option<RelaySpec>,
    /// `true` if the connection stays open while it is idle.
    keep: watch::Sender<bool>,
    wanted: Arc<Notify>,
    task: AbortHandle,
}

impl Connections {
    fn new(reachability: Arc<Reachability>, sender: Sender) -> Self {
        Self { reachability, sender, tasks: JoinSet::new(), by_relay: HashMap::new() }
    }

    /// Starts the task of a relay, if there is such a relay and it has none.
    fn start(&mut self, number: RelayNumber, known: &[RelaySpec]) {
        let spec = known.iter().find(|spec| spec.number == number).cloned();
        if self.by_relay.contains_key(&number)
            || spec.is_none() && number != RelayNumber::COORDINATOR
        {
            return;
        }
        let (queue, outgoing) = mpsc::channel(CAPACITY);
        let (keep, kept) = watch::channel(false);
        let wanted = Arc::new(Notify::new());
        let relay = Relay { number, spec: spec.clone(), kept, wanted: wanted.clone() };
        let task = self.tasks.spawn(relay.keep_connected(self.reachability.clone(), outgoing));
        self.sender.queues.write().insert(number, queue);
        self.by_relay.insert(number, RelayConnection { spec, keep, wanted, task });
    }

    /// Ends the tasks of relays that are gone, or have other addresses.
    fn forget_others(&mut self, known: &[RelaySpec]) {
        let sender = &self.sender;
        self.by_relay.retain(|number, connection| {
            let same = connection.spec.is_none()
                || known.iter().any(|spec| Some(spec) == connection.spec.as_ref());
            if !same {
                connection.task.abort();
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
    async fn keep_connected(
        mut self,
        reachability: Arc<Reachability>,
        mut outgoing: mpsc::Receiver<Outgoing>,
    ) {
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
            match self.run_connection(&reachability, &mut outgoing, first).await {
                Ok(()) => debug!(relay = %self.number, "not needed any more"),
                Err(error) => {
                    debug!(relay = %self.number, "no relay: {error:#}");
                    reachability.relay_lost.notify_one();
                }
            }
            pauses.wait(begun).await;
            // What waited meanwhile is too old.
            while outgoing.try_recv().is_ok() {}
        }
    }

    async fn dial(&self, reachability: &Reachability) -> Result<Reached> {
        let Credentials { ca, certificate, key } = reachability.folder.credentials()?;
        let Some(spec) = &self.spec else {
            let dial = Dial::for_relay(&ca, &certificate, &key, COORDINATOR_NAME)?;
            return dial.dial(&reachability.membership.coordinator).await;
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

    /// Keeps one connection until it ends, or is idle and not kept.
    async fn run_connection(
        &self,
        reachability: &Arc<Reachability>,
        outgoing: &mut mpsc::Receiver<Outgoing>,
        first: Option<Outgoing>,
    ) -> Result<()> {
        let reached = self.dial(reachability).await?;
        let connection = reached.connection.clone();
        let mut first_words = connection.open_uni().await?;
        first_words.write_all(&reachability.instance.0).await?;
        first_words.finish()?;
        info!(
            relay = %self.number, at = %connection.remote_address(),
            tunnelled = reached.tunnelled, "relay reached"
        );
        let used = Arc::new(AtomicBool::new(true));
        // Ends with the set.
        let mut receiving = JoinSet::new();
        receiving.spawn(receive(
            reachability.clone(),
            self.number,
            connection.clone(),
            used.clone(),
        ));
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
    let batch = MessageBatch { to, network, number: *number, messages: &messages, size };
    for frame in batch.frames(most) {
        // Waits for room: the queue in front of it is what is bounded.
        connection.send_datagram_wait(frame.into()).await?;
    }
    Ok(())
}

async fn receive(
    reachability: Arc<Reachability>,
    relay: RelayNumber,
    connection: Connection,
    used: Arc<AtomicBool>,
) {
    let mut assembler = BatchAssembler::default();
    let mut injector = reachability.injector();
    while let Ok(frame) = connection.read_datagram().await {
        assembler.add(&frame);
        // What has come with it goes on with it.
        for _ in 0..MOST_TOGETHER {
            let Some(Ok(frame)) = connection.read_datagram().now_or_never() else { break };
            assembler.add(&frame);
        }
        for MessageRun { from, network, mut messages, size } in assembler.drain_complete() {
            used.store(true, Relaxed);
            injector.inject(network, from.address(relay), &mut messages, size);
        }
    }
}
