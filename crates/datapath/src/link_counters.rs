//! Counters of links.

use crate::{
    config::Link,
    flow_log::{FlowKind, FlowKinds},
};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use meshward_types::Count;
use parking_lot::RwLock;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Maximum number of links that are counted one by one.
const MAX_LINKS: usize = 1 << 16;

/// The counters of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkStats {
    /// The link.
    pub link: Link,
    /// The counters.
    pub count: Count,
}

/// A kind of flow that was opened, or tried, on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkFlow {
    /// The link.
    pub link: Link,
    /// The kind of flow.
    pub kind: FlowKind,
}

/// Packets and bytes that are added to a link's counters if they pass. A link is counted where it
/// is sent from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Packets that it stands for.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The counters of a link, for all workers.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    denied: AtomicU64,
    observed: AtomicU64,
    pub kinds: FlowKinds,
}

impl Counters {
    pub(crate) fn add(&self, tally: Tally, observed: bool) {
        if tally.packets > 0 {
            self.packets.fetch_add(tally.packets, Relaxed);
            self.bytes.fetch_add(tally.bytes, Relaxed);
            if observed {
                self.observed.fetch_add(tally.packets, Relaxed);
            }
        }
    }

    /// Counts a packet that was dropped.
    pub(crate) fn add_denied(&self) {
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
    links: RwLock<HashMap<Link, Arc<Counters>, RandomState>>,
    /// The counters of links beyond [`MAX_LINKS`].
    uncounted: Arc<Counters>,
}

impl LinkCounters {
    pub(crate) fn of(&self, link: Link) -> Arc<Counters> {
        if let Some(counters) = self.links.read().get(&link) {
            return counters.clone();
        }
        let mut links = self.links.write();
        if links.len() >= MAX_LINKS {
            return self.uncounted.clone();
        }
        links.entry(link).or_default().clone()
    }

    /// Returns the counters of packets that no link counts; they are never read.
    pub(crate) fn uncounted(&self) -> &Arc<Counters> {
        &self.uncounted
    }

    pub(crate) fn stats(&self) -> Vec<LinkStats> {
        let links = self.links.read();
        links.iter().map(|(&link, counters)| LinkStats { link, count: counters.read() }).collect()
    }

    /// Returns the kinds of flows of which there was one in a second or later.
    pub(crate) fn flow_kinds(&self, since: u32) -> Vec<LinkFlow> {
        let links = self.links.read();
        let flows = links.iter().flat_map(|(&link, counters)| {
            counters.kinds.since(since).into_iter().map(move |kind| LinkFlow { link, kind })
        });
        flows.collect()
    }
}
