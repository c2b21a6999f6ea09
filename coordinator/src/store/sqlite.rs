//! The embedded store.

use super::{
    interface::{Contents, Copier, Note, Past, Store, StoreError},
    migrations::migrate,
    reserve::Reserve,
};
use crate::limits::Retention;
use meshward_api_types::AuditEntry;
use meshward_control_state::{
    records::{Mutation, Record, RecordKey, StoredKey},
    timestamp,
};
use meshward_types::Revision;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use std::{
    fs::{File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};
use time::OffsetDateTime;

/// Rows that are forgotten at a time, so that no write waits for long.
const FORGOTTEN_AT_ONCE: u32 = 2000;
/// The room of the log is given back beyond this, in bytes.
const LOG_SIZE: i64 = 16 << 20;

/// `SQLite` in a file, and beside it a reserve of room on the disk.
pub struct Sqlite {
    connection: Connection,
    /// `None` for a database in memory, which no disk bounds.
    reserve: Option<Reserve>,
    path: PathBuf,
    /// Locked for as long as this lives: two coordinators on one file would each be surprised by
    /// the other.
    _lock: Option<File>,
}

impl Sqlite {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut reserve = (!is_in_memory(path)).then(|| Reserve::beside(path));
        let open = || Ok::<_, StoreError>((lock(path)?, connect(path)?));
        let (lock, connection) = match open() {
            // To start, too, takes a little room.
            Err(StoreError::Full) => {
                reserve.as_mut().map(Reserve::give_up);
                open()?
            }
            other => other?,
        };
        reserve.as_mut().map(Reserve::keep);
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

    /// Makes the reserve, if it is needed and not there. Gives whether there is room.
    fn keep_reserve(&mut self) -> bool {
        self.reserve.as_mut().is_none_or(Reserve::keep)
    }

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

/// Locks the file beside a database that says whose it is; a database in memory has none.
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
    connection.pragma_update(None, "journal_size_limit", LOG_SIZE)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Whether mutations cut somebody off: those are written by the reserve, if there is no other room.
fn cuts_off(mutations: &[Mutation]) -> bool {
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
    let mut keep = connection.prepare_cached(
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
            keep.execute(params![kind, name, next.0 as i64, body])?;
        }
    }
    Ok(())
}

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
        let essential = cuts_off(mutations);
        // Without the reserve all room that there is belongs to what cuts somebody off.
        if !self.keep_reserve() && !essential {
            return Err(StoreError::Full);
        }
        match self.write(planned, mutations, note) {
            Err(StoreError::Full)
                if essential && self.reserve.as_mut().is_some_and(Reserve::give_up) =>
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
            states.push(Past { entry: entry(row)?, record });
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
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT revision, at, actor, action, why, origin FROM audit WHERE revision < ?1
             ORDER BY revision DESC LIMIT ?2",
        )?;
        Ok(statement.query_map(params![bound(before), limit], entry)?.collect::<Result<_, _>>()?)
    }

    fn has_room(&mut self) -> bool {
        self.keep_reserve()
    }

    fn forget(&mut self, retention: &Retention, now: i64) -> Result<bool, StoreError> {
        let before = now.saturating_sub(i64::from(retention.audit_days) * 24 * 3600);
        let before = timestamp(
            OffsetDateTime::from_unix_timestamp(before).unwrap_or(OffsetDateTime::UNIX_EPOCH),
        );
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // States of what was deleted long ago, and those of which there are too many newer ones. A
        // state held until the next one.
        let old = "SELECT state.kind, state.name, state.revision,
                   (SELECT min(revision) FROM history
                    WHERE kind = state.kind AND name = state.name AND revision > state.revision) \
            AS until
             FROM history AS state";
        transaction.execute_batch(
            "CREATE TEMP TABLE IF NOT EXISTS forgotten (kind TEXT, name TEXT, revision INTEGER, \
            until INTEGER);
             DELETE FROM temp.forgotten;",
        )?;
        transaction.execute(
            &format!(
                "INSERT INTO temp.forgotten {old} WHERE
                   (SELECT count(*) FROM history WHERE kind = state.kind AND name = state.name
                    AND revision > state.revision) >= ?1
                   OR EXISTS (SELECT 1 FROM history AS last JOIN audit ON audit.revision = \
                last.revision
                      WHERE last.kind = state.kind AND last.name = state.name AND last.body IS \
                NULL AND audit.at < ?2
                      AND last.revision = (SELECT max(revision) FROM history
                          WHERE kind = state.kind AND name = state.name))
                 LIMIT ?3"
            ),
            params![retention.history_states, before, FORGOTTEN_AT_ONCE],
        )?;
        let floor: Option<i64> = transaction.query_row(
            "SELECT max(coalesce(until, revision)) FROM temp.forgotten",
            [],
            |row| row.get(0),
        )?;
        if let Some(floor) = floor {
            transaction.execute(
                "INSERT INTO floors VALUES ('history', ?1)
                 ON CONFLICT (name) DO UPDATE SET revision = max(revision, excluded.revision)",
                [floor],
            )?;
        }
        let states = transaction.execute(
            "DELETE FROM history WHERE (kind, name, revision) IN (SELECT kind, name, revision FROM \
            temp.forgotten)",
            [],
        )?;
        let newest = revision(&transaction)?;
        let lines = transaction.execute(
            "DELETE FROM audit WHERE revision IN (SELECT revision FROM audit
               WHERE (at < ?1 OR revision <= ?2) AND revision < ?3
                 AND revision NOT IN (SELECT revision FROM history)
               ORDER BY revision LIMIT ?4)",
            params![
                before,
                newest.0 as i64 - i64::from(retention.audit_lines),
                newest.0 as i64,
                FORGOTTEN_AT_ONCE
            ],
        )?;
        transaction.commit()?;
        Ok(states.max(lines) >= FORGOTTEN_AT_ONCE as usize)
    }

    fn copier(&self) -> Copier {
        let path = self.path.clone();
        Box::new(move |file| {
            if is_in_memory(&path) {
                return Err(StoreError::Backup("a store in memory has no backup".into()));
            }
            // A connection of its own reads one state to its end, whatever is written meanwhile
            // (write-ahead log).
            let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            reader.execute("VACUUM INTO ?1", [file.to_string_lossy()])?;
            Ok(())
        })
    }
}

/// Reads all records of a database.
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

/// `SQLite`'s integers have a sign: what lies beyond is after every revision.
fn bound(before: Option<Revision>) -> i64 {
    before.and_then(|revision| i64::try_from(revision.0).ok()).unwrap_or(i64::MAX)
}

fn entry(row: &rusqlite::Row) -> Result<AuditEntry, rusqlite::Error> {
    Ok(AuditEntry {
        revision: Revision(row.get::<_, i64>(0)? as u64),
        at: row.get(1)?,
        actor: row.get(2)?,
        action: row.get(3)?,
        why: row.get(4)?,
        origin: row.get(5)?,
    })
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
