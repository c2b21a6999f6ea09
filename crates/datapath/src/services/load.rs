//! The load of an instance as this node knows it: the connections that its own workloads have
//! there, how fast it answers, and whether it has failed.

use meshward_types::Weight;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, Release},
};

/// Microseconds since the start of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Micros(pub(crate) u64);

const SECOND: u64 = 1_000_000;

impl Micros {
    /// Returns how long ago an earlier time was.
    pub(crate) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The time for which a new instance gets less than its share, from a quarter up.
pub(crate) const WARM_UP: u64 = 30 * SECOND;
/// The time for which a failed connect counts against an instance: doubled with each one in a row.
const FIRST_PENALTY: u64 = 2 * SECOND;
const MAX_PENALTY: u64 = 32 * SECOND;
/// The time in which half of what is known of an answer's time is forgotten, if no other comes: so
/// that a slow instance is tried again.
const HALF_LIFE: u64 = 4 * SECOND;
/// Each sample counts this part at least.
const WEIGHT: u64 = 4;
/// Connections that are added to those that are open: below this the times of answers and chance
/// count more.
const BASE: u64 = 4;

/// The load of an instance as this node knows it.
#[derive(Debug, Default)]
pub(crate) struct InstanceLoad {
    open: AtomicU32,
    /// The smoothed time until it answers, in microseconds; 0: not known.
    answer_time: AtomicU32,
    sampled_at: AtomicU64,
    /// The time until which it gets no connections.
    failing_until: AtomicU64,
    failures: AtomicU32,
    /// The time at which it joined a service that had others; 0: it has been there from the start.
    joined: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) unanswered: AtomicU64,
}

impl InstanceLoad {
    /// An instance that joined at a time.
    pub(crate) fn joined_at(now: Micros) -> Self {
        Self { joined: AtomicU64::new(now.0), ..Self::default() }
    }

    /// Returns how many connections of this node's workloads are open.
    pub(crate) fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }

    pub(crate) fn begin(&self) {
        self.open.fetch_add(1, Relaxed);
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Notes that it answered after so many microseconds.
    pub(crate) fn note_answer(&self, now: Micros, took: u64) {
        let took = took.clamp(1, u64::from(u32::MAX));
        let before = u64::from(self.answer_time.load(Relaxed));
        let age = now.since(Micros(self.sampled_at.load(Relaxed)));
        // Seldom heard of, the last answer says most.
        let part = (age.saturating_mul(WEIGHT) / HALF_LIFE).clamp(1, WEIGHT);
        let next =
            if before == 0 { took } else { (before * (WEIGHT - part) + took * part) / WEIGHT };
        self.answer_time.store(next.max(1) as u32, Relaxed);
        self.sampled_at.store(now.0, Relaxed);
    }

    /// Notes that it has accepted a connection.
    pub(crate) fn note_success(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.failing_until.store(0, Relaxed);
        }
    }

    /// Notes that it has refused a connection, or not answered.
    pub(crate) fn note_failure(&self, now: Micros) {
        let failures = self.failures.fetch_add(1, Relaxed).min(8);
        let penalty = (FIRST_PENALTY << failures).min(MAX_PENALTY);
        self.failing_until.store(now.0 + penalty, Release);
    }

    /// Returns whether it has just failed.
    pub(crate) fn is_failing(&self, now: Micros) -> bool {
        self.failing_until.load(Relaxed) > now.0
    }

    /// Returns the smoothed time until it answers, in microseconds; 0: not known. It falls towards
    /// `usual` while nothing is heard.
    pub(crate) fn answer_time(&self, now: Micros, usual: u64) -> u64 {
        let known = u64::from(self.answer_time.load(Relaxed));
        let age = now.since(Micros(self.sampled_at.load(Relaxed)));
        let halves = (age / HALF_LIFE).min(32);
        if known > usual { usual + ((known - usual) >> halves) } else { known }
    }

    /// Returns the cost of one more connection: the open ones, in proportion to the instance's
    /// weight, times the time until it answers, if that is more than twice the usual. `usual` is in
    /// microseconds; 0: not known.
    pub(crate) fn cost(&self, now: Micros, usual: u64, weight: Weight) -> u64 {
        let usual = usual.max(MIN_USUAL);
        let slowness = (self.answer_time(now, usual) * SCALE / (2 * usual)).max(SCALE);
        let [own, default] = [weight, Weight::default()].map(|weight| u64::from(weight.get()));
        let open = match own == default {
            true => u64::from(self.open()),
            false => u64::from(self.open()) * default / own.max(1),
        };
        (open + BASE) * slowness
    }

    /// Returns whether it takes much longer than usual until it answers.
    pub(crate) fn is_slow(&self, now: Micros, usual: u64) -> bool {
        let usual = usual.max(MIN_USUAL);
        self.answer_time(now, usual) > MUCH_LONGER * usual
    }

    /// Returns the part of its share that it gets while it is new, of 256.
    pub(crate) fn warmth(&self, now: Micros) -> u64 {
        let joined = self.joined.load(Relaxed);
        if joined == 0 {
            return 256;
        }
        (64 + 192 * now.since(Micros(joined)) / WARM_UP).min(256)
    }
}

/// An instance that takes so many times longer than usual is slow.
const MUCH_LONGER: u64 = 8;
/// The scale of slowness, so that halves count.
const SCALE: u64 = 16;
/// Times below this are no sign of anything, in microseconds.
const MIN_USUAL: u64 = 500;

/// The usual time until instances of a service answer: an estimate of the median, that moves a step
/// towards each sample (Ma, Muthukrishnan, Sandler: "Frugal streaming for estimating quantiles",
/// 2013).
#[derive(Debug, Default)]
pub(crate) struct UsualTime(AtomicU32);

impl UsualTime {
    pub(crate) fn note(&self, took: u64) {
        let took = took.clamp(1, u64::from(u32::MAX)) as u32;
        let before = self.0.load(Relaxed);
        let step = (before / 16).max(1);
        let next = match before {
            0 => took,
            _ if took > before => before.saturating_add(step).min(took),
            _ => before.saturating_sub(step).max(took),
        };
        self.0.store(next, Relaxed);
    }

    /// Returns it in microseconds; 0: not known.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed).into()
    }
}
