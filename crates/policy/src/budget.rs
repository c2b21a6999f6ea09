//! A bound on the work that a policy may ask for: counted in steps, not in time, so that a policy
//! is taken or refused alike wherever it is judged.

use std::cell::Cell;

/// The steps that are left. A step is about the cost of comparing one label: 10 to 100 ns.
#[derive(Debug)]
pub struct Budget {
    given: u64,
    left: Cell<u64>,
}

/// More work than the budget allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it takes more than {given} steps to work out")]
pub struct Exhausted {
    given: u64,
}

impl Budget {
    /// The steps for working out what one policy changes: a few seconds of one core.
    pub const PLAN: u64 = 100_000_000;
    /// The steps for looking for what is suspicious in one policy: less than a second.
    pub const REVIEW: u64 = 10_000_000;

    /// A budget of so many steps.
    pub fn of(steps: u64) -> Self {
        Self { given: steps, left: Cell::new(steps) }
    }

    /// No bound: for what was bounded when it was planned.
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

/// A count of things as steps.
pub(crate) fn steps(count: usize) -> u64 {
    count as u64
}
