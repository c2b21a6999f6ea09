//! The view on disk: a snapshot, and a log of the updates since. An update costs what it changes,
//! not what the view has. The files' formats are in [`crate::state_files`].
//!
//! A log that continues another snapshot, and whatever comes after an update that was not written
//! to its end, is ignored: the coordinator sends anew what is missing.

use crate::{
    folder::{Folder, VIEW, VIEW_LOG},
    state_files::{
        LogHeader, Update, encode_log_header, encode_update, encode_view, read_log_header,
        read_update, read_view,
    },
};
use anyhow::{Context, Result};
use meshward_control_proto::{View, ViewReplica};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};
use tracing::warn;

/// The length up to which a log is never too long, in bytes.
const SHORT_LOG: u64 = 256 << 10;

/// The view on disk.
#[derive(Debug)]
pub struct ViewStore {
    folder: Folder,
    /// Open for appending; `None` before the first snapshot is written, and after a failed write.
    log: Option<File>,
    log_bytes: u64,
    snapshot_bytes: u64,
}

impl ViewStore {
    /// Reads the view; an empty one if there is none. A damaged one is set aside and counts as
    /// none.
    pub fn open(folder: &Folder) -> (View, Self) {
        let mut store = Self { folder: folder.clone(), log: None, log_bytes: 0, snapshot_bytes: 0 };
        let log = folder.read_or_set_aside(VIEW_LOG, |log| Ok::<_, String>(log.to_vec()));
        let log = log.unwrap_or_default();
        let read = |snapshot: &[u8]| {
            read_view(snapshot, &log).map(|(view, hash)| (view, hash, snapshot.len() as u64))
        };
        let Some((view, hash, snapshot_bytes)) = folder.read_or_set_aside(VIEW, read) else {
            return (View::default(), store);
        };
        let header = match read_log_header(&log) {
            Ok(header) if header.snapshot == hash => header,
            Ok(_) => return (view, store),
            Err(error) => {
                warn!(
                    "{} cannot be read: {error}; the coordinator sends anew what it had",
                    store.log_path().display()
                );
                return (view, store);
            }
        };
        let LogHeader { format, length, .. } = header;
        let mut replica = ViewReplica::from(view);
        let mut rest = &log[length..];
        while let Some((Update { revision, changes }, after)) = read_update(rest, format) {
            replica.apply(revision, &changes);
            rest = after;
        }
        // Files of an older format are written anew with the next update.
        if format.is_current() {
            store.append_after((log.len() - rest.len()) as u64, snapshot_bytes);
        }
        (replica.into_view(), store)
    }

    /// Opens the log to append after its first `length` bytes; what comes after them goes.
    fn append_after(&mut self, length: u64, snapshot_bytes: u64) {
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().append(true).open(self.log_path())?;
            file.set_len(length)?;
            Ok(file)
        };
        match open() {
            Ok(file) => {
                self.log = Some(file);
                (self.log_bytes, self.snapshot_bytes) = (length, snapshot_bytes);
            }
            Err(error) => warn!(
                "{} cannot be opened: {error}; the whole view is written with the next update",
                self.log_path().display()
            ),
        }
    }

    /// Returns `true` if the whole view is to be written next: there is no log, or it has grown
    /// longer than the snapshot.
    pub(crate) fn wants_whole(&self) -> bool {
        self.log.is_none() || self.log_bytes > SHORT_LOG.max(self.snapshot_bytes)
    }

    /// Writes a whole view. When this returns, it survives a loss of power.
    ///
    /// # Errors
    /// Fails if it cannot be written; then the whole view is wanted next.
    pub fn write_whole(&mut self, view: &View) -> Result<()> {
        self.log = None;
        let (snapshot, hash) = encode_view(view);
        let header = encode_log_header(hash);
        self.folder.write(VIEW, &snapshot)?;
        self.folder.write(VIEW_LOG, &header)?;
        self.log = Some(OpenOptions::new().append(true).open(self.log_path())?);
        (self.log_bytes, self.snapshot_bytes) = (header.len() as u64, snapshot.len() as u64);
        Ok(())
    }

    /// Appends updates to the log. When this returns, they survive a loss of power.
    ///
    /// # Errors
    /// Fails if they cannot be written; then the whole view is wanted next.
    pub(crate) fn append(&mut self, updates: &[Update]) -> Result<()> {
        let mut file = self.log.take().context("there is no log to append to")?;
        let mut bytes = Vec::new();
        for update in updates {
            encode_update(&mut bytes, update);
        }
        file.write_all(&bytes)
            .and_then(|()| file.sync_data())
            .with_context(|| format!("cannot write {}", self.log_path().display()))?;
        self.log_bytes += bytes.len() as u64;
        self.log = Some(file);
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path_of(VIEW_LOG)
    }
}

#[cfg(test)]
#[path = "view_store_tests.rs"]
mod tests;
