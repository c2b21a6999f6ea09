//! What a member of the mesh, a node or a relay, keeps on disk of who it is. Each file is there
//! whole or not at all.

use crate::{
    Mistake, files,
    tls::MemberCertificate,
    write_behind::{Troubles, WriteBehind},
};
use anyhow::{Context, Result, bail};
use meshward_control_proto::MemberKind;
use meshward_types::NodeName;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt::Display,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::warn;

/// The file that says since when this is no member any more.
const REMOVED_FILE: &str = "removed.json";

/// The exit code of a daemon that was removed from its mesh: to start it again does not help.
pub const REMOVED: u8 = 3;

/// This is no member of the mesh any more: the process ends with [`REMOVED`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{kind} {name} was removed from the mesh{closed}; to join again, with a new token: {join} join TOKEN@HOST"
)]
pub struct Removed {
    kind: MemberKind,
    name: NodeName,
    /// What has become of what it had.
    closed: &'static str,
    join: &'static str,
}

/// Who this member is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Membership {
    /// Its name.
    pub name: NodeName,
    /// `HOST:PORT` of the coordinator.
    pub coordinator: String,
    /// The mesh's id.
    pub mesh: String,
    /// Its site.
    pub site: Option<String>,
}

/// The member's certificate, its key and the CA (DER).
pub struct Credentials {
    /// The CA's certificate.
    pub ca: Vec<u8>,
    /// The member's.
    pub certificate: Vec<u8>,
    /// Its private key, PKCS #8.
    pub key: Vec<u8>,
}

impl Removed {
    /// What is said of a member of which the coordinator has said so.
    pub fn of(kind: MemberKind, name: NodeName) -> Self {
        let (closed, join) = match kind {
            MemberKind::Node => (", and its workloads are closed", "meshward-node"),
            MemberKind::Relay => ("", "meshward-relay"),
        };
        Self { kind, name, closed, join }
    }
}

impl Credentials {
    /// What the certificate says.
    ///
    /// # Errors
    /// If it is no member's certificate.
    pub fn read(&self) -> Result<MemberCertificate> {
        MemberCertificate::read(&self.certificate).context("the certificate is damaged; join again")
    }
}

/// The folder of a member.
#[derive(Debug, Clone)]
pub struct MemberFolder {
    path: PathBuf,
    kind: MemberKind,
    troubles: Troubles,
    behind: Arc<WriteBehind>,
}

impl MemberFolder {
    /// Opens the folder, or makes it and folders in it, readable for its owner only.
    ///
    /// # Errors
    /// [`Mistake`] if it cannot be made.
    pub fn open(path: &Path, kind: MemberKind, folders: &[&str]) -> Result<Self> {
        for folder in [&[""], folders].concat() {
            let folder = if folder.is_empty() { path.to_owned() } else { path.join(folder) };
            if folder != path && fs::metadata(&folder).is_ok_and(|found| !found.is_dir()) {
                files::set_aside(&folder, &"it is to be a folder");
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| {
                let path = path.display();
                Mistake(format!(
                    "cannot use the data folder {path} ({error}); run as root, or name another with --data-dir"
                ))
            })?;
            files::remove_partial(&folder);
        }
        let troubles = Troubles::default();
        let behind = Arc::new(WriteBehind::new(path, troubles.clone()));
        Ok(Self { path: path.to_owned(), kind, troubles, behind })
    }

    /// What this machine is in the mesh.
    pub fn kind(&self) -> MemberKind {
        self.kind
    }

    fn named(&self, ending: &str) -> String {
        format!("{}.{ending}", self.kind)
    }

    /// Who this is; `None` before it has joined.
    ///
    /// # Errors
    /// If the file is damaged: who this is cannot be made up.
    pub fn membership(&self) -> Result<Option<Membership>> {
        let name = self.named("json");
        let Some(bytes) = self.read(&name)? else { return Ok(None) };
        match serde_json::from_slice(&bytes) {
            Ok(membership) => Ok(Some(membership)),
            Err(error) => bail!(Mistake(format!(
                "{} is damaged ({error}): it says who this {kind} is; put it back from a backup, or join again with a new token: meshward-{} join TOKEN@HOST",
                self.place(&name).display(),
                match self.kind {
                    MemberKind::Node => "node",
                    MemberKind::Relay => "relay",
                },
                kind = self.kind,
            ))),
        }
    }

    /// Prepares for joining: what is left of a membership that cannot be used is set aside. Who has
    /// joined already: that.
    pub fn membership_or_aside(&self) -> Result<Option<Membership>> {
        let Err(error) = self.membership() else { return self.membership() };
        files::set_aside(&self.place(&self.named("json")), &error);
        Ok(None)
    }

