//! Points in time, as an atomic can hold them.

use std::{ops::Add, time::Duration};

/// Milliseconds of a monotonic clock, since an epoch that the user of this crate chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// Returns the time that has passed since `earlier`; zero if that is later than this.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns whether `duration` or more has passed since `earlier`.
    #[inline]
    pub fn has_passed(self, duration: Duration, earlier: Self) -> bool {
        self.0.saturating_sub(earlier.0) >= duration.as_millis() as u64
    }
}

impl Add<Duration> for Millis {
    type Output = Self;

    /// Returns the time `duration` later, in whole milliseconds.
    #[inline]
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }
}
