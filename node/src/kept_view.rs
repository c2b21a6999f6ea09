//! The view on disk: a snapshot, and a log of what has changed since. A change costs what it
//! changes, not what is known.
//!
//! The snapshot is one frame of a [`View`] and its hash. The log begins with the hash of the
//! snapshot that it follows, then has a frame for each update: revision and changes, and a hash of
//! both. A log of another snapshot, and whatever stands behind a frame that was not written in
//! full, is as good as not there: the coordinator tells anew what is missing.

use crate::folder::Folder;
use anyhow::{Context, Result};
use meshward_control_proto::{Change, View, ViewReplica, body_length, decode, encode};
use meshward_types::Revision;
use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
};
use tracing::warn;

const SNAPSHOT: &str = "view";
const LOG: &str = "view.log";
const HASH: usize = 16;
/// A log of up to this length is never too long, in bytes.
const SHORT: u64 = 256 << 10;

/// The view on disk.
pub struct KeptView {
    folder: Folder,
    /// Open for appending; `None` before the first snapshot is written, and after a failed write.
    log: Option<File>,
    log_bytes: u64,
    snapshot_bytes: u64,
}

impl KeptView {
    /// Reads what is there; an empty view if there is none. A damaged one is set aside, and as good
    /// as none.
    pub fn open(folder: &Folder) -> (View, Self) {
        let mut kept = Self { folder: folder.clone(), log: None, log_bytes: 0, snapshot_bytes: 0 };
        let log = folder.take_up(LOG, |log| Ok::<_, String>(log.to_vec())).unwrap_or_default();
        let read =
            |snapshot: &[u8]| read_snapshot(snapshot, &log).map(|view| (view, snapshot.to_vec()));
        let Some((view, snapshot)) = folder.take_up(SNAPSHOT, read) else {
            return (View::default(), kept);
        };
        let Some(updates) = log.strip_prefix(&hash(&snapshot)) else { return (view, kept) };
        let mut held = ViewReplica::from(view);
        let mut rest = updates;
        while let Some(((revision, changes), after)) = checked::<(Revision, Vec<Change>)>(rest) {
            held.apply(revision, &changes);
            rest = after;
        }
        let whole = (log.len() - rest.len()) as u64;
        let append = || -> std::io::Result<File> {
            let file = OpenOptions::new().append(true).open(kept.log_place())?;
            file.set_len(whole)?;
            Ok(file)
        };
        match append() {
            Ok(file) => {
                (kept.log, kept.log_bytes, kept.snapshot_bytes) =
                    (Some(file), whole, snapshot.len() as u64);
            }
            Err(error) => {
                warn!("the kept view's log cannot be opened: {error}; the whole view is kept next");
            }
        }
        (held.view().clone(), kept)
    }

    /// Whether the next update is to be kept as a whole view: there is no log, or it has grown
    /// longer than its snapshot.
    pub fn wants_whole(&self) -> bool {
        self.log.is_none() || self.log_bytes > SHORT.max(self.snapshot_bytes)
    }

    /// Keeps a whole view. When this returns, it survives a loss of power.
    ///
    /// # Errors
    /// If it cannot be written; then the next update wants to be kept whole.
    pub fn keep(&mut self, view: &View) -> Result<()> {
        self.log = None;
        let mut snapshot = encode(view);
        snapshot.extend(hash(&snapshot));
        self.folder.write(SNAPSHOT, &snapshot)?;
        self.folder.write(LOG, &hash(&snapshot))?;
        self.log = Some(OpenOptions::new().append(true).open(self.log_place())?);
        (self.log_bytes, self.snapshot_bytes) = (HASH as u64, snapshot.len() as u64);
        Ok(())
    }

    /// Keeps what updates have changed. When this returns, it survives a loss of power.
    ///
    /// # Errors
    /// If it cannot be written; then the next update wants to be kept whole.
    pub fn append(&mut self, updates: &[(Revision, Vec<Change>)]) -> Result<()> {
        let mut file = self.log.take().context("there is no log to append to")?;
        let mut bytes = Vec::new();
        for update in updates {
            let frame = encode(update);
            let hash = hash(&frame);
            bytes.extend(frame);
            bytes.extend(hash);
        }
        file.write_all(&bytes)
            .and_then(|()| file.sync_data())
            .with_context(|| format!("cannot write {}", self.log_place().display()))?;
        self.log_bytes += bytes.len() as u64;
        self.log = Some(file);
        Ok(())
    }

    fn log_place(&self) -> PathBuf {
        self.folder.place(LOG)
    }
}

fn hash(bytes: &[u8]) -> [u8; HASH] {
    let mut half = [0; HASH];
    half.copy_from_slice(&ring::digest::digest(&ring::digest::SHA256, bytes).as_ref()[..HASH]);
    half
}

/// Reads a snapshot. One without a hash of its own, as it was written before, is taken if the log
/// knows it.
fn read_snapshot(snapshot: &[u8], log: &[u8]) -> Result<View, &'static str> {
    const DAMAGED: &str =
        "the kept view does not hold; nothing passes until the coordinator has told it anew";
    if let Some((view, [])) = checked::<View>(snapshot) {
        return Ok(view);
    }
    let known = log.starts_with(&hash(snapshot));
    frame::<View>(snapshot)
        .filter(|(_, rest)| known && rest.is_empty())
        .map(|(view, _)| view)
        .ok_or(DAMAGED)
}

