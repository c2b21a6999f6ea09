//! The store in a file of `SQLite`.

use super::{
    interface::{AuditLine, Contents, Copier, Note, Past, Store, StoreError},
    migrations::migrate,
    reserve::Reserve,
    retention,
};
use crate::limits::Retention;
use meshward_control_state::records::{Mutation, Record, RecordKey, StoredKey};
use meshward_types::Revision;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use std::{
    fs::{File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The size in bytes to which the write-ahead log is truncated.
const MAX_LOG_SIZE: i64 = 16 << 20;

/// `SQLite` in a file, and beside it a reserve of room on the disk.
pub struct Sqlite {
    connection: Connection,
    /// `None` for a database in memory.
    reserve: Option<Reserve>,
    path: PathBuf,
    /// Locked as long as the store is open, so that no other coordinator writes to the file.
    _lock: Option<File>,
}

impl Sqlite {
    /// Opens the file, creates it if it does not exist, and applies the migrations that are
    /// missing.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it, [`StoreError::Format`] if it is of a later
    /// version, [`StoreError::Full`], [`StoreError::Lock`] or [`StoreError::Database`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut reserve = (!is_in_memory(path)).then(|| Reserve::beside(path));
        let open = || Ok::<_, StoreError>((lock(path)?, connect(path)?));
        let (lock, connection) = match open() {
            // Opening needs a little room, too.
            Err(StoreError::Full) => {
                reserve.as_mut().map(Reserve::release);
                open()?
            }
            other => other?,
        };
        reserve.as_mut().map(Reserve::ensure);
        Ok(Self { connection, reserve, path: path.to_owned(), _lock: lock })
    }

    fn write(
        &mut self,
        planned: Revision,
        mutations: &[Mutation],
        note: &Note,
    ) -> Result<Revision, StoreError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = revision(&transaction)?;
        if found != planned {
            return Err(StoreError::Conflict { planned, found });
        }
        let next = planned.next();
        put_all(&transaction, next, mutations)?;
        transaction
            .prepare_cached(
                "INSERT INTO audit (revision, at, actor, action, why, origin) VALUES (?1, ?2, ?3, \
                ?4, ?5, ?6)",
            )?
            .execute(params![
                next.0 as i64,
                note.at,
                note.actor,
                note.action,
                note.why,
                note.origin
            ])?;
        transaction.commit()?;
        Ok(next)
    }

    /// Creates the reserve if it does not exist. Returns `true` if there is room.
    fn ensure_reserve(&mut self) -> bool {
        self.reserve.as_mut().is_none_or(Reserve::ensure)
    }

    /// Returns the revision since which the history is complete.
    fn floor(&self) -> Result<Revision, StoreError> {
        let floor = self
            .connection
            .query_row("SELECT revision FROM floors WHERE name = 'history'", [], |row| {
                row.get::<_, i64>(0)
            })
            .optional()?;
        Ok(Revision(floor.unwrap_or(0) as u64))
    }
}

