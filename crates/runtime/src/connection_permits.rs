//! Permits for TCP connections: a budget of descriptors, shared so that strangers cannot use up
//! those of members and operators, nor one stranger those of another.

use crate::sources::{KnownSources, OpenLimit, SourceBlock, blocks};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;

/// The permits of a listener.
#[derive(Debug)]
pub struct ConnectionPermits {
    strangers: OpenLimit,
    /// The number of permits for authenticated peers.
    trusted: usize,
    /// The addresses from which peers have authenticated before.
    known: Arc<KnownSources>,
    table: Mutex<Table>,
}

/// The numbers of connections that hold permits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PermitCounts {
    /// Connections of strangers.
    pub strangers: usize,
    /// Connections of authenticated peers.
    pub trusted: usize,
}

#[derive(Debug, Default)]
struct Table {
    /// The connections of strangers, by age.
    strangers: BTreeMap<u64, Arc<State>>,
    /// The number of strangers' connections by address and by prefix.
    counts: HashMap<SourceBlock, usize>,
    /// The number of authenticated connections by their owner.
    trusted: HashMap<String, usize>,
    trusted_total: usize,
    next: u64,
}

#[derive(Debug)]
struct State {
    number: u64,
    source: IpAddr,
    /// `true` if the connection came from a known source: then strangers do not evict it.
    known: bool,
    is_evicted: AtomicBool,
    evicted: Notify,
}

impl ConnectionPermits {
    /// Creates permits: `strangers` limits those of strangers, `trusted` those of authenticated
    /// peers.
    pub fn new(strangers: OpenLimit, trusted: usize, known: Arc<KnownSources>) -> Arc<Self> {
        Arc::new(Self { strangers, trusted, known, table: Mutex::default() })
    }

    /// Reserves a permit for a connection. If none is left, the oldest connection is evicted of
    /// whoever has too many: the address, the prefix, or all strangers. Returns `None` if nothing
    /// can be evicted; the new connection is to be closed then.
    pub fn acquire(self: &Arc<Self>, source: IpAddr) -> Option<Arc<ConnectionPermit>> {
        let known = source.to_canonical().is_loopback() || self.known.contains(source);
        let mut table = self.table.lock();
        if !self.make_room(&mut table, source, known) {
            return None;
        }
        let number = table.next;
        table.next += 1;
        let state = Arc::new(State {
            number,
            source,
            known,
            is_evicted: AtomicBool::new(false),
            evicted: Notify::new(),
        });
        table.strangers.insert(number, state.clone());
        for key in blocks(source) {
            *table.counts.entry(key).or_default() += 1;
        }
        Some(Arc::new(ConnectionPermit { of: self.clone(), state, owner: Mutex::new(None) }))
    }

    fn make_room(&self, table: &mut Table, source: IpAddr, known: bool) -> bool {
        let [address, prefix] = blocks(source);
        let count = |table: &Table, key| table.counts.get(&key).copied().unwrap_or(0);
        let is_of = |own: SourceBlock| move |state: &State| blocks(state.source).contains(&own);
        let room = if source.to_canonical().is_loopback() {
            self.strangers.total
        } else {
            self.strangers.per_address
        };
        if count(table, address) >= room {
            return table.evict(is_of(address));
        }
        if !known && count(table, prefix) >= self.strangers.per_prefix {
            return table.evict(|state| !state.known && is_of(prefix)(state));
        }
        // Known sources may use half as many again.
        let most = self.strangers.total + if known { self.strangers.total / 2 } else { 0 };
        if table.strangers.len() >= most {
            return table.evict(|state| !state.known) || (known && table.evict(|_| true));
        }
        true
    }

    /// Returns the number of connections of strangers, and of authenticated peers.
    pub fn count(&self) -> PermitCounts {
        let table = self.table.lock();
        PermitCounts { strangers: table.strangers.len(), trusted: table.trusted_total }
    }
}

impl Table {
    /// Evicts the oldest connection that `applies` selects.
    fn evict(&mut self, applies: impl Fn(&State) -> bool) -> bool {
        let Some(oldest) = self.strangers.values().find(|state| applies(state)).cloned() else {
            return false;
        };
        self.forget(&oldest);
        oldest.is_evicted.store(true, Ordering::Release);
        oldest.evicted.notify_waiters();
        oldest.evicted.notify_one();
        true
    }

