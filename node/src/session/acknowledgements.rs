//! Acknowledgements: which revision the coordinator may be told is enforced, and when.

use crate::view_persister::UpdateNumber;
use meshward_control_proto::ENFORCED_WITHIN;
use meshward_types::Revision;
use std::collections::VecDeque;
use tokio::time::Instant;

/// The updates that are in force and not acknowledged yet. One is acknowledged once it is on disk
/// and the endpoints that it brings have started. An urgent one does not wait for the endpoints of
/// those before it: a quarantine waits for nobody's start.
#[derive(Default)]
pub(super) struct Acknowledgements {
    pending: VecDeque<Pending>,
    persisted_up_to: UpdateNumber,
    /// The revision to acknowledge, and the time by which that is due.
    due: Option<(Revision, Instant)>,
}

/// An update that is in force.
pub(super) struct Pending {
    pub(super) number: UpdateNumber,
    pub(super) revision: Revision,
    /// `true` if somebody waits for the acknowledgement.
    pub(super) is_urgent: bool,
    /// `true` once the endpoints that the update brings have started.
    pub(super) is_started: bool,
}

impl Acknowledgements {
    /// Adds an update, in the order in which updates are enforced.
    pub(super) fn add(&mut self, update: Pending) {
        self.pending.push_back(update);
    }

    /// Notes up to where all is on disk; returns whether somebody waits for what is due by that.
    pub(super) fn note_persisted(&mut self, up_to: UpdateNumber) -> bool {
        self.persisted_up_to = up_to;
        self.advance()
    }

    /// Notes that the endpoints of an update have started, or that this took too long; returns
    /// whether somebody waits for what is due by that.
    pub(super) fn note_started(&mut self, number: UpdateNumber) -> bool {
        if let Some(update) = self.pending.iter_mut().find(|update| update.number == number) {
            update.is_started = true;
        }
        self.advance()
    }

    fn advance(&mut self) -> bool {
        let is_ready =
            |update: &Pending| update.is_started && update.number <= self.persisted_up_to;
        let ready = self.pending.iter().take_while(|update| is_ready(update)).count();
        let urgent = self.pending.iter().rposition(|update| update.is_urgent && is_ready(update));
        let count = ready.max(urgent.map_or(0, |at| at + 1));
        let mut is_awaited = false;
        for update in self.pending.drain(..count) {
            let at = self.due.map_or_else(|| Instant::now() + ENFORCED_WITHIN, |(_, at)| at);
            self.due = Some((update.revision, at));
            is_awaited |= update.is_urgent;
        }
        is_awaited
    }

    /// Returns when an acknowledgement is due, if one is.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.due.map(|(_, at)| at)
    }

    /// Returns the revision that is to be acknowledged now.
    pub(super) fn take_due(&mut self) -> Option<Revision> {
        self.due.take().map(|(revision, _)| revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(number: u64, is_urgent: bool, is_started: bool) -> Pending {
        Pending {
            number: UpdateNumber::of(number),
            revision: Revision(number),
            is_urgent,
            is_started,
        }
    }

    #[tokio::test]
    async fn an_update_is_acknowledged_once_it_is_on_disk_and_its_endpoints_have_started() {
        let mut all = Acknowledgements::default();
        all.add(update(1, false, true));
        all.add(update(2, false, false));
        all.add(update(3, false, true));
        assert!(!all.note_persisted(UpdateNumber::of(3)));
        assert_eq!(all.take_due(), Some(Revision(1)));
        assert_eq!(all.take_due(), None);
        assert!(!all.note_started(UpdateNumber::of(2)));
        assert_eq!(all.take_due(), Some(Revision(3)));
    }

    #[tokio::test]
    async fn an_urgent_update_waits_for_the_disk_and_for_nobody_elses_endpoints() {
        let mut all = Acknowledgements::default();
        all.add(update(1, true, false));
        all.add(update(2, true, true));
        assert!(!all.note_persisted(UpdateNumber::of(1)));
        assert_eq!(all.take_due(), None);
        assert!(all.note_persisted(UpdateNumber::of(2)));
        assert_eq!(all.take_due(), Some(Revision(2)));
        assert!(!all.note_started(UpdateNumber::of(1)));
        assert_eq!(all.take_due(), None);
    }
}
