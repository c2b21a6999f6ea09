//! The owner of a workload: a process whose end detaches it.

use std::fs;

/// A process. Its start time distinguishes it from later ones with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Process id.
    pub(crate) pid: u32,
    /// Clock ticks from boot to its start (`proc_pid_stat(5)`, field 22).
    pub(crate) started: u64,
}

impl Owner {
    /// Returns the process with an id; `None` if there is none, or it has ended and waits for its
    /// parent.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name is in parentheses and may contain anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z" && state != "X").then_some(Self { pid, started })
    }

    /// Returns `true` while the process runs.
    pub(super) fn lives(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}
