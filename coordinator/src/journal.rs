//! The change log of this process, and a signal for those who watch it.

use meshward_control_state::change_log::{ChangeLog, ListKind, Since, Touched};
use meshward_types::Revision;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use tokio::sync::watch;

/// The change log, shared.
#[derive(Debug)]
pub struct Journal {
    log: Mutex<ChangeLog>,
    newest: watch::Sender<Revision>,
}

impl Journal {
    /// A journal that begins after a revision.
    pub fn starting_after(revision: Revision) -> Self {
        let log = Mutex::new(ChangeLog::starting_after(revision));
        Self { log, newest: watch::channel(revision).0 }
    }

    /// Appends what a revision has touched, and wakes those who watch.
    pub fn append(&self, revision: Revision, touched: BTreeSet<Touched>) {
        self.log.lock().append(revision, touched);
        self.newest.send_replace(revision);
    }

    /// Forgets everything: what led to this revision is not known.
    pub fn restart_after(&self, revision: Revision) {
        *self.log.lock() = ChangeLog::starting_after(revision);
        self.newest.send_replace(revision);
    }

    /// Wakes with every revision.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.newest.subscribe()
    }

    /// Returns what was touched of a list after a revision; `None` if that is not remembered any
    /// more, or yet to come.
    pub fn since(&self, kind: ListKind, revision: Revision) -> Option<Since> {
        self.log.lock().since(kind, revision)
    }
}
