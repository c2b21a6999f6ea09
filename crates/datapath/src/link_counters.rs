//! What is counted of links.

use crate::{
    flow_log::{FlowKind, FlowKinds},
    rules::Pair,
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use meshward_types::{Count, IdentityId};
use parking_lot::RwLock;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The most pairs of identities that are counted one by one.
const MAX_LINKS: usize = 1 << 16;

/// The counters of an ordered pair of identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkStats {
    /// Who begins flows.
    pub from: IdentityId,
    /// With whom.
    pub to: IdentityId,
    /// The counters.
    pub count: Count,
}

/// What a packet adds to its link's counters if it passes. A link is counted where it is sent from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Packets that it stands for.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is counted of a link, by all workers.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    denied: AtomicU64,
    observed: AtomicU64,
    pub kinds: FlowKinds,
}

impl Counters {
    pub fn add(&self, tally: Tally, observed: bool) {
        if tally.packets > 0 {
            self.packets.fetch_add(tally.packets, Relaxed);
            self.bytes.fetch_add(tally.bytes, Relaxed);
            if observed {
                self.observed.fetch_add(tally.packets, Relaxed);
            }
        }
    }

    /// Counts a packet that was dropped.
    pub fn add_denied(&self) {
        self.denied.fetch_add(1, Relaxed);
    }

    fn read(&self) -> Count {
        Count {
            packets: self.packets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            denied: self.denied.load(Relaxed),
            observed: self.observed.load(Relaxed),
        }
    }
}

/// The counters of all links that were used or tried.
#[derive(Debug, Default)]
pub(crate) struct LinkCounters {
    links: RwLock<HashMap<Pair, Arc<Counters>, RandomState>>,
    /// For pairs beyond [`MAX_LINKS`].
    uncounted: Arc<Counters>,
}

impl LinkCounters {
    pub fn of(&self, pair: Pair) -> Arc<Counters> {
        if let Some(counters) = self.links.read().get(&pair) {
            return counters.clone();
        }
        let mut links = self.links.write();
        if links.len() >= MAX_LINKS {
            return self.uncounted.clone();
        }
        links.entry(pair).or_default().clone()
    }

    /// Counters that nobody reads.
    pub fn uncounted(&self) -> &Arc<Counters> {
        &self.uncounted
    }

    pub fn stats(&self) -> Vec<LinkStats> {
        let links = self.links.read();
        let stats = links.iter().map(|(&(from, to), counters)| LinkStats {
            from,
            to,
            count: counters.read(),
        });
        stats.collect()
    }

    /// The kinds of flows that were seen at a second or later.
    pub fn flow_kinds(&self, since: u32) -> Vec<(IdentityId, IdentityId, FlowKind)> {
        let links = self.links.read();
        let kinds = links.iter().flat_map(|(&(from, to), counters)| {
            counters.kinds.since(since).into_iter().map(move |kind| (from, to, kind))
        });
        kinds.collect()
    }
}