    fn forget(&mut self, state: &State) {
        if self.strangers.remove(&state.number).is_none() {
            return;
        }
        for key in blocks(state.source) {
            if let Some(count) = self.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&key);
                }
            }
        }
    }
}

/// The permit of one connection. It is free again when this is dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    of: Arc<ConnectionPermits>,
    state: Arc<State>,
    /// The peer that has authenticated on the connection.
    owner: Mutex<Option<String>>,
}

impl ConnectionPermit {
    /// Notes that a peer has authenticated on the connection, so that strangers no longer evict it.
    /// One peer gets at most a quarter of these permits; beyond it, its connections count as
    /// strangers'.
    pub fn trust(&self, who: &str) {
        let mut owner = self.owner.lock();
        self.of.known.note(self.state.source);
        if owner.is_some() || self.state.is_evicted.load(Ordering::Acquire) {
            return;
        }
        let mut table = self.of.table.lock();
        let own = table.trusted.get(who).copied().unwrap_or(0);
        if table.trusted_total >= self.of.trusted || own >= (self.of.trusted / 4).max(1) {
            return;
        }
        table.forget(&self.state);
        table.trusted_total += 1;
        *table.trusted.entry(who.to_owned()).or_default() += 1;
        *owner = Some(who.to_owned());
    }

    /// Returns `true` if a peer has authenticated on the connection.
    pub fn is_trusted(&self) -> bool {
        self.owner.lock().is_some()
    }

    /// Waits until the connection is evicted.
    pub async fn evicted(&self) {
        while !self.state.is_evicted.load(Ordering::Acquire) {
            self.state.evicted.notified().await;
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut table = self.of.table.lock();
        table.forget(&self.state);
        let Some(owner) = self.owner.get_mut().take() else { return };
        table.trusted_total -= 1;
        if let Some(count) = table.trusted.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                table.trusted.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits() -> Arc<ConnectionPermits> {
        let strangers = OpenLimit { per_address: 2, per_prefix: 3, total: 4 };
        ConnectionPermits::new(strangers, 4, Arc::new(KnownSources::new(10)))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_evicted(permit: &ConnectionPermit) -> bool {
        permit.state.is_evicted.load(Ordering::Acquire)
    }

    #[test]
    fn who_has_too_many_loses_its_own_oldest() {
        let permits = permits();
        let first: Vec<_> = (0..3).map(|_| permits.acquire(ip("192.0.2.1")).unwrap()).collect();
        assert!(is_evicted(&first[0]) && !is_evicted(&first[1]));
        let second = permits.acquire(ip("192.0.2.2")).unwrap();
        let third = permits.acquire(ip("192.0.2.3")).unwrap();
        assert!(is_evicted(&first[1]), "of the prefix the oldest");
        let other = permits.acquire(ip("198.51.100.1")).unwrap();
        let more = permits.acquire(ip("203.0.113.1")).unwrap();
        assert!(
            is_evicted(&first[2])
                && [&second, &third, &other, &more].iter().all(|permit| !is_evicted(permit))
        );
        drop((first, second, third, other, more));
        assert_eq!(permits.count(), PermitCounts::default());
        assert_eq!(permits.table.lock().counts.len(), 0);
    }

    #[test]
    fn strangers_drive_out_nobody_who_has_authenticated() {
        let permits = permits();
        let member = permits.acquire(ip("192.0.2.1")).unwrap();
        member.trust("node:a");
        let before = permits.acquire(ip("192.0.2.1")).unwrap();
        let strangers: Vec<_> =
            (0..50).map(|at| permits.acquire(ip(&format!("10.{at}.0.1"))).unwrap()).collect();
        assert!(
            !is_evicted(&member) && !is_evicted(&before),
            "nor who comes from where a member did"
        );
        assert!(strangers[..46].iter().all(|permit| is_evicted(permit)));
        assert_eq!(permits.count().trusted, 1);
        let greedy: Vec<_> = strangers[47..].iter().map(|permit| permit.trust("user:b")).collect();
        assert_eq!(
            (greedy.len(), permits.count().trusted),
            (3, 2),
            "one credential gets a quarter"
        );
        drop(strangers);
        drop(member);
        assert_eq!(permits.count(), PermitCounts { strangers: 1, trusted: 0 });
    }
}
