//! The thread that writes the view to disk. Enforcement does not wait for it; acknowledgements do.

use crate::{state_files::Update, view_store::ViewStore};
use meshward_control_proto::{Change, View};
use meshward_runtime::write_behind::{RETRY, Troubles};
use meshward_types::Revision;
use parking_lot::{Condvar, Mutex};
use std::{sync::Arc, thread, time::Instant};
use tokio::sync::watch;

/// The largest number of changes that wait for the disk; beyond it, the whole view is written.
const MOST_WAITING: usize = 100_000;
/// The subject of which a member says that it is degraded while the view cannot be written.
const SUBJECT: &str = "view";

/// The number of an update, in the order in which updates are enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateNumber(u64);

#[cfg(test)]
impl UpdateNumber {
    /// Creates a number.
    pub(crate) fn of(number: u64) -> Self {
        Self(number)
    }
}

/// The handle of the thread.
pub(crate) struct ViewPersister(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// The newest update up to which all are on disk, or were refused by the disk.
    persisted: watch::Sender<UpdateNumber>,
    troubles: Troubles,
}

#[derive(Default)]
struct Queue {
    updates: Vec<Update>,
    changes: usize,
    last: UpdateNumber,
    whole_is_due: bool,
    retry: Option<Instant>,
    ended: bool,
}

impl Queue {
    fn clear(&mut self) -> Vec<Update> {
        (self.changes, self.whole_is_due) = (0, false);
        std::mem::take(&mut self.updates)
    }
}

/// A function that calls its argument and then returns the view: no update comes in between.
pub(crate) type ViewReader = Box<dyn Fn(&mut dyn FnMut()) -> Option<View> + Send>;

impl ViewPersister {
    /// Creates the queue of the thread; nothing is written before [`Self::start`].
    pub(crate) fn new(troubles: Troubles) -> Self {
        let persisted = watch::Sender::new(UpdateNumber::default());
        Self(Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            persisted,
            troubles,
        }))
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// Fails if the kernel gives no thread.
    pub(crate) fn start(&self, store: ViewStore, read_view: ViewReader) -> std::io::Result<()> {
        let shared = self.0.clone();
        thread::Builder::new().name("view".into()).spawn(move || shared.run(store, &read_view))?;
        Ok(())
    }

    /// Queues an update, in the order in which updates are enforced. Returns at once.
    pub(crate) fn persist(&self, revision: Revision, changes: Vec<Change>) -> UpdateNumber {
        let mut queue = self.0.queue.lock();
        queue.last.0 += 1;
        queue.changes += changes.len();
        if queue.changes > MOST_WAITING {
            queue.clear();
            queue.whole_is_due = true;
        } else if !queue.whole_is_due {
            queue.updates.push(Update { revision, changes });
        }
        self.0.wake.notify_one();
        queue.last
    }

    /// Returns a receiver of the newest update up to which all are on disk, or were refused by it.
    pub(crate) fn subscribe(&self) -> watch::Receiver<UpdateNumber> {
        self.0.persisted.subscribe()
    }
}

impl Drop for ViewPersister {
    fn drop(&mut self) {
        self.0.queue.lock().ended = true;
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn run(&self, mut store: ViewStore, read_view: &ViewReader) {
        while let Some(is_retry) = self.wait() {
            let (updates, up_to) = {
                let mut queue = self.queue.lock();
                let whole_is_due = queue.whole_is_due || is_retry || store.wants_whole();
                ((!whole_is_due).then(|| queue.clear()), queue.last)
            };
            let (done, up_to) = match updates {
                Some(updates) => (store.append(&updates), up_to),
                None => {
                    let mut last = up_to;
                    let view = read_view(&mut || {
                        let mut queue = self.queue.lock();
                        queue.clear();
                        last = queue.last;
                    });
                    let Some(view) = view else { return };
                    (store.write_whole(&view), last)
                }
            };
            if done.is_err() {
                self.queue.lock().retry = Some(Instant::now() + RETRY);
            }
            let why = done.err().map(|error| format!("the view is not on disk: {error:#}"));
            self.troubles.note(SUBJECT, why);
            self.persisted.send_replace(up_to);
        }
    }

    /// Waits for something to write. Returns `true` if a refused write is due again, `None` at the
    /// end.
    fn wait(&self) -> Option<bool> {
        let mut queue = self.queue.lock();
        loop {
            match queue.retry {
                Some(at) if Instant::now() >= at => {
                    queue.retry = None;
                    return Some(true);
                }
                Some(at) => {
                    // The disk refuses: nobody waits for it.
                    queue.clear();
                    self.persisted.send_replace(queue.last);
                    if queue.ended {
                        return None;
                    }
                    let _ = self.wake.wait_until(&mut queue, at);
                }
                None if queue.whole_is_due || !queue.updates.is_empty() => return Some(false),
                None if queue.ended => return None,
                None => self.wake.wait(&mut queue),
            }
        }
    }
}
