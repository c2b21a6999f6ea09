//! The identity of a member, a node or a relay, on its disk. Each file is written atomically.

use crate::{
    Mistake, files,
    member_files::{MembershipFile, RemovedFile},
    state_files::{self, StateFile, StateFileError},
    tls::MemberCertificate,
    write_behind::{Troubles, WriteBehind},
};
use anyhow::{Context, Result, bail};
use meshward_control_proto::MemberKind;
use meshward_types::NodeName;
use std::{
    fmt::Display,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::warn;

pub use crate::member_files::Membership;

/// The file that says when this member was removed.
const REMOVED_FILE: &str = "removed.json";

/// The exit code of a daemon that was removed from its mesh; starting it again does not help.
pub const REMOVED: u8 = 3;

/// The error of a member that was removed from the mesh: the process ends with [`REMOVED`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{kind} {name} was removed from the mesh{closed}; to join again, with a new token: {program} \
    join TOKEN@HOST"
)]
pub struct Removed {
    kind: MemberKind,
    name: NodeName,
    /// The consequences for its workloads.
    closed: &'static str,
    program: &'static str,
}

/// A member's certificate and key, and the CA's certificate (DER).
pub struct Credentials {
    /// The CA's certificate.
    pub ca: Vec<u8>,
    /// The member's certificate.
    pub certificate: Vec<u8>,
    /// The member's private key, PKCS #8.
    pub key: Vec<u8>,
}

impl Removed {
    /// Creates the error for a member that the coordinator has removed.
    pub fn of(kind: MemberKind, name: NodeName) -> Self {
        let closed = match kind {
            MemberKind::Node => ", and its workloads are closed",
            MemberKind::Relay => "",
        };
        Self { kind, name, closed, program: program(kind) }
    }
}

impl Credentials {
    /// Reads the certificate.
    ///
    /// # Errors
    /// Fails if it is not a member's certificate.
    pub fn read(&self) -> Result<MemberCertificate> {
        MemberCertificate::read(&self.certificate).context("the certificate is damaged; join again")
    }
}

/// Returns the name of a member's daemon.
fn program(kind: MemberKind) -> &'static str {
    match kind {
        MemberKind::Node => "meshward-node",
        MemberKind::Relay => "meshward-relay",
    }
}

/// The data folder of a member.
#[derive(Debug, Clone)]
pub struct MemberFolder {
    path: PathBuf,
    kind: MemberKind,
    troubles: Troubles,
    behind: Arc<WriteBehind>,
}

impl MemberFolder {
    /// Opens the folder, or creates it and folders in it, readable only by its owner.
    ///
    /// # Errors
    /// [`Mistake`] if it cannot be created.
    pub fn open(path: &Path, kind: MemberKind, folders: &[&str]) -> Result<Self> {
        for folder in [&[""], folders].concat() {
            let folder = if folder.is_empty() { path.to_owned() } else { path.join(folder) };
            if folder != path && fs::metadata(&folder).is_ok_and(|found| !found.is_dir()) {
                files::set_aside(&folder, &"it is to be a folder");
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| {
                let path = path.display();
                Mistake(format!(
                    "cannot use the data folder {path} ({error}); run as root, or name another \
                    with --data-dir"
                ))
            })?;
            files::remove_partial(&folder);
        }
        let troubles = Troubles::default();
        let behind = Arc::new(WriteBehind::new(path, troubles.clone()));
        Ok(Self { path: path.to_owned(), kind, troubles, behind })
    }

    /// Returns the kind of member.
    pub fn kind(&self) -> MemberKind {
        self.kind
    }

    fn named(&self, ending: &str) -> String {
        format!("{}.{ending}", self.kind)
    }

    /// Returns the membership; `None` before joining.
    ///
    /// # Errors
    /// Fails if the file is damaged, since it cannot be rebuilt.
    pub fn membership(&self) -> Result<Option<Membership>> {
        let name = self.named("json");
        let Some(bytes) = self.read(&name)? else { return Ok(None) };
        let path = self.path_of(&name);
        let path = path.display();
        match state_files::decode::<MembershipFile>(&bytes) {
            Ok(file) => Ok(Some(file.into())),
            Err(StateFileError::Newer(newer)) => bail!(Mistake(format!(
                "{path} was written by a newer release: format {}, this one reads up to {}; \
                upgrade {program}, or join again with a new token: {program} join TOKEN@HOST",
                newer.found,
                newer.newest,
                program = program(self.kind),
            ))),
            Err(StateFileError::Damaged(error)) => bail!(Mistake(format!(
                "{path} is damaged ({error}): it says who this {} is; put it back from a backup, \
                or join again with a new token: {} join TOKEN@HOST",
                self.kind,
                program(self.kind),
            ))),
        }
    }