/// Reads a frame, and gives what stands behind it.
fn frame<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let (body, rest) = rest.split_at_checked(body_length(*head, usize::MAX).ok()?)?;
    Some((decode(body).ok()?, rest))
}

/// Reads a frame whose hash holds.
fn checked<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (value, rest) = frame(bytes)?;
    let (kept, after) = rest.split_first_chunk::<HASH>()?;
    (hash(&bytes[..bytes.len() - rest.len()]) == *kept).then_some((value, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshward_control_proto::{Resource, ResourceKey, view::NetworkSpec};
    use std::fs;

    fn network(at: u16) -> Change {
        let spec = NetworkSpec {
            prefixes: vec![],
            blocks: vec![],
            mtu: at,
            admission: false,
            conduct: Default::default(),
        };
        Change::Put(
            ResourceKey::Network(format!("n{at}").parse().unwrap()),
            Resource::Network(spec),
        )
    }

    /// A folder with a snapshot and three updates behind it, and the views after each.
    fn history() -> (tempfile::TempDir, Folder, Vec<View>) {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let (view, mut kept) = KeptView::open(&folder);
        assert_eq!(view, View::default());
        assert!(kept.wants_whole());
        let mut held = ViewReplica::default();
        held.apply(Revision(1), &[network(1)]);
        kept.keep(held.view()).unwrap();
        let mut views = vec![held.view().clone()];
        for at in 2..5 {
            let changes = held.apply(Revision(at.into()), &[network(at)]);
            assert!(!kept.wants_whole());
            kept.append(&[(Revision(at.into()), changes)]).unwrap();
            views.push(held.view().clone());
        }
        (place, folder, views)
    }

    #[test]
    fn the_view_comes_back_with_every_update() {
        let (_place, folder, views) = history();
        let (view, mut kept) = KeptView::open(&folder);
        assert_eq!(&view, views.last().unwrap());
        let mut held = ViewReplica::from(view);
        let changes = held.apply(Revision(9), &[network(9)]);
        kept.append(&[(Revision(9), changes)]).unwrap();
        assert_eq!(KeptView::open(&folder).0, *held.view());
    }

    #[test]
    fn a_log_that_ends_anywhere_gives_the_updates_that_are_whole() {
        let (_place, folder, views) = history();
        let log = fs::read(folder.place(LOG)).unwrap();
        let mut seen = 0;
        for length in 0..log.len() {
            fs::write(folder.place(LOG), &log[..length]).unwrap();
            let (view, _) = KeptView::open(&folder);
            let at = views
                .iter()
                .position(|known| *known == view)
                .expect("one of the views that were kept");
            assert!(at >= seen, "never an older one with more of the log");
            seen = at;
        }
        assert_eq!(seen, views.len() - 2);
    }

    #[test]
    fn a_damaged_frame_ends_the_log_and_a_damaged_snapshot_is_none() {
        let (_place, folder, views) = history();
        let mut log = fs::read(folder.place(LOG)).unwrap();
        *log.last_mut().unwrap() ^= 1;
        fs::write(folder.place(LOG), &log).unwrap();
        assert_eq!(KeptView::open(&folder).0, views[views.len() - 2]);
        fs::write(folder.place(SNAPSHOT), b"garbage").unwrap();
        let (view, kept) = KeptView::open(&folder);
        assert_eq!(view, View::default());
        assert!(kept.wants_whole());
    }

    #[test]
    fn a_snapshot_cut_anywhere_or_with_any_byte_changed_is_set_aside() {
        let (_place, folder, _) = history();
        let snapshot = fs::read(folder.place(SNAPSHOT)).unwrap();
        let cut = (0..snapshot.len()).map(|length| snapshot[..length].to_vec());
        let changed = (0..snapshot.len()).map(|at| {
            let mut changed = snapshot.clone();
            changed[at] ^= 0x10;
            changed
        });
        for damaged in cut.chain(changed) {
            fs::write(folder.place(SNAPSHOT), damaged).unwrap();
            assert_eq!(KeptView::open(&folder).0, View::default());
            assert!(!folder.place(SNAPSHOT).exists());
        }
    }

    #[test]
    fn a_snapshot_of_before_is_taken_if_its_log_knows_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let mut held = ViewReplica::default();
        held.apply(Revision(1), &[network(1)]);
        let snapshot = encode(held.view());
        folder.write(SNAPSHOT, &snapshot).unwrap();
        folder.write(LOG, &hash(&snapshot)).unwrap();
        assert_eq!(KeptView::open(&folder).0, *held.view());
        folder.write(LOG, &hash(b"another")).unwrap();
        assert_eq!(KeptView::open(&folder).0, View::default());
    }

    #[test]
    fn a_log_of_another_snapshot_is_not_read() {
        let (_place, folder, views) = history();
        let log = fs::read(folder.place(LOG)).unwrap();
        let (_, mut kept) = KeptView::open(&folder);
        kept.keep(&views[0]).unwrap();
        let mut snapshot = encode(views.last().unwrap());
        snapshot.extend(hash(&snapshot));
        folder.write(SNAPSHOT, &snapshot).unwrap();
        fs::write(folder.place(LOG), log).unwrap();
        assert_eq!(&KeptView::open(&folder).0, views.last().unwrap());
    }
}
