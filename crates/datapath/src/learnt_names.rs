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
    headers::is_unicast,
    owner::QuotaOwner,
};
use foldhash::fast::RandomState;
use hashbrown::HashSet;
use meshward_types::dns::DomainName;
use parking_lot::{Mutex, MutexGuard};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// Maximum number of addresses that are kept, of all workloads together.
const LIMIT: usize = 32_768;
/// Maximum number of names that one workload has for an address.
const MAX_NAMES: usize = 8;
/// The shortest time for which a name is fresh, in seconds: programs keep answers for longer than
/// they are told. Ten minutes are left of it where the last answers were not noted.
const MIN_FRESH: u32 = 600 + SAVED_CHANGE;
/// The longest time for which a name is fresh, in seconds.
const MAX_FRESH: u32 = 86_400;
/// The interval, in seconds, at which flows are looked for to addresses whose names are not fresh.
const LOOK: u32 = 60;
/// The time, in seconds, for which a name is kept that is not fresh, after its address was last
/// seen in use.
const KEEP: u32 = 2 * LOOK;
/// The change of the time for which a name is fresh, in seconds, from which on it is noted: what is
/// asked for again and again is not written to disk each time.
const SAVED_CHANGE: u32 = 60;
/// Addresses that are checked under one lock.
const CHECKED_UNDER_LOCK: usize = 256;

/// A workload that asks for a name outside of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameAsker {
    /// The owner of what is kept of it.
    pub owner: QuotaOwner,
    /// The address of the workload.
    pub address: IpAddr,
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
#[derive(Debug, Clone)]
struct AddressNames {
    asker: IpAddr,
    names: Vec<(DomainName, u32)>,
    kept_until: u32,
    /// `true` if it was learnt or used lately.
    is_referenced: bool,
}

impl AddressNames {
    /// Notes a name. Returns whether that is to be saved.
    fn note(&mut self, name: &DomainName, fresh_until: u32) -> bool {
        self.is_referenced = true;
        let known = self.names.iter_mut().find(|(own, _)| own == name);
        if known.as_ref().is_some_and(|(_, until)| fresh_until < *until + SAVED_CHANGE) {
            return false;
        }
        self.kept_until = self.kept_until.max(fresh_until.saturating_add(KEEP));
        if let Some((_, until)) = known {
            *until = fresh_until;
            return true;
        }
        if self.names.len() >= MAX_NAMES
            && let Some(oldest) = (0..self.names.len()).min_by_key(|own| self.names[*own].1)
        {
            self.names.swap_remove(oldest);
        }
        self.names.push((name.clone(), fresh_until));
        true
    }
}

