//! The node's data folder: its membership, the keys of its endpoints, its last view and its
//! workloads.

use crate::{
    attachment::Attachment,
    clock::unix_seconds,
    state_files::{NamesFile, PortFile, PreviousKeyFile, RelaysFile, TimestampFile, WorkloadFile},
};
use anyhow::{Context, Result, ensure};
use meshward_control_proto::{MemberKind, relay::RelaySpec};
use meshward_datapath::SecretKey;
use meshward_runtime::{member::MemberFolder, random, state_files};
use meshward_types::{NetworkName, WorkloadId};
use std::{fs, ops::Deref, path::Path, time::Duration};

/// The file with the view.
pub(crate) const VIEW: &str = "view";
/// The file with the updates of the view.
pub(crate) const VIEW_LOG: &str = "view.log";
/// The file with Docker's networks and endpoints.
pub(crate) const DOCKER: &str = "docker.json";
/// The file with the relays.
const RELAYS: &str = "relays.json";
/// The folders of endpoints' keys, attached workloads, saved flows and learnt names.
const FOLDERS: [&str; 4] = ["endpoints", "workloads", "flows", "names"];

/// The validity of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The end, in seconds since 1970.
    pub until: u64,
    /// The time until then.
    pub left: Duration,
}

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
    /// Fails if it cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self(MemberFolder::open(path, MemberKind::Node, &FOLDERS)?))
    }

    /// Forgets who this node was and all that it had. Folders are there again at the next start.
    ///
    /// # Errors
    /// Fails if something stays.
    pub fn forget_mesh(&self) -> Result<()> {
        let files = [VIEW, VIEW_LOG, RELAYS, DOCKER];
        self.forget_membership(&[&files[..], &FOLDERS].concat())
    }

    /// Returns the private key of a network's endpoint; makes it at the first call, and anew if it
    /// is damaged.
    pub fn endpoint_key(&self, network: &NetworkName) -> SecretKey {
        self.secret_key(&key_name(network))
    }

    /// Returns the private key of a network's endpoint for devices; makes it at the first call, and
    /// anew if it is damaged.
    pub fn device_key(&self, network: &NetworkName) -> SecretKey {
        self.secret_key(&format!("endpoints/{network}.devices.key"))
    }

    /// Makes another private key for a network's endpoint; the one of before is kept for a time.
    ///
    /// # Errors
    /// Fails if it cannot be written; then the key is what it was.
    pub fn rotate_endpoint_key(&self, network: &NetworkName, keep: Duration) -> Result<SecretKey> {
        self.endpoint_key(network);
        let before = self.read(&key_name(network))?.context("there is no key of before")?;
        let previous = PreviousKeyFile { until: unix_seconds() + keep.as_secs() };
        // Written first: a key that peers know is never lost halfway.
        self.write(&previous_key_name(network), &before)?;
        self.write_state(&previous_name(network), &previous)?;
        let fresh = random::<32>();
        self.write(&key_name(network), &fresh)?;
        if keep.is_zero() {
            self.forget_previous_key(network);
        }
        Ok(SecretKey::from_bytes(fresh))
    }

    /// Returns the previous key of an endpoint and its remaining validity. An expired one is
    /// removed.
    pub fn previous_endpoint_key(&self, network: &NetworkName) -> Option<(SecretKey, Duration)> {
        let previous: Option<PreviousKeyFile> = self.read_state(&previous_name(network));
        let left = previous.map_or(0, |previous| previous.until.saturating_sub(unix_seconds()));
        let key =
            self.read_or_set_aside(&previous_key_name(network), parse_secret).filter(|_| left != 0);
        if key.is_none() {
            self.forget_previous_key(network);
        }
        Some((key?, Duration::from_secs(left.min(MOST_KEPT))))
    }

    /// Returns the validity of an endpoint's previous key.
    pub fn previous_key_validity(&self, network: &NetworkName) -> Option<Validity> {
        let PreviousKeyFile { until } = self.read_state(&previous_name(network))?;
        let left = Duration::from_secs(until.saturating_sub(unix_seconds()).min(MOST_KEPT));
        Some(Validity { until, left })
    }

    /// Removes the key that an endpoint had before.
    pub fn forget_previous_key(&self, network: &NetworkName) {
        for name in [previous_key_name(network), previous_name(network)] {
            if self.path_of(&name).exists() {
                self.remove_later(&name);
            }
        }
    }

    /// Returns the age of an endpoint's key.
    pub fn endpoint_key_age(&self, network: &NetworkName) -> Duration {
        let made = fs::metadata(self.path_of(&key_name(network))).and_then(|file| file.modified());
        made.ok().and_then(|made| made.elapsed().ok()).unwrap_or_default()
    }

    fn secret_key(&self, name: &str) -> SecretKey {
        self.read_or_set_aside(name, parse_secret).unwrap_or_else(|| {
            let fresh = random::<32>();
            self.write_later(name, fresh.to_vec());
            SecretKey::from_bytes(fresh)
        })
    }

    /// Returns the UDP port that an endpoint had.
    pub fn endpoint_port(&self, network: &NetworkName) -> Option<u16> {
        self.read_state(&port_name(network)).map(|PortFile { port }| port)
    }

    /// Keeps an endpoint's port: peers know it.
    ///
    /// # Errors
    /// Fails if it cannot be encoded.
    pub fn keep_endpoint_port(&self, network: &NetworkName, port: u16) -> Result<()> {
        let wanted = state_files::encode(&PortFile { port })?;
        if !matches!(self.read(&port_name(network)), Ok(Some(kept)) if kept == wanted) {
            self.write_later(&port_name(network), wanted);
        }
        Ok(())
    }

    /// Returns the limit that all timestamps of an endpoint's handshakes before this start are
    /// below, in seconds since 1970; 0 if it is not known.
    pub fn stamp_limit(&self, network: &NetworkName) -> u64 {
        self.read_state(&stamp_name(network)).map_or(0, |TimestampFile { below }| below)
    }

    /// Writes the limit that all timestamps will be below. They follow the clock that far only once
    /// this is on disk.
    ///
    /// # Errors
    /// Fails if it cannot be written.
    pub fn keep_stamp_limit(&self, network: &NetworkName, below: u64) -> Result<()> {
        self.write_state(&stamp_name(network), &TimestampFile { below })
    }

    /// Forgets what is kept of a network that is gone, what was set aside included.
    pub fn forget_endpoint(&self, network: &NetworkName) {
        let own = format!("endpoints/{network}.");
        for name in self.list("endpoints", "").into_iter().filter(|name| name.starts_with(&own)) {
            self.remove_later(&name);
        }
        // What was not written yet has no name in the folder.
        for kind in ["key", "port", "previous", "previous.key", "devices.key", "stamp"] {
            self.remove_later(&format!("{own}{kind}"));
        }
        self.remove_later(&format!("flows/{network}"));
        self.remove_later(&names_file(network));
    }

    /// Returns the names that workloads of a network had learnt, if the file can be read.
    pub(crate) fn learnt_names(&self, network: &NetworkName) -> NamesFile {
        self.read_state(&names_file(network)).unwrap_or_default()
    }

    /// Keeps the names that workloads of a network have learnt.
    ///
    /// # Errors
    /// Fails if they cannot be encoded.
    pub(crate) fn keep_learnt_names(&self, network: &NetworkName, names: &NamesFile) -> Result<()> {
        self.write_state_later(&names_file(network), names)
    }

    /// Returns the relays that the coordinator has named last.
    pub fn relays(&self) -> Vec<RelaySpec> {
        self.read_state::<RelaysFile>(RELAYS).unwrap_or_default().into()
    }

    /// Keeps the relays.
    ///
    /// # Errors
    /// Fails if they cannot be encoded.
    pub fn keep_relays(&self, relays: &[RelaySpec]) -> Result<()> {
        self.write_state_later(RELAYS, &RelaysFile::from(relays))
    }

    /// Returns the workloads that were attached, as far as their files are whole.
    pub(crate) fn workloads(&self) -> Vec<Attachment> {
        let read = |name: String| {
            self.read_or_set_aside(&name, |bytes| -> Result<Attachment> {
                let attachment: Attachment = state_files::decode::<WorkloadFile>(bytes)?.into();
                ensure!(
                    name == workload_name(&attachment.report.id),
                    "it is the file of another workload"
                );
                Ok(attachment)
            })
        };
        self.list("workloads", ".json").into_iter().filter_map(read).collect()
    }

    /// Keeps a workload.
    ///
    /// # Errors
    /// Fails if it cannot be encoded.
    pub(crate) fn keep_workload(&self, id: &WorkloadId, workload: &Attachment) -> Result<()> {
        self.write_state_later(&workload_name(id), &WorkloadFile::from(workload))
    }

    /// Forgets a workload.
    pub fn forget_workload(&self, id: &WorkloadId) {
        self.remove_later(&workload_name(id));
    }
}

