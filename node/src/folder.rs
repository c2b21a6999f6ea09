//! What a node keeps on disk beside who it is: the keys of its endpoints, its last view and its workloads.

use crate::daemon::seconds_now;
use anyhow::{Context, Result, bail};
use meshward_daemon::{member::MemberFolder, random};
use meshward_datapath::SecretKey;
use meshward_model::{NetworkName, WorkloadId, control::Part};
use serde::{Serialize, de::DeserializeOwned};
use std::{fs, ops::Deref, path::Path, time::Duration};

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder(MemberFolder);

impl Deref for Folder {
    type Target = MemberFolder;
    fn deref(&self) -> &MemberFolder {
        &self.0
    }
}

impl Folder {
    /// Opens the folder, or makes it, readable for its owner only.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self(MemberFolder::open(path, Part::Node, &["endpoints", "workloads", "flows"])?))
    }

    /// The endpoint's private key of a network, made at the first call.
    pub fn endpoint_key(&self, network: &NetworkName) -> Result<SecretKey> {
        self.secret_key(&format!("endpoints/{network}.key"))
    }

    /// The private key of a network by which devices know the endpoint, made at the first call.
    pub fn device_key(&self, network: &NetworkName) -> Result<SecretKey> {
        self.secret_key(&format!("endpoints/{network}.devices.key"))
    }

    /// Makes another private key for a network's endpoint; the one of before is kept for a time.
    pub fn rotate_endpoint_key(&self, network: &NetworkName, keep: Duration) -> Result<SecretKey> {
        let name = format!("endpoints/{network}.key");
        self.endpoint_key(network)?;
        if let Some(before) = self.read(&name)? {
            // Written first: a key that peers know is never lost halfway.
            self.write(&format!("endpoints/{network}.previous.key"), &before)?;
            self.write_json(&format!("endpoints/{network}.previous"), &(seconds_now() + keep.as_secs()))?;
        }
        let fresh = random::<32>();
        self.write(&name, &fresh)?;
        self.endpoint_key(network)
    }

    /// The key that an endpoint had before, and how long it is good still.
    pub fn previous_endpoint_key(&self, network: &NetworkName) -> Result<Option<(SecretKey, Duration)>> {
        let until: u64 = self.read_json(&format!("endpoints/{network}.previous"))?.unwrap_or(0);
        let left = until.saturating_sub(seconds_now());
        let name = format!("endpoints/{network}.previous.key");
        if left == 0 {
            for name in [&name, &format!("endpoints/{network}.previous")] {
                let _ = fs::remove_file(self.place(name));
            }
            return Ok(None);
        }
        Ok(Some((self.secret_key(&name)?, Duration::from_secs(left))))
    }

    /// How old an endpoint's key is.
    pub fn endpoint_key_age(&self, network: &NetworkName) -> Duration {
        let made =
            fs::metadata(self.place(&format!("endpoints/{network}.key"))).and_then(|file| file.modified());
        made.ok().and_then(|made| made.elapsed().ok()).unwrap_or_default()
    }

    fn secret_key(&self, name: &str) -> Result<SecretKey> {
        let bytes = match self.read(name)? {
            Some(bytes) => bytes,
            None => {
                let fresh = random::<32>();
                self.write(name, &fresh)?;
                fresh.to_vec()
            }
        };
        let Ok(bytes) = <[u8; 32]>::try_from(bytes) else {
            bail!("{} is damaged; remove it, and a new key is made", self.place(name).display());
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
        for kind in ["key", "port", "previous", "previous.key", "devices.key"] {
            let _ = fs::remove_file(self.place(&format!("endpoints/{network}.{kind}")));
        }
        let _ = fs::remove_file(self.place(&format!("flows/{network}")));
    }

    /// The workloads that were attached.
    pub fn workloads<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let folder = self.place("workloads");
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
        let path = self.place(&format!("workloads/{id}.json"));
        let partial = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            fs::write(&partial, serde_json::to_vec(workload)?)?;
            fs::rename(&partial, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Forgets a workload.
    pub fn forget_workload(&self, id: &WorkloadId) {
        let _ = fs::remove_file(self.place(&format!("workloads/{id}.json")));
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
        let next = kept.rotate_endpoint_key(&network, Duration::from_secs(60)).unwrap().public();
        assert_ne!(next, first);
        assert_eq!(kept.endpoint_key(&network).unwrap().public(), next);
        let (before, left) = kept.previous_endpoint_key(&network).unwrap().unwrap();
        assert!(before.public() == first && left <= Duration::from_secs(60));
        kept.rotate_endpoint_key(&network, Duration::ZERO).unwrap();
        assert!(kept.previous_endpoint_key(&network).unwrap().is_none());
        assert!(!kept.place("endpoints/shop.previous.key").exists(), "what is not good any more is not kept");
        let mode = |path: &str| fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("data/endpoints/shop.key"), 0o600);
        assert_eq!(mode("data"), 0o700);
    }
}