/// Locks the lock file of a database; a database in memory has none.
fn lock(path: &Path) -> Result<Option<File>, StoreError> {
    if is_in_memory(path) {
        return Ok(None);
    }
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::StorageFull => StoreError::Full,
        _ => StoreError::Lock(error),
    };
    let beside = path.with_extension("lock");
    let file =
        File::options().write(true).create(true).truncate(false).open(beside).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::InUse(path.parent().unwrap_or(Path::new(".")).to_owned()))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn is_in_memory(path: &Path) -> bool {
    path == Path::new(":memory:")
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit is on disk when it returns.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", MAX_LOG_SIZE)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Returns `true` if mutations revoke access: those may use the reserve's room.
fn revokes_access(mutations: &[Mutation]) -> bool {
    mutations.iter().any(|mutation| {
        matches!(
            mutation,
            Mutation::Put(Record::Quarantine(_))
                | Mutation::Delete(
                    RecordKey::Credential(_)
                        | RecordKey::Token(_)
                        | RecordKey::Node(_)
                        | RecordKey::Relay(_)
                )
        )
    })
}

fn put_all(
    connection: &Connection,
    next: Revision,
    mutations: &[Mutation],
) -> Result<(), StoreError> {
    let mut put = connection.prepare_cached(
        "INSERT INTO records (kind, name, body, revision) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body, revision = excluded.revision",
    )?;
    let mut delete =
        connection.prepare_cached("DELETE FROM records WHERE kind = ?1 AND name = ?2")?;
    let mut append = connection.prepare_cached(
        "INSERT OR REPLACE INTO history (kind, name, revision, body) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for mutation in mutations {
        let (key, body) = match mutation {
            Mutation::Put(record) => (record.key(), Some(encode(record)?)),
            Mutation::Delete(key) => (key.clone(), None),
        };
        let StoredKey { kind, name } = key.stored();
        match &body {
            Some(body) => put.execute(params![kind, name, body, next.0 as i64])?,
            None => delete.execute(params![kind, name])?,
        };
        if key.has_history() {
            append.execute(params![kind, name, next.0 as i64, body])?;
        }
    }
    Ok(())
}

/// Returns the revision of a database.
fn revision(connection: &Connection) -> Result<Revision, rusqlite::Error> {
    let newest = connection
        .query_row("SELECT max(revision) FROM audit", [], |row| row.get::<_, Option<i64>>(0));
    Ok(Revision(newest.optional()?.flatten().unwrap_or(0) as u64))
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Contents, StoreError> {
        read(&*self.connection.transaction()?)
    }

    fn commit(
        &mut self,
        planned: Revision,
        mutations: &[Mutation],
        note: &Note,
    ) -> Result<Revision, StoreError> {
        let revokes = revokes_access(mutations);
        // Without the reserve, all room is for mutations that revoke access.
        if !self.ensure_reserve() && !revokes {
            return Err(StoreError::Full);
        }
        match self.write(planned, mutations, note) {
            Err(StoreError::Full)
                if revokes && self.reserve.as_mut().is_some_and(Reserve::release) =>
            {
                self.write(planned, mutations, note)
            }
            other => other,
        }
    }

    fn history(
        &mut self,
        key: &RecordKey,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<Past>, StoreError> {
        let StoredKey { kind, name } = key.stored();
        let mut statement = self.connection.prepare_cached(
            "SELECT audit.revision, at, actor, action, why, origin, body FROM history
             JOIN audit ON audit.revision = history.revision
             WHERE kind = ?1 AND name = ?2 AND audit.revision < ?3 ORDER BY audit.revision DESC \
            LIMIT ?4",
        )?;
        let mut rows = statement.query(params![kind, name, bound(before), limit])?;
        let mut states = Vec::new();
        while let Some(row) = rows.next()? {
            let body: Option<String> = row.get(6)?;
            let record = body.map(|body| decode(kind, &name, &body)).transpose()?;
            states.push(Past { line: line(row)?, record });
        }
        Ok(states)
    }

    fn as_of(&mut self, revision: Revision) -> Result<Vec<Record>, StoreError> {
        let floor = self.floor()?;
        if revision < floor {
            return Err(StoreError::Forgotten(floor));
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT kind, name, body FROM history AS state WHERE body IS NOT NULL AND revision =
                 (SELECT max(revision) FROM history
                  WHERE kind = state.kind AND name = state.name AND revision <= ?1)",
        )?;
        let mut rows = statement.query([revision.0 as i64])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            let (kind, name, body): (String, String, String) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            records.push(decode(&kind, &name, &body)?);
        }
        Ok(records)
    }

    fn audit(
        &mut self,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<AuditLine>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT revision, at, actor, action, why, origin FROM audit WHERE revision < ?1
             ORDER BY revision DESC LIMIT ?2",
        )?;
        Ok(statement.query_map(params![bound(before), limit], line)?.collect::<Result<_, _>>()?)
    }

    fn has_room(&mut self) -> bool {
        self.ensure_reserve()
    }

    fn forget(&mut self, retention: &Retention, now: i64) -> Result<bool, StoreError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let is_more = retention::forget(&transaction, retention, now)?;
        transaction.commit()?;
        Ok(is_more)
    }

    fn copier(&self) -> Copier {
        let path = self.path.clone();
        Box::new(move |file| {
            if is_in_memory(&path) {
                return Err(StoreError::Backup("a store in memory has no backup".into()));
            }
            // Another connection reads one state, whatever is written meanwhile (write-ahead log).
            let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            reader.execute("VACUUM INTO ?1", [file.to_string_lossy()])?;
            Ok(())
        })
    }
}

/// Reads all records of a database.
///
/// # Errors
/// Fails with [`StoreError::Database`] or [`StoreError::Damaged`].
pub(super) fn read(connection: &Connection) -> Result<Contents, StoreError> {
    let revision = revision(connection)?;
    let mut records = Vec::new();
    let mut statement = connection.prepare("SELECT kind, name, body FROM records")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name, body): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        records.push(decode(&kind, &name, &body)?);
    }
    Ok(Contents { revision, records })
}

/// Returns a revision as `SQLite`'s signed integer; the largest for none, and for those beyond it.
fn bound(before: Option<Revision>) -> i64 {
    before.and_then(|revision| i64::try_from(revision.0).ok()).unwrap_or(i64::MAX)
}

fn line(row: &rusqlite::Row) -> Result<AuditLine, rusqlite::Error> {
    let note = Note {
        at: row.get(1)?,
        actor: row.get(2)?,
        action: row.get(3)?,
        why: row.get(4)?,
        origin: row.get(5)?,
    };
    Ok(AuditLine { revision: Revision(row.get::<_, i64>(0)? as u64), note })
}

fn encode(record: &Record) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|error| {
        let StoredKey { kind, name } = record.key().stored();
        StoreError::Damaged(format!("{kind}/{name}"), error)
    })
}

fn decode(kind: &str, name: &str, body: &str) -> Result<Record, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::Damaged(format!("{kind}/{name}"), error))
}

#[cfg(test)]
mod tests;
