//! The change log of this process, and a signal for watches.

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

    /// Appends the changes of a revision, and wakes watches.
    pub fn append(&self, revision: Revision, touched: BTreeSet<Touched>) {
        self.log.lock().append(revision, touched);
        self.newest.send_replace(revision);
    }

    /// Forgets everything: the changes before this revision are not known.
    pub fn restart_after(&self, revision: Revision) {
        *self.log.lock() = ChangeLog::starting_after(revision);
        self.newest.send_replace(revision);
    }

    /// Subscribes to the newest revision.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.newest.subscribe()
    }

    /// Returns the changes of a list after a revision; `None` if they are no longer known, or the
    /// revision is yet to come.
    pub fn since(&self, kind: ListKind, revision: Revision) -> Option<Since> {
        self.log.lock().since(kind, revision)
    }
}
