//! Write-behind for state files: a thread writes them, so that no change waits for the disk. While
//! the disk takes nothing, they are kept in memory and read from there, and written once there is
//! room again.

use crate::files;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::BTreeMap,
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tracing::{error, info};

/// The interval between attempts to write what could not be written.
pub const RETRY: Duration = Duration::from_secs(2);

/// The reasons why a member cannot write its state, by subject.
#[derive(Debug, Clone, Default)]
pub struct Troubles(Arc<watch::Sender<BTreeMap<&'static str, String>>>);

impl Troubles {
    /// Sets the reason for a subject; `None` clears it.
    pub fn note(&self, about: &'static str, why: Option<String>) {
        self.0.send_if_modified(|all| match why {
            Some(why) if all.get(about) == Some(&why) => false,
            Some(why) => {
                error!("degraded: {why}; what was decided is enforced all the same");
                all.insert(about, why);
                true
            }
            None => {
                let mended = all.remove(about).is_some();
                if mended {
                    info!("no longer degraded for the {about}");
                }
                mended
            }
        });
    }

    /// Returns all reasons as one sentence; `None` if there is none.
    pub fn summary(&self) -> Option<String> {
        let all: Vec<String> = self.0.borrow().values().cloned().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Returns a receiver that is notified of changes.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<&'static str, String>> {
        self.0.subscribe()
    }
}

/// The files of a folder, in the state that they are to have.
#[derive(Debug)]
pub struct WriteBehind(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    queue: Mutex<Queue>,
    /// The lock of whoever writes.
    writing: Mutex<()>,
    wake: Condvar,
    troubles: Troubles,
    /// The newest order up to which all were attempted.
    tried: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeMap<String, Order>,
    last: u64,
    retry: Option<Instant>,
    runs: bool,
    ended: bool,
}

/// The state that a file is to have; without bytes, it is to be removed.
#[derive(Debug, Clone)]
struct Order {
    number: u64,
    bytes: Option<Arc<[u8]>>,
    failed: bool,
}

impl Queue {
    /// Returns the next order.
    fn next(&self) -> Option<(String, Order)> {
        let due = self.waiting.iter().filter(|(_, order)| !order.failed);
        due.min_by_key(|(_, order)| order.number).map(|(name, order)| (name.clone(), order.clone()))
    }

    /// Returns the order up to which all were attempted.
    fn tried(&self) -> u64 {
        let open = self.waiting.values().filter(|order| !order.failed).map(|order| order.number);
        open.min().map_or(self.last, |first| first - 1)
    }
}

impl WriteBehind {
    /// Creates the writer of a folder's files.
    pub fn new(folder: &Path, troubles: Troubles) -> Self {
        Self(Arc::new(Shared {
            folder: folder.to_owned(),
            queue: Mutex::default(),
            writing: Mutex::default(),
            wake: Condvar::new(),
            troubles,
            tried: watch::Sender::new(0),
        }))
    }

    /// Schedules a write of a file, or its removal if there are no bytes. The last order for a name
    /// counts.
    pub fn order(&self, name: &str, bytes: Option<Vec<u8>>) {
        let mut queue = self.0.queue.lock();
        queue.last += 1;
        let order = Order { number: queue.last, bytes: bytes.map(Into::into), failed: false };
        queue.waiting.insert(name.to_owned(), order);
        if !queue.runs {
            queue.runs = true;
            let shared = self.0.clone();
            let started = thread::Builder::new().name("files".into()).spawn(move || shared.run());
            if let Err(error) = started {
                queue.runs = false;
                self.0
                    .troubles
                    .note("files", Some(format!("there is no thread to write files ({error})")));
            }
        }
        self.0.wake.notify_one();
    }

    /// Writes a file at once and cancels what was scheduled for it.
    ///
    /// # Errors
    /// The errors of the kernel; then the scheduled write stays.
    pub fn write_now(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let _turn = self.0.writing.lock();
        write(&self.0.folder.join(name), bytes)?;
        self.0.queue.lock().waiting.remove(name);
        Ok(())
    }

    /// Returns the scheduled state of a file that is not written yet; `Some(None)` if it is to be
    /// removed.
    pub fn waiting(&self, name: &str) -> Option<Option<Vec<u8>>> {
        let queue = self.0.queue.lock();
        queue.waiting.get(name).map(|order| order.bytes.as_ref().map(|bytes| bytes.to_vec()))
    }

    /// Waits until everything that was scheduled so far is on disk, or the attempt has failed.
    pub async fn flush(&self) {
        let last = self.0.queue.lock().last;
        // `self` holds the sender.
        let _ = self.0.tried.subscribe().wait_for(|tried| *tried >= last).await;
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        self.0.queue.lock().ended = true;
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        while let Some((name, order)) = self.wait() {
            let path = self.folder.join(&name);
            let turn = self.writing.lock();
            if self
                .queue
                .lock()
                .waiting
                .get(&name)
                .is_none_or(|waiting| waiting.number != order.number)
            {
                continue;
            }
            let done = match &order.bytes {
                Some(bytes) => write(&path, bytes),
                None => files::remove(&path),
            };
            drop(turn);
            let mut queue = self.queue.lock();
            // A newer order may have come for it meanwhile.
            let same =
                queue.waiting.get_mut(&name).filter(|waiting| waiting.number == order.number);
            match (&done, same) {
                (Ok(()), Some(_)) => drop(queue.waiting.remove(&name)),
                (Err(_), Some(waiting)) => waiting.failed = true,
                (_, None) => {}
            }
            if done.is_err() {
                queue.retry.get_or_insert_with(|| Instant::now() + RETRY);
            }
            let (tried, mended) =
                (queue.tried(), queue.waiting.values().all(|order| !order.failed));
            drop(queue);
            match done {
                Err(error) => {
                    let why = format!("cannot write {}: {error}", path.display());
                    self.troubles.note("files", Some(why));
                }
                Ok(()) if mended => self.troubles.note("files", None),
                Ok(()) => {}
            }
            self.tried
                .send_if_modified(|known| tried > std::mem::replace(known, tried.max(*known)));
        }
    }

    /// Waits for an order; `None` when there will be none.
    fn wait(&self) -> Option<(String, Order)> {
        let mut queue = self.queue.lock();
        loop {
            if queue.retry.is_some_and(|at| Instant::now() >= at) {
                queue.retry = None;
                queue.waiting.values_mut().for_each(|order| order.failed = false);
            }
            if let Some(next) = queue.next() {
                return Some(next);
            }
            if queue.ended {
                return None;
            }
            match queue.retry {
                Some(at) => drop(self.wake.wait_until(&mut queue, at)),
                None => self.wake.wait(&mut queue),
            }
        }
    }
}

/// Writes a file that only its owner may read, and recreates its folder if it was removed.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    files::write(path, bytes, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn what_cannot_be_written_waits_in_memory_and_is_written_once_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let (kept_folder, troubles) = (folder.path().join("kept"), Troubles::default());
        // A file in the way: nothing can be created below it.
        fs::write(&kept_folder, b"in the way").unwrap();
        let behind = WriteBehind::new(&kept_folder, troubles.clone());
        behind.order("a", Some(b"1".to_vec()));
        behind.order("a", Some(b"2".to_vec()));
        behind.order("b", None);
        behind.flush().await;
        assert_eq!(behind.waiting("a"), Some(Some(b"2".to_vec())));
        assert!(troubles.summary().unwrap().contains("kept/"), "{:?}", troubles.summary());
        fs::remove_file(&kept_folder).unwrap();
        let mut news = troubles.subscribe();
        news.wait_for(std::collections::BTreeMap::is_empty).await.unwrap();
        assert_eq!(fs::read(kept_folder.join("a")).unwrap(), b"2");
        assert_eq!((behind.waiting("a"), troubles.summary()), (None, None));
    }

    #[tokio::test]
    async fn the_last_order_for_a_name_counts() {
        let folder = tempfile::tempdir().unwrap();
        let behind = WriteBehind::new(folder.path(), Troubles::default());
        for round in 0..200u8 {
            behind.order("x", Some(vec![round]));
            behind.order("y", Some(vec![round]));
            behind.order("y", None);
        }
        behind.flush().await;
        assert_eq!(fs::read(folder.path().join("x")).unwrap(), [199]);
        assert!(!folder.path().join("y").exists());
    }
}
