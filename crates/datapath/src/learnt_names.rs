//! Learnt names: domain names outside of the mesh, and the addresses that answers to a workload's
//! queries had.
//!
//! A rule that names domain names holds for a packet if its sender has asked for such a name and
//! the answer had the packet's destination. What one workload learns says nothing about the packets
//! of another one, and takes nothing of its room.
//!
//! A name is *fresh* for a while after its last answer: flows may begin. After that it is kept for
//! as long as there are flows to the address, which keep their verdict although answers rotate.

use crate::{
    fair_table::{
        entry::Evictable,
        table::{FairTable, hash_of},
    },
    owner::QuotaOwner,
};
use foldhash::fast::RandomState;
use meshward_types::{NamePattern, dns::DomainName};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::HashSet,
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// Maximum number of addresses that are kept, of all workloads together.
const LIMIT: usize = 32_768;
/// Maximum number of names that one workload has for an address.
const MAX_NAMES: usize = 8;
/// The shortest time for which a name is fresh, in seconds: programs keep answers for longer than
/// they are told.
const MIN_FRESH: u32 = 600;
/// The longest time for which a name is fresh, in seconds.
const MAX_FRESH: u32 = 86_400;
/// The interval, in seconds, at which flows are looked for to addresses whose names are not fresh.
const LOOK: u32 = 60;
/// The time, in seconds, for which a name is kept that is not fresh, after its address was last
/// seen in use.
const KEEP: u32 = 2 * LOOK;
/// Addresses that are checked under one lock.
const CHECKED_UNDER_LOCK: usize = 256;

/// A workload that asks for a name outside of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameAsker {
    pub(crate) owner: QuotaOwner,
    /// The address of the workload.
    pub(crate) address: IpAddr,
}

/// An address that a workload has learnt of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearntName {
    /// An address of the workload.
    pub asker: IpAddr,
    /// The name.
    pub name: DomainName,
    /// The address outside of the mesh.
    pub address: IpAddr,
    /// The time for which flows may still begin.
    pub fresh_for: Duration,
}

/// The names that count for a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameAge {
    /// Fresh ones: the packet would begin a flow.
    Fresh,
    /// All that are kept: the flow has begun.
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    owner: QuotaOwner,
    address: IpAddr,
}

/// The names of an address; times in seconds.
#[derive(Debug)]
struct AddressNames {
    asker: IpAddr,
    names: Vec<(DomainName, u32)>,
    kept_until: u32,
}

impl AddressNames {
    fn note(&mut self, name: &DomainName, fresh_until: u32) {
        self.kept_until = self.kept_until.max(fresh_until.saturating_add(KEEP));
        if let Some((_, until)) = self.names.iter_mut().find(|(own, _)| own == name) {
            *until = fresh_until.max(*until);
            return;
        }
        if self.names.len() >= MAX_NAMES
            && let Some(oldest) = (0..self.names.len()).min_by_key(|own| self.names[*own].1)
        {
            self.names.swap_remove(oldest);
        }
        self.names.push((name.clone(), fresh_until));
    }
}

impl Evictable for AddressNames {
    fn expires_at(&self) -> u32 {
        self.kept_until
    }
}

/// The learnt names of an endpoint.
#[derive(Debug)]
pub(crate) struct LearntNames {
    table: Mutex<FairTable<Key, AddressNames>>,
    hasher: RandomState,
    /// Seconds since the endpoint's start, as of the last tick.
    now: AtomicU32,
    next_look: AtomicU32,
    has_changed: AtomicBool,
}

impl Default for LearntNames {
    fn default() -> Self {
        Self {
            table: Mutex::new(FairTable::new(LIMIT)),
            hasher: RandomState::default(),
            now: AtomicU32::new(0),
            next_look: AtomicU32::new(LOOK),
            has_changed: AtomicBool::new(false),
        }
    }
}