/// The longest time for which a key of before is good, in seconds: a damaged file does not make it
/// last.
const MOST_KEPT: u64 = 30 * 24 * 3600;

fn stamp_name(network: &NetworkName) -> String {
    format!("endpoints/{network}.stamp")
}

fn key_name(network: &NetworkName) -> String {
    format!("endpoints/{network}.key")
}

fn names_file(network: &NetworkName) -> String {
    format!("names/{network}.json")
}

fn previous_key_name(network: &NetworkName) -> String {
    format!("endpoints/{network}.previous.key")
}

fn previous_name(network: &NetworkName) -> String {
    format!("endpoints/{network}.previous")
}

fn port_name(network: &NetworkName) -> String {
    format!("endpoints/{network}.port")
}

fn workload_name(id: &WorkloadId) -> String {
    format!("workloads/{id}.json")
}

/// Reads a private key. One of few different bytes is what a file is full of after a loss of power,
/// and anybody can guess it.
fn parse_secret(bytes: &[u8]) -> Result<SecretKey> {
    const DIFFERENT: usize = 8;
    let key = <[u8; 32]>::try_from(bytes);
    let key = key.map_err(|_| anyhow::anyhow!("a key has 32 bytes, this has {}", bytes.len()))?;
    let different = key.iter().collect::<std::collections::BTreeSet<_>>().len();
    ensure!(different >= DIFFERENT, "a key is made of random bytes, this is not");
    Ok(SecretKey::from_bytes(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_stay_the_same_and_are_readable_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let kept = Folder::open(&folder.path().join("data")).unwrap();
        let network = "shop".parse().unwrap();
        let first = kept.endpoint_key(&network).public();
        assert_eq!(kept.endpoint_key(&network).public(), first, "before it is on disk, too");
        kept.flush().await;
        assert_eq!(kept.endpoint_key(&network).public(), first);
        let next = kept.rotate_endpoint_key(&network, Duration::from_mins(1)).unwrap().public();
        assert_ne!(next, first);
        assert_eq!(kept.endpoint_key(&network).public(), next);
        let (before, left) = kept.previous_endpoint_key(&network).unwrap();
        assert!(before.public() == first && left <= Duration::from_mins(1));
        kept.rotate_endpoint_key(&network, Duration::ZERO).unwrap();
        kept.flush().await;
        assert!(
            !kept.path_of("endpoints/shop.previous.key").exists(),
            "what is not good any more is not kept"
        );
        assert!(kept.previous_endpoint_key(&network).is_none());
        let mode = |path: &str| {
            fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode("data/endpoints/shop.key"), 0o600);
        assert_eq!(mode("data"), 0o700);
    }

    #[tokio::test]
    async fn a_key_of_before_goes_at_the_start_if_its_time_was_up_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, network) = (Folder::open(folder.path()).unwrap(), "shop".parse().unwrap());
        kept.rotate_endpoint_key(&network, Duration::from_mins(1)).unwrap();
        for until in ["{\"until\": 1000}", "{\"until\":", "1000", ""] {
            fs::write(kept.path_of("endpoints/shop.previous.key"), random::<32>()).unwrap();
            fs::write(kept.path_of("endpoints/shop.previous"), until).unwrap();
            assert!(kept.previous_endpoint_key(&network).is_none(), "{until:?}");
            kept.flush().await;
            assert!(!kept.path_of("endpoints/shop.previous.key").exists(), "{until:?}");
        }
    }

    #[tokio::test]
    async fn every_file_cut_anywhere_or_full_of_junk_is_set_aside_and_never_taken_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, network) = (Folder::open(folder.path()).unwrap(), "shop".parse().unwrap());
        let key = kept.endpoint_key(&network).public();
        kept.keep_endpoint_port(&network, 51820).unwrap();
        kept.flush().await;
        let whole_key = fs::read(kept.path_of("endpoints/shop.key")).unwrap();
        let whole_port = fs::read(kept.path_of("endpoints/shop.port")).unwrap();
        for length in 0..whole_key.len() {
            fs::write(kept.path_of("endpoints/shop.key"), &whole_key[..length]).unwrap();
            assert_ne!(kept.endpoint_key(&network).public(), key);
            kept.flush().await;
            assert_eq!(fs::read(kept.path_of("endpoints/shop.key")).unwrap().len(), 32);
        }
        for byte in [0, 0xff, b'x'] {
            fs::write(kept.path_of("endpoints/shop.key"), [byte; 32]).unwrap();
            assert_ne!(
                kept.endpoint_key(&network).public(),
                SecretKey::from_bytes([byte; 32]).public()
            );
        }
        for length in 0..whole_port.len() {
            fs::write(kept.path_of("endpoints/shop.port"), &whole_port[..length]).unwrap();
            assert_eq!(kept.endpoint_port(&network), None, "{length}");
            assert!(!kept.path_of("endpoints/shop.port").exists());
        }
        fs::write(kept.path_of("endpoints/shop.port"), "51821").unwrap();
        assert_eq!(kept.endpoint_port(&network), Some(51821), "as it was written before");
        kept.forget_endpoint(&network);
        kept.flush().await;
        assert_eq!(
            kept.list("endpoints", ""),
            [""; 0],
            "nor are damaged keys kept of a network that is gone"
        );
    }
}
