//! The forwarder: forwards encrypted packets between nodes that cannot reach each other.

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use meshward_control_proto::{
    InstanceId,
    relay::{destination, set_source, split_frame},
};
use meshward_types::relay::RelayId;
use parking_lot::RwLock;
use quinn::Connection;
use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Time limit for a node to send the instance id of its daemon.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// The connections of nodes by which frames arrive and leave.
#[derive(Default)]
pub struct Forwarder {
    table: RwLock<Table>,
    counts: Counts,
}

#[derive(Default)]
struct Table {
    connections: HashMap<RelayId, Served>,
    /// The starts of nodes' daemons that have sessions, as far as known. A copy of a node's disk is
    /// another start.
    sessions: HashMap<RelayId, InstanceId>,
}

struct Served {
    connection: Connection,
    instance: InstanceId,
}

impl Table {
    /// Returns `false` if another start of the node's daemon has its session.
    fn may_connect(&self, id: RelayId, instance: InstanceId) -> bool {
        self.sessions.get(&id).is_none_or(|session| *session == instance)
    }
}

/// Counts of what was forwarded and what was lost, since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Frames received.
    pub frames: AtomicU64,
    /// The bytes of these frames.
    pub bytes: AtomicU64,
    /// Frames for nodes that have no connection.
    pub unreachable: AtomicU64,
    /// Frames for which the receiver's connection had no room.
    pub lost: AtomicU64,
    /// Connections of second machines with a node's identity.
    pub duplicates: AtomicU64,
}

impl Forwarder {
    /// Forwards a node's frames until its connection ends. A frame that does not fit into the
    /// receiver's buffer is dropped, as in any network: a slow receiver delays nobody.
    ///
    /// # Errors
    /// Fails if the node does not send its instance id in time, or another start of its daemon has
    /// the session.
    pub async fn serve(&self, id: RelayId, connection: Connection) -> Result<()> {
        let received = tokio::time::timeout(FIRST_MESSAGE, receive_instance(&connection)).await;
        let instance = received.context("the node did not send its instance id in time")??;
        {
            let mut table = self.table.write();
            if !table.may_connect(id, instance) {
                drop(table);
                self.close_duplicate(&connection);
                anyhow::bail!("another machine has this node's session");
            }
            let served = Served { connection: connection.clone(), instance };
            if let Some(before) = table.connections.insert(id, served) {
                before.connection.close(1u32.into(), b"the node has a newer connection");
            }
        }
        while let Ok(frame) = connection.read_datagram().await {
            self.counts.frames.fetch_add(1, Relaxed);
            self.counts.bytes.fetch_add(frame.len() as u64, Relaxed);
            let connection_to =
                |to| Some(self.table.read().connections.get(&to)?.connection.clone());
            let Some(to) = destination(&frame).and_then(connection_to) else {
                self.counts.unreachable.fetch_add(1, Relaxed);
                continue;
            };
            // Copied only if the QUIC packet carried other frames, too.
            let mut frame = frame.try_into_mut().unwrap_or_else(BytesMut::from);
            set_source(&mut frame, id);
            let forward = |frame: Bytes| {
                if to.send_datagram(frame).is_err() {
                    self.counts.lost.fetch_add(1, Relaxed);
                }
            };
            match to.max_datagram_size() {
                // The path to the receiver has a smaller MTU.
                Some(max) if frame.len() > max => {
                    split_frame(&frame, max).for_each(|piece| forward(piece.into()));
                }
                _ => forward(frame.freeze()),
            }
        }
        let mut table = self.table.write();
        let stable = connection.stable_id();
        if table.connections.get(&id).is_some_and(|own| own.connection.stable_id() == stable) {
            table.connections.remove(&id);
        }
        Ok(())
    }

    /// Closes the connection of another machine that has the node's identity.
    fn close_duplicate(&self, connection: &Connection) {
        self.counts.duplicates.fetch_add(1, Relaxed);
        connection.close(6u32.into(), b"another machine has this node's identity and its session");
    }

    /// Records which start of a node's daemon has its session: the connection of any other ends.
    pub fn set_session(&self, id: RelayId, instance: Option<InstanceId>) {
        let mut table = self.table.write();
        match instance {
            Some(instance) => drop(table.sessions.insert(id, instance)),
            None => drop(table.sessions.remove(&id)),
        }
        let is_other =
            |served: &Served| instance.is_some_and(|instance| served.instance != instance);
        if table.connections.get(&id).is_some_and(is_other)
            && let Some(served) = table.connections.remove(&id)
        {
            drop(table);
            self.close_duplicate(&served.connection);
        }
    }

    /// Records all sessions; those of other nodes are forgotten.
    pub fn set_sessions(&self, all: impl IntoIterator<Item = (RelayId, InstanceId)>) {
        self.table.write().sessions.clear();
        all.into_iter().for_each(|(id, instance)| self.set_session(id, Some(instance)));
    }

    /// Ends a node's connection.
    pub fn end(&self, id: RelayId) {
        let mut table = self.table.write();
        table.sessions.remove(&id);
        if let Some(served) = table.connections.remove(&id) {
            served.connection.close(2u32.into(), b"this node was removed from the mesh");
        }
    }

    /// Returns the number of nodes that are connected.
    pub fn connected(&self) -> usize {
        self.table.read().connections.len()
    }

    /// Returns the counts since the start.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// Reads the instance id of the node's daemon, the first message of a connection.
async fn receive_instance(connection: &Connection) -> Result<InstanceId> {
    let mut stream = connection.accept_uni().await?;
    let mut instance = InstanceId([0; 16]);
    stream.read_exact(&mut instance.0).await?;
    Ok(instance)
}
