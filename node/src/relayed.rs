//! Packets that go by the relay: a connection of their own to the coordinator, so that they are not in the way of what it has
//! to say.

use crate::{daemon::Node, dial};
use anyhow::{Context, Result};
use meshward_daemon::dial::for_relay;
use meshward_model::relay::{Gathering, RelayId, RelayNetwork, frames};
use quinn::Connection;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tracing::{debug, info};

/// The most messages that wait to be sent; then they are lost, as in any network.
const WAITING: usize = 4096;
/// A connection that nothing has gone by for this long is given up, where there is no NAT.
const IDLE: Duration = Duration::from_secs(600);

/// Messages for a peer.
pub struct Outgoing {
    to: RelayId,
    network: RelayNetwork,
    messages: Vec<u8>,
    size: usize,
}

/// The way to the relay.
#[derive(Clone)]
pub struct Sender(mpsc::Sender<Outgoing>);

/// Makes the way, and its other end.
pub fn channel() -> (Sender, mpsc::Receiver<Outgoing>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Sender(sender), receiver)
}

impl Sender {
    /// Sends messages, each of `size` bytes but for the last, which may be shorter; `false` if they were not taken.
    pub fn send(&self, to: RelayId, network: RelayNetwork, messages: &[u8], size: usize) -> bool {
        self.0.try_send(Outgoing { to, network, messages: messages.to_vec(), size }).is_ok()
    }
}

/// Holds the connection, for ever: from the start on where a NAT is in the way, elsewhere once somebody calls or there is
/// something to send. So a coordinator that comes back is not asked by everybody twice.
pub async fn hold(node: Arc<Node>, mut outgoing: mpsc::Receiver<Outgoing>) {
    let mut pauses = dial::Pauses::default();
    loop {
        let mut first = None;
        if !node.is_behind_nat() {
            tokio::select! {
                next = outgoing.recv() => first = next,
                () = node.relay_wanted.notified() => {}
            }
        }
        let begun = Instant::now();
        match hold_one(&node, &mut outgoing, first).await {
            Ok(()) => debug!("the relay was not needed any more"),
            Err(error) => debug!("no relay: {error:#}"),
        }
        pauses.wait(begun).await;
        // What waited meanwhile is too old.
        while outgoing.try_recv().is_ok() {}
    }
}

/// Holds one connection until it ends, or is not needed any more.
async fn hold_one(
    node: &Arc<Node>,
    outgoing: &mut mpsc::Receiver<Outgoing>,
    first: Option<Outgoing>,
) -> Result<()> {
    let credentials = node.folder.credentials()?;
    let config = for_relay(&credentials.ca, &credentials.certificate, &credentials.key)?;
    let (_endpoint, connection) = dial::dial(&node.membership.coordinator, config).await?;
    info!(relay = %connection.remote_address(), "relay reached");
    let used = Arc::new(AtomicBool::new(true));
    // Ends with the set.
    let mut receiving = JoinSet::new();
    receiving.spawn(receive(node.clone(), connection.clone(), used.clone()));
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
                send(&connection, &mut number, next.context("the daemon ends")?).await?;
            }
            _ = look.tick() => {
                if !used.swap(false, Relaxed) && !node.is_behind_nat() {
                    connection.close(0u32.into(), b"not needed any more");
                    return Ok(());
                }
            }
        }
    }
}

async fn send(connection: &Connection, number: &mut u16, outgoing: Outgoing) -> Result<()> {
    let Outgoing { to, network, messages, size } = outgoing;
    let most = connection.max_datagram_size().unwrap_or_default();
    for message in messages.chunks(size.max(1)) {
        *number = number.wrapping_add(1);
        for frame in frames(to, network, *number, message, most) {
            // Waits for room: the queue in front of it is what is bounded.
            connection.send_datagram_wait(frame.into()).await?;
        }
    }
    Ok(())
}

async fn receive(node: Arc<Node>, connection: Connection, used: Arc<AtomicBool>) {
    let mut gathering = Gathering::default();
    let mut injector = node.injector();
    while let Ok(frame) = connection.read_datagram().await {
        if let Some((from, network, mut message)) = gathering.take(&frame) {
            used.store(true, Relaxed);
            injector.inject(network, from.address(), &mut message);
        }
    }
}
