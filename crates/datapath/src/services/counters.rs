//! Counters of a service on this node.

use super::load::UsualTime;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The upper bounds of the histogram of times to connect, in microseconds.
pub const CONNECT_BOUNDS: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 5_000_000];

/// Times to connect: from a SYN to the answer to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectTimes {
    /// The number of connects that took at most as long as each of [`CONNECT_BOUNDS`] and longer
    /// than the bound before; the last: longer than all.
    pub buckets: [u64; CONNECT_BOUNDS.len() + 1],
    /// All of them, in microseconds.
    pub sum: u64,
}

/// The counters of a service, for all workers.
#[derive(Debug, Default)]
pub(crate) struct ServiceCounters {
    pub(crate) usual: UsualTime,
    pub(crate) connections: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) unanswered: AtomicU64,
    /// Connections that were sent to another instance, since the first one refused or did not
    /// answer, or is gone.
    pub(crate) moved: AtomicU64,
    /// Packets for which there was no instance.
    pub(crate) without_instance: AtomicU64,
    buckets: [AtomicU64; CONNECT_BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl ServiceCounters {
    /// Notes a packet for which there was no instance.
    #[cold]
    pub(crate) fn note_without_instance(&self) {
        self.without_instance.fetch_add(1, Relaxed);
    }

    /// Notes that a connect took so many microseconds.
    pub(crate) fn note_connect(&self, took: u64) {
        let bucket = CONNECT_BOUNDS.partition_point(|bound| *bound < took);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(took, Relaxed);
    }

    pub(crate) fn connect_times(&self) -> ConnectTimes {
        ConnectTimes {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Relaxed)),
            sum: self.sum.load(Relaxed),
        }
    }
}
