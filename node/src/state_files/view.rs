//! The view on disk: a snapshot and a log of updates, in postcard.
//!
//! Both begin with eight bytes: a magic text, the format, and three zeros. The snapshot goes on
//! with one *block*, the view; the log with the hash of the snapshot that it continues, and a block
//! for each update. A block is a little-endian `u32` length, the content, and the hash of what
//! precedes it: in the snapshot, of the whole file up to there; in the log, of the block. Format 1
//! has neither magic nor number.
//!
//! The structures are copies of those of the control protocol with serde's `remote` attribute: one
//! that gets a field there does not compile here any more, and somebody decides how it is kept.

use ipnet::IpNet;
use meshward_control_proto::{
    Change, Resource, ResourceKey, View,
    view::{IdentitySpec, NetworkSpec, PeerSpec, WorkloadSpec},
};
use meshward_runtime::state_files::NewerFormat;
use meshward_types::{
    AcceptFrom, Acl, AclEntry, Conduct, IdentityId, Labels, NetworkName, NodeName, OnDeny,
    OnRevoke, PortRange, Protocol, PublicKey, Revision, Selector, WorkloadId, trigger::TriggerSpec,
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The format that is written.
const FORMAT: u8 = 2;
const HEADER: usize = 8;
const SNAPSHOT_MAGIC: [u8; 4] = *b"MWVW";
const LOG_MAGIC: [u8; 4] = *b"MWVL";
/// The length of a hash in bytes: the first half of SHA-256.
const HASH_LENGTH: usize = 16;

type Hash = [u8; HASH_LENGTH];

/// The error for a snapshot or a log that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ViewFileError {
    /// The file was written by a later release.
    #[error(transparent)]
    Newer(#[from] NewerFormat),
    /// The file was not written to its end, or was changed.
    #[error("its hash does not match; nothing passes until the coordinator has sent the view anew")]
    Damaged,
}

/// An update of the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    /// The view's revision after it.
    pub(crate) revision: Revision,
    /// The changes, in the order to apply them.
    pub(crate) changes: Vec<Change>,
}

/// The beginning of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogHeader {
    /// `true` if updates in the newest format may follow what is there.
    pub(crate) is_current: bool,
    /// The hash of the snapshot that it continues.
    pub(crate) snapshot: Hash,
    /// The length of the header, in bytes.
    pub(crate) length: usize,
}

/// Returns a snapshot, and the hash by which a log continues it.
pub(crate) fn encode_view(view: &View) -> (Vec<u8>, Hash) {
    let mut bytes = header(SNAPSHOT_MAGIC);
    push_content(&mut bytes, &WrittenView::from(view));
    bytes.extend(hash(&bytes));
    let own = hash(&bytes);
    (bytes, own)
}

/// Returns the beginning of a log that continues a snapshot.
pub(crate) fn encode_log_header(snapshot: Hash) -> Vec<u8> {
    let mut bytes = header(LOG_MAGIC);
    bytes.extend(snapshot);
    bytes
}

/// Appends an update to what is to be appended to a log.
pub(crate) fn encode_update(bytes: &mut Vec<u8>, update: &Update) {
    let start = bytes.len();
    let changes = update.changes.iter().map(WrittenChange).collect();
    push_content(bytes, &WrittenUpdate { revision: update.revision, changes });
    let own = hash(&bytes[start..]);
    bytes.extend(own);
}

/// Reads a snapshot. One of format 1 may have no hash of its own: it is good if `log` names it.
///
/// # Errors
/// [`ViewFileError`].
pub(crate) fn read_view(snapshot: &[u8], log: &[u8]) -> Result<(View, Hash), ViewFileError> {
    let start = header_length(snapshot, SNAPSHOT_MAGIC)?;
    let own = hash(snapshot);
    let (read, rest) = block::<ReadView>(&snapshot[start..]).ok_or(ViewFileError::Damaged)?;
    let hashed = snapshot.len() - rest.len();
    let is_whole = rest == hash(&snapshot[..hashed]);
    let is_named = || {
        start == 0
            && rest.is_empty()
            && read_log_header(log).is_ok_and(|header| header.snapshot == own)
    };
    if !is_whole && !is_named() {
        return Err(ViewFileError::Damaged);
    }
    Ok((read.into(), own))
}

/// Reads the beginning of a log.
///
/// # Errors
/// [`ViewFileError`].
pub(crate) fn read_log_header(log: &[u8]) -> Result<LogHeader, ViewFileError> {
    let start = header_length(log, LOG_MAGIC)?;
    let snapshot = log[start..].first_chunk().copied().ok_or(ViewFileError::Damaged)?;
    Ok(LogHeader { is_current: start != 0, snapshot, length: start + HASH_LENGTH })
}

