//! The encoding of messages: a little-endian `u32` length and a postcard body.

use crate::{Change, MAX_FRAME};
use meshward_types::Revision;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// The largest size of a part of longer content, in bytes.
pub(crate) const PART_BYTES: usize = MAX_FRAME / 2;

/// The largest number of elements in such a part.
pub(crate) const PART_ELEMENTS: usize = 4096;

/// The error for a message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// The length exceeds the limit.
    #[error("a message of {got} bytes came; at most {limit} are taken")]
    TooLong {
        /// The announced length, in bytes.
        got: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The body is not a message of this type.
    #[error("a message cannot be decoded ({0}); do both sides run the same version?")]
    Malformed(#[from] postcard::Error),
}

/// Encodes a message after its length.
///
/// # Panics
/// Never: encoding plain data into memory cannot fail.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // Encoding plain data into memory cannot fail.
    let mut frame = postcard::to_extend(message, vec![0; 4]).expect("messages encode into memory");
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Changes in their wire form: encoded once for any number of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChanges {
    count: usize,
    bytes: Arc<[u8]>,
}

impl EncodedChanges {
    /// Encodes changes.
    ///
    /// # Panics
    /// Never: encoding plain data into memory cannot fail.
    pub fn of(changes: &[Change]) -> Self {
        let bytes = changes.iter().fold(Vec::new(), |bytes, change| {
            // Encoding plain data into memory cannot fail.
            postcard::to_extend(change, bytes).expect("changes encode into memory")
        });
        Self { count: changes.len(), bytes: bytes.into() }
    }

    /// Returns the number of changes.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Encodes the message [`FromCoordinator::Update`](crate::FromCoordinator::Update) from changes
/// that are already encoded, after its length.
///
/// # Panics
/// Never: encoding numbers into memory cannot fail.
pub fn encode_update(revision: Revision, parts: &[EncodedChanges], urgent: bool) -> Vec<u8> {
    // The number of the enum's variant in postcard, then its fields in their order; a list follows
    // its length.
    const UPDATE: u32 = 1;
    let count: usize = parts.iter().map(EncodedChanges::count).sum();
    let length: usize = parts.iter().map(|part| part.bytes.len()).sum();
    let mut frame = Vec::with_capacity(length + 32);
    frame.extend([0; 4]);
    let mut frame =
        postcard::to_extend(&(UPDATE, revision, count), frame).expect("numbers encode into memory");
    for part in parts {
        frame.extend_from_slice(&part.bytes);
    }
    frame.push(urgent.into());
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Reads the length of a body.
///
/// # Errors
/// [`BadFrame::TooLong`] if it exceeds the limit, in bytes.
pub fn body_length(head: [u8; 4], limit: usize) -> Result<usize, BadFrame> {
    let got = u32::from_le_bytes(head) as usize;
    if got > limit {
        return Err(BadFrame::TooLong { got, limit });
    }
    Ok(got)
}

/// Decodes a body.
///
/// # Errors
/// [`BadFrame::Malformed`] if it is not a message of this type.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadFrame> {
    Ok(postcard::from_bytes(body)?)
}

/// Returns the encoded size of a value, in bytes.
///
/// # Panics
/// Never: plain data has a size.
pub fn encoded_size(of: &impl Serialize) -> usize {
    // Counting the bytes of plain data cannot fail.
    postcard::experimental::serialized_size(of).expect("plain data has a size")
}

/// Splits a list, in its order, into parts of at most half of a message's largest size, unless a
/// part has a single element. Returns at least one part, even if it is empty.
pub fn in_parts<T: Serialize>(all: impl IntoIterator<Item = T>) -> Vec<Vec<T>> {
    let (mut parts, mut part, mut bytes) = (vec![], vec![], 0);
    for element in all {
        let size = encoded_size(&element);
        if bytes + size > PART_BYTES || part.len() == PART_ELEMENTS {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.push(element);
    }
    if !part.is_empty() || parts.is_empty() {
        parts.push(part);
    }
    // A first element that is longer than a part finds an empty part before it.
    if parts.len() > 1 {
        parts.retain(|part| !part.is_empty());
    }
    parts
}
