//! What a node keeps on disk: who it is, its keys, its last view and its workloads. Each file is there whole or not at all.

use anyhow::{Context, Result, bail};
use meshward_daemon::{Mistake, tls::NodeCertificate};
use meshward_datapath::SecretKey;
use meshward_model::{NetworkName, NodeName, WorkloadId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Who this node is.
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

/// The node's certificate, its key and the CA (DER).
pub struct Credentials {
    /// The CA's certificate.
    pub ca: Vec<u8>,
    /// The node's.
    pub certificate: Vec<u8>,
    /// Its private key, PKCS #8.
    pub key: Vec<u8>,
}

impl Credentials {
    /// What the certificate says.
    ///
    /// # Errors
    /// If it is no node's certificate.
    pub fn read(&self) -> Result<NodeCertificate> {
        NodeCertificate::read(&self.certificate).context("the node's certificate is damaged; join again")
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// Opens the folder, or makes it, readable for its owner only.
    ///
    /// # Errors
    /// [`Mistake`] if it cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        for part in ["endpoints", "workloads"] {
            DirBuilder::new().recursive(true).mode(0o700).create(path.join(part)).map_err(|error| {
                let path = path.display();
                Mistake(format!(
                    "cannot use the data folder {path} ({error}); run as root, or name another with --data-dir"
                ))
            })?;
        }
        Ok(Self(path.to_owned()))
    }

    /// Who this node is; `None` before it has joined.
    pub fn membership(&self) -> Result<Option<Membership>> {
        self.read_json("node.json")
    }

    /// Notes a finished join: the membership goes last, so that a half-done join is none.
    pub fn keep_membership(&self, membership: &Membership, credentials: &Credentials) -> Result<()> {
        self.write("ca.der", &credentials.ca)?;
        self.keep_certificate(&credentials.certificate)?;
        self.write_json("node.json", membership)
    }

    /// The node's certificate and key.
    pub fn credentials(&self) -> Result<Credentials> {
        let read = |name: &str| -> Result<Vec<u8>> {
            self.read(name)?
                .with_context(|| format!("{} is missing; join again", self.0.join(name).display()))
        };
        Ok(Credentials { ca: read("ca.der")?, certificate: read("node.der")?, key: read("node.key")? })
    }

    /// Keeps a renewed certificate.
    pub fn keep_certificate(&self, certificate: &[u8]) -> Result<()> {
        self.write("node.der", certificate)
    }

    /// The node's private key (PKCS #8), made at the first call.
    pub fn node_key(&self) -> Result<Vec<u8>> {
        if let Some(key) = self.read("node.key")? {
            return Ok(key);
        }
        let key = rcgen::KeyPair::generate()?.serialize_der();
        self.write("node.key", &key)?;
        Ok(key)
    }

    /// The endpoint's private key of a network, made at the first call.
    pub fn endpoint_key(&self, network: &NetworkName) -> Result<SecretKey> {
        let name = format!("endpoints/{network}.key");
        let bytes = match self.read(&name)? {
            Some(bytes) => bytes,
            None => {
                let mut fresh = vec![0; 32];
                ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut fresh)
                    .map_err(|_| anyhow::anyhow!("the kernel gives no random bytes"))?;
                self.write(&name, &fresh)?;
                fresh
            }
        };
        let Ok(bytes) = <[u8; 32]>::try_from(bytes) else {
            bail!("{} is damaged; remove it, and a new key is made", self.0.join(name).display());
        };
        Ok(SecretKey::from_bytes(bytes))
    }

    /// The UDP port that an endpoint had.
    pub fn endpoint_port(&self, network: &NetworkName) -> Result<Option<u16>> {
        self.read_json(&format!("endpoints/{network}.port"))
    }

    /// Keeps an endpoint's port: peers know it.
    pub fn keep_endpoint_port(&self, network: &NetworkName, port: u16) -> Result<()> {
        self.write_json(&format!("endpoints/{network}.port"), &port)
    }

    /// Forgets the keys of a network that is gone.
    pub fn forget_endpoint(&self, network: &NetworkName) {
        for kind in ["key", "port"] {
            let _ = fs::remove_file(self.0.join(format!("endpoints/{network}.{kind}")));
        }
    }

    /// The workloads that were attached.
    pub fn workloads<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let folder = self.0.join("workloads");
        let mut all = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let name = format!("workloads/{}", entry?.file_name().to_string_lossy());
            if name.ends_with(".json") {
                all.extend(self.read_json(&name)?);
            }
        }
        Ok(all)
    }

    /// Keeps a workload. It need not survive a loss of power: neither does its namespace.
    pub fn keep_workload(&self, id: &WorkloadId, workload: &impl Serialize) -> Result<()> {
        let path = self.0.join(format!("workloads/{id}.json"));
        let partial = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            fs::write(&partial, serde_json::to_vec(workload)?)?;
            fs::rename(&partial, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Forgets a workload.
    pub fn forget_workload(&self, id: &WorkloadId) {
        let _ = fs::remove_file(self.0.join(format!("workloads/{id}.json")));
    }

    /// A file in the folder.
    pub fn place(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What is in a file; `None` if it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match fs::read(self.0.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.0.join(name).display())),
        }
    }

    /// What is in a file of JSON; `None` if it is not there.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes);
        Ok(Some(value.with_context(|| format!("{} is damaged", self.0.join(name).display()))?))
    }

    /// Writes a file of JSON as [`Self::write`] does.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.write(name, &serde_json::to_vec_pretty(value)?)
    }

    /// Writes a file, whole or not at all. When this returns, it survives a loss of power.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.0.join(name);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_the_same_and_are_readable_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let kept = Folder::open(&folder.path().join("data")).unwrap();
        let network = "shop".parse().unwrap();
        let first = kept.endpoint_key(&network).unwrap().public();
        assert_eq!(kept.endpoint_key(&network).unwrap().public(), first);
        let mode = |path: &str| fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("data/endpoints/shop.key"), 0o600);
        assert_eq!(mode("data"), 0o700);
    }
}
