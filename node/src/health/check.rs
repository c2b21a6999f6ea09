//! The state of one check: its finding, by the outcomes of its probes.

use meshward_types::{Health, HealthCheck};
use std::time::Duration;

/// The pause after the first failure of an instance that has never passed. It doubles up to the
/// check's interval: a program that starts gets connections soon after it can answer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The outcome of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// It has failed, for this reason.
    Failed(String),
    /// It was not answered in time.
    TimedOut,
    /// This node cannot make it, for this reason: that says nothing about the instance.
    Impossible(String),
}

/// The state of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CheckState {
    /// The finding; `None` before there is one.
    pub(super) health: Option<Health>,
    /// The failures in a row.
    pub(super) failures: u32,
    /// The reason why the last probe did not pass.
    pub(super) problem: Option<String>,
    has_passed: bool,
    /// The probes in a row that could not be made.
    impossible: u32,
}

impl CheckState {
    /// The state of a check whose finding before the daemon's start is known, or of a new one.
    pub(super) fn restored(health: Option<Health>) -> Self {
        Self { health, has_passed: health.is_some(), ..Self::default() }
    }

    /// Notes the outcome of a probe. One failure is enough for an instance without a finding: it
    /// starts. After as many probes that cannot be made as failures count, there is no finding any
    /// more: an old one would never change.
    pub(super) fn note(&mut self, outcome: Outcome, check: &HealthCheck) {
        let problem = match outcome {
            Outcome::Passed => {
                let passed = Some(Health::Healthy);
                *self = Self { health: passed, has_passed: true, ..Self::default() };
                return;
            }
            Outcome::Impossible(problem) => {
                let impossible = self.impossible.saturating_add(1);
                if impossible >= check.failures {
                    *self = Self::default();
                }
                (self.impossible, self.problem) = (impossible, Some(problem));
                return;
            }
            Outcome::Failed(problem) => problem,
            Outcome::TimedOut => format!("no answer within {} ms", check.timeout.as_millis()),
        };
        (self.impossible, self.problem) = (0, Some(problem));
        self.failures = self.failures.saturating_add(1);
        if self.health.is_none() || self.failures >= check.failures {
            self.health = Some(Health::Unhealthy);
        }
    }

    /// Returns the time from the begin of the last probe to that of the next one. `turn`: a random
    /// number, by which it is up to a tenth longer or shorter, so that checks that began together
    /// do not stay together.
    pub(super) fn pause(&self, check: &HealthCheck, turn: u16) -> Duration {
        let starts = !self.has_passed && self.failures > 0;
        let pause = match starts {
            true => check.every.min(FIRST_PAUSE * (1 << (self.failures - 1).min(10))),
            false => check.every,
        };
        pause.mul_f64(0.9 + 0.2 * f64::from(turn) / f64::from(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_types::HealthProbe;

    fn check() -> HealthCheck {
        HealthCheck {
            probe: HealthProbe::Tcp,
            port: Some(8080),
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failures: 3,
        }
    }

    fn fail(state: &mut CheckState) -> Option<Health> {
        state.note(Outcome::Failed("refused".into()), &check());
        state.health
    }

    #[test]
    fn failures_in_a_row_make_an_instance_unhealthy_and_one_success_healthy() {
        let mut state = CheckState::default();
        state.note(Outcome::Passed, &check());
        assert_eq!(state.health, Some(Health::Healthy));
        assert_eq!(fail(&mut state), Some(Health::Healthy));
        state.note(Outcome::TimedOut, &check());
        assert_eq!(state.problem.as_deref(), Some("no answer within 1000 ms"));
        state.note(Outcome::Passed, &check());
        assert_eq!((state.failures, state.problem.as_deref()), (0, None));
        fail(&mut state);
        fail(&mut state);
        assert_eq!(fail(&mut state), Some(Health::Unhealthy));
        state.note(Outcome::Impossible("no runtime".into()), &check());
        assert_eq!(state.health, Some(Health::Unhealthy));
        state.note(Outcome::Passed, &check());
        assert_eq!(state.health, Some(Health::Healthy));
    }

    #[test]
    fn one_failure_is_enough_for_an_instance_that_starts() {
        assert_eq!(fail(&mut CheckState::default()), Some(Health::Unhealthy));
        let mut restored = CheckState::restored(Some(Health::Healthy));
        assert_eq!(fail(&mut restored), Some(Health::Healthy), "it was well before");
        let mut impossible = CheckState::default();
        impossible.note(Outcome::Impossible("no runtime".into()), &check());
        assert_eq!(impossible.health, None);
    }

    #[test]
    fn a_finding_ends_once_its_check_cannot_be_made_any_more() {
        let impossible = || Outcome::Impossible("no runtime".into());
        let mut state = CheckState::restored(Some(Health::Unhealthy));
        for _ in 0..2 {
            state.note(impossible(), &check());
            assert_eq!(state.health, Some(Health::Unhealthy), "it may be possible again soon");
        }
        fail(&mut state);
        for _ in 0..3 {
            assert_eq!(state.health, Some(Health::Unhealthy));
            state.note(impossible(), &check());
        }
        assert_eq!((state.health, state.problem.as_deref()), (None, Some("no runtime")));
        assert_eq!(fail(&mut state), Some(Health::Unhealthy), "as of an instance that starts");
    }

    #[test]
    fn an_instance_that_starts_is_tried_soon_and_others_at_the_interval() {
        let middle = u16::MAX / 2;
        let mut state = CheckState::default();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            fail(&mut state);
            pauses.push(state.pause(&check(), middle).as_millis() / 10 * 10);
        }
        assert_eq!(pauses, [90, 190, 390, 790, 1590, 1990, 1990]);
        state.failures = u32::MAX;
        assert!(state.pause(&check(), u16::MAX) <= Duration::from_millis(2200));
        state.note(Outcome::Passed, &check());
        fail(&mut state);
        assert_eq!(state.pause(&check(), 0), Duration::from_millis(1800));
        assert_eq!(state.pause(&check(), u16::MAX), Duration::from_millis(2200));
    }
}
