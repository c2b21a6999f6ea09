//! Fragments: only the first part of a packet has ports, so its verdict is kept for the parts that follow.

use crate::{
    counters::Counters,
    packet::{Fragment, Headers},
    shares::{Class, Kept, Owner, SharedTable, hash_of},
};
use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};
use std::{net::IpAddr, sync::Arc};

/// Seconds for which the rest of a packet may follow (RFC 8200 §4.5 gives reassembly 60).
const LIFETIME: u32 = 30;
/// The most packets whose rest is awaited.
const LIMIT: usize = 16_384;
/// Into how many parts the table is split, each with its own lock.
const SHARDS: usize = 16;
/// How many packets a sweep looks at while it holds a lock.
const SWEPT_UNDER_LOCK: usize = 256;

/// What fragments of one packet have in common: in IPv4 the protocol, too (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    ip_protocol: u8,
}

impl Key {
    fn of(headers: &Headers, id: u32) -> Self {
        let Headers { source, destination, ip_protocol, .. } = *headers;
        let ip_protocol = if source.is_ipv4() { ip_protocol } else { 0 };
        Self { source, destination, id, ip_protocol }
    }
}

/// The packets whose first fragment passed. Every sender has its share.
#[derive(Debug)]
pub(crate) struct Fragments {
    shards: Vec<Mutex<SharedTable<Key, Passed>>>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Passed {
    stamp: u64,
    deadline: u32,
    link: Arc<Counters>,
}

impl Kept for Passed {
    fn class(&self) -> Class {
        Class::Fleeting
    }
    fn deadline(&self) -> u32 {
        self.deadline
    }
    fn take_used(&mut self) -> bool {
        false
    }
}

impl Default for Fragments {
    fn default() -> Self {
        let shard = || Mutex::new(SharedTable::new(LIMIT / SHARDS));
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), hasher: RandomState::default() }
    }
}

impl Fragments {
    fn shard(&self, key: &Key) -> (u32, MutexGuard<'_, SharedTable<Key, Passed>>) {
        let hash = hash_of(&self.hasher, key);
        (hash, self.shards[(hash >> 28) as usize % SHARDS].lock())
    }

    /// Notes that a packet of `owner` passed, if more of it is to follow.
    pub fn passed(&self, now: u32, headers: &Headers, owner: Owner, stamp: u64, link: &Arc<Counters>) {
        let Fragment::First(id) = headers.fragment else { return };
        let key = Key::of(headers, id);
        let (hash, mut shard) = self.shard(&key);
        let passed = Passed { stamp, deadline: now + LIFETIME, link: link.clone() };
        match shard.find(hash, &key) {
            Some(id) => *shard.value(id) = passed,
            None => _ = shard.insert(hash, key, owner, passed),
        }
    }

    /// The link that a later fragment belongs to, if its first one passed under the same rules.
    pub fn link_of(&self, now: u32, headers: &Headers, stamp: u64) -> Option<Arc<Counters>> {
        let Fragment::Later(id) = headers.fragment else { return None };
        let key = Key::of(headers, id);
        let (hash, mut shard) = self.shard(&key);
        let id = shard.find(hash, &key)?;
        let passed = shard.value(id);
        (passed.stamp == stamp && passed.deadline > now).then(|| passed.link.clone())
    }

    /// Forgets the packets whose time is up.
    pub fn sweep(&self, now: u32) {
        for shard in &self.shards {
            while !shard.lock().sweep(now, SWEPT_UNDER_LOCK) {}
        }
    }
}
