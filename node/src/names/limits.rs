//! The bound on what one asker, a workload or a peer, may have asked upstream, so that none takes
//! another's share of descriptors, memory, and of the upstream's patience.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

/// Queries of an asker that wait for an upstream at the most, while few workloads ask ...
const MOST_WAITING: u32 = 64;
/// ... and in any case.
const LEAST_WAITING: u32 = 4;
/// Queries of all askers of a network that wait, which are shared evenly. Each is a socket.
const ALL_WAITING: u32 = 1024;
/// Queries of an asker for upstreams in a second, on average.
const RATE: f64 = 1000.0;
/// Queries of an asker for upstreams at once.
const BURST: f64 = 2000.0;
/// The time after which an asker that has not asked is forgotten.
const FORGET: Duration = Duration::from_secs(10);

/// The shares of a network's askers.
#[derive(Debug)]
pub(crate) struct AskerLimits<K>(Mutex<Shares<K>>);

#[derive(Debug)]
struct Shares<K> {
    shares: HashMap<K, Share>,
    swept: Option<Instant>,
}

impl<K> Default for AskerLimits<K> {
    fn default() -> Self {
        Self(Mutex::new(Shares { shares: HashMap::new(), swept: None }))
    }
}

#[derive(Debug)]
struct Share {
    waiting: u32,
    /// Queries that may still be asked now.
    tokens: f64,
    asked: Instant,
}

/// The permission to have one query wait for an upstream.
#[derive(Debug)]
pub(crate) struct AskerPermit<K: Copy + Eq + Hash> {
    limits: Arc<AskerLimits<K>>,
    asker: K,
}

impl<K: Copy + Eq + Hash> AskerLimits<K> {
    /// Permits an asker to ask; `None` if it has asked for too much.
    pub(crate) fn permit(self: &Arc<Self>, asker: K, now: Instant) -> Option<AskerPermit<K>> {
        let mut state = self.0.lock();
        state.sweep(now);
        let share = Share { waiting: 0, tokens: BURST, asked: now };
        state.shares.entry(asker).or_insert(share);
        let askers = state.shares.values().filter(|share| share.waiting > 0).count().max(1);
        let most = (ALL_WAITING / askers as u32).clamp(LEAST_WAITING, MOST_WAITING);
        let share = state.shares.get_mut(&asker)?;
        let passed = now.saturating_duration_since(share.asked).as_secs_f64();
        share.tokens = (share.tokens + passed * RATE).min(BURST);
        share.asked = now;
        if share.waiting >= most || share.tokens < 1.0 {
            return None;
        }
        share.waiting += 1;
        share.tokens -= 1.0;
        Some(AskerPermit { limits: self.clone(), asker })
    }
}

impl<K> Shares<K> {
    /// Forgets askers that have not asked for a while, from time to time.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now < swept + FORGET) {
            return;
        }
        self.swept = Some(now);
        self.shares.retain(|_, share| share.waiting > 0 || now < share.asked + FORGET);
    }
}

impl<K: Copy + Eq + Hash> Drop for AskerPermit<K> {
    fn drop(&mut self) {
        if let Some(share) = self.limits.0.lock().shares.get_mut(&self.asker) {
            share.waiting = share.waiting.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_datapath::WorkloadIndex;

    fn asker(number: u32) -> WorkloadIndex {
        WorkloadIndex(number)
    }

    #[test]
    fn a_workload_that_waits_for_much_leaves_the_others_their_share() {
        let (limits, now) = (Arc::new(AskerLimits::default()), Instant::now());
        let greedy: Vec<_> = std::iter::from_fn(|| limits.permit(asker(0), now)).collect();
        assert_eq!(greedy.len() as u32, MOST_WAITING);
        let others: Vec<_> =
            (1..200).filter_map(|other| limits.permit(asker(other), now)).collect();
        assert_eq!(others.len(), 199);
        let more: Vec<_> = std::iter::from_fn(|| limits.permit(asker(1), now)).collect();
        assert_eq!(more.len() as u32, ALL_WAITING / 200 - 1, "an even share");
        drop(greedy);
        assert!(limits.permit(asker(0), now).is_some());
    }

    #[test]
    fn a_workload_that_asks_all_the_time_is_slowed_down() {
        let (limits, now) = (Arc::new(AskerLimits::default()), Instant::now());
        let asked = (0..10_000).filter(|_| limits.permit(asker(0), now).is_some()).count();
        assert_eq!(asked, BURST as usize);
        let later = now + Duration::from_millis(100);
        let asked = (0..10_000).filter(|_| limits.permit(asker(0), later).is_some()).count();
        assert_eq!(asked, RATE as usize / 10);
        assert!(limits.permit(asker(1), later).is_some());
    }

    #[test]
    fn workloads_that_are_gone_are_forgotten() {
        let (limits, now) = (Arc::new(AskerLimits::default()), Instant::now());
        (0..100).for_each(|number| drop(limits.permit(asker(number), now)));
        drop(limits.permit(asker(0), now + 2 * FORGET));
        assert_eq!(limits.0.lock().shares.len(), 1);
    }
}
