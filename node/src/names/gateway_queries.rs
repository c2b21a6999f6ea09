//! Queries for names that rules name: the nodes of egress gateways are asked, so that they learn
//! the same addresses as the workload.

use meshward_datapath::PeerIndex;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::mpsc;

/// An answer of a gateway's node: a DNS message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GatewayAnswer {
    pub(crate) peer: PeerIndex,
    pub(crate) message: Vec<u8>,
}

/// The queries that wait for answers of gateways' nodes.
#[derive(Debug, Default)]
pub(crate) struct GatewayQueries {
    waiting: Mutex<HashMap<u64, WaitingQuery>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct WaitingQuery {
    /// The peers that have been asked and have not answered.
    peers: Vec<PeerIndex>,
    answers: mpsc::Sender<GatewayAnswer>,
}

/// A query that waits, until it is dropped.
#[derive(Debug)]
pub(crate) struct GatewayQuery {
    queries: Arc<GatewayQueries>,
    pub(crate) number: u64,
    pub(crate) answers: mpsc::Receiver<GatewayAnswer>,
}

impl GatewayQueries {
    /// Begins a query to these peers.
    pub(crate) fn begin(self: &Arc<Self>, peers: &[PeerIndex]) -> GatewayQuery {
        let (sender, answers) = mpsc::channel(peers.len().max(1));
        let number = self.next.fetch_add(1, Relaxed);
        let waiting = WaitingQuery { peers: peers.to_vec(), answers: sender };
        self.waiting.lock().insert(number, waiting);
        GatewayQuery { queries: self.clone(), number, answers }
    }

    /// Receives an answer. Who was not asked, or has answered already, is ignored.
    pub(crate) fn receive(&self, number: u64, peer: PeerIndex, message: &[u8]) {
        let mut waiting = self.waiting.lock();
        let Some(query) = waiting.get_mut(&number) else { return };
        if let Some(at) = query.peers.iter().position(|own| *own == peer) {
            query.peers.swap_remove(at);
            let _ = query.answers.try_send(GatewayAnswer { peer, message: message.to_vec() });
        }
    }
}

impl Drop for GatewayQuery {
    fn drop(&mut self) {
        self.queries.waiting.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_that_was_asked_answers_once() {
        let queries = Arc::new(GatewayQueries::default());
        let (first, second, stranger) = (PeerIndex(1), PeerIndex(2), PeerIndex(3));
        let mut query = queries.begin(&[first, second]);
        for peer in [stranger, second, second, first] {
            queries.receive(query.number, peer, &[1]);
            queries.receive(query.number + 1, peer, &[2]);
        }
        let heard: Vec<_> = std::iter::from_fn(|| query.answers.try_recv().ok()).collect();
        assert_eq!(heard.iter().map(|answer| answer.peer).collect::<Vec<_>>(), [second, first]);
        assert!(heard.iter().all(|answer| answer.message == [1]));
        drop(query);
        assert!(queries.waiting.lock().is_empty());
    }
}
