//! The clock of the data path: it goes on while the machine is suspended (`CLOCK_BOOTTIME`,
//! `clock_gettime(2)`), so that no session is older than it may be after that, and no flow or vouch
//! lasts longer than it should.

use nix::time::{ClockId, clock_gettime};
use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Returns the seconds since 1970 by the wall clock, which may be set.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The first reading of both clocks. [`Instant`] itself stops while the machine is suspended
/// (`CLOCK_MONOTONIC`).
static BEGINNING: LazyLock<(Instant, Duration)> = LazyLock::new(|| (Instant::now(), since_boot()));

/// Returns the time, to be compared only with other results of this function.
pub(crate) fn now() -> Instant {
    at(*BEGINNING, since_boot())
}

fn at((instant, boot): (Instant, Duration), since_boot: Duration) -> Instant {
    instant + since_boot.saturating_sub(boot)
}

/// Returns the time since the machine was started, suspended or not.
fn since_boot() -> Duration {
    // Linux has had this clock since 2.6.39, and without a system call since 5.3.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_while_the_machine_is_suspended() {
        let beginning = (Instant::now(), Duration::from_secs(1000));
        // An hour of which the machine was awake for no time at all.
        let woken = at(beginning, Duration::from_secs(4600));
        assert_eq!(woken - beginning.0, Duration::from_hours(1));
    }

    #[test]
    fn it_goes_with_the_other_clock_otherwise() {
        let (ours, theirs) = (now(), Instant::now());
        std::thread::sleep(Duration::from_millis(20));
        let (ours, theirs) = (now() - ours, theirs.elapsed());
        assert!(ours.abs_diff(theirs) < Duration::from_millis(15), "{ours:?} {theirs:?}");
    }
}
