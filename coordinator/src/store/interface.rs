//! The store: records under one revision, written in transactions.
//!
//! The interface is that of several coordinators over one database: a write names the revision that
//! it was planned at, and is refused if another was faster; a read is of one revision, whole or an
//! error, never part of one.

use crate::limits::Retention;
use meshward_api_types::AuditEntry;
use meshward_control_state::records::{Mutation, Record, RecordKey};
use meshward_types::Revision;
use std::path::{Path, PathBuf};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another write came first: read again and plan anew.
    #[error("the store is at revision {found}, not {planned}")]
    Conflict {
        /// The revision that the write was planned at.
        planned: Revision,
        /// The store's.
        found: Revision,
    },
    /// The database failed; nothing was written.
    #[error("the database failed: {0}")]
    Database(rusqlite::Error),
    /// What is stored cannot be read: by another version, or damaged.
    #[error(
        "record {0} in the database cannot be read ({1}); restore a backup or run the version that \
        wrote it"
    )]
    Damaged(String, serde_json::Error),
    /// There is no room on the disk; nothing was written.
    #[error(
        "the disk of the coordinator's data folder is full: make room there; what is in force \
        stays in force"
    )]
    Full,
    /// What was asked for is not kept any more.
    #[error(
        "what held before revision {0} is not kept any more (`retention` in the coordinator's \
        configuration)"
    )]
    Forgotten(Revision),
    /// A backup could not be made or read.
    #[error("{0}")]
    Backup(String),
    /// The file that says whose the database is cannot be locked.
    #[error("the database's folder cannot be locked: {0}")]
    Lock(std::io::Error),
    /// Another process has the database.
    #[error("another coordinator runs on {0}; end it first, or name another folder")]
    InUse(PathBuf),
    /// The database is of a later version.
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
            // The index of the log has a file of its own, whose room is taken in advance.
            Some(_) if has_no_room_for_index(&error) => Self::Full,
            _ => Self::Database(error),
        }
    }
}

fn has_no_room_for_index(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

/// Everything at one revision.
#[derive(Debug)]
pub struct Contents {
    /// The revision.
    pub revision: Revision,
    /// The records.
    pub records: Vec<Record>,
}

/// Who changed what, for the audit log.
#[derive(Debug, Clone)]
pub struct Note {
    /// RFC 3339.
    pub at: String,
    /// `user:NAME` or `node:NAME`.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// Why, as they said.
    pub why: Option<String>,
    /// From where: the address that a request came from.
    pub origin: Option<String>,
}

/// A state that a record had.
#[derive(Debug, Clone)]
pub struct Past {
    /// The revision that made it so, and who did.
    pub entry: AuditEntry,
    /// The record; `None`: it was deleted.
    pub record: Option<Record>,
}

/// Where records are kept.
pub trait Store: Send {
    /// Reads everything.
    fn load(&mut self) -> Result<Contents, StoreError>;

    /// Writes mutations and a line of the audit log as the revision after `planned`. When this
    /// returns, it survives a loss of power.
    fn commit(
        &mut self,
        planned: Revision,
        mutations: &[Mutation],
        note: &Note,
    ) -> Result<Revision, StoreError>;

    /// The states that a policy or a quarantine had, or those before a revision, the newest first.
    fn history(
        &mut self,
        key: &RecordKey,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<Past>, StoreError>;

    /// The policies and quarantines as they were at a revision.
    fn as_of(&mut self, revision: Revision) -> Result<Vec<Record>, StoreError>;

    /// The newest lines of the audit log, or of that part of it that came before a revision, the
    /// newest first.
    fn audit(
        &mut self,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, StoreError>;

    /// Whether there is room on the disk. While there is none, only what cuts somebody off is
    /// written.
    fn has_room(&mut self) -> bool;

    /// Forgets some of what is not to be kept any more at `now` (seconds since the epoch). `true`:
    /// there may be more of it.
    fn forget(&mut self, retention: &Retention, now: i64) -> Result<bool, StoreError>;

    /// What writes all of it to a file that is not there yet, at one revision. The store goes on
    /// meanwhile: nothing waits for it.
    fn copier(&self) -> Copier;
}

/// Writes a copy of a store to a file.
pub type Copier = Box<dyn FnOnce(&Path) -> Result<(), StoreError> + Send>;
