//! Limits by source: how much is open at a time, and how often requests may come.
//!
//! A source is counted twice: as an address (IPv4 /32; IPv6 /64, which one host has for itself) and
//! as a prefix (IPv4 /24; IPv6 /48, which one site has), so that having many addresses gains
//! nothing. All tables are bounded.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

/// A block of addresses in which a source is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceBlock {
    /// The addresses of one host.
    Address(IpAddr),
    /// The addresses of one site.
    Prefix(IpAddr),
}

/// Returns the blocks that a source is counted in.
pub fn blocks(source: IpAddr) -> [SourceBlock; 2] {
    use SourceBlock::{Address, Prefix};
    match source.to_canonical() {
        IpAddr::V4(address) => {
            let prefix = Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << 8));
            [Address(address.into()), Prefix(prefix.into())]
        }
        IpAddr::V6(address) => {
            let cut = |length: u32| {
                IpAddr::from(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - length))))
            };
            [Address(cut(64)), Prefix(cut(48))]
        }
    }
}

/// A table of bounded size in two generations: entries that were not used while half of the table
/// filled up again are forgotten.
#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// The largest number of entries of one generation.
    most: usize,
}

impl<K: Hash + Eq, V> Generations<K, V> {
    fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), most: (most / 2).max(1) }
    }

    fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.young.contains_key(&key) && self.young.len() >= self.most {
            self.old = std::mem::take(&mut self.young);
        }
        let before = self.old.remove(&key);
        self.young.entry(key).or_insert_with(|| before.unwrap_or_else(make))
    }

    fn contains(&self, key: &K) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// The addresses from which peers have authenticated lately. Bounded: the least recently seen are
/// forgotten.
#[derive(Debug)]
pub struct KnownSources(Mutex<Generations<SourceBlock, ()>>);

impl KnownSources {
    /// Creates an empty set of at most `most` addresses.
    pub fn new(most: usize) -> Self {
        Self(Mutex::new(Generations::new(most)))
    }

    /// Notes that a member or an operator has authenticated from an address.
    pub fn note(&self, source: IpAddr) {
        self.0.lock().entry(blocks(source)[0], || ());
    }

    /// Returns `true` if one has.
    pub fn contains(&self, source: IpAddr) -> bool {
        self.0.lock().contains(&blocks(source)[0])
    }
}

/// Limits on what is open at a time.
#[derive(Debug, Clone, Copy)]
pub struct OpenLimit {
    /// The limit for one address.
    pub per_address: usize,
    /// The limit for one prefix.
    pub per_prefix: usize,
    /// The limit for all sources together.
    pub total: usize,
}

/// Counts of what is open, by source. Loopback counts only in the total.
#[derive(Debug)]
pub struct OpenBySource {
    limit: OpenLimit,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    counts: HashMap<SourceBlock, usize>,
    total: usize,
}

impl OpenBySource {
    /// Creates the counts, with nothing open.
    pub fn new(limit: OpenLimit) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default() })
    }

    /// Opens one more; `None` if that exceeds a limit.
    pub fn open(self: &Arc<Self>, source: IpAddr) -> Option<SourcePermit> {
        let [address, prefix] = blocks(source);
        let mut open = self.open.lock();
        let count = |open: &Open, key| open.counts.get(&key).copied().unwrap_or(0);
        let is_over = count(&open, address) >= self.limit.per_address
            || count(&open, prefix) >= self.limit.per_prefix;
        let is_loopback = source.to_canonical().is_loopback();
        if open.total >= self.limit.total || (is_over && !is_loopback) {
            return None;
        }
        open.total += 1;
        for block in [address, prefix] {
            *open.counts.entry(block).or_default() += 1;
        }
        Some(SourcePermit { of: self.clone(), source })
    }

    /// Returns the number of those open.
    pub fn total(&self) -> usize {
        self.open.lock().total
    }
}

/// A permit for one that is open. Dropping it closes it.
#[derive(Debug)]
pub struct SourcePermit {
    of: Arc<OpenBySource>,
    source: IpAddr,
}

impl Drop for SourcePermit {
    fn drop(&mut self) {
        let mut open = self.of.open.lock();
        open.total -= 1;
        for key in blocks(self.source) {
            if let Some(count) = open.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    open.counts.remove(&key);
                }
            }
        }
    }
}

/// A rate limit: `burst` at once, and `per_second` in the long run.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// The number that may come at once.
    pub burst: f64,
    /// The number per second in the long run.
    pub per_second: f64,
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Creates a full bucket.
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
    }

    /// Takes `count` tokens if there are as many. Returns `true` if it did.
    pub fn take(&mut self, rate: Rate, count: f64, now: Instant) -> bool {
        self.refill(rate, now);
        let enough = self.tokens >= count;
        if enough {
            self.tokens -= count;
        }
        enough
    }

    /// Takes `count` tokens even if there are fewer, and returns the time until the debt is paid.
    pub fn owe(&mut self, rate: Rate, count: f64, now: Instant) -> Duration {
        self.refill(rate, now);
        self.tokens -= count;
        Duration::from_secs_f64((-self.tokens / rate.per_second).clamp(0.0, 3600.0))
    }

    fn has(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= 1.0
    }
}

/// Rate limits by source. A prefix may do eight times as much as an address.
#[derive(Debug)]
pub struct RateBySource {
    rate: Rate,
    buckets: Mutex<Generations<SourceBlock, Bucket>>,
}

