//! The balance of workers: how many of them carry packets now.
//!
//! Sockets and interfaces are spread over the active workers. One worker is the cheapest: it stays
//! in its core's cache, and its batches are longer. So there are more of them only while
//! those that there are have no time left and the machine has cores to spare: on a machine whose
//! cores are all taken, more threads only wait for each other.

use std::{num::NonZeroUsize, time::Duration};

/// The CPU time of a worker so far (`proc_pid_schedstat`, Documentation/scheduler/sched-stats.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    /// Time on a core.
    pub ran: Duration,
    /// Time for which it could have run and had no core.
    pub waited: Duration,
}

impl Usage {
    /// Reads the text of a thread's `schedstat`: nanoseconds on a core, nanoseconds of waiting, and
    /// how often it ran.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_whitespace().map(str::parse);
        let (ran, waited) = (fields.next()?.ok()?, fields.next()?.ok()?);
        Some(Self { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
    }

    fn since(self, earlier: Self) -> Self {
        let (ran, waited) =
            (self.ran.saturating_sub(earlier.ran), self.waited.saturating_sub(earlier.waited));
        Self { ran, waited }
    }
}

/// A worker that ran for this part of the time has none left ...
const BUSY: f64 = 0.75;
/// ... and if it waited for less than this part, there are cores to spare.
const SPARE: f64 = 0.1;
/// Workers that waited for this part of the time are too many.
const CROWDED: f64 = 0.4;
/// Half of the workers would run for less than this part of the time: they are enough.
const IDLE: f64 = 0.5;

/// Decides how many workers are active.
#[derive(Debug)]
pub(super) struct WorkerBalance {
    active: NonZeroUsize,
    all: NonZeroUsize,
    before: Vec<Usage>,
}

impl WorkerBalance {
    /// Begins with one of `all` workers.
    pub(super) fn new(all: NonZeroUsize) -> Self {
        Self { active: NonZeroUsize::MIN, all, before: vec![Usage::default(); all.get()] }
    }

    /// Decides how many workers are to be active. `usage` is that of every worker as it is now,
    /// `passed` after the last time.
    pub(super) fn decide(&mut self, passed: Duration, usage: &[Usage]) -> NonZeroUsize {
        let parts = usage.iter().zip(&self.before).map(|(now, before)| {
            let Usage { ran, waited } = now.since(*before);
            (ran.div_duration_f64(passed), waited.div_duration_f64(passed))
        });
        let active = self.active.get();
        let parts: Vec<(f64, f64)> = parts.take(active).collect();
        self.before = usage.to_vec();
        let ran: f64 = parts.iter().map(|(ran, _)| ran).sum();
        let waited: f64 = parts.iter().map(|(_, waited)| waited).sum();
        let short = parts.iter().any(|(ran, waited)| *ran > BUSY && *waited < SPARE);
        let crowded = waited / active as f64 > CROWDED;
        let idle = ran < IDLE * (active / 2) as f64;
        let next = if short {
            (active * 2).min(self.all.get())
        } else if crowded || idle {
            active / 2
        } else {
            active
        };
        self.active = NonZeroUsize::new(next).unwrap_or(NonZeroUsize::MIN);
        self.active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs a second after another in which each worker runs and waits for these parts of it.
    fn decide(balance: &mut WorkerBalance, total: &mut [Usage], ran: f64, waited: f64) -> usize {
        for usage in total.iter_mut() {
            usage.ran += SECOND.mul_f64(ran);
            usage.waited += SECOND.mul_f64(waited);
        }
        balance.decide(SECOND, total).get()
    }

    #[test]
    fn workers_become_more_while_there_are_cores_to_spare_and_fewer_when_idle() {
        let (mut balance, mut total) =
            (WorkerBalance::new(NonZeroUsize::new(6).unwrap()), [Usage::default(); 6]);
        let steps = [(0.1, 0.0, 1), (0.9, 0.05, 2), (0.9, 0.05, 4), (0.9, 0.0, 6), (0.6, 0.1, 6)];
        for (ran, waited, active) in steps {
            assert_eq!(decide(&mut balance, &mut total, ran, waited), active);
        }
        for active in [3, 1, 1] {
            assert_eq!(decide(&mut balance, &mut total, 0.05, 0.0), active);
        }
    }

    #[test]
    fn on_a_crowded_machine_one_worker_does_it() {
        let (mut balance, mut total) =
            (WorkerBalance::new(NonZeroUsize::new(2).unwrap()), [Usage::default(); 2]);
        assert_eq!(
            decide(&mut balance, &mut total, 0.8, 0.2),
            1,
            "busy, but there is no core for another"
        );
        assert_eq!(decide(&mut balance, &mut total, 0.95, 0.0), 2);
        assert_eq!(decide(&mut balance, &mut total, 0.5, 0.5), 1);
    }

    #[test]
    fn a_threads_schedstat_is_read() {
        let usage = Usage { ran: Duration::from_nanos(120), waited: Duration::from_nanos(7) };
        assert_eq!(Usage::parse("120 7 3\n"), Some(usage));
        assert_eq!(Usage::parse("nonsense"), None);
        let own = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        assert!(Usage::parse(&own).is_some(), "{own}");
    }
}
