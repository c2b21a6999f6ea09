//! The coordinator's side of relays that are not itself: it tells them who the nodes are, and the
//! nodes where they are.

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

/// The most messages that wait for one relay; who is slower is told everything anew.
pub(crate) const WAITING: usize = 1 << 14;

/// The relays that are connected.
#[derive(Default)]
pub struct RelayLinks {
    table: Mutex<HashMap<NodeName, Link>>,
    specs: watch::Sender<Arc<Vec<RelaySpec>>>,
    /// Held while it is said who has sessions.
    telling: Mutex<()>,
}

/// The link of one relay.
pub struct Link {
    /// Its connection.
    pub connection: Connection,
    /// The messages that wait for it.
    pub messages: mpsc::Sender<ToRelay>,
}

impl RelayLinks {
    /// Where the relays are, now and whenever that changes.
    pub fn specs(&self) -> watch::Receiver<Arc<Vec<RelaySpec>>> {
        self.specs.subscribe()
    }

    /// Has this coordinator's own relay, and all others, told which start of a node's daemon has
    /// its session now.
    pub fn announce_session(&self, own: &Forwarder, sessions: &Sessions, node: &NodeName) {
        // What is told last is what is so.
        let _in_order = self.telling.lock();
        let instance = sessions.get(node).map(|session| session.node.instance);
        own.set_session(RelayId::of(node), instance);
        self.tell_all(&ToRelay::Session(node.clone(), instance));
    }

    /// Adds the link of a relay, in place of an older one, and takes a snapshot: what changes after
    /// it is sent by the link.
    pub fn register<T>(&self, name: &NodeName, link: Link, snapshot: impl FnOnce() -> T) -> T {
        let _in_order = self.telling.lock();
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

    /// Whether a relay is connected.
    pub fn is_connected(&self, relay: &NodeName) -> bool {
        self.table.lock().contains_key(relay)
    }

    /// Tells relays, and those who watch where the relays are, what has changed.
    pub fn deliver(&self, deltas: &[RelayDelta]) {
        for delta in deltas {
            match delta {
                RelayDelta::Send(message) => self.tell_all(message),
                RelayDelta::Disconnect(name) => self.disconnect(name),
                RelayDelta::Relays(specs) => self.publish(specs.clone()),
            }
        }
    }

    /// Publishes where the relays are, if that has changed.
    pub fn publish(&self, specs: Vec<RelaySpec>) {
        self.specs.send_if_modified(|before| {
            let other = **before != specs;
            if other {
                *before = Arc::new(specs);
            }
            other
        });
    }

    fn tell_all(&self, message: &ToRelay) {
        self.table.lock().retain(|_, link| {
            let told = link.messages.try_send(message.clone()).is_ok();
            if !told {
                link.connection.close(3u32.into(), b"too slow; come again");
            }
            told
        });
    }

    fn disconnect(&self, name: &NodeName) {
        if let Some(link) = self.table.lock().remove(name) {
            link.connection.close(CLOSE_REMOVED.into(), b"this relay was removed from the mesh");
        }
    }
}
