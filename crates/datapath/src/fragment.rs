//! Fragments: only the first part of a packet has ports, so its verdict is kept for the parts that
//! follow, and parts that come before it wait for it a little.

use crate::{
    drop_reason::DropReason,
    fair_table::{
        entry::Evictable,
        table::{FairTable, hash_of},
    },
    headers::{Fragment, Headers},
    link_counters::Counters,
    owner::QuotaOwner,
    services::translation::Translation,
};
use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};
use std::{
    net::IpAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// Seconds for which the rest of a packet may follow (RFC 8200 §4.5 gives reassembly 60).
const LIFETIME: u32 = 30;
/// Maximum number of packets whose rest is awaited.
const LIMIT: usize = 16_384;
/// Maximum number of fragments of one packet whose ranges are kept, or that wait: a packet of
/// 64 KiB in pieces of 576 bytes.
const MAX_FRAGMENTS: usize = 120;
/// Seconds for which a later fragment waits for the first.
const FIRST_TIMEOUT: u32 = 2;
/// Maximum number of packets whose fragments wait, and bytes of one: 18 MiB at the worst.
const MAX_WAITING: usize = 256;
const MAX_BYTES: usize = 72 * 1024;
/// Shards of the table, each with a lock of its own.
const SHARDS: usize = 16;
/// Packets that are checked for their expiry under one lock.
const CHECKED_UNDER_LOCK: usize = 256;

/// The key of a packet: what its fragments have in common, in IPv4 the protocol, too (RFC 791 §3.2,
/// RFC 8200 §4.5).
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

/// A packet whose first fragment passed.
#[derive(Debug)]
struct PassedPacket {
    generation: u64,
    deadline: u32,
    link: Arc<Counters>,
    /// The connection through a service that it belongs to.
    translation: Option<Arc<Translation>>,
    /// The bytes of an IPv6 packet that were received. `None`: fragments overlapped, and nothing
    /// more of it passes.
    received: Option<Vec<Range<u32>>>,
}

impl PassedPacket {
    /// Notes a fragment's bytes. IPv4 hosts are left to put together what overlaps (RFC 791 §3.2):
    /// what was checked stands at offsets that later fragments cannot have.
    fn note(&mut self, headers: &Headers) -> Result<(), DropReason> {
        if headers.source.is_ipv4() {
            return Ok(());
        }
        let received = self.received.as_mut().ok_or(DropReason::OverlappingFragment)?;
        let length = (headers.length - headers.payload) as u32;
        let bytes = headers.offset..headers.offset + length;
        if received.contains(&bytes) {
            // The same again, as networks do (RFC 8200 §4.5), or checked again after it has waited
            // for a session.
            return Ok(());
        }
        if received.len() >= MAX_FRAGMENTS
            || received.iter().any(|own| own.start < bytes.end && bytes.start < own.end)
        {
            self.received = None;
            return Err(DropReason::OverlappingFragment);
        }
        received.push(bytes);
        Ok(())
    }
}

impl Evictable for PassedPacket {
    fn expires_at(&self) -> u32 {
        self.deadline
    }
}

/// Fragments that came before the first of their packet.
#[derive(Debug)]
struct WaitingPacket {
    deadline: u32,
    bytes: usize,
    packets: Vec<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

impl Drop for WaitingPacket {
    fn drop(&mut self) {
        self.lost.fetch_add(self.packets.len() as u64, Relaxed);
    }
}

impl Evictable for WaitingPacket {
    fn expires_at(&self) -> u32 {
        self.deadline
    }
}

type Shard<T> = Mutex<FairTable<Key, T>>;

/// The verdict on a first fragment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FirstVerdict<'a> {
    /// The sender.
    pub(crate) owner: QuotaOwner,
    /// The generation of the rules that have let it pass.
    pub(crate) generation: u64,
    /// The counters of its link.
    pub(crate) link: &'a Arc<Counters>,
    /// The connection through a service that it belongs to.
    pub(crate) translation: Option<&'a Arc<Translation>>,
}

/// A packet, as its first fragment was found to be.
#[derive(Debug)]
pub(crate) struct FirstFragment {
    /// The counters of its link.
    pub(crate) link: Arc<Counters>,
    /// The connection through a service that it belongs to.
    pub(crate) translation: Option<Arc<Translation>>,
}

/// Packets of which not all fragments have come. Every sender has its share of both tables.
#[derive(Debug)]
pub(crate) struct Fragments {
    passed: Vec<Shard<PassedPacket>>,
    waiting: Shard<WaitingPacket>,
    /// Packets that have fragments waiting.
    waiting_count: AtomicUsize,
    /// Fragments whose first did not come.
    lost: Arc<AtomicU64>,
    hasher: RandomState,
}

impl Default for Fragments {
    fn default() -> Self {
        Self {
            passed: (0..SHARDS).map(|_| Mutex::new(FairTable::new(LIMIT / SHARDS))).collect(),
            waiting: Mutex::new(FairTable::new(MAX_WAITING)),
            waiting_count: AtomicUsize::new(0),
            lost: Arc::default(),
            hasher: RandomState::default(),
        }
    }
}

impl Fragments {
    fn shard(&self, key: &Key) -> (u32, MutexGuard<'_, FairTable<Key, PassedPacket>>) {
        let hash = hash_of(&self.hasher, key);
        (hash, self.passed[(hash >> 28) as usize % SHARDS].lock())
    }

    /// Notes that the first fragment of a packet has passed.
    ///
    /// # Errors
    /// Fails if it overlaps a fragment of its packet that has passed.
    pub(crate) fn pass_first(
        &self,
        now: u32,
        headers: &Headers,
        verdict: FirstVerdict<'_>,
    ) -> Result<(), DropReason> {
        let Fragment::First(id) = headers.fragment else { return Ok(()) };
        let FirstVerdict { owner, generation, link, translation } = verdict;
        let key = Key::of(headers, id);
        let (hash, mut shard) = self.shard(&key);
        let deadline = now + LIFETIME;
        if let Some(id) = shard.find(hash, &key) {
            let passed = shard.value(id);
            if headers.source.is_ipv6() && passed.deadline > now {
                (passed.generation, passed.link) = (generation, link.clone());
                passed.translation = translation.cloned();
                return passed.note(headers);
            }
            shard.remove(id);
        }
        let (link, translation) = (link.clone(), translation.cloned());
        let mut passed =
            PassedPacket { generation, deadline, link, translation, received: Some(vec![]) };
        passed.note(headers)?;
        shard.insert(hash, key, owner, passed);
        Ok(())
    }

    /// Returns what the packet of a later fragment was found to be.
    ///
    /// # Errors
    /// Fails if the packet's first fragment has not passed under the same rules, or if it overlaps
    /// another fragment.
    pub(crate) fn pass_later(
        &self,
        now: u32,
        headers: &Headers,
        generation: u64,
    ) -> Result<FirstFragment, DropReason> {
        let Fragment::Later(id) = headers.fragment else { return Err(DropReason::OrphanFragment) };
        let key = Key::of(headers, id);
        let (hash, mut shard) = self.shard(&key);
        let id = shard.find(hash, &key).ok_or(DropReason::OrphanFragment)?;
        let passed = shard.value(id);
        if passed.generation != generation || passed.deadline <= now {
            return Err(DropReason::OrphanFragment);
        }
        passed.note(headers)?;
        let (link, translation) = (passed.link.clone(), passed.translation.clone());
        Ok(FirstFragment { link, translation })
    }

    /// Queues a later fragment of `owner` until the first one of its packet has passed. Returns
    /// `false` if there is no room for it.
    pub(crate) fn queue(
        &self,
        now: u32,
        headers: &Headers,
        owner: QuotaOwner,
        packet: &[u8],
    ) -> bool {
        let Fragment::Later(id) = headers.fragment else { return false };
        let key = Key::of(headers, id);
        let hash = hash_of(&self.hasher, &key);
        let mut waiting = self.waiting.lock();
        let id = waiting.find(hash, &key).unwrap_or_else(|| {
            let (deadline, lost) = (now + FIRST_TIMEOUT, self.lost.clone());
            waiting.insert(
                hash,
                key,
                owner,
                WaitingPacket { deadline, bytes: 0, packets: vec![], lost },
            )
        });
        self.waiting_count.store(waiting.len(), Relaxed);
        let own = waiting.value(id);
        if own.packets.len() >= MAX_FRAGMENTS || own.bytes + packet.len() > MAX_BYTES {
            return false;
        }
        own.bytes += packet.len();
        own.packets.push(packet.to_vec());
        true
    }

    /// Returns whether any fragments wait.
    #[inline]
    pub(crate) fn any_waiting(&self) -> bool {
        self.waiting_count.load(Relaxed) > 0
    }

    /// Returns the fragments that have waited for this first one.
    pub(crate) fn take_waiting(&self, headers: &Headers) -> Vec<Vec<u8>> {
        let Fragment::First(id) = headers.fragment else { return vec![] };
        let key = Key::of(headers, id);
        let hash = hash_of(&self.hasher, &key);
        let mut waiting = self.waiting.lock();
        let Some(id) = waiting.find(hash, &key) else { return vec![] };
        let packets = std::mem::take(&mut waiting.value(id).packets);
        waiting.remove(id);
        self.waiting_count.store(waiting.len(), Relaxed);
        packets
    }

    /// Returns how many fragments have waited in vain since the last call.
    pub(crate) fn take_lost(&self) -> u64 {
        self.lost.swap(0, Relaxed)
    }

    /// Forgets the packets whose time is up.
    pub(crate) fn expire(&self, now: u32) {
        for shard in &self.passed {
            while !shard.lock().expire(now, CHECKED_UNDER_LOCK) {}
        }
        let mut waiting = self.waiting.lock();
        while !waiting.expire(now, CHECKED_UNDER_LOCK) {}
        self.waiting_count.store(waiting.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::WorkloadIndex;

    fn fragment(v6: bool, later: bool, offset: u32, length: usize) -> Headers {
        let (a, b) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
        let headers = Headers::between(a.parse().unwrap(), b.parse().unwrap(), 17);
        let fragment = if later { Fragment::Later(7) } else { Fragment::First(7) };
        Headers { fragment, offset, length, ..headers }
    }

    #[test]
    fn ipv6_fragments_that_overlap_end_their_packet() {
        let link = Arc::default();
        let owner = QuotaOwner::Workload(WorkloadIndex(0));
        let verdict = FirstVerdict { owner, generation: 1, link: &link, translation: None };
        for (v6, spoiled) in [(true, true), (false, false)] {
            let fragments = Fragments::default();
            let first = fragment(v6, false, 0, 1280);
            fragments.pass_first(0, &first, verdict).unwrap();
            let later = |offset, length| {
                fragments.pass_later(0, &fragment(v6, true, offset, length), 1).is_ok()
            };
            assert!(later(1280, 1280));
            assert!(later(1280, 1280), "the same again");
            assert!(later(2560, 8));
            assert_eq!(later(1272, 16), !spoiled);
            assert_eq!(later(4000, 16), !spoiled, "nothing more of it passes");
            assert_eq!(fragments.pass_first(0, &first, verdict).is_ok(), !spoiled);
        }
    }

    #[test]
    fn fragments_wait_for_the_first_for_a_while_and_within_bounds() {
        let fragments = Fragments::default();
        let (later, first) = (fragment(false, true, 1480, 1480), fragment(false, false, 0, 1480));
        let packet = vec![7; 1480];
        let queued = (0..100)
            .filter(|_| fragments.queue(0, &later, QuotaOwner::Workload(WorkloadIndex(0)), &packet))
            .count();
        assert_eq!(queued, MAX_BYTES / 1480);
        assert!(fragments.any_waiting());
        assert_eq!(fragments.take_waiting(&first).len(), queued);
        assert!(!fragments.any_waiting() && fragments.take_waiting(&first).is_empty());
        assert!(fragments.queue(0, &later, QuotaOwner::Workload(WorkloadIndex(0)), &packet));
        fragments.expire(FIRST_TIMEOUT);
        assert_eq!((fragments.any_waiting(), fragments.take_lost()), (false, 1));
    }

    #[test]
    fn a_workload_that_fills_all_places_takes_none_of_its_neighbours() {
        let fragments = Fragments::default();
        let quiet = fragment(false, true, 1480, 1480);
        assert!(fragments.queue(0, &quiet, QuotaOwner::Workload(WorkloadIndex(0)), &[1]));
        for id in 0..10_000 {
            let flood = Headers { fragment: Fragment::Later(id), ip_protocol: 6, ..quiet };
            fragments.queue(0, &flood, QuotaOwner::Workload(WorkloadIndex(1)), &[2]);
        }
        assert_eq!(fragments.take_waiting(&fragment(false, false, 0, 1480)), [[1]]);
    }
}
