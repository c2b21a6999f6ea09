//! Backups: one file with all records, their history, the audit log, and the CA if it is wanted.

use super::{
    interface::{Store, StoreError},
    sqlite::Sqlite,
};
use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags};
use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

/// Files of the data folder that make up the CA.
const CA_FILES: [&str; 2] = ["ca.pem", "ca.key"];
const FILES: &str =
    "CREATE TABLE backup (name TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID";

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Its revision.
    pub revision: u64,
    /// How many records it has.
    pub records: usize,
    /// The mesh's id.
    pub mesh: String,
    /// Whether it has the CA.
    pub has_ca: bool,
}

impl Backup {
    /// Completes a copy of the database, and checks it. `ca`: the data folder, if the CA is to be
    /// in it.
    ///
    /// # Errors
    /// If it cannot be written, or what was written cannot be read.
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

    /// Checks a backup: every page, every record.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(file: &Path) -> Result<Self> {
        ensure!(file.is_file(), "there is no file {}", file.display());
        let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let sound: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .with_context(|| format!("{} is no backup of a mesh, or damaged", file.display()))?;
        ensure!(sound == "ok", "{} is damaged: {sound}", file.display());
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

/// Makes a data folder of a backup. Nothing of a mesh may be in the folder but, if the backup has
/// none, the CA.
///
/// # Errors
/// If the backup is damaged, or the folder is in use.
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
    // It can be opened, and has what the backup had.
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