/// Reads an update, and returns the bytes after it; `None` if it is not whole.
pub(crate) fn read_update(log: &[u8]) -> Option<(Update, &[u8])> {
    let (read, rest) = block::<ReadUpdate>(log)?;
    let (known, after) = rest.split_first_chunk::<HASH_LENGTH>()?;
    let changes = read.changes.into_iter().map(|ReadChange(change)| change).collect();
    (hash(&log[..log.len() - rest.len()]) == *known)
        .then_some((Update { revision: read.revision, changes }, after))
}

fn header(magic: [u8; 4]) -> Vec<u8> {
    [magic, [FORMAT, 0, 0, 0]].concat()
}

/// Returns the length of a file's header: none in format 1, whose files begin with a length or a
/// hash.
fn header_length(file: &[u8], magic: [u8; 4]) -> Result<usize, NewerFormat> {
    match file.first_chunk::<HEADER>() {
        Some([a, b, c, d, format, ..]) if [*a, *b, *c, *d] == magic => match *format {
            ..=FORMAT => Ok(HEADER),
            found => Err(NewerFormat { found: found.into(), newest: FORMAT.into() }),
        },
        _ => Ok(0),
    }
}

fn hash(bytes: &[u8]) -> Hash {
    let mut half = [0; HASH_LENGTH];
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    half.copy_from_slice(&digest.as_ref()[..HASH_LENGTH]);
    half
}

/// Appends a length and a content.
fn push_content(bytes: &mut Vec<u8>, content: &impl Serialize) {
    let start = bytes.len() + 4;
    bytes.extend([0; 4]);
    // Encoding plain data into memory cannot fail.
    let encoded = postcard::to_extend(content, std::mem::take(bytes));
    *bytes = encoded.expect("plain data encodes into memory");
    let length = (bytes.len() - start) as u32;
    bytes[start - 4..start].copy_from_slice(&length.to_le_bytes());
}

/// Reads a length and a content, and returns the bytes after it.
fn block<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (content, rest) = rest.split_at_checked(length)?;
    let (value, left) = postcard::take_from_bytes(content).ok()?;
    left.is_empty().then_some((value, rest))
}

#[derive(Serialize)]
struct WrittenView<'a> {
    revision: Revision,
    resources: Vec<WrittenEntry<'a>>,
}

#[derive(Serialize)]
struct WrittenEntry<'a>(
    #[serde(with = "KeyForm")] &'a ResourceKey,
    #[serde(with = "ResourceForm")] &'a Resource,
);

impl<'a> From<&'a View> for WrittenView<'a> {
    fn from(view: &'a View) -> Self {
        let View { revision, resources } = view;
        let entries = resources.iter().map(|(key, resource)| WrittenEntry(key, resource));
        Self { revision: *revision, resources: entries.collect() }
    }
}

#[derive(Deserialize)]
struct ReadView {
    revision: Revision,
    resources: Vec<ReadEntry>,
}

#[derive(Deserialize)]
struct ReadEntry(#[serde(with = "KeyForm")] ResourceKey, #[serde(with = "ResourceForm")] Resource);

impl From<ReadView> for View {
    fn from(read: ReadView) -> Self {
        let entries = read.resources.into_iter().map(|ReadEntry(key, resource)| (key, resource));
        Self { revision: read.revision, resources: entries.collect() }
    }
}

#[derive(Serialize)]
struct WrittenUpdate<'a> {
    revision: Revision,
    changes: Vec<WrittenChange<'a>>,
}

#[derive(Serialize)]
struct WrittenChange<'a>(#[serde(with = "ChangeForm")] &'a Change);

#[derive(Deserialize)]
struct ReadUpdate {
    revision: Revision,
    changes: Vec<ReadChange>,
}