    /// Notes a finished join: the membership goes last, so that a half-done join is none.
    pub fn keep_membership(
        &self,
        membership: &Membership,
        credentials: &Credentials,
    ) -> Result<()> {
        self.write("ca.der", &credentials.ca)?;
        self.write(&self.named("der"), &credentials.certificate)?;
        self.write_json(&self.named("json"), membership)
    }

    /// Forgets who this was, and every file and folder that `kept` names besides, with what was set
    /// aside of each. The membership goes first: what is left of the rest belongs to nobody.
    ///
    /// # Errors
    /// If something stays.
    pub fn forget_membership(&self, kept: &[&str]) -> Result<()> {
        let own = ["json", "der", "key"].map(|ending| self.named(ending));
        let all = own
            .iter()
            .map(String::as_str)
            .chain(["ca.der", REMOVED_FILE])
            .chain(kept.iter().copied());
        for name in all {
            let path = self.place(name);
            files::remove_with_damaged(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Since when this is no member any more, as far as it has heard, in seconds since 1970.
    pub fn removed_at(&self) -> Option<u64> {
        self.take_up_json(REMOVED_FILE)
    }

    /// Notes that this is no member any more.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_removed(&self, at: u64) -> Result<()> {
        self.write_json(REMOVED_FILE, &at)
    }

    /// The certificate and its key.
    ///
    /// # Errors
    /// If one is missing: it cannot be made up.
    pub fn credentials(&self) -> Result<Credentials> {
        let read = |name: &str| -> Result<Vec<u8>> {
            let found = self.read(name)?.filter(|bytes| !bytes.is_empty());
            let path = self.place(name);
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

    /// Keeps a renewed certificate. While it cannot be written, it is used all the same.
    pub fn keep_certificate(&self, certificate: &[u8]) {
        self.keep(&self.named("der"), certificate.to_vec());
    }

    /// The private key (PKCS #8), made at the first call; a damaged one is set aside, as nobody has
    /// joined with it.
    pub fn key_to_join(&self) -> Result<Vec<u8>> {
        let name = self.named("key");
        if let Some(key) =
            self.take_up(&name, |key| crate::join::request(key).map(|_| key.to_vec()))
        {
            return Ok(key);
        }
        let key = rcgen::KeyPair::generate()?.serialize_der();
        self.write(&name, &key)?;
        Ok(key)
    }

    /// A file in the folder.
    pub fn place(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What is in a file; `None` if it is not there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if let Some(waiting) = self.behind.waiting(name) {
            return Ok(waiting);
        }
        let path = self.place(name);
        files::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Reads a file that can be done without; `None` if it is not there. One that cannot be read,
    /// or that `parse` refuses, is set aside.
    pub fn take_up<T, E: Display>(
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
        files::set_aside(&self.place(name), &why);
        None
    }

    /// The same for a file of JSON.
    pub fn take_up_json<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.take_up(name, |bytes| serde_json::from_slice(bytes))
    }

    /// The names of the files in a folder of this one, by their ending.
    pub fn list(&self, folder: &str, ending: &str) -> Vec<String> {
        let entries = match fs::read_dir(self.place(folder)) {
            Ok(entries) => entries,
            Err(error) => {
                warn!("cannot read {}: {error}", self.place(folder).display());
                return vec![];
            }
        };
        let names = entries
            .flatten()
            .map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy()));
        names.filter(|name| name.ends_with(ending)).collect()
    }

    /// Has a file written, by a thread of its own: nobody waits for the disk. If it cannot be
    /// written, this member is *degraded* until it can: meanwhile it is read as if it had been.
    pub fn keep(&self, name: &str, bytes: Vec<u8>) {
        self.behind.order(name, Some(bytes));
    }

    /// The same for a file of JSON.
    pub fn keep_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.keep(name, serde_json::to_vec_pretty(value)?);
        Ok(())
    }

    /// Has a file removed, in order with what is kept.
    pub fn forget(&self, name: &str) {
        self.behind.order(name, None);
    }

    /// Waits until what was kept and forgotten so far is on disk, or the disk has refused it.
    pub async fn settled(&self) {
        self.behind.settled().await;
    }

    /// What cannot be written, and why.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Writes a file, whole or not at all. When this returns, it survives a loss of power.
    ///
    /// # Errors
    /// If it cannot be written; then it is what it was.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.place(name);
        self.behind
            .write_now(name, bytes)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The same for a file of JSON.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.write(name, &serde_json::to_vec_pretty(value)?)
    }
}
