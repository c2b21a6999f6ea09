//! What a member of the mesh, a node or a relay, keeps on disk of who it is. Each file is there whole or not at all.

use crate::{Mistake, tls::MemberCertificate};
use anyhow::{Context, Result};
use meshward_model::{NodeName, control::Part};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

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
    part: Part,
}

impl MemberFolder {
    /// Opens the folder, or makes it and folders in it, readable for its owner only.
    ///
    /// # Errors
    /// [`Mistake`] if it cannot be made.
    pub fn open(path: &Path, part: Part, folders: &[&str]) -> Result<Self> {
        for folder in [&[""], folders].concat() {
            DirBuilder::new().recursive(true).mode(0o700).create(path.join(folder)).map_err(|error| {
                let path = path.display();
                Mistake(format!(
                    "cannot use the data folder {path} ({error}); run as root, or name another with --data-dir"
                ))
            })?;
        }
        Ok(Self { path: path.to_owned(), part })
    }

    /// What this machine is in the mesh.
    pub fn part(&self) -> Part {
        self.part
    }

    fn named(&self, ending: &str) -> String {
        format!("{}.{ending}", self.part)
    }

    /// Who this is; `None` before it has joined.
    pub fn membership(&self) -> Result<Option<Membership>> {
        self.read_json(&self.named("json"))
    }

    /// Notes a finished join: the membership goes last, so that a half-done join is none.
    pub fn keep_membership(&self, membership: &Membership, credentials: &Credentials) -> Result<()> {
        self.write("ca.der", &credentials.ca)?;
        self.keep_certificate(&credentials.certificate)?;
        self.write_json(&self.named("json"), membership)
    }

    /// The certificate and its key.
    pub fn credentials(&self) -> Result<Credentials> {
        let read = |name: &str| -> Result<Vec<u8>> {
            self.read(name)?.with_context(|| format!("{} is missing; join again", self.place(name).display()))
        };
        let (certificate, key) = (read(&self.named("der"))?, read(&self.named("key"))?);
        Ok(Credentials { ca: read("ca.der")?, certificate, key })
    }

    /// Keeps a renewed certificate.
    pub fn keep_certificate(&self, certificate: &[u8]) -> Result<()> {
        self.write(&self.named("der"), certificate)
    }

    /// The private key (PKCS #8), made at the first call.
    pub fn key(&self) -> Result<Vec<u8>> {
        if let Some(key) = self.read(&self.named("key"))? {
            return Ok(key);
        }
        let key = rcgen::KeyPair::generate()?.serialize_der();
        self.write(&self.named("key"), &key)?;
        Ok(key)
    }

    /// A file in the folder.
    pub fn place(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What is in a file; `None` if it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read {}", self.path.join(name).display()))
            }
        }
    }

    /// What is in a file of JSON; `None` if it is not there.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes);
        Ok(Some(value.with_context(|| format!("{} is damaged", self.path.join(name).display()))?))
    }

    /// Writes a file of JSON as [`Self::write`] does.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.write(name, &serde_json::to_vec_pretty(value)?)
    }

    /// Writes a file, whole or not at all. When this returns, it survives a loss of power.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let partial = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            match path.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}
