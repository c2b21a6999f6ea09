//! The timestamps of our initiations. A peer takes one only if it is greater than the one before,
//! for as long as it knows our key: so they grow whatever the clock does, restarts included.
//!
//! Nobody compares them with a clock. That makes `max(last + 1, now)` right for a clock that was
//! set back, and for one that was set far ahead and mended: what was said while it was ahead is
//! never gone below.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Nanoseconds of a step: about 17 ms, which hides how fast the machine is (as the kernel does).
pub(super) const STEP: u32 = 1 << 24;
/// Steps of a second that are told apart, in the count of [`Stamp`]; the last of them is longer
/// than it should be.
pub(super) const STEPS: u64 = 59;

/// A timestamp, in steps since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(pub(super) u64);

impl Stamp {
    /// That of a time since 1970.
    fn at(unix: Duration) -> Self {
        let within = u64::from(unix.subsec_nanos() / STEP).min(STEPS - 1);
        Self(unix.as_secs().saturating_mul(STEPS).saturating_add(within))
    }

    /// The one after it.
    fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Whole seconds since 1970.
    pub fn seconds(self) -> u64 {
        self.0 / STEPS
    }
}

/// The stamps of an endpoint.
pub(crate) struct Stamps {
    /// None is less: those of before a restart were.
    floor: AtomicU64,
    /// The clock is not followed beyond this: what is on disk says that all are less.
    limit: AtomicU64,
    newest: AtomicU64,
}

impl Default for Stamps {
    fn default() -> Self {
        Self {
            floor: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            newest: AtomicU64::new(0),
        }
    }
}

impl Stamps {
    /// Gives none below this many seconds since 1970.
    pub fn set_floor(&self, seconds: u64) {
        let floor = seconds.saturating_mul(STEPS);
        self.floor.store(floor, Relaxed);
        self.newest.fetch_max(floor, Relaxed);
    }

    /// Follows the clock up to this many seconds since 1970.
    pub fn set_limit(&self, seconds: u64) {
        self.limit.store(seconds.saturating_mul(STEPS), Relaxed);
    }

    /// The greatest so far, in seconds since 1970.
    pub fn newest(&self) -> u64 {
        Stamp(self.newest.load(Relaxed)).seconds()
    }

    /// The one for an initiation to a peer that got `last` before, if any.
    pub fn next(&self, last: Option<Stamp>, unix: Duration) -> Stamp {
        let clock = Stamp::at(unix).0.min(self.limit.load(Relaxed));
        let least = Stamp(clock.max(self.floor.load(Relaxed)));
        let next = last.map_or(least, |last| least.max(last.next()));
        self.newest.fetch_max(next.0, Relaxed);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::{super::noise::Timestamp, *};
    use proptest::prelude::*;

    proptest! {
        /// Whatever the clock does, and however often the endpoint starts anew from what is on
        /// disk.
        #[test]
        fn timestamps_only_grow(clock in prop::collection::vec((any::<u32>(), 0u32..1_000_000_000, any::<bool>()), 1..60)) {
            const MARGIN: u64 = 600;
            let (mut stamps, mut on_disk, mut last) = (Stamps::default(), 0, None);
            let mut said: Option<Timestamp> = None;
            for (seconds, nanos, restarts) in clock {
                let now = Duration::new(seconds.into(), nanos);
                if restarts {
                    (stamps, last) = (Stamps::default(), None);
                    stamps.set_floor(on_disk);
                }
                // What the node does: first the disk, then the limit.
                if stamps.newest().max(now.as_secs()) + 60 > on_disk {
                    on_disk = stamps.newest().max(now.as_secs()) + MARGIN;
                }
                stamps.set_limit(on_disk);
                for _ in 0..3 {
                    let next = stamps.next(last, now);
                    prop_assert!(said.is_none_or(|said| Timestamp::from(next) > said));
                    prop_assert!(next.seconds() <= on_disk);
                    (said, last) = (Some(next.into()), Some(next));
                }
            }
        }
    }

    #[test]
    fn the_clock_is_followed_only_as_far_as_the_disk_knows() {
        let stamps = Stamps::default();
        stamps.set_limit(1_000);
        let far = stamps.next(None, Duration::from_secs(1 << 40));
        assert_eq!(far.seconds(), 1_000);
        assert!(stamps.next(Some(far), Duration::ZERO) > far, "handshakes go on all the same");
    }
}