impl Evictable for AddressNames {
    fn expires_at(&self) -> u32 {
        self.kept_until
    }
    fn reset_referenced(&mut self) -> bool {
        std::mem::take(&mut self.is_referenced)
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

/// Returns whether rules by name may ever hold for an address: not for those of a loopback and of a
/// link, since whoever owns a domain chooses the addresses of its names.
pub(crate) fn is_learnable(address: IpAddr) -> bool {
    let is_free = |address: IpAddr| is_unicast(&address) && !address.is_loopback();
    let has_first_octet = |v4: Ipv4Addr| v4.octets()[0] != 0;
    match address {
        IpAddr::V4(v4) => is_free(address) && has_first_octet(v4),
        IpAddr::V6(v6) => is_free(address) && embedded(v6).is_none_or(|v4| is_free(v4.into())),
    }
}

/// Returns the IPv4 address that a translator finds in an IPv6 address: RFC 4291 §2.5.5 (mapped and
/// compatible), RFC 6052 §2.1 (NAT64's well-known prefix), RFC 3056 §2 (6to4).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let at = |first: usize| {
        Ipv4Addr::new(octets[first], octets[first + 1], octets[first + 2], octets[first + 3])
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(at(12)),
        [0x2002, ..] => Some(at(2)),
        _ => None,
    }
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
        let is_news = match table.find(hash, &key) {
            Some(id) => table.value(id).note(name, fresh_until),
            None => {
                let mut names = AddressNames {
                    asker: asker.address,
                    names: Vec::new(),
                    kept_until: 0,
                    is_referenced: true,
                };
                names.note(name, fresh_until);
                table.insert(hash, key, asker.owner, names);
                true
            }
        };
        if is_news {
            self.has_changed.store(true, Relaxed);
        }
    }

    /// Returns the names by which the sender of a packet has learnt its destination.
    pub(crate) fn names_of(
        &self,
        owner: QuotaOwner,
        address: IpAddr,
        age: NameAge,
    ) -> Vec<DomainName> {
        let key = Key { owner, address };
        let now = self.now.load(Relaxed);
        let (hash, mut table) = self.lock(&key);
        let Some(id) = table.find(hash, &key) else { return Vec::new() };
        let found = table.value(id);
        found.is_referenced = true;
        let counting = found.names.iter().filter(|(_, until)| age == NameAge::Any || *until > now);
        counting.map(|(name, _)| name.clone()).collect()
    }

    /// Forgets what a workload has learnt, which is gone.
    pub(crate) fn forget(&self, owner: QuotaOwner) {
        self.take(owner);
    }

    /// Gives a workload what it has learnt under another owner.
    pub(crate) fn rename(&self, from: QuotaOwner, to: QuotaOwner) {
        for (Key { address, .. }, names) in self.take(from) {
            let key = Key { owner: to, address };
            let (hash, mut table) = self.lock(&key);
            if table.find(hash, &key).is_none() {
                table.insert(hash, key, to, names);
            }
        }
    }

    /// Removes and returns what an owner has learnt.
    fn take(&self, owner: QuotaOwner) -> Vec<(Key, AddressNames)> {
        if !self.table.lock().has_any_of(owner) {
            return Vec::new();
        }
        let mut taken = Vec::new();
        self.each(|key, names| {
            if key.owner == owner {
                taken.push((*key, names.clone()));
            }
        });
        for (key, _) in &taken {
            let (hash, mut table) = self.lock(key);
            if let Some(id) = table.find(hash, key) {
                table.remove(id);
            }
        }
        self.has_changed.store(true, Relaxed);
        taken
    }

    /// Moves the time on. `uses`: passes on the destinations of flows to a function; called once a
    /// minute at most, if there are names that are not fresh.
    pub(crate) fn tick(&self, now: u32, uses: impl FnOnce(&mut dyn FnMut(IpAddr))) {
        self.now.store(now, Relaxed);
        if now < self.next_look.load(Relaxed) {
            return;
        }
        self.next_look.store(now.saturating_add(LOOK), Relaxed);
        let mut expiring: HashSet<IpAddr, RandomState> = HashSet::default();
        self.each(|key, names| {
            if names.kept_until <= now.saturating_add(LOOK) {
                expiring.insert(key.address);
            }
        });
        if !expiring.is_empty() {
            let mut used: HashSet<IpAddr, RandomState> = HashSet::default();
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
    use meshward_types::NamePattern;

    fn asker(number: u32) -> NameAsker {
        let address = IpAddr::from([10, 42, 0, number as u8]);
        NameAsker { owner: QuotaOwner::Workload(WorkloadIndex(number)), address }
    }

    /// Returns whether a workload knows an address by a name of a pattern.
    fn is_at(
        names: &LearntNames,
        asker: NameAsker,
        at: IpAddr,
        (pattern, age): (&str, NameAge),
    ) -> bool {
        let pattern: NamePattern = pattern.parse().unwrap();
        names.names_of(asker.owner, at, age).iter().any(|name| pattern.matches(name))
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
        let knows = |asker: NameAsker, text: &str, age| is_at(&names, asker, at, (text, age));
        assert!(knows(a, "*.s3.example", NameAge::Fresh));
        assert!(!knows(a, "s3.example", NameAge::Fresh) && !knows(b, "*", NameAge::Any));
        assert!(!is_at(&names, a, outside(2), ("*", NameAge::Any)));
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
        let knows = |at| is_at(&names, own, at, ("*", NameAge::Any));
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
        assert!(is_at(&names, modest, outside(0), ("a.example", NameAge::Fresh)));
        for number in 0..100 {
            names.learn(greedy, &name(&format!("n{number}.example")), outside(0), 60);
        }
        assert!(is_at(&names, modest, outside(0), ("a.example", NameAge::Fresh)));
        assert!(is_at(&names, greedy, outside(0), ("n99.example", NameAge::Fresh)));
        names.forget(greedy.owner);
        assert_eq!(names.export().len(), 1);
    }

    #[test]
    fn an_address_that_is_asked_for_again_is_not_the_first_to_go() {
        let (names, own) = (LearntNames::default(), asker(1));
        for number in 0..2 * LIMIT as u32 {
            names.learn(own, &name("often.example"), outside(0), 60);
            names.learn(own, &name("once.example"), outside(1 + number), 60);
        }
        assert!(is_at(&names, own, outside(0), ("often.example", NameAge::Fresh)));
        // What is asked for again and again is not saved each time.
        names.take_changed();
        names.tick(SAVED_CHANGE - 1, |_| {});
        names.learn(own, &name("often.example"), outside(0), 60);
        assert!(!names.take_changed());
        names.tick(SAVED_CHANGE, |_| {});
        names.learn(own, &name("often.example"), outside(0), 60);
        assert!(names.take_changed());
    }

    #[test]
    fn names_go_with_their_workload_to_another_owner() {
        let (names, before, after) = (LearntNames::default(), asker(1), asker(2));
        names.learn(before, &name("a.example"), outside(1), 60);
        names.rename(before.owner, after.owner);
        let knows = |asker| is_at(&names, asker, outside(1), ("a.example", NameAge::Fresh));
        assert!(knows(after) && !knows(before));
        names.take_changed();
        names.forget(after.owner);
        assert!(names.take_changed() && !knows(after));
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
        assert!(is_at(&after, own, outside(1), ("a.example", NameAge::Fresh)));
        assert_eq!(after.export(), saved);
    }

    #[test]
    fn addresses_of_the_host_and_of_links_are_not_learnt() {
        let special = "127.0.0.1 169.254.169.254 0.0.0.0 0.1.2.3 224.0.0.1 255.255.255.255 ::1 :: \
            fe80::1 ff02::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::";
        for text in special.split(' ') {
            assert!(!is_learnable(text.parse().unwrap()), "{text}");
        }
        for text in ["203.0.113.9", "10.0.0.1", "2001:db8::1", "fd00::1", "64:ff9b::cb00:7109"] {
            assert!(is_learnable(text.parse().unwrap()), "{text}");
        }
    }
}
