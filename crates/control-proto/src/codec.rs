//! The encoding of messages: a little-endian `u32` length and a postcard body.

use crate::{Change, MAX_FRAME};
use meshward_types::Revision;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// What a part of something longer has at most: bytes, and elements.
pub(crate) const PART_BYTES: usize = MAX_FRAME / 2;

pub(crate) const PART_ELEMENTS: usize = 4096;

/// A message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// The length is over the limit.
    #[error("a message of {got} bytes came; at most {limit} are taken")]
    TooLong {
        /// The length that was announced, in bytes.
        got: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The body is no such message.
    #[error("a message cannot be decoded ({0}); do both sides run the same version?")]
    Malformed(#[from] postcard::Error),
}

/// Encodes a message with its length in front.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // Encoding plain data into memory has no way to fail.
    let mut frame = postcard::to_extend(message, vec![0; 4]).expect("messages encode into memory");
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Changes in their wire form: encoded once, however many nodes are told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChanges {
    count: usize,
    bytes: Arc<[u8]>,
}

impl EncodedChanges {
    /// Encodes changes.
    pub fn of(changes: &[Change]) -> Self {
        let bytes = changes.iter().fold(Vec::new(), |bytes, change| {
            // Encoding plain data into memory has no way to fail.
            postcard::to_extend(change, bytes).expect("changes encode into memory")
        });
        Self { count: changes.len(), bytes: bytes.into() }
    }

    /// How many changes these are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// The message [`FromCoordinator::Update`] of changes that are encoded already, with its length in
/// front.
pub fn encode_update(revision: Revision, parts: &[EncodedChanges], urgent: bool) -> Vec<u8> {
    // Which message it is, as postcard numbers an enum's variants; then its fields in their order,
    // a list with its length in front.
    const UPDATE: u32 = 1;
    let count: usize = parts.iter().map(EncodedChanges::count).sum();
    let length: usize = parts.iter().map(|part| part.bytes.len()).sum();
    let mut frame = Vec::with_capacity(length + 32);
    frame.extend([0; 4]);
    let mut frame =
        postcard::to_extend(&(UPDATE, revision, count), frame).expect("numbers encode into memory");
    parts.iter().for_each(|part| frame.extend_from_slice(&part.bytes));
    frame.push(urgent.into());
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Reads the length in front of a body.
pub fn body_length(head: [u8; 4], limit: usize) -> Result<usize, BadFrame> {
    let got = u32::from_le_bytes(head) as usize;
    if got > limit {
        return Err(BadFrame::TooLong { got, limit });
    }
    Ok(got)
}

/// Decodes a body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadFrame> {
    Ok(postcard::from_bytes(body)?)
}

/// The bytes that something takes in a message.
pub fn encoded_size(of: &impl Serialize) -> usize {
    // Counting the bytes of plain data has no way to fail.
    postcard::experimental::serialized_size(of).expect("plain data has a size")
}

/// Cuts a list into parts that fit into messages, in its order: none of them is longer than half of
/// a message may be, unless it has a single element. At least one part, if an empty one.
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
    // A first element that is longer than a part finds an empty one before it.
    if parts.len() > 1 {
        parts.retain(|part| !part.is_empty());
    }
    parts
}
