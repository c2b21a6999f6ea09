//! The store: records under one revision, written in transactions.
//!
//! The interface is that of several coordinators over one database: a write names the revision at
//! which it was planned, and is refused if another write came first; a read returns one revision
//! as a whole, or an error.

use crate::limits::Retention;
use meshward_api_types::AuditEntry;
use meshward_control_state::records::{Mutation, Record, RecordKey};
use meshward_types::Revision;
use std::path::{Path, PathBuf};

/// The error of the store. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another write came first: the caller reads again and plans anew.
    #[error("the store is at revision {found}, not {planned}")]
    Conflict {
        /// The revision at which the write was planned.
        planned: Revision,
        /// The revision of the store.
        found: Revision,
    },
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(rusqlite::Error),
    /// A record cannot be read: it is damaged, or of another version.
    #[error(
        "record {0} in the database cannot be read ({1}); restore a backup or run the version that \
        wrote it"
    )]
    Damaged(String, serde_json::Error),
    /// The disk is full.
    #[error(
        "the disk of the coordinator's data folder is full: make room there; what is in force \
        stays in force"
    )]
    Full,
    /// States before this revision are no longer kept.
    #[error(
        "what held before revision {0} is not kept any more (`retention` in the coordinator's \
        configuration)"
    )]
    Forgotten(Revision),
    /// A backup could not be made or read.
    #[error("{0}")]
    Backup(String),
    /// The lock file of the database cannot be locked.
    #[error("the database's folder cannot be locked: {0}")]
    Lock(std::io::Error),
    /// Another process has the database.
    #[error("another coordinator runs on {0}; end it first, or name another folder")]
    InUse(PathBuf),
    /// The database or backup is of a later version.
    #[error(
        "the database has format {0}, which this version does not know; run the version that wrote \
        it"
    )]
    Format(u32),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            // The index of the write-ahead log is a file of its own, allocated in advance.
            Some(_) if cannot_allocate_index(&error) => Self::Full,
            _ => Self::Database(error),
        }
    }
}

fn cannot_allocate_index(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

/// All records at one revision.
#[derive(Debug)]
pub struct Contents {
    /// The revision.
    pub revision: Revision,
    /// The records, in no order.
    pub records: Vec<Record>,
}

/// A line of the audit log, without its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The time, in RFC 3339.
    pub at: String,
    /// The author: `user:NAME`, `node:NAME`, `relay:NAME` or `trigger:NAME`.
    pub actor: String,
    /// The change, in words.
    pub action: String,
    /// The author's reason.
    pub why: Option<String>,
    /// The address from which the request came.
    pub origin: Option<String>,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLine {
    /// The revision that the change made.
    pub revision: Revision,
    /// The author and the change.
    pub note: Note,
}

impl From<AuditLine> for AuditEntry {
    fn from(AuditLine { revision, note }: AuditLine) -> Self {
        let Note { at, actor, action, why, origin } = note;
        Self { revision, at, actor, action, why, origin }
    }
}

/// A former state of a record.
#[derive(Debug, Clone)]
pub struct Past {
    /// The change that led to it.
    pub line: AuditLine,
    /// The record; `None` if it was deleted.
    pub record: Option<Record>,
}

/// A database of records.
pub trait Store: Send {
    /// Reads all records.
    ///
    /// # Errors
    /// Fails with [`StoreError::Database`] or [`StoreError::Damaged`].
    fn load(&mut self) -> Result<Contents, StoreError>;

    /// Writes mutations and a line of the audit log as the revision after `planned`. What it has
    /// written survives a loss of power when it returns.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the store is at another revision than `planned`;
    /// [`StoreError::Full`] and [`StoreError::Database`].
    fn commit(
        &mut self,
        planned: Revision,
        mutations: &[Mutation],
        note: &Note,
    ) -> Result<Revision, StoreError>;

    /// Returns the states of a policy or a quarantine, or those before a revision, the newest
    /// first.
    ///
    /// # Errors
    /// Fails with [`StoreError::Database`] or [`StoreError::Damaged`].
    fn history(
        &mut self,
        key: &RecordKey,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<Past>, StoreError>;

    /// Returns the policies and quarantines of a past revision.
    ///
    /// # Errors
    /// [`StoreError::Forgotten`] if they are no longer kept; [`StoreError::Database`] and
    /// [`StoreError::Damaged`].
    fn as_of(&mut self, revision: Revision) -> Result<Vec<Record>, StoreError>;

    /// Returns lines of the audit log, or those before a revision, the newest first.
    ///
    /// # Errors
    /// Fails with [`StoreError::Database`].
    fn audit(&mut self, before: Option<Revision>, limit: u32)
    -> Result<Vec<AuditLine>, StoreError>;

    /// Returns `true` if there is room on the disk. While there is none, only mutations that revoke
    /// access are written.
    fn has_room(&mut self) -> bool;

    /// Deletes some of the lines and states that are too old or too many at `now`, in seconds since
    /// the Unix epoch. Returns `true` if there may be more of them.
    ///
    /// # Errors
    /// Fails with [`StoreError::Full`] or [`StoreError::Database`].
    fn forget(&mut self, retention: &Retention, now: i64) -> Result<bool, StoreError>;

    /// Returns a function that copies the store, at one revision, to a file that does not exist
    /// yet. No write waits for it.
    fn copier(&self) -> Copier;
}

/// Copies a store to a file.
pub type Copier = Box<dyn FnOnce(&Path) -> Result<(), StoreError> + Send>;