/// Returns whether rules by name may ever hold for an address: not if it is the host's own or that
/// of a link, since whoever owns a domain chooses the addresses of its names.
pub(crate) fn is_learnable(address: IpAddr) -> bool {
    let is_special = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(is_special || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

impl LearntNames {
    /// Notes that an answer to a workload's query for a name had an address, and for how long, in
    /// seconds, the answer is good.
    pub(crate) fn learn(&self, asker: NameAsker, name: &DomainName, address: IpAddr, ttl: u32) {
        self.keep(asker, name, address, ttl.clamp(MIN_FRESH, MAX_FRESH));
    }

    /// Keeps a name that was learnt before a restart.
    pub(crate) fn restore(&self, owner: QuotaOwner, learnt: &LearntName) {
        let fresh = learnt.fresh_for.as_secs().min(MAX_FRESH.into()) as u32;
        let asker = NameAsker { owner, address: learnt.asker };
        self.keep(asker, &learnt.name, learnt.address, fresh);
    }

    fn keep(&self, asker: NameAsker, name: &DomainName, address: IpAddr, fresh_for: u32) {
        let fresh_until = self.now.load(Relaxed).saturating_add(fresh_for);
        let key = Key { owner: asker.owner, address };
        let (hash, mut table) = self.lock(&key);
        match table.find(hash, &key) {
            Some(id) => table.value(id).note(name, fresh_until),
            None => {
                let mut names =
                    AddressNames { asker: asker.address, names: Vec::new(), kept_until: 0 };
                names.note(name, fresh_until);
                table.insert(hash, key, asker.owner, names);
            }
        }
        self.has_changed.store(true, Relaxed);
    }

    /// Returns whether the sender of a packet has learnt its destination by a name of a pattern.
    pub(crate) fn is_at(
        &self,
        owner: QuotaOwner,
        address: IpAddr,
        pattern: &NamePattern,
        age: NameAge,
    ) -> bool {
        let key = Key { owner, address };
        let now = self.now.load(Relaxed);
        let (hash, mut table) = self.lock(&key);
        let Some(id) = table.find(hash, &key) else { return false };
        let counts = |until: u32| age == NameAge::Any || until > now;
        table.value(id).names.iter().any(|(name, until)| counts(*until) && pattern.matches(name))
    }

    /// Forgets what a workload has learnt, which is gone.
    pub(crate) fn forget(&self, owner: QuotaOwner) {
        let mut table = self.table.lock();
        let (mut number, mut gone) = (0, Vec::new());
        while let Some(chunk) = table.chunk(number) {
            gone.extend(chunk.map(|(key, _)| *key).filter(|key| key.owner == owner));
            number += 1;
        }
        for key in gone {
            if let Some(id) = table.find(hash_of(&self.hasher, &key), &key) {
                table.remove(id);
            }
        }
    }

    /// Moves the time on. `uses`: passes on the destinations of flows to a function; called once a
    /// minute at most, if there are names that are not fresh.
    pub(crate) fn tick(&self, now: u32, uses: impl FnOnce(&mut dyn FnMut(IpAddr))) {
        self.now.store(now, Relaxed);
        if now < self.next_look.load(Relaxed) {
            return;
        }
        self.next_look.store(now.saturating_add(LOOK), Relaxed);
        let mut expiring = HashSet::new();
        self.each(|key, names| {
            if names.kept_until <= now.saturating_add(LOOK) {
                expiring.insert(key.address);
            }
        });
        if !expiring.is_empty() {
            let mut used = HashSet::new();
            uses(&mut |address| {
                if expiring.contains(&address) {
                    used.insert(address);
                }
            });
            self.each(|key, names| {
                if used.contains(&key.address) {
                    names.kept_until = names.kept_until.max(now.saturating_add(KEEP));
                }
            });
            self.has_changed.store(true, Relaxed);
        }
        while !self.table.lock().expire(now, CHECKED_UNDER_LOCK) {}
    }

    /// Returns what there is to keep across a restart.
    pub(crate) fn export(&self) -> Vec<LearntName> {
        let now = self.now.load(Relaxed);
        let mut all = Vec::new();
        self.each(|key, names| {
            all.extend(names.names.iter().map(|(name, until)| LearntName {
                asker: names.asker,
                name: name.clone(),
                address: key.address,
                fresh_for: Duration::from_secs(until.saturating_sub(now).into()),
            }));
        });
        all
    }

    /// Returns whether anything has changed since the last call.
    pub(crate) fn take_changed(&self) -> bool {
        self.has_changed.swap(false, Relaxed)
    }

    /// Visits the addresses, some hundreds under one lock.
    fn each(&self, mut visit: impl FnMut(&Key, &mut AddressNames)) {
        let mut number = 0;
        loop {
            let mut table = self.table.lock();
            if !table.has_chunk(number) {
                return;
            }
            table.change_chunk(number, &mut visit);
            number += 1;
        }
    }

    fn lock(&self, key: &Key) -> (u32, MutexGuard<'_, FairTable<Key, AddressNames>>) {
        (hash_of(&self.hasher, key), self.table.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::WorkloadIndex;

    fn asker(number: u32) -> NameAsker {
        let address = IpAddr::from([10, 42, 0, number as u8]);
        NameAsker { owner: QuotaOwner::Workload(WorkloadIndex(number)), address }
    }

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    fn outside(number: u32) -> IpAddr {
        IpAddr::from((0xcb00_7100 + number).to_be_bytes())
    }

    #[test]
    fn names_count_for_who_has_asked_while_they_are_fresh() {
        let names = LearntNames::default();
        let (a, b, at) = (asker(1), asker(2), outside(1));
        names.learn(a, &name("x.s3.example"), at, 5);
        let knows =
            |asker: NameAsker, text: &str, age| names.is_at(asker.owner, at, &pattern(text), age);
        assert!(knows(a, "*.s3.example", NameAge::Fresh));
        assert!(!knows(a, "s3.example", NameAge::Fresh) && !knows(b, "*", NameAge::Any));
        assert!(!names.is_at(a.owner, outside(2), &pattern("*"), NameAge::Any));
        names.tick(MIN_FRESH - 1, |_| {});
        assert!(knows(a, "*", NameAge::Fresh));
        names.tick(MIN_FRESH, |_| {});
        assert!(!knows(a, "*", NameAge::Fresh) && knows(a, "*", NameAge::Any));
    }

    #[test]
    fn names_are_kept_while_flows_use_their_address() {
        let names = LearntNames::default();
        let (own, used, unused) = (asker(1), outside(1), outside(2));
        for at in [used, unused] {
            names.learn(own, &name("a.example"), at, 0);
        }
        let knows = |at| names.is_at(own.owner, at, &pattern("*"), NameAge::Any);
        for now in (0..MIN_FRESH + 10 * KEEP).step_by(7) {
            names.tick(now, |visit| visit(used));
        }
        assert!(knows(used) && !knows(unused));
        for now in (0..2 * KEEP).step_by(7) {
            names.tick(MIN_FRESH + 10 * KEEP + now, |_| {});
        }
        assert!(!knows(used));
    }

    #[test]
    fn who_learns_much_displaces_names_of_its_own() {
        let names = LearntNames::default();
        let (greedy, modest) = (asker(1), asker(2));
        names.learn(modest, &name("a.example"), outside(0), 60);
        for number in 0..2 * LIMIT as u32 {
            names.learn(greedy, &name("b.example"), outside(number), 60);
        }
        assert!(names.export().len() <= LIMIT + 64);
        assert!(names.is_at(modest.owner, outside(0), &pattern("a.example"), NameAge::Fresh));
        for number in 0..100 {
            names.learn(greedy, &name(&format!("n{number}.example")), outside(0), 60);
        }
        assert!(names.is_at(modest.owner, outside(0), &pattern("a.example"), NameAge::Fresh));
        assert!(names.is_at(greedy.owner, outside(0), &pattern("n99.example"), NameAge::Fresh));
        names.forget(greedy.owner);
        assert_eq!(names.export().len(), 1);
    }

    #[test]
    fn names_survive_a_restart() {
        let (before, after) = (LearntNames::default(), LearntNames::default());
        let own = asker(1);
        before.learn(own, &name("a.example"), outside(1), 3600);
        before.tick(600, |_| {});
        assert!(before.take_changed() && !before.take_changed());
        let saved = before.export();
        assert_eq!(saved[0].fresh_for, Duration::from_mins(50));
        for learnt in &saved {
            after.restore(own.owner, learnt);
        }
        assert!(after.is_at(own.owner, outside(1), &pattern("a.example"), NameAge::Fresh));
        assert_eq!(after.export(), saved);
    }

    #[test]
    fn addresses_of_the_host_and_of_links_are_not_learnt() {
        let special = "127.0.0.1 169.254.169.254 0.0.0.0 0.1.2.3 224.0.0.1 255.255.255.255 ::1 :: \
            fe80::1 ff02::1 ::ffff:10.0.0.1";
        for text in special.split(' ') {
            assert!(!is_learnable(text.parse().unwrap()), "{text}");
        }
        for text in ["203.0.113.9", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(is_learnable(text.parse().unwrap()), "{text}");
        }
    }
}
