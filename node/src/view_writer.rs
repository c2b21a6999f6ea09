//! The thread that keeps the view on disk. What is enforced does not wait for it; what is said to
//! be on disk does.

use crate::kept_view::KeptView;
use meshward_control_proto::{Change, View};
use meshward_runtime::write_behind::{RETRY, Troubles};
use meshward_types::Revision;
use parking_lot::{Condvar, Mutex};
use std::{sync::Arc, thread, time::Instant};
use tokio::sync::watch;

/// The most changes that wait for the disk; if there are more, the whole view is kept instead.
const MOST_WAITING: usize = 100_000;
/// About what is degraded while the view cannot be kept.
const ABOUT: &str = "view";

/// Numbers updates in the order in which they were enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[cfg(test)]
impl Ticket {
    /// The ticket with a number.
    pub(crate) fn of(number: u64) -> Self {
        Self(number)
    }
}

/// The way to the thread.
pub(crate) struct ViewWriter(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Up to which update all are on disk, or are not because the disk refuses.
    kept: watch::Sender<Ticket>,
    troubles: Troubles,
}

#[derive(Default)]
struct Queue {
    updates: Vec<(Revision, Vec<Change>)>,
    changes: usize,
    last: Ticket,
    whole_is_due: bool,
    retry: Option<Instant>,
    ended: bool,
}

impl Queue {
    fn clear(&mut self) -> Vec<(Revision, Vec<Change>)> {
        (self.changes, self.whole_is_due) = (0, false);
        std::mem::take(&mut self.updates)
    }
}

/// Gives the view as it is, after it has called what it is given: no update comes in between.
pub(crate) type Whole = Box<dyn Fn(&mut dyn FnMut()) -> Option<View> + Send>;

impl ViewWriter {
    /// For what was on disk at the start; nothing is written before [`Self::start`].
    pub(crate) fn new(troubles: Troubles) -> Self {
        let kept = watch::Sender::new(Ticket::default());
        Self(Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), kept, troubles }))
    }

    /// Starts the thread. `whole` gives the view.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(crate) fn start(&self, kept: KeptView, whole: Whole) -> std::io::Result<()> {
        let shared = self.0.clone();
        thread::Builder::new().name("view".into()).spawn(move || shared.run(kept, &whole))?;
        Ok(())
    }

    /// Has an update kept. Called in the order in which updates are enforced; returns at once.
    pub(crate) fn keep(&self, revision: Revision, changes: Vec<Change>) -> Ticket {
        let mut queue = self.0.queue.lock();
        queue.last.0 += 1;
        queue.changes += changes.len();
        if queue.changes > MOST_WAITING {
            queue.clear();
            queue.whole_is_due = true;
        } else if !queue.whole_is_due {
            queue.updates.push((revision, changes));
        }
        self.0.wake.notify_one();
        queue.last
    }

    /// Tells up to which update all are kept.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Ticket> {
        self.0.kept.subscribe()
    }
}

impl Drop for ViewWriter {
    fn drop(&mut self) {
        self.0.queue.lock().ended = true;
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn run(&self, mut kept: KeptView, whole: &Whole) {
        while let Some(is_retry) = self.wait() {
            let (updates, up_to) = {
                let mut queue = self.queue.lock();
                let whole_is_due = queue.whole_is_due || is_retry || kept.wants_whole();
                ((!whole_is_due).then(|| queue.clear()), queue.last)
            };
            let (done, up_to) = match updates {
                Some(updates) => (kept.append(&updates), up_to),
                None => {
                    let mut last = up_to;
                    let view = whole(&mut || {
                        let mut queue = self.queue.lock();
                        queue.clear();
                        last = queue.last;
                    });
                    let Some(view) = view else { return };
                    (kept.keep(&view), last)
                }
            };
            if done.is_err() {
                self.queue.lock().retry = Some(Instant::now() + RETRY);
            }
            let why = done.err().map(|error| format!("the view is not on disk: {error:#}"));
            self.troubles.note(ABOUT, why);
            self.kept.send_replace(up_to);
        }
    }

    /// Waits for something to keep: whether what the disk refused is to be tried again. `None` at
    /// the end.
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
                    self.kept.send_replace(queue.last);
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
