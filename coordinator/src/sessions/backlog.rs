//! The backlog of one session: deltas that wait to be sent, in the order of their revisions.

use meshward_control_proto::EncodedChanges;
use meshward_types::Revision;
use std::collections::VecDeque;

/// The maximum number of changes that wait for one node. Their encoding is shared with the other
/// nodes that they are for. Beyond this the node's view is compared with the world instead.
const MAX_CHANGES: usize = 1 << 16;

/// A queue of deltas, bounded by [`MAX_CHANGES`].
#[derive(Default)]
pub(super) struct Backlog {
    deltas: VecDeque<QueuedDelta>,
    /// The number of changes in `deltas`.
    changes: usize,
    /// `true` if a queued delta must not be held back.
    is_urgent: bool,
    /// `true` once deltas were dropped: the node's view has to be compared.
    has_overflowed: bool,
}

/// The changes of one revision for a node.
pub(super) struct QueuedDelta {
    /// The revision.
    pub(super) revision: Revision,
    /// The changes, encoded once for all nodes that they are for.
    pub(super) changes: EncodedChanges,
    /// `true` if it must not be held back.
    pub(super) is_urgent: bool,
}

/// The next step of a session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// Wait: nothing is new.
    Wait,
    /// Send changes.
    Send {
        /// The revision that the node has afterwards.
        revision: Revision,
        /// The changes, in the order of their revisions.
        changes: Vec<EncodedChanges>,
        /// `true` if one of them must not be held back.
        urgent: bool,
    },
    /// Ask the node for the hashes of its resources, and send what differs.
    Compare,
}

impl Backlog {
    /// Returns a backlog whose session compares the node's view, without delay.
    pub(super) fn of_comparison() -> Self {
        Self { has_overflowed: true, is_urgent: true, ..Self::default() }
    }

    /// Appends a delta. Returns `true` if the session has to be woken, and `false` if it was woken
    /// before and has not looked since.
    pub(super) fn push(&mut self, delta: QueuedDelta) -> bool {
        let wakes = (delta.is_urgent && !self.is_urgent)
            || (self.deltas.is_empty() && !self.has_overflowed);
        self.is_urgent |= delta.is_urgent;
        self.changes += delta.changes.count();
        if self.has_overflowed {
            return wakes;
        }
        if self.changes > MAX_CHANGES {
            *self = Self { has_overflowed: true, is_urgent: self.is_urgent, ..Self::default() };
        } else {
            self.deltas.push_back(delta);
        }
        wakes
    }

    /// Returns `true` if deltas wait.
    pub(super) fn has_deltas(&self) -> bool {
        !self.deltas.is_empty()
    }

    /// Returns `true` if what waits must not be held back.
    pub(super) fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// Removes the deltas of `published` and earlier revisions, and returns the step that they
    /// demand.
    pub(super) fn next_step(&mut self, published: Revision) -> NextStep {
        if self.has_overflowed {
            self.is_urgent = false;
            return NextStep::Compare;
        }
        let mut changes = Vec::new();
        while let Some(delta) = self.deltas.pop_front_if(|delta| delta.revision <= published) {
            self.changes -= delta.changes.count();
            changes.push(delta.changes);
        }
        let urgent = self.is_urgent;
        // Deltas of a revision that is still being delivered stay as urgent as they are.
        self.is_urgent &= self.has_deltas();
        match changes.is_empty() {
            true => NextStep::Wait,
            false => NextStep::Send { revision: published, changes, urgent },
        }
    }
}

#[cfg(test)]
mod tests;
