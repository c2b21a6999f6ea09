//! The view on disk: a snapshot and a log of updates, in postcard.
//!
//! Both begin with eight bytes: a magic text, the format, and three zeros. The snapshot goes on
//! with one *block*, the view; the log with the hash of the snapshot that it continues, and a block
//! for each update. A block is a little-endian `u32` length, the content, and the hash of what
//! precedes it: in the snapshot, of the whole file up to there; in the log, of the block. Format 1
//! has neither magic nor number. Formats 1 and 2 have no services, names and sites ([`older`]).
//!
//! The structures ([`forms`]) are copies of those of the control protocol.

mod acl;
mod forms;
mod older;
mod selector_text;
mod services;

use forms::{ChangeForm, KeyForm, ResourceForm};
use meshward_control_proto::{Change, Resource, ResourceKey, View};
use meshward_runtime::state_files::NewerFormat;
use meshward_types::Revision;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The format that is written.
const FORMAT: FileFormat = FileFormat(3);
/// The last format without services, names and sites.
const WITHOUT_SERVICES: FileFormat = FileFormat(2);
const HEADER: usize = 8;
const SNAPSHOT_MAGIC: [u8; 4] = *b"MWVW";
const LOG_MAGIC: [u8; 4] = *b"MWVL";
/// The length of a hash in bytes: the first half of SHA-256.
const HASH_LENGTH: usize = 16;

type Hash = [u8; HASH_LENGTH];

/// The number of a file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileFormat(u8);

impl FileFormat {
    /// Returns `true` if content of this release may follow in a file of this format.
    pub(crate) fn is_current(self) -> bool {
        self == FORMAT
    }

    /// Returns the length of a file's header, in bytes: none in format 1, whose files begin with a
    /// length or a hash.
    fn header_length(self) -> usize {
        if self == Self(1) { 0 } else { HEADER }
    }
}

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
    /// The format of the log.
    pub(crate) format: FileFormat,
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
    let format = format_of(snapshot, SNAPSHOT_MAGIC)?;
    let start = format.header_length();
    let own = hash(snapshot);
    let (view, rest) = view_block(&snapshot[start..], format).ok_or(ViewFileError::Damaged)?;
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
    Ok((view, own))
}

/// Reads the view of a snapshot, and returns the bytes after it.
fn view_block(bytes: &[u8], format: FileFormat) -> Option<(View, &[u8])> {
    match format <= WITHOUT_SERVICES {
        true => view_of::<older::ReadEntry>(bytes),
        false => view_of::<ReadEntry>(bytes),
    }
}

/// Reads a view whose entries have the form `E`.
fn view_of<E>(bytes: &[u8]) -> Option<(View, &[u8])>
where
    E: DeserializeOwned + Into<(ResourceKey, Resource)>,
{
    let (ReadView { revision, resources }, rest) = block::<ReadView<E>>(bytes)?;
    let resources = resources.into_iter().map(E::into).collect();
    Some((View { revision, resources }, rest))
}

/// Reads the beginning of a log.
///
/// # Errors
/// [`ViewFileError`].
pub(crate) fn read_log_header(log: &[u8]) -> Result<LogHeader, ViewFileError> {
    let format = format_of(log, LOG_MAGIC)?;
    let start = format.header_length();
    let snapshot = log[start..].first_chunk().copied().ok_or(ViewFileError::Damaged)?;
    Ok(LogHeader { format, snapshot, length: start + HASH_LENGTH })
}

/// Reads an update of a log, and returns the bytes after it; `None` if it is not whole.
pub(crate) fn read_update(log: &[u8], format: FileFormat) -> Option<(Update, &[u8])> {
    let (update, rest) = update_block(log, format)?;
    let (known, after) = rest.split_first_chunk::<HASH_LENGTH>()?;
    (hash(&log[..log.len() - rest.len()]) == *known).then_some((update, after))
}

fn update_block(bytes: &[u8], format: FileFormat) -> Option<(Update, &[u8])> {
    match format <= WITHOUT_SERVICES {
        true => update_of::<older::ReadChange>(bytes),
        false => update_of::<ReadChange>(bytes),
    }
}

/// Reads an update whose changes have the form `C`.
fn update_of<C: DeserializeOwned + Into<Change>>(bytes: &[u8]) -> Option<(Update, &[u8])> {
    let (ReadUpdate { revision, changes }, rest) = block::<ReadUpdate<C>>(bytes)?;
    let changes = changes.into_iter().map(C::into).collect();
    Some((Update { revision, changes }, rest))
}

fn header(magic: [u8; 4]) -> Vec<u8> {
    [magic, [FORMAT.0, 0, 0, 0]].concat()
}

fn format_of(file: &[u8], magic: [u8; 4]) -> Result<FileFormat, NewerFormat> {
    match file.first_chunk::<HEADER>() {
        Some([a, b, c, d, format, ..]) if [*a, *b, *c, *d] == magic => match FileFormat(*format) {
            known if known <= FORMAT => Ok(known),
            found => Err(NewerFormat { found: found.0.into(), newest: FORMAT.0.into() }),
        },
        _ => Ok(FileFormat(1)),
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
struct ReadView<E> {
    revision: Revision,
    resources: Vec<E>,
}

#[derive(Deserialize)]
struct ReadEntry(#[serde(with = "KeyForm")] ResourceKey, #[serde(with = "ResourceForm")] Resource);

impl From<ReadEntry> for (ResourceKey, Resource) {
    fn from(ReadEntry(key, resource): ReadEntry) -> Self {
        (key, resource)
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
struct ReadUpdate<C> {
    revision: Revision,
    changes: Vec<C>,
}

#[derive(Deserialize)]
struct ReadChange(#[serde(with = "ChangeForm")] Change);

impl From<ReadChange> for Change {
    fn from(ReadChange(change): ReadChange) -> Self {
        change
    }
}