    /// Prepares for joining: sets aside the remains of an unusable membership. Returns the
    /// membership if the machine has already joined.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn membership_or_aside(&self) -> Result<Option<Membership>> {
        let Err(error) = self.membership() else { return self.membership() };
        files::set_aside(&self.path_of(&self.named("json")), &error);
        Ok(None)
    }

    /// Stores the result of joining. The membership is written last, so that a half-done join
    /// counts as none.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn keep_membership(
        &self,
        membership: &Membership,
        credentials: &Credentials,
    ) -> Result<()> {
        self.write("ca.der", &credentials.ca)?;
        self.write(&self.named("der"), &credentials.certificate)?;
        self.write_state(&self.named("json"), &MembershipFile::from(membership))
    }

    /// Removes the membership, and every file and folder in `kept` with its damaged versions. The
    /// membership goes first: what is left belongs to nobody.
    ///
    /// # Errors
    /// Fails if something cannot be removed.
    pub fn forget_membership(&self, kept: &[&str]) -> Result<()> {
        let own = ["json", "der", "key"].map(|ending| self.named(ending));
        let all = own
            .iter()
            .map(String::as_str)
            .chain(["ca.der", REMOVED_FILE])
            .chain(kept.iter().copied());
        for name in all {
            let path = self.path_of(name);
            files::remove_with_damaged(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Returns the time at which this member learned that it was removed, in seconds since 1970.
    pub fn removed_at(&self) -> Option<u64> {
        Some(self.read_state::<RemovedFile>(REMOVED_FILE)?.at)
    }

    /// Stores that this member was removed.
    ///
    /// # Errors
    /// Fails if it cannot be written.
    pub fn keep_removed(&self, at: u64) -> Result<()> {
        self.write_state(REMOVED_FILE, &RemovedFile { at })
    }

    /// Returns the certificate and its key.
    ///
    /// # Errors
    /// Fails if one is missing, since it cannot be rebuilt.
    pub fn credentials(&self) -> Result<Credentials> {
        let read = |name: &str| -> Result<Vec<u8>> {
            let found = self.read(name)?.filter(|bytes| !bytes.is_empty());
            let path = self.path_of(name);
            found.with_context(|| {
                format!(
                    "{} is missing or empty; put it back from a backup, or join again",
                    path.display()
                )
            })
        };
        let (certificate, key) = (read(&self.named("der"))?, read(&self.named("key"))?);
        Ok(Credentials { ca: read("ca.der")?, certificate, key })
    }

    /// Stores a renewed certificate. It is used even while it cannot be written.
    pub fn keep_certificate(&self, certificate: &[u8]) {
        self.write_later(&self.named("der"), certificate.to_vec());
    }

    /// Returns the private key (PKCS #8), made at the first call. A damaged one is set aside, since
    /// nobody has joined with it.
    ///
    /// # Errors
    /// Fails if a new one cannot be made or written.
    pub fn key_to_join(&self) -> Result<Vec<u8>> {
        let name = self.named("key");
        if let Some(key) =
            self.read_or_set_aside(&name, |key| crate::csr::request(key).map(|_| key.to_vec()))
        {
            return Ok(key);
        }
        let key = rcgen::KeyPair::generate()?.serialize_der();
        self.write(&name, &key)?;
        Ok(key)
    }

    /// Returns the path of a file in the folder.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the content of a file; `None` if it does not exist.
    ///
    /// # Errors
    /// Fails if it cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if let Some(waiting) = self.behind.waiting(name) {
            return Ok(waiting);
        }
        let path = self.path_of(name);
        files::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Reads a file that is not essential; `None` if it does not exist. One that cannot be read, or
    /// that `parse` refuses, is set aside.
    pub fn read_or_set_aside<T, E: Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Option<T> {
        let why = match self.read(name) {
            Ok(None) => return None,
            Ok(Some(bytes)) => match parse(&bytes) {
                Ok(value) => return Some(value),
                Err(why) => why.to_string(),
            },
            Err(error) => format!("{error:#}"),
        };
        files::set_aside(&self.path_of(name), &why);
        None
    }

    /// Reads a file of state that is not essential, as [`Self::read_or_set_aside`] does.
    pub fn read_state<T: StateFile>(&self, name: &str) -> Option<T> {
        self.read_or_set_aside(name, |bytes| state_files::decode(bytes))
    }

    /// Returns the names of the files in a folder of this one that have this suffix.
    pub fn list(&self, folder: &str, ending: &str) -> Vec<String> {
        let entries = match fs::read_dir(self.path_of(folder)) {
            Ok(entries) => entries,
            Err(error) => {
                warn!("cannot read {}: {error}", self.path_of(folder).display());
                return vec![];
            }
        };
        let names = entries
            .flatten()
            .map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy()));
        names.filter(|name| name.ends_with(ending)).collect()
    }

    /// Schedules a write of a file, so that nobody waits for the disk. While it cannot be written,
    /// this member is *degraded*, and reading returns the scheduled content.
    pub fn write_later(&self, name: &str, bytes: Vec<u8>) {
        self.behind.order(name, Some(bytes));
    }

    /// Schedules a write of a file of state, as [`Self::write_later`] does.
    ///
    /// # Errors
    /// Fails if its content cannot be encoded.
    pub fn write_state_later(&self, name: &str, content: &impl StateFile) -> Result<()> {
        self.write_later(name, state_files::encode(content)?);
        Ok(())
    }

    /// Schedules the removal of a file, in order with scheduled writes.
    pub fn remove_later(&self, name: &str) {
        self.behind.order(name, None);
    }

    /// Waits until everything that was scheduled so far is on disk, or the disk has refused it.
    pub async fn flush(&self) {
        self.behind.flush().await;
    }

    /// Returns what cannot be written, and why.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Writes a file atomically. When this returns, the file survives a loss of power.
    ///
    /// # Errors
    /// Fails if it cannot be written; then it is unchanged.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path_of(name);
        self.behind
            .write_now(name, bytes)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes a file of state atomically, as [`Self::write`] does.
    ///
    /// # Errors
    /// Fails if it cannot be encoded or written; then it is unchanged.
    pub fn write_state(&self, name: &str, content: &impl StateFile) -> Result<()> {
        self.write(name, &state_files::encode(content)?)
    }
}
