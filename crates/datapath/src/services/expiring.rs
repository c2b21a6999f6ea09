//! A bounded table of what is known for some seconds. Every owner has its share of it.

use crate::{
    fair_table::{
        entry::{Evictable, EvictionClass},
        ledger::Ledger,
        table::{FairTable, hash_of},
    },
    owner::QuotaOwner,
};
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use std::{hash::Hash, sync::Arc};

/// Shards of a table, each with a lock of its own.
const SHARDS: usize = 16;
/// Entries that are checked for their expiry under one lock.
const CHECKED_UNDER_LOCK: usize = 256;

#[derive(Debug)]
struct Entry<V> {
    value: V,
    deadline: u32,
}

impl<V> Evictable for Entry<V> {
    fn eviction_class(&self) -> EvictionClass {
        EvictionClass::Fleeting
    }
    fn expires_at(&self) -> u32 {
        self.deadline
    }
    fn reset_referenced(&mut self) -> bool {
        false
    }
}

/// A bounded table of what is known for some seconds.
#[derive(Debug)]
pub(crate) struct Expiring<K, V> {
    shards: Vec<Mutex<FairTable<K, Entry<V>>>>,
    ledger: Arc<Ledger>,
    hasher: RandomState,
}

impl<K: Copy + Eq + Hash, V: Copy> Expiring<K, V> {
    /// An empty table for at most `limit` entries.
    pub(crate) fn new(limit: usize) -> Self {
        let ledger = Arc::new(Ledger::new(limit));
        let shard = |_| Mutex::new(FairTable::with_ledger(ledger.clone()));
        Self { shards: (0..SHARDS).map(shard).collect(), ledger, hasher: RandomState::default() }
    }

    /// Returns a value that has not expired at `now`, in seconds.
    pub(crate) fn get(&self, now: u32, key: &K) -> Option<V> {
        let hash = hash_of(&self.hasher, key);
        let mut shard = self.shards[(hash >> 28) as usize % SHARDS].lock();
        let id = shard.find(hash, key)?;
        let entry = shard.value(id);
        (entry.deadline > now).then_some(entry.value)
    }

    /// Keeps a value until `deadline`, in seconds.
    pub(crate) fn put(&self, key: K, owner: QuotaOwner, value: V, deadline: u32) {
        let hash = hash_of(&self.hasher, &key);
        let mut shard = self.shards[(hash >> 28) as usize % SHARDS].lock();
        let entry = Entry { value, deadline };
        match shard.find(hash, &key) {
            Some(id) => *shard.value(id) = entry,
            None => _ = shard.insert(hash, key, owner, entry),
        }
    }

    /// Removes what has expired at `now`, in seconds.
    pub(crate) fn expire(&self, now: u32) {
        for shard in &self.shards {
            while !shard.lock().expire(now, CHECKED_UNDER_LOCK) {}
        }
        if self.ledger.owes() {
            self.shards.iter().for_each(|shard| while shard.lock().pay_debts() {});
        }
    }
}
