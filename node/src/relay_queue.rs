//! The queues of messages that leave by relays: filled by the workers, emptied by the connections.

use meshward_types::relay::{RelayId, RelayNetwork, RelayNumber};
use parking_lot::RwLock;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::mpsc;

/// The largest number of batches that wait for one relay; further ones are lost, as in any network.
pub(crate) const CAPACITY: usize = 4096;

/// Messages for a peer.
pub struct Outgoing {
    pub(crate) to: RelayId,
    pub(crate) network: RelayNetwork,
    pub(crate) messages: Vec<u8>,
    /// The length of each message but the last, which may be shorter.
    pub(crate) size: usize,
}

/// The sending side.
#[derive(Clone)]
pub struct Sender {
    pub(crate) queues: Arc<RwLock<HashMap<RelayNumber, mpsc::Sender<Outgoing>>>>,
    /// The queue for relays that have none of their own yet.
    others: mpsc::Sender<(RelayNumber, Outgoing)>,
}

/// The receiving side.
pub struct Receiver {
    pub(crate) sender: Sender,
    /// The messages for relays that have no queue yet.
    pub(crate) others: mpsc::Receiver<(RelayNumber, Outgoing)>,
}

/// Makes both sides.
pub fn channel() -> (Sender, Receiver) {
    let (to_others, others) = mpsc::channel(CAPACITY);
    let sender = Sender { queues: Arc::default(), others: to_others };
    (sender.clone(), Receiver { sender, others })
}

impl Sender {
    /// Queues messages for a relay. Returns `false` if the queue is full.
    pub fn send(&self, by: RelayNumber, outgoing: Outgoing) -> bool {
        match self.queues.read().get(&by) {
            Some(queue) => queue.try_send(outgoing).is_ok(),
            None => self.others.try_send((by, outgoing)).is_ok(),
        }
    }
}