#[derive(Deserialize)]
struct ReadChange(#[serde(with = "ChangeForm")] Change);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Change")]
enum ChangeForm {
    Put(#[serde(with = "KeyForm")] ResourceKey, #[serde(with = "ResourceForm")] Resource),
    Drop(#[serde(with = "KeyForm")] ResourceKey),
    Forget(NetworkName, IdentityId),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ResourceKey")]
enum KeyForm {
    Network(NetworkName),
    Peer(NetworkName, NodeName),
    Identity(NetworkName, IdentityId),
    Workload(NetworkName, WorkloadId),
    Link(NetworkName, IdentityId, IdentityId),
    Trigger(NetworkName, String),
    Refused(NetworkName, WorkloadId),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Resource")]
enum ResourceForm {
    Network(#[serde(with = "NetworkForm")] NetworkSpec),
    Peer(#[serde(with = "PeerForm")] PeerSpec),
    Identity(#[serde(with = "IdentityForm")] IdentitySpec),
    Workload(#[serde(with = "WorkloadForm")] WorkloadSpec),
    Link(#[serde(with = "AclConversion")] Acl),
    Trigger(#[serde(with = "TriggerForm")] TriggerSpec),
    Refused(String),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "NetworkSpec")]
struct NetworkForm {
    prefixes: Vec<IpNet>,
    blocks: Vec<IpNet>,
    mtu: u16,
    admission: bool,
    #[serde(with = "ConductForm")]
    conduct: Conduct,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Conduct")]
struct ConductForm {
    #[serde(with = "OnDenyForm")]
    on_deny: OnDeny,
    #[serde(with = "OnDenyForm")]
    on_quarantine: OnDeny,
    #[serde(with = "OnRevokeForm")]
    on_revoke: OnRevoke,
    timeouts: [Option<u32>; 4],
    resets: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "OnDeny")]
enum OnDenyForm {
    Drop,
    Reject,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "OnRevoke")]
enum OnRevokeForm {
    Drop,
    Reset,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "PeerSpec")]
struct PeerForm {
    public_key: PublicKey,
    candidates: Vec<SocketAddr>,
    prefixes: Vec<IpNet>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "IdentitySpec")]
struct IdentityForm {
    labels: Labels,
    accepts: Vec<AcceptFrom>,
    quarantined: bool,
    reset: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "WorkloadSpec")]
struct WorkloadForm {
    node: NodeName,
    addresses: Vec<IpAddr>,
    prefixes: Vec<IpNet>,
    identity: IdentityId,
    quarantined: bool,
    reset: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "TriggerSpec")]
struct TriggerForm {
    #[serde(with = "SelectorText")]
    watch: Selector,
    denied_flows: Option<u32>,
    distinct_ports: Option<u32>,
    distinct_addresses: Option<u32>,
    within: Duration,
    alone: bool,
    seconds: Option<u64>,
}

/// The conversion of selectors, which are kept as text.
struct SelectorText;

impl SelectorText {
    fn serialize<S: Serializer>(selector: &Selector, to: S) -> Result<S::Ok, S::Error> {
        let text = if selector.is_empty() { String::new() } else { selector.to_string() };
        text.serialize(to)
    }

    fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Selector, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
struct AclForm {
    allowed: Vec<EntryForm>,
    observed: Vec<EntryForm>,
    forensic: Vec<EntryForm>,
    rejected: Vec<EntryForm>,
    dropped: Vec<EntryForm>,
    otherwise: Option<AnswerForm>,
}

#[derive(Serialize, Deserialize)]
struct EntryForm {
    #[serde(with = "ProtocolForm")]
    protocol: Protocol,
    first: u16,
    last: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Protocol")]
enum ProtocolForm {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Other,
}

#[derive(Serialize, Deserialize)]
struct AnswerForm(#[serde(with = "OnDenyForm")] OnDeny);

impl From<&AclEntry> for EntryForm {
    fn from(entry: &AclEntry) -> Self {
        let AclEntry { protocol, ports: PortRange { first, last } } = *entry;
        Self { protocol, first, last }
    }
}

impl From<EntryForm> for AclEntry {
    fn from(form: EntryForm) -> Self {
        let EntryForm { protocol, first, last } = form;
        Self { protocol, ports: PortRange { first, last } }
    }
}

/// The conversion of ACLs, which are made anew from their ranges, so that they are sorted and
/// merged whatever a file says.
struct AclConversion;

impl AclConversion {
    fn serialize<S: Serializer>(acl: &Acl, to: S) -> Result<S::Ok, S::Error> {
        let forms = |entries: &[AclEntry]| entries.iter().map(EntryForm::from).collect();
        AclForm {
            allowed: forms(acl.entries()),
            observed: forms(acl.observed()),
            forensic: forms(acl.forensic()),
            rejected: forms(acl.rejected()),
            dropped: forms(acl.dropped()),
            otherwise: acl.otherwise().map(AnswerForm),
        }
        .serialize(to)
    }

    fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Acl, D::Error> {
        let entries = |forms: Vec<EntryForm>| forms.into_iter().map(AclEntry::from).collect();
        let form = AclForm::deserialize(from)?;
        Ok(Acl::new(entries(form.allowed))
            .with_observed(entries(form.observed))
            .with_forensics(entries(form.forensic))
            .with_answers(
                entries(form.rejected),
                entries(form.dropped),
                form.otherwise.map(|AnswerForm(answer)| answer),
            ))
    }
}
