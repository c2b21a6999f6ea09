//! The embedded store.

use super::{Contents, Note, Past, Store, StoreError};
use crate::records::{Mutation, Record, RecordKey};
use meshward_model::{Revision, api::AuditEntry};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::path::Path;

/// Version of the tables.
const FORMAT: u32 = 2;

const TABLES: &str = "
    CREATE TABLE records (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (kind, name)) WITHOUT ROWID;
    CREATE TABLE audit (revision INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        why TEXT, origin TEXT);
    -- Every state of the records that are kept for ever; without a body: deleted.
    CREATE TABLE history (kind TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT,
        PRIMARY KEY (kind, name, revision)) WITHOUT ROWID;
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
                records.push(decode(&kind, &name, &body)?);
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
            let mut keep = transaction.prepare_cached(
                "INSERT OR REPLACE INTO history (kind, name, revision, body) VALUES (?1, ?2, ?3, ?4)",
            )?;
            for mutation in mutations {
                let (key, body) = match mutation {
                    Mutation::Put(record) => (record.key(), Some(encode(record)?)),
                    Mutation::Delete(key) => (key.clone(), None),
                };
                let (kind, name) = key.columns();
                match &body {
                    Some(body) => put.execute(params![kind, name, body, next.0 as i64])?,
                    None => delete.execute(params![kind, name])?,
                };
                if key.is_kept_for_ever() {
                    keep.execute(params![kind, name, next.0 as i64, body])?;
                }
            }
            transaction
                .prepare_cached(
                    "INSERT INTO audit (revision, at, actor, action, why, origin) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![next.0 as i64, note.at, note.actor, note.action, note.why, note.origin])?;
        }
        transaction.commit()?;
        Ok(next)
    }

    fn history(&mut self, key: &RecordKey, limit: u32) -> Result<Vec<Past>, StoreError> {
        let (kind, name) = key.columns();
        let mut statement = self.0.prepare_cached(
            "SELECT audit.revision, at, actor, action, why, origin, body FROM history
             JOIN audit ON audit.revision = history.revision
             WHERE kind = ?1 AND name = ?2 ORDER BY audit.revision DESC LIMIT ?3",
        )?;
        let mut rows = statement.query(params![kind, name, limit])?;
        let mut states = Vec::new();
        while let Some(row) = rows.next()? {
            let body: Option<String> = row.get(6)?;
            let record = body.map(|body| decode(kind, &name, &body)).transpose()?;
            states.push(Past { entry: entry(row)?, record });
        }
        Ok(states)
    }

    fn as_of(&mut self, revision: Revision) -> Result<Vec<Record>, StoreError> {
        let mut statement = self.0.prepare_cached(
            "SELECT kind, name, body FROM history AS state WHERE body IS NOT NULL AND revision =
                 (SELECT max(revision) FROM history
                  WHERE kind = state.kind AND name = state.name AND revision <= ?1)",
        )?;
        let mut rows = statement.query([revision.0 as i64])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            let (kind, name, body): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            records.push(decode(&kind, &name, &body)?);
        }
        Ok(records)
    }

    fn audit(&mut self, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let mut statement = self.0.prepare_cached(
            "SELECT revision, at, actor, action, why, origin FROM audit ORDER BY revision DESC LIMIT ?1",
        )?;
        Ok(statement.query_map([limit], entry)?.collect::<Result<_, _>>()?)
    }
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
        let (kind, name) = record.key().columns();
        StoreError::Damaged(format!("{kind}/{name}"), error)
    })
}

fn decode(kind: &str, name: &str, body: &str) -> Result<Record, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::Damaged(format!("{kind}/{name}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{CredentialRecord, PolicyRecord};
    use meshward_model::api::{PolicyFile, Role};

    fn note() -> Note {
        Note {
            at: "2026-01-01T00:00:00Z".into(),
            actor: "user:test".into(),
            action: "test".into(),
            why: Some("because".into()),
            origin: None,
        }
    }

    fn credential(name: &str) -> Record {
        Record::Credential(CredentialRecord {
            name: name.into(),
            secret_hash: "x".into(),
            role: Role::Admin,
            networks: vec![],
        })
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

    #[test]
    fn every_state_of_a_policy_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&folder.path().join("mesh.db")).unwrap();
        let policy = |text: &str| {
            let files = vec![PolicyFile { name: "a".into(), text: text.into() }];
            Record::Policy(PolicyRecord {
                network: "shop".parse().unwrap(),
                files: files.into(),
                read: Default::default(),
            })
        };
        let key = policy("").key();
        let steps = [
            Mutation::Put(policy("one")),
            Mutation::Put(policy("two")),
            Mutation::Delete(key.clone()),
            Mutation::Put(credential("a")),
            Mutation::Put(policy("three")),
        ];
        for (at, step) in steps.into_iter().enumerate() {
            store.commit(Revision(at as u64), &[step], &note()).unwrap();
        }
        let states = store.history(&key, 10).unwrap();
        let known: Vec<_> =
            states.iter().map(|state| (state.entry.revision.0, state.record.clone())).collect();
        let expected =
            [(5, Some(policy("three"))), (3, None), (2, Some(policy("two"))), (1, Some(policy("one")))];
        assert_eq!(known, expected);
        assert_eq!(states[0].entry.why.as_deref(), Some("because"));
        assert_eq!(store.as_of(Revision(1)).unwrap(), [policy("one")]);
        assert_eq!(store.as_of(Revision(2)).unwrap(), [policy("two")]);
        assert_eq!(store.as_of(Revision(4)).unwrap(), []);
        assert_eq!(store.as_of(Revision(9)).unwrap(), [policy("three")]);
    }
}
