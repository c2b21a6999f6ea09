//! The relay: passes sealed packets on between nodes that cannot reach each other.

pub mod links;
pub mod process;

use bytes::BytesMut;
use meshward_model::relay::{RelayId, cut, destination, set_source};
use parking_lot::RwLock;
use quinn::Connection;
use std::collections::HashMap;

/// The nodes that can be relayed to.
#[derive(Default)]
pub struct Relay {
    connections: RwLock<HashMap<RelayId, Connection>>,
}

impl Relay {
    /// Relays what a node sends until its connection ends. What does not fit into the receiver's buffer is lost, as in any
    /// network: nobody is held up by a slow one.
    pub async fn serve(&self, id: RelayId, connection: Connection) {
        let before = self.connections.write().insert(id, connection.clone());
        if let Some(before) = before {
            before.close(1u32.into(), b"the node has a newer connection");
        }
        while let Ok(frame) = connection.read_datagram().await {
            let Some(to) = destination(&frame).and_then(|to| self.connections.read().get(&to).cloned())
            else {
                continue;
            };
            // Copied only if its packet had others in it.
            let mut frame = frame.try_into_mut().unwrap_or_else(BytesMut::from);
            set_source(&mut frame, id);
            match to.max_datagram_size() {
                // The way there takes only shorter ones.
                Some(most) if frame.len() > most => {
                    cut(&frame, most).for_each(|piece| drop(to.send_datagram(piece.into())));
                }
                _ => drop(to.send_datagram(frame.freeze())),
            }
        }
        let mut connections = self.connections.write();
        if connections.get(&id).is_some_and(|own| own.stable_id() == connection.stable_id()) {
            connections.remove(&id);
        }
    }

    /// Ends a node's connection.
    pub fn end(&self, id: RelayId) {
        if let Some(connection) = self.connections.write().remove(&id) {
            connection.close(2u32.into(), b"this node was removed from the mesh");
        }
    }
}
