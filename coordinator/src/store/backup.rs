//! Backups: files that are databases of the same format, with records, history and audit log, and a
//! further table for the mesh's id and, if it is included, the CA.

use super::{
    interface::{Store, StoreError},
    migrations,
    sqlite::Sqlite,
};
use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags};
use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

/// The files of the data folder that make up the CA.
const CA_FILES: [&str; 2] = ["ca.pem", "ca.key"];
const FILES: &str =
    "CREATE TABLE backup (name TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID";

/// The contents of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// The revision.
    pub revision: u64,
    /// The number of records.
    pub records: usize,
    /// The mesh's id.
    pub mesh: String,
    /// `true` if the CA is included.
    pub has_ca: bool,
}

impl Backup {
    /// Makes a copy of the database a backup, and checks it. It includes the CA if `ca` names the
    /// data folder.
    ///
    /// # Errors
    /// [`StoreError::Backup`] if the file cannot be written, or read again.
    pub fn complete(file: &Path, mesh: &str, ca: Option<&Path>) -> Result<Self, StoreError> {
        let complete = || -> Result<Self> {
            let connection = Connection::open(file)?;
            connection.execute(FILES, [])?;
            let put = |name: &str, content: &str| {
                connection.execute("INSERT INTO backup VALUES (?1, ?2)", [name, content])
            };
            put("mesh", mesh)?;
            for name in ca.iter().flat_map(|_| CA_FILES) {
                let folder = ca.unwrap_or(Path::new("."));
                put(
                    name,
                    &fs::read_to_string(folder.join(name))
                        .with_context(|| format!("cannot read {name}"))?,
                )?;
            }
            drop(connection);
            Self::check(file)
        };
        complete()
            .map_err(|error| StoreError::Backup(format!("the backup was not made: {error:#}")))
    }

    /// Checks every page and every record of a backup.
    ///
    /// # Errors
    /// Fails if the backup is damaged or has a format that this version does not know; the error
    /// says which.
    pub fn check(file: &Path) -> Result<Self> {
        ensure!(file.is_file(), "there is no file {}", file.display());
        let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let sound: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .with_context(|| format!("{} is no backup of a mesh, or damaged", file.display()))?;
        ensure!(sound == "ok", "{} is damaged: {sound}", file.display());
        migrations::format(&connection)?;
        let content = |name: &str| {
            connection
                .query_row("SELECT content FROM backup WHERE name = ?1", [name], |row| row.get(0))
        };
        let mesh: String = content("mesh")
            .with_context(|| format!("{} is no backup of a mesh", file.display()))?;
        let has_ca = content(CA_FILES[1]).is_ok();
        let contents = super::sqlite::read(&connection)?;
        Ok(Self { revision: contents.revision.0, records: contents.records.len(), mesh, has_ca })
    }
}

/// Makes a data folder from a backup. The folder must not have a mesh yet; if the backup does not
/// include the CA, it must have the CA's files.
///
/// # Errors
/// Fails if the folder is not as described or the backup is damaged; the error says which.
pub fn restore(file: &Path, folder: &Path) -> Result<Backup> {
    let backup = Backup::check(file)?;
    let database = folder.join("mesh.db");
    ensure!(
        !database.exists(),
        "there is a mesh in {} already: stop its coordinator, and move the folder away",
        folder.display()
    );
    let ca_there = CA_FILES.iter().all(|name| folder.join(name).exists());
    ensure!(
        backup.has_ca || ca_there,
        "the backup has no CA, and {} has none: put `ca.key` and `ca.pem` there first",
        folder.display()
    );
    fs::create_dir_all(folder)?;
    let partial = folder.join("mesh.db.restoring");
    fs::copy(file, &partial)?;
    let connection = Connection::open(&partial)?;
    if backup.has_ca {
        let files: Vec<(String, String)> = connection
            .prepare("SELECT name, content FROM backup WHERE name <> 'mesh'")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (name, content) in files.iter().filter(|(name, _)| CA_FILES.contains(&name.as_str())) {
            write_private(&folder.join(name), content)?;
        }
    }
    // The secrets of the CA do not stay in what was erased.
    connection.execute_batch("PRAGMA secure_delete = ON; DROP TABLE backup; VACUUM;")?;
    drop(connection);
    fs::File::open(&partial)?.sync_all()?;
    fs::rename(&partial, &database)?;
    fs::File::open(folder)?.sync_all()?;
    // Opening it applies migrations to a backup of an earlier version.
    let restored = Sqlite::open(&database)?.load()?;
    ensure!(restored.revision.0 == backup.revision, "what was restored is not what the backup had");
    Ok(backup)
}

fn write_private(path: &Path, content: &str) -> Result<()> {
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(folder: &Path) -> std::path::PathBuf {
        let file = folder.join("backup.db");
        let connection = Connection::open(&file).unwrap();
        connection.execute_batch(include_str!("testdata/format-3.sql")).unwrap();
        Backup::complete(&file, "0123456789ab", None).unwrap_or_else(|error| panic!("{error}"));
        file
    }

    #[test]
    fn a_backup_of_the_first_release_is_restored() {
        let folder = tempfile::tempdir().unwrap();
        let file = backup(folder.path());
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        for name in CA_FILES {
            fs::write(data.join(name), "").unwrap();
        }
        let restored = restore(&file, &data).unwrap();
        let expected =
            Backup { revision: 14, records: 14, mesh: "0123456789ab".into(), has_ca: false };
        assert_eq!(restored, expected);
    }

    #[test]
    fn a_backup_of_a_later_version_is_refused_with_its_format() {
        let folder = tempfile::tempdir().unwrap();
        let file = backup(folder.path());
        Connection::open(&file).unwrap().pragma_update(None, "user_version", 1000).unwrap();
        let refused = Backup::check(&file).unwrap_err().to_string();
        assert!(refused.contains("format 1000"), "{refused}");
    }
}