/// The largest number of buckets of one limit.
const MOST_BUCKETS: usize = 1 << 16;
/// The allowance of a prefix, as a multiple of an address's.
const ADDRESSES_OF_A_PREFIX: f64 = 8.0;

impl RateBySource {
    /// Creates a limit for each address.
    pub fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::new(Generations::new(MOST_BUCKETS)) }
    }

    fn each(&self, source: IpAddr) -> [(SourceBlock, Rate); 2] {
        let [address, prefix] = blocks(source);
        let Rate { burst, per_second } = self.rate;
        let wide = Rate {
            burst: burst * ADDRESSES_OF_A_PREFIX,
            per_second: per_second * ADDRESSES_OF_A_PREFIX,
        };
        [(address, self.rate), (prefix, wide)]
    }

    /// Returns `true` and counts one if a source may come once more.
    pub fn take(&self, source: IpAddr, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        let each = self.each(source);
        let may = each
            .iter()
            .all(|(key, rate)| buckets.entry(*key, || Bucket::full(*rate, now)).has(*rate, now));
        if may {
            for (key, rate) in each {
                buckets.entry(key, || Bucket::full(rate, now)).take(rate, 1.0, now);
            }
        }
        may
    }

    /// Returns `true` if a source may come once more, without counting it.
    pub fn allows(&self, source: IpAddr, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        self.each(source)
            .iter()
            .all(|(key, rate)| buckets.entry(*key, || Bucket::full(*rate, now)).has(*rate, now))
    }
}

/// A limit for log lines, which counts those that are left out.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    state: Mutex<SeldomState>,
}

#[derive(Debug)]
struct SeldomState {
    last: Option<Instant>,
    /// The number of lines left out since then.
    left_out: u64,
}

impl Seldom {
    /// Allows one line in each interval.
    pub const fn every(every: Duration) -> Self {
        Self { every, state: Mutex::new(SeldomState { last: None, left_out: 0 }) }
    }

    /// Returns the number of lines left out since the last one, if another is due.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let due = state.last.is_none_or(|last| now.saturating_duration_since(last) >= self.every);
        if !due {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn neither_an_address_nor_a_prefix_nor_all_together_open_too_much() {
        let open = OpenBySource::new(OpenLimit { per_address: 2, per_prefix: 3, total: 5 });
        let mut held: Vec<_> =
            ["192.0.2.1", "192.0.2.1"].map(|at| open.open(ip(at)).unwrap()).into();
        assert!(open.open(ip("192.0.2.1")).is_none(), "the address has its share");
        assert!(open.open(ip("::ffff:192.0.2.1")).is_none(), "written otherwise it is the same");
        held.push(open.open(ip("192.0.2.2")).unwrap());
        assert!(open.open(ip("192.0.2.3")).is_none(), "the prefix has its share");
        held.push(open.open(ip("2001:db8::1")).unwrap());
        held.push(open.open(ip("2001:db8::2:0:0:1")).unwrap());
        assert!(open.open(ip("2001:db8::3")).is_none(), "one host's /64");
        assert!(open.open(ip("127.0.0.1")).is_none(), "all together");
        held.clear();
        assert_eq!((open.total(), open.open.lock().counts.len()), (0, 0), "nothing is left behind");
        let on_loopback: Vec<_> = (0..5).map(|_| open.open(ip("127.0.0.1")).unwrap()).collect();
        assert_eq!(on_loopback.len(), 5);
    }

    #[test]
    fn a_rate_is_kept_by_address_and_by_prefix() {
        let rates = RateBySource::new(Rate { burst: 2.0, per_second: 1.0 });
        let now = Instant::now();
        let take = |at: &str, seconds| rates.take(ip(at), now + Duration::from_secs(seconds));
        assert!(take("192.0.2.1", 0) && take("192.0.2.1", 0) && !take("192.0.2.1", 0));
        assert!(take("192.0.2.1", 1) && !take("192.0.2.1", 1), "it comes back with time");
        let others = (2..250).filter(|host| take(&format!("192.0.2.{host}"), 1)).count();
        assert!((12..=16).contains(&others), "{others}");
        assert!(take("198.51.100.1", 1), "other prefixes notice nothing");
    }

    #[test]
    fn tables_of_sources_are_bounded_and_keep_who_comes_often() {
        let rates = RateBySource::new(Rate { burst: 1.0, per_second: 0.001 });
        let now = Instant::now();
        assert!(rates.take(ip("192.0.2.1"), now));
        for at in 0..200_000u32 {
            rates.take(IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + at)), now);
            if at % 1000 == 0 {
                assert!(!rates.take(ip("192.0.2.1"), now), "after {at}");
            }
        }
        assert!(rates.buckets.lock().len() <= MOST_BUCKETS);
        let known = KnownSources::new(100);
        for at in 0..1000u32 {
            known.note(IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + at)));
        }
        assert!(known.0.lock().len() <= 100 && known.contains(ip("10.0.3.231")));
    }

    #[test]
    fn lines_that_are_left_out_are_counted() {
        let seldom = Seldom::every(Duration::from_secs(10));
        let now = Instant::now();
        let due = |seconds| seldom.due(now + Duration::from_secs(seconds));
        assert_eq!(
            [due(0), due(1), due(2), due(10), due(11), due(20)],
            [Some(0), None, None, Some(2), None, Some(1)]
        );
    }
}
