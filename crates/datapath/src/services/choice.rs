//! The choice of an instance for a new connection.
//!
//! Two candidates are found by rendezvous hashing (Thaler, Ravishankar: "Using name-based mappings
//! to increase hit rates", 1998) of the connection's addresses and ports: the same two after a
//! restart, and whatever else comes and goes. The first is chosen unless the other one costs clearly
//! less (Mitzenmacher: "The power of two choices in randomized load balancing", 2001), so that the
//! choice is nearly always the same, too. Nearer instances come first, and farther ones when those
//! are full or slow.
//!
//! If instances have weights, candidates are found by weighted rendezvous hashing (Schindelhauer,
//! Schomaker: "Weighted distributed hash tables", 2005, the logarithmic method), and the
//! connections of an instance count in proportion to its weight.

use super::load::{InstanceLoad, Micros};
use meshward_types::{IdentityId, Serving, Weight};
use std::{net::IpAddr, sync::Arc};

/// The distance of an instance, as far as its service distinguishes it: 0 is the nearest.
pub(crate) type Distance = u8;

/// The other candidate is chosen if it costs less than this part of the first.
const CLEARLY_LESS: Ratio = Ratio { part: 4, of: 5 };
/// A farther instance is chosen if it costs less than this part of a nearer one.
const WORTH_THE_WAY: Ratio = Ratio { part: 1, of: 4 };

#[derive(Clone, Copy)]
struct Ratio {
    part: u64,
    of: u64,
}

impl Ratio {
    /// Returns whether `a` is less than this part of `b`.
    fn is_less(self, a: u64, b: u64) -> bool {
        a.saturating_mul(self.of) < b.saturating_mul(self.part)
    }
}

/// An instance of a service.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) address: IpAddr,
    /// A hash of its address.
    pub(crate) hash: u64,
    pub(crate) distance: Distance,
    pub(crate) identity: IdentityId,
    pub(crate) serving: Serving,
    /// `false` while it is quarantined.
    pub(crate) is_open: bool,
    pub(crate) weight: Weight,
    pub(crate) load: Arc<InstanceLoad>,
}

/// A connection that needs an instance.
pub(crate) struct Choice<'a, F> {
    /// A hash of what the choice is to depend on.
    pub(crate) hash: u64,
    pub(crate) now: Micros,
    /// The usual time until instances of the service answer, in microseconds.
    pub(crate) usual: u64,
    pub(crate) ranking: Ranking,
    /// Instances that have failed this very connection.
    pub(crate) without: &'a [IpAddr],
    /// Returns whether the rules let the client reach an identity.
    pub(crate) reaches: F,
}

/// The order of a service's instances for a connection, of which the first two are candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ranking {
    /// All have the same weight.
    Even,
    /// They have weights of their own.
    Weighted,
}

impl Ranking {
    /// Returns the rank of an instance by a hash of both. The highest is the first candidate; 0: it
    /// is none.
    #[inline]
    fn rank(self, hash: u64, weight: Weight) -> u64 {
        match self {
            Self::Even => hash | 1,
            Self::Weighted => {
                // Between 0 and 1, both excluded: the fraction has 53 bits.
                let part = ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
                // Positive floating-point numbers are in the order of their bits (IEEE 754).
                (f64::from(weight.get()) / -part.ln()).to_bits()
            }
        }
    }
}

/// Mixes two hashes.
#[inline]
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    // The 128-bit product of wyhash and foldhash.
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xe703_7ed1_a0b4_28db);
    (product as u64) ^ (product >> 64) as u64
}

/// A candidate, with its cost.
struct Candidate<'a> {
    instance: &'a Instance,
    cost: u64,
}

