//! The links of relays other than the coordinator itself: they learn the mesh's nodes, and nodes
//! learn the relays' addresses.

use crate::sessions::Sessions;
use meshward_control_proto::{
    CLOSE_REMOVED,
    relay::{RelaySpec, ToRelay},
};
use meshward_control_state::world::RelayDelta;
use meshward_relay::forwarder::Forwarder;
use meshward_types::{NodeName, relay::RelayId};
use parking_lot::Mutex;
use quinn::Connection;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::{mpsc, watch};

/// The maximum number of messages that wait for one relay. A slower one is disconnected, and gets
/// everything anew when it comes back.
pub(crate) const MAX_WAITING: usize = 1 << 14;

/// The relays that are connected.
#[derive(Default)]
pub struct RelayLinks {
    table: Mutex<HashMap<NodeName, Link>>,
    specs: watch::Sender<Arc<Vec<RelaySpec>>>,
    /// Locked while sessions are announced, so that relays get them in order.
    announcing: Mutex<()>,
}

/// The link of one relay.
pub struct Link {
    /// The relay's connection.
    pub connection: Connection,
    /// The messages that wait for it.
    pub messages: mpsc::Sender<ToRelay>,
}

impl RelayLinks {
    /// Subscribes to the relays' addresses.
    pub fn specs(&self) -> watch::Receiver<Arc<Vec<RelaySpec>>> {
        self.specs.subscribe()
    }

    /// Announces to all relays, this coordinator's own included, which start of a node's daemon has
    /// its session now.
    pub fn announce_session(&self, own: &Forwarder, sessions: &Sessions, node: &NodeName) {
        let _in_order = self.announcing.lock();
        let instance = sessions.get(node).map(|session| session.node.instance);
        own.set_session(RelayId::of(node), instance);
        self.send_to_all(&ToRelay::Session { node: node.clone(), instance });
    }

    /// Adds the link of a relay, in place of an older one, and takes a snapshot: what changes after
    /// it is sent by the link.
    pub fn register<T>(&self, name: &NodeName, link: Link, snapshot: impl FnOnce() -> T) -> T {
        let _in_order = self.announcing.lock();
        if let Some(before) = self.table.lock().insert(name.clone(), link) {
            before.connection.close(1u32.into(), b"the relay has a newer link");
        }
        snapshot()
    }

    /// Removes a link that has ended, if it is still the relay's.
    pub fn unregister(&self, name: &NodeName, stable_id: usize) {
        let mut table = self.table.lock();
        if table.get(name).is_some_and(|link| link.connection.stable_id() == stable_id) {
            table.remove(name);
        }
    }

    /// Returns `true` if a relay is connected.
    pub fn is_connected(&self, relay: &NodeName) -> bool {
        self.table.lock().contains_key(relay)
    }

    /// Delivers deltas to relays, and to the subscribers of their addresses.
    pub fn deliver(&self, deltas: &[RelayDelta]) {
        for delta in deltas {
            match delta {
                RelayDelta::Send(message) => self.send_to_all(message),
                RelayDelta::Disconnect(name) => self.disconnect(name),
                RelayDelta::Relays(specs) => self.publish(specs.clone()),
            }
        }
    }

    /// Publishes the relays' addresses, if they have changed.
    pub fn publish(&self, specs: Vec<RelaySpec>) {
        self.specs.send_if_modified(|before| {
            let other = **before != specs;
            if other {
                *before = Arc::new(specs);
            }
            other
        });
    }

    fn send_to_all(&self, message: &ToRelay) {
        self.table.lock().retain(|_, link| {
            let is_queued = link.messages.try_send(message.clone()).is_ok();
            if !is_queued {
                link.connection.close(3u32.into(), b"too slow; come again");
            }
            is_queued
        });
    }

    fn disconnect(&self, name: &NodeName) {
        if let Some(link) = self.table.lock().remove(name) {
            link.connection.close(CLOSE_REMOVED.into(), b"this relay was removed from the mesh");
        }
    }
}
