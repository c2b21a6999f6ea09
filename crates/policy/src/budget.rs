//! A bound on the work that a policy causes, counted in steps and not in time, so that a policy is
//! accepted or refused alike on every machine.

use std::cell::Cell;

/// The remaining steps. A step costs about as much as comparing one label: 10 to 100 ns.
#[derive(Debug)]
pub struct Budget {
    given: u64,
    left: Cell<u64>,
}

/// The error for more work than the budget allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it takes more than {given} steps to work out")]
pub struct Exhausted {
    given: u64,
}

impl Budget {
    /// The steps to work out the changes of one policy: a few seconds of one core.
    pub const PLAN: u64 = 100_000_000;
    /// The steps to look for suspicious parts of one policy: less than a second.
    pub const REVIEW: u64 = 10_000_000;

    /// Creates a budget of `steps`.
    pub fn of(steps: u64) -> Self {
        Self { given: steps, left: Cell::new(steps) }
    }

    /// Creates a budget without a bound, for work that was bounded when it was planned.
    pub fn unlimited() -> Self {
        Self::of(u64::MAX)
    }

    /// Spends steps.
    ///
    /// # Errors
    /// [`Exhausted`] if fewer are left; then none are.
    pub fn spend(&self, steps: u64) -> Result<(), Exhausted> {
        let left = self.left.get().checked_sub(steps);
        self.left.set(left.unwrap_or(0));
        left.map(drop).ok_or(Exhausted { given: self.given })
    }
}

/// Converts a count to steps.
pub(crate) fn steps(count: usize) -> u64 {
    count as u64
}
