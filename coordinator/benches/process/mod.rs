//! The programs that users run, with a store that is filled beforehand.

use anyhow::{Context, Result};
use meshward_control_state::records::{Mutation, Record};
use meshward_coordinator::{store::Note, store::Sqlite, store::Store};
use meshward_types::Revision;
use std::{
    fs,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Child, Command},
};

/// A process that ends with what holds it.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it. What it logs goes to a file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let program = command.get_program().to_owned();
        let child = command.stderr(fs::File::create(log)?).spawn();
        Ok(Self(child.with_context(|| format!("{} does not start", program.display()))?))
    }

    /// Returns the resident memory, in GiB.
    pub(crate) fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / f64::from(1 << 20))
    }

    /// Ends it, with SIGKILL.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.kill()?;
        self.wait()?;
        Ok(())
    }
}

impl Deref for Process {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Returns the path of a release binary.
pub(crate) fn binary(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release").join(name)
}

/// Fills the store of a coordinator that has not started yet.
pub(crate) fn seed(data: &Path, records: Vec<Record>) -> Result<()> {
    let mut store = Sqlite::open(&data.join("mesh.db"))?;
    let puts: Vec<Mutation> = records.into_iter().map(Mutation::Put).collect();
    let note = Note {
        at: "2026-01-01T00:00:00Z".into(),
        actor: "user:bench".into(),
        action: "seeded".into(),
        why: None,
        origin: None,
    };
    store.commit(Revision(0), &puts, &note)?;
    Ok(())
}
