//! Migrations: the numbered steps from an empty database to the format of this version. The
//! database's `user_version` is the number of the last one that was applied. A migration that was
//! released never changes.

use super::interface::StoreError;
use meshward_control_state::records;
use rusqlite::Connection;

struct Migration {
    /// The format that it leads to.
    format: u32,
    statements: &'static str,
}

/// The migrations, in their order.
const MIGRATIONS: [Migration; 4] = [
    Migration { format: 2, statements: RECORDS },
    Migration { format: 3, statements: FLOORS },
    Migration { format: 4, statements: SERVICES },
    Migration { format: 5, statements: FINDINGS },
];

const NEWEST: u32 = MIGRATIONS[MIGRATIONS.len() - 1].format;

// The form of the records is part of the database's format: a new form needs a migration.
const _: () = assert!(NEWEST == records::FORMAT);

/// The records, the audit log, and the states of policies and quarantines.
const RECORDS: &str = "
    CREATE TABLE records (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, revision \
    INTEGER NOT NULL,
        PRIMARY KEY (kind, name)) WITHOUT ROWID;
    CREATE TABLE audit (revision INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, \
    action TEXT NOT NULL,
        why TEXT, origin TEXT);
    -- Every state of the records that are kept for ever; without a body: deleted.
    CREATE TABLE history (kind TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, body \
    TEXT,
        PRIMARY KEY (kind, name, revision)) WITHOUT ROWID;
";

/// The revision since which the history is complete, and an index that finds whether a state needs
/// a line of the audit log.
const FLOORS: &str = "
    CREATE TABLE floors (name TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX history_by_revision ON history (revision);
";

/// Services are records of a new kind, and networks without service blocks lack the field. Nothing
/// that is stored changes.
const SERVICES: &str = "";

/// Workloads are unhealthy for services, by name. Before, it was not stored for which service one
/// was, and a node says so again when it connects.
const FINDINGS: &str = "
    UPDATE records SET body = json_remove(body, '$.Workload.unhealthy')
        WHERE json_extract(body, '$.Workload.unhealthy') IS NOT NULL;
    UPDATE records SET body = json_remove(body, '$.Refused.report.unhealthy')
        WHERE json_extract(body, '$.Refused.report.unhealthy') IS NOT NULL;
";

/// Applies the migrations that are missing, in one transaction.
///
/// # Errors
/// [`StoreError::Format`] if the database is of a later version.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let format = format(connection)?;
    if format == NEWEST {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for migration in MIGRATIONS.iter().filter(|migration| migration.format > format) {
        transaction.execute_batch(migration.statements)?;
        transaction.pragma_update(None, "user_version", migration.format)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Returns the format of a database; 0 for an empty one.
///
/// # Errors
/// [`StoreError::Format`] if this version does not know it.
pub(super) fn format(connection: &Connection) -> Result<u32, StoreError> {
    let format: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let is_known = format == 0 || MIGRATIONS.iter().any(|migration| migration.format == format);
    if is_known { Ok(format) } else { Err(StoreError::Format(format)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Sqlite, Store};
    use meshward_control_state::records::{Record, StoredKey};
    use meshward_types::Revision;
    use std::{collections::BTreeSet, path::Path};

    #[test]
    fn a_database_of_the_first_release_is_read_in_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(include_str!("testdata/format-3.sql")).unwrap();
        drop(old);
        let mut store = Sqlite::open(&path).unwrap();
        let contents = store.load().unwrap();
        assert_eq!((contents.revision, contents.records.len()), (Revision(14), 14));
        let kinds: BTreeSet<_> =
            contents.records.iter().map(|record| record.key().stored().kind).collect();
        assert_eq!(kinds.len(), 12, "every kind is there: {kinds:?}");
        assert_eq!(store.as_of(Revision(14)).unwrap().len(), 2, "a policy and a quarantine");
        assert_eq!(store.audit(None, 100).unwrap().len(), 14);
        for row in rows(&path) {
            let read: Record = serde_json::from_str(&row.body).unwrap();
            assert_eq!(read.key().stored(), row.key);
            assert_eq!(serde_json::to_string(&read).unwrap(), row.body, "it is stored as it was");
        }
        meshward_control_state::world::World::load(contents.revision, contents.records).unwrap();
    }

    struct Row {
        key: StoredKey,
        body: String,
    }

    /// Reads the records of a database as they are stored.
    fn rows(path: &Path) -> Vec<Row> {
        let connection = Connection::open(path).unwrap();
        let mut statement = connection.prepare("SELECT kind, name, body FROM records").unwrap();
        let row = |row: &rusqlite::Row| {
            let kind = String::leak(row.get(0)?);
            Ok(Row { key: StoredKey { kind, name: row.get(1)? }, body: row.get(2)? })
        };
        statement.query_map([], row).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_database_of_format_2_is_migrated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(RECORDS).unwrap();
        old.execute(
            "INSERT INTO audit VALUES (7, '2026-01-01T00:00:00Z', 'user:a', 'x', NULL, NULL)",
            [],
        )
        .unwrap();
        old.pragma_update(None, "user_version", 2).unwrap();
        drop(old);
        let mut store = Sqlite::open(&path).unwrap();
        assert_eq!(store.load().unwrap().revision, Revision(7));
        assert_eq!(store.as_of(Revision(1)).unwrap(), []);
    }

    #[test]
    fn findings_of_format_4_without_a_service_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.db");
        drop(Sqlite::open(&path).unwrap());
        let ill = r#"{"Workload":{"id":"w-1","network":"shop","node":"rack","name":"web",
            "addresses":[],"declared":{},"identity":1,"unhealthy":true}}"#;
        let refused = r#"{"Refused":{"node":"rack","report":{"id":"w-2","network":"shop",
            "name":"web","labels":{},"addresses":[],"unhealthy":true},"reasons":["no"]}}"#;
        let well = ill.replace(r#","unhealthy":true"#, "").replace("w-1", "w-3");
        let old = Connection::open(&path).unwrap();
        for (id, body) in [("w-1", ill), ("w-2", refused), ("w-3", &well)] {
            let row = (id, body);
            old.execute("INSERT INTO records VALUES ('workload', ?1, ?2, 7)", row).unwrap();
        }
        old.pragma_update(None, "user_version", 4).unwrap();
        drop(old);
        let contents = Sqlite::open(&path).unwrap().load().unwrap();
        assert_eq!(contents.records.len(), 3);
        for record in contents.records {
            match record {
                Record::Workload(record) => assert!(record.unhealthy.is_empty()),
                Record::Refused(record) => assert!(record.report.unhealthy.is_empty()),
                other => panic!("{other:?}"),
            }
        }
        let bodies: Vec<String> = rows(&path).into_iter().map(|row| row.body).collect();
        assert!(bodies.iter().all(|body| !body.contains("unhealthy")));
        let unchanged = bodies.iter().filter(|body| **body == well);
        assert_eq!(unchanged.count(), 1, "the others are as they were");
    }

    #[test]
    fn a_database_of_a_later_version_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.db");
        drop(Sqlite::open(&path).unwrap());
        let newer = Connection::open(&path).unwrap();
        newer.pragma_update(None, "user_version", 1000).unwrap();
        drop(newer);
        let refused = Sqlite::open(&path).err().unwrap().to_string();
        assert!(refused.contains("format 1000"), "{refused}");
    }
}
