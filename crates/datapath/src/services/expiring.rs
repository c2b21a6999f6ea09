//! A bounded table of what is known for some seconds. Every owner has its share of it.

use crate::{
    fair_table::{entry::Evictable, shards::Shards, table::FairTable},
    owner::QuotaOwner,
};
use parking_lot::MutexGuard;
use std::hash::Hash;

/// Shards of a table, each with a lock of its own.
const SHARDS: usize = 16;

#[derive(Debug)]
struct Entry<V> {
    value: V,
    deadline: u32,
}

impl<V> Evictable for Entry<V> {
    fn expires_at(&self) -> u32 {
        self.deadline
    }
}

/// A bounded table of what is known for some seconds.
#[derive(Debug)]
pub(crate) struct Expiring<K, V> {
    shards: Shards<K, Entry<V>, SHARDS>,
}

impl<K: Copy + Eq + Hash, V: Copy> Expiring<K, V> {
    /// An empty table for at most `limit` entries.
    pub(crate) fn new(limit: usize) -> Self {
        Self { shards: Shards::new(limit) }
    }

    /// Locks the table of a key. Returns it with the key's hash.
    fn shard(&self, key: &K) -> (u32, MutexGuard<'_, FairTable<K, Entry<V>>>) {
        let hash = self.shards.hash_of(key);
        (hash, self.shards.lock((hash >> 28) as usize % SHARDS))
    }

    /// Returns a value that has not expired at `now`, in seconds.
    pub(crate) fn get(&self, now: u32, key: &K) -> Option<V> {
        let (hash, mut shard) = self.shard(key);
        let id = shard.find(hash, key)?;
        let entry = shard.value(id);
        (entry.deadline > now).then_some(entry.value)
    }

    /// Keeps a value until `deadline`, in seconds.
    pub(crate) fn put(&self, key: K, owner: QuotaOwner, value: V, deadline: u32) {
        let (hash, mut shard) = self.shard(&key);
        let entry = Entry { value, deadline };
        match shard.find(hash, &key) {
            Some(id) => *shard.value(id) = entry,
            None => _ = shard.insert(hash, key, owner, entry),
        }
    }

    /// Removes what has expired at `now`, in seconds.
    pub(crate) fn expire(&self, now: u32) {
        self.shards.expire(now, SHARDS);
    }
}