impl<F: Fn(IdentityId) -> bool> Choice<'_, F> {
    /// Chooses among instances, which are in the order of their distances. `None`: there is none
    /// that may serve the connection.
    pub(crate) fn choose<'a>(&self, instances: &'a [Instance]) -> Option<&'a Instance> {
        let reaches = Reaches::new(&self.reaches);
        let is_open = |instance: &Instance| {
            instance.is_open
                && !self.without.contains(&instance.address)
                && reaches.reaches(instance.identity)
        };
        let is_ready =
            |instance: &Instance| instance.serving == Serving::Ready && is_open(instance);
        let is_well =
            |instance: &Instance| is_ready(instance) && !instance.load.is_failing(self.now);
        // If all have failed lately, or the checks of all fail, it is the checks that are in doubt.
        self.nearest(instances, is_well).or_else(|| self.nearest(instances, is_ready)).or_else(
            || {
                let is_unhealthy = |instance: &Instance| {
                    instance.serving == Serving::Unhealthy && is_open(instance)
                };
                self.nearest(instances, is_unhealthy)
            },
        )
    }

    /// Chooses the nearest, unless a farther one costs much less.
    fn nearest<'a>(
        &self,
        instances: &'a [Instance],
        is_eligible: impl Fn(&Instance) -> bool,
    ) -> Option<&'a Instance> {
        let mut best: Option<Candidate<'_>> = None;
        for group in instances.chunk_by(|a, b| a.distance == b.distance) {
            let Some(next) = self.best_of_group(group, &is_eligible) else { continue };
            if best.as_ref().is_none_or(|best| WORTH_THE_WAY.is_less(next.cost, best.cost)) {
                best = Some(next);
            }
        }
        best.map(|best| best.instance)
    }

    /// Chooses one of two; if both are slow, of two others that are not.
    fn best_of_group<'a>(
        &self,
        group: &'a [Instance],
        is_eligible: impl Fn(&Instance) -> bool,
    ) -> Option<Candidate<'a>> {
        let best = self.best_of_two(group, &is_eligible)?;
        let is_slow = |instance: &Instance| instance.load.is_slow(self.now, self.usual);
        if !is_slow(best.instance) {
            return Some(best);
        }
        let other = self.best_of_two(group, |instance| is_eligible(instance) && !is_slow(instance));
        let better = other.filter(|other| CLEARLY_LESS.is_less(other.cost, best.cost));
        Some(better.unwrap_or(best))
    }

    fn best_of_two<'a>(
        &self,
        group: &'a [Instance],
        is_eligible: impl Fn(&Instance) -> bool,
    ) -> Option<Candidate<'a>> {
        let (mut first, mut second) = (None, None);
        let (mut most, mut more) = (0, 0);
        for instance in group {
            let rank = self.ranking.rank(mix(self.hash, instance.hash), instance.weight);
            if rank > more && is_eligible(instance) {
                if rank > most {
                    (second, more) = (first, most);
                    (first, most) = (Some(instance), rank);
                } else {
                    (second, more) = (Some(instance), rank);
                }
            }
        }
        let candidate = |instance: &'a Instance| {
            let cost = instance.load.cost(self.now, self.usual, instance.weight);
            Candidate { instance, cost }
        };
        let (first, second) = (candidate(first?), second.map(candidate));
        let Some(second) = second else { return Some(first) };
        let is_warm = |candidate: &Candidate<'_>| {
            // Bits that the order of candidates does not depend on.
            let chance = mix(self.hash, !candidate.instance.hash) & 255;
            chance < candidate.instance.load.warmth(self.now)
        };
        let prefers_second = match (is_warm(&first), is_warm(&second)) {
            (true, false) => false,
            (false, true) => true,
            _ => CLEARLY_LESS.is_less(second.cost, first.cost),
        };
        Some(if prefers_second { second } else { first })
    }
}

/// The rules' answers for the identities of a service's instances, of which there are few: each is
/// asked for once.
struct Reaches<F> {
    ask: F,
    known: std::cell::RefCell<[Option<(IdentityId, bool)>; 4]>,
}

impl<F: Fn(IdentityId) -> bool> Reaches<F> {
    fn new(ask: F) -> Self {
        Self { ask, known: std::cell::RefCell::new([None; 4]) }
    }

    fn reaches(&self, identity: IdentityId) -> bool {
        let mut known = self.known.borrow_mut();
        let slot = &mut known[identity.0 as usize % 4];
        match *slot {
            Some((of, reaches)) if of == identity => reaches,
            _ => {
                let reaches = (self.ask)(identity);
                *slot = Some((identity, reaches));
                reaches
            }
        }
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
