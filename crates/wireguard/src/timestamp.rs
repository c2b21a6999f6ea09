//! The timestamps of initiations. A peer answers an initiation only if its timestamp is greater
//! than the one before, for as long as it knows the initiator's key: so they grow whatever the
//! clock does, restarts included.
//!
//! No peer compares a timestamp with its own clock. That makes `max(last + 1, now)` right for a
//! clock that was set back, and for one that was set far ahead and then corrected: what was sent
//! while it was ahead is never gone below.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Nanoseconds of a step: about 17 ms, which hides how fast the machine is (as in the kernel).
const STEP_NANOS: u32 = 1 << 24;
/// Steps in a second; the last of them is longer than the others.
const STEPS_PER_SECOND: u64 = 59;
/// TAI64's label of 1970-01-01, with the ten leap seconds of then.
const TAI64_EPOCH: u64 = 0x4000_0000_0000_000a;

/// A timestamp as messages carry it (TAI64N, <https://cr.yp.to/libtai/tai64.html>): later ones are
/// greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tai64n([u8; 12]);

impl Tai64n {
    /// The timestamp with these bytes.
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the wire form.
    pub fn to_bytes(self) -> [u8; 12] {
        self.0
    }
}

impl From<Timestamp> for Tai64n {
    fn from(timestamp: Timestamp) -> Self {
        let nanos = (timestamp.0 % STEPS_PER_SECOND) as u32 * STEP_NANOS;
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&TAI64_EPOCH.wrapping_add(timestamp.seconds()).to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }
}

/// A timestamp of our own, in steps since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    fn at(unix: Duration) -> Self {
        let within = u64::from(unix.subsec_nanos() / STEP_NANOS).min(STEPS_PER_SECOND - 1);
        Self(unix.as_secs().saturating_mul(STEPS_PER_SECOND).saturating_add(within))
    }

    fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Whole seconds since 1970.
    pub fn seconds(self) -> u64 {
        self.0 / STEPS_PER_SECOND
    }
}

/// The source of an interface's timestamps.
#[derive(Debug)]
pub struct TimestampSource {
    /// No timestamp is less: greater ones were given before a restart.
    floor: AtomicU64,
    /// The clock is not followed beyond this: storage says that all timestamps are less.
    limit: AtomicU64,
    newest: AtomicU64,
}

impl Default for TimestampSource {
    fn default() -> Self {
        Self {
            floor: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            newest: AtomicU64::new(0),
        }
    }
}

impl TimestampSource {
    /// Gives no timestamp below this many seconds since 1970 from now on.
    pub fn set_floor(&self, seconds: u64) {
        let floor = seconds.saturating_mul(STEPS_PER_SECOND);
        self.floor.store(floor, Relaxed);
        self.newest.fetch_max(floor, Relaxed);
    }

    /// Lets the timestamps follow the clock up to this many seconds since 1970.
    pub fn set_limit(&self, seconds: u64) {
        self.limit.store(seconds.saturating_mul(STEPS_PER_SECOND), Relaxed);
    }

    /// Returns the greatest timestamp so far, in seconds since 1970.
    pub fn newest(&self) -> u64 {
        Timestamp(self.newest.load(Relaxed)).seconds()
    }

    /// Returns the timestamp for an initiation to a peer that got `last` before, if any. `unix` is
    /// the clock's time since 1970.
    pub fn next(&self, last: Option<Timestamp>, unix: Duration) -> Timestamp {
        let clock = Timestamp::at(unix).0.min(self.limit.load(Relaxed));
        let least = Timestamp(clock.max(self.floor.load(Relaxed)));
        let next = last.map_or(least, |last| least.max(last.next()));
        self.newest.fetch_max(next.0, Relaxed);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the clock does, and however often the interface starts anew from what is
        /// stored.
        #[test]
        fn timestamps_only_grow(
            clock in prop::collection::vec(
            (any::<u32>(), 0u32..1_000_000_000, any::<bool>()),
            1..60,
        ),
        ) {
            const MARGIN: u64 = 600;
            let (mut source, mut stored, mut last) = (TimestampSource::default(), 0, None);
            let mut sent: Option<Tai64n> = None;
            for (seconds, nanos, restarts) in clock {
                let now = Duration::new(seconds.into(), nanos);
                if restarts {
                    (source, last) = (TimestampSource::default(), None);
                    source.set_floor(stored);
                }
                // What a user of this crate does: first the storage, then the limit.
                if source.newest().max(now.as_secs()) + 60 > stored {
                    stored = source.newest().max(now.as_secs()) + MARGIN;
                }
                source.set_limit(stored);
                for _ in 0..3 {
                    let next = source.next(last, now);
                    prop_assert!(sent.is_none_or(|sent| Tai64n::from(next) > sent));
                    prop_assert!(next.seconds() <= stored);
                    (sent, last) = (Some(next.into()), Some(next));
                }
            }
        }
    }

    #[test]
    fn the_clock_is_followed_only_as_far_as_storage_knows() {
        let source = TimestampSource::default();
        source.set_limit(1_000);
        let far = source.next(None, Duration::from_secs(1 << 40));
        assert_eq!(far.seconds(), 1_000);
        assert!(source.next(Some(far), Duration::ZERO) > far, "handshakes go on all the same");
    }
}
