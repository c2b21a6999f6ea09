//! The embedded store.

use super::{Contents, Note, Store, StoreError};
use crate::records::{Mutation, Record};
use meshward_model::{Revision, api::AuditEntry};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::path::Path;

/// Version of the tables.
const FORMAT: u32 = 1;

const TABLES: &str = "
    CREATE TABLE records (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (kind, name)) WITHOUT ROWID;
    CREATE TABLE audit (revision INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL);
";

/// SQLite in a file.
pub struct Sqlite(Connection);

impl Sqlite {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // FULL: a commit is on disk when it returns.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        let format: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match format {
            FORMAT => {}
            0 => {
                let transaction = connection.transaction()?;
                transaction.execute_batch(TABLES)?;
                transaction.pragma_update(None, "user_version", FORMAT)?;
                transaction.commit()?;
            }
            other => return Err(StoreError::Format(other)),
        }
        Ok(Self(connection))
    }
}

fn revision(connection: &Connection) -> Result<Revision, rusqlite::Error> {
    let newest =
        connection.query_row("SELECT max(revision) FROM audit", [], |row| row.get::<_, Option<i64>>(0));
    Ok(Revision(newest.optional()?.flatten().unwrap_or(0) as u64))
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Contents, StoreError> {
        let transaction = self.0.transaction()?;
        let revision = revision(&transaction)?;
        let mut records = Vec::new();
        {
            let mut statement = transaction.prepare("SELECT kind, name, body FROM records")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (kind, name, body): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let record: Record = serde_json::from_str(&body)
                    .map_err(|error| StoreError::Damaged(format!("{kind}/{name}"), error))?;
                records.push(record);
            }
        }
        Ok(Contents { revision, records })
    }

    fn commit(
        &mut self,
        planned: Revision,
        mutations: &[Mutation],
        note: &Note,
    ) -> Result<Revision, StoreError> {
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = revision(&transaction)?;
        if found != planned {
            return Err(StoreError::Conflict { planned, found });
        }
        let next = planned.next();
        {
            let mut put = transaction.prepare_cached(
                "INSERT INTO records (kind, name, body, revision) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body, revision = excluded.revision",
            )?;
            let mut delete =
                transaction.prepare_cached("DELETE FROM records WHERE kind = ?1 AND name = ?2")?;
            for mutation in mutations {
                match mutation {
                    Mutation::Put(record) => {
                        let (kind, name) = record.key().columns();
                        let body = serde_json::to_string(record)
                            .map_err(|error| StoreError::Damaged(format!("{kind}/{name}"), error))?;
                        put.execute(params![kind, name, body, next.0 as i64])?;
                    }
                    Mutation::Delete(key) => {
                        let (kind, name) = key.columns();
                        delete.execute(params![kind, name])?;
                    }
                }
            }
            transaction
                .prepare_cached("INSERT INTO audit (revision, at, actor, action) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![next.0 as i64, note.at, note.actor, note.action])?;
        }
        transaction.commit()?;
        Ok(next)
    }

    fn audit(&mut self, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let mut statement = self.0.prepare_cached(
            "SELECT revision, at, actor, action FROM audit ORDER BY revision DESC LIMIT ?1",
        )?;
        let entry = |row: &rusqlite::Row| {
            Ok(AuditEntry {
                revision: Revision(row.get::<_, i64>(0)? as u64),
                at: row.get(1)?,
                actor: row.get(2)?,
                action: row.get(3)?,
            })
        };
        Ok(statement.query_map([limit], entry)?.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{CredentialRecord, RecordKey};

    fn note() -> Note {
        Note { at: "2026-01-01T00:00:00Z".into(), actor: "user:test".into(), action: "test".into() }
    }

    fn credential(name: &str) -> Record {
        Record::Credential(CredentialRecord { name: name.into(), secret_hash: "x".into() })
    }

    #[test]
    fn what_was_committed_is_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.db");
        let mut store = Sqlite::open(&path).unwrap();
        let put = [Mutation::Put(credential("a")), Mutation::Put(credential("b"))];
        assert_eq!(store.commit(Revision(0), &put, &note()).unwrap(), Revision(1));
        let delete = [Mutation::Delete(RecordKey::Credential("a".into()))];
        assert_eq!(store.commit(Revision(1), &delete, &note()).unwrap(), Revision(2));
        drop(store);
        let mut store = Sqlite::open(&path).unwrap();
        let contents = store.load().unwrap();
        assert_eq!(contents.revision, Revision(2));
        assert_eq!(contents.records, [credential("b")]);
        assert_eq!(store.audit(10).unwrap().len(), 2);
    }

    #[test]
    fn a_write_planned_at_an_older_revision_is_refused_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&folder.path().join("mesh.db")).unwrap();
        store.commit(Revision(0), &[Mutation::Put(credential("a"))], &note()).unwrap();
        let late = store.commit(Revision(0), &[Mutation::Put(credential("b"))], &note());
        assert!(matches!(late, Err(StoreError::Conflict { .. })));
        assert_eq!(store.load().unwrap().records, [credential("a")]);
    }

    #[test]
    fn a_damaged_record_fails_the_whole_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&folder.path().join("mesh.db")).unwrap();
        store.commit(Revision(0), &[Mutation::Put(credential("a"))], &note()).unwrap();
        store.0.execute("INSERT INTO records VALUES ('node', 'x', '{}', 1)", []).unwrap();
        assert!(matches!(store.load(), Err(StoreError::Damaged(name, _)) if name == "node/x"));
    }
}
