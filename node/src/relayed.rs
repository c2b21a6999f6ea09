//! Packets that go by the relay: a connection of their own to the coordinator, so that they are not in the way of what it has
//! to say.

use crate::{daemon::Node, dial};
use anyhow::{Context, Result};
use meshward_daemon::dial::for_relay;
use meshward_model::relay::{Gathering, RelayId, RelayNetwork, frames};
use quinn::Connection;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tracing::{debug, info};

/// The most messages that wait to be sent; then they are lost, as in any network.
const WAITING: usize = 4096;
const PAUSE: Duration = Duration::from_secs(1);

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

/// Holds the connection, for ever.
pub async fn hold(node: Arc<Node>, mut outgoing: mpsc::Receiver<Outgoing>) {
    loop {
        if let Err(error) = hold_one(&node, &mut outgoing).await {
            debug!("no relay: {error:#}");
        }
        tokio::time::sleep(PAUSE).await;
        // What waited meanwhile is too old.
        while outgoing.try_recv().is_ok() {}
    }
}

async fn hold_one(node: &Arc<Node>, outgoing: &mut mpsc::Receiver<Outgoing>) -> Result<()> {
    let credentials = node.folder.credentials()?;
    let config = for_relay(&credentials.ca, &credentials.certificate, &credentials.key)?;
    let (_endpoint, connection) = dial::dial(&node.membership.coordinator, config).await?;
    info!(relay = %connection.remote_address(), "relay reached");
    let receiving = tokio::spawn(receive(node.clone(), connection.clone()));
    let mut number = 0u16;
    loop {
        tokio::select! {
            closed = connection.closed() => {
                receiving.abort();
                return Err(closed.into());
            }
            next = outgoing.recv() => {
                let Outgoing { to, network, messages, size } = next.context("the daemon ends")?;
                let most = connection.max_datagram_size().unwrap_or_default();
                for message in messages.chunks(size.max(1)) {
                    number = number.wrapping_add(1);
                    for frame in frames(to, network, number, message, most) {
                        // Waits for room: the queue in front of it is what is bounded.
                        connection.send_datagram_wait(frame.into()).await?;
                    }
                }
            }
        }
    }
}

async fn receive(node: Arc<Node>, connection: Connection) {
    let mut gathering = Gathering::default();
    let mut injector = node.injector();
    while let Ok(frame) = connection.read_datagram().await {
        if let Some((from, network, mut message)) = gathering.take(&frame) {
            injector.inject(network, from.address(), &mut message);
        }
    }
}
