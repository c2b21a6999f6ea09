//! Queries of peers that this node, as that of an egress gateway, is answering: each once, however
//! often it comes, and no more of a peer than its share of the queue.

use super::limits::{AskerLimits, AskerPermit};
use meshward_datapath::PeerIndex;
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc, time::Instant};

/// The queries of peers that are being answered.
#[derive(Debug, Default)]
pub(crate) struct PeerQueries {
    running: Mutex<HashSet<(PeerIndex, u64)>>,
    /// The shares of peers of what waits for the thread of names.
    queued: Arc<AskerLimits<PeerIndex>>,
}

/// A query that is being answered, until it is dropped.
#[derive(Debug)]
pub(crate) struct PeerQuery {
    queries: Arc<PeerQueries>,
    pub(crate) peer: PeerIndex,
    /// The peer's number of the query.
    pub(crate) number: u64,
    /// Held while it waits for the thread of names.
    pub(crate) queued: Option<AskerPermit<PeerIndex>>,
}

/// The reason for which a query is not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unbegun {
    /// It is being answered already.
    Running,
    /// The peer has asked for too much.
    TooMany,
}

impl PeerQueries {
    /// Begins to answer a query.
    pub(crate) fn begin(
        self: &Arc<Self>,
        peer: PeerIndex,
        number: u64,
        now: Instant,
    ) -> Result<PeerQuery, Unbegun> {
        if self.running.lock().contains(&(peer, number)) {
            return Err(Unbegun::Running);
        }
        let queued = Some(self.queued.permit(peer, now).ok_or(Unbegun::TooMany)?);
        self.running.lock().insert((peer, number));
        Ok(PeerQuery { queries: self.clone(), peer, number, queued })
    }
}

impl Drop for PeerQuery {
    fn drop(&mut self) {
        self.queries.running.lock().remove(&(self.peer, self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_comes_again_is_answered_once_and_a_peer_has_its_share() {
        let (queries, now) = (Arc::new(PeerQueries::default()), Instant::now());
        let first = queries.begin(PeerIndex(1), 7, now).unwrap();
        let again = queries.begin(PeerIndex(1), 7, now);
        assert_eq!(again.err(), Some(Unbegun::Running));
        assert!(queries.begin(PeerIndex(2), 7, now).is_ok(), "each peer counts for itself");
        drop(first);
        assert!(queries.begin(PeerIndex(1), 7, now).is_ok());
        let begin = |number| queries.begin(PeerIndex(1), number, now);
        let held: Vec<PeerQuery> = (0..10_000).map_while(|number| begin(number).ok()).collect();
        assert!(held.len() < 100, "{}", held.len());
        assert_eq!(begin(10_000).err(), Some(Unbegun::TooMany));
        assert!(queries.begin(PeerIndex(2), 1, now).is_ok());
    }
}
