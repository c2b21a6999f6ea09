//! Fair tables with locks of their own, under one bound.

use super::{
    entry::Evictable,
    ledger::Ledger,
    table::{FairTable, hash_of},
};
use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};
use std::{
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Entries that are checked for their expiry under one lock.
const CHECKED_UNDER_LOCK: usize = 256;

/// `COUNT` fair tables with locks of their own, so that workers do not wait for each other, and one
/// bound on the entries of all.
#[derive(Debug)]
pub(crate) struct Shards<K, V, const COUNT: usize> {
    tables: Vec<Mutex<FairTable<K, V>>>,
    ledger: Arc<Ledger>,
    /// Seeded, so that nobody who chooses keys can put all entries into one bucket.
    hasher: RandomState,
    /// The first table that the next call of [`Self::expire`] searches.
    next: AtomicUsize,
}

impl<K: Copy + Eq + Hash, V: Evictable, const COUNT: usize> Shards<K, V, COUNT> {
    /// Empty tables for at most `limit` entries together.
    pub(crate) fn new(limit: usize) -> Self {
        let ledger = Arc::new(Ledger::new(limit));
        let table = |_| Mutex::new(FairTable::with_ledger(ledger.clone()));
        Self {
            tables: (0..COUNT).map(table).collect(),
            ledger,
            hasher: RandomState::default(),
            next: AtomicUsize::new(0),
        }
    }

    /// Returns the hash of a key or a part of one. The tables use the lowest bits of a key's hash:
    /// the others may choose the table.
    #[inline]
    pub(crate) fn hash_of(&self, key: &impl Hash) -> u32 {
        hash_of(&self.hasher, key)
    }

    /// Locks the table with this number.
    #[inline]
    pub(crate) fn lock(&self, number: usize) -> MutexGuard<'_, FairTable<K, V>> {
        self.tables[number].lock()
    }

    /// Locks one table after the other.
    pub(crate) fn each(&self) -> impl Iterator<Item = MutexGuard<'_, FairTable<K, V>>> {
        self.tables.iter().map(Mutex::lock)
    }

    /// Removes what has expired at `now`, in seconds, from the next `count` tables. No lock is kept
    /// for longer than a few entries need.
    pub(crate) fn expire(&self, now: u32, count: usize) {
        let first = self.next.fetch_add(count, Relaxed);
        for number in first..first + count {
            let table = &self.tables[number % COUNT];
            while !table.lock().expire(now, CHECKED_UNDER_LOCK) {}
        }
        if self.ledger.owes() {
            self.tables.iter().for_each(|table| while table.lock().pay_debts() {});
        }
    }
}
