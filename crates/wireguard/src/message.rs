//! The four messages (paper §5.4): their lengths, and where their fields stand. Numbers are
//! little-endian.

use std::ops::Range;

/// Length of a handshake initiation, in bytes.
pub const INITIATION_LENGTH: usize = 148;
/// Length of a handshake response, in bytes.
pub const RESPONSE_LENGTH: usize = 92;
/// Length of a cookie reply, in bytes.
pub const COOKIE_REPLY_LENGTH: usize = 64;
/// Length of the longest handshake message, in bytes.
pub const MAX_HANDSHAKE_MESSAGE: usize = INITIATION_LENGTH;
/// Bytes in front of a data message's ciphertext: type, receiver's index, counter.
pub const DATA_HEADER: usize = 16;
/// Bytes of an authentication tag.
pub const TAG: usize = 16;
/// Bytes that a data message adds to the packet in it.
pub const OVERHEAD: usize = DATA_HEADER + TAG;
/// Bytes of a MAC; initiations and responses end with two of them.
pub const MAC: usize = 16;

/// Offset of the sender's index in initiations and responses.
pub const SENDER_INDEX: usize = 4;
/// Offset of the receiver's index in responses.
pub const RESPONSE_RECEIVER_INDEX: usize = 8;
/// Offset of the receiver's index in cookie replies and data messages.
pub const RECEIVER_INDEX: usize = 4;

/// Noise's part of an initiation.
pub(crate) const INITIATION_NOISE: Range<usize> = 8..116;
/// Noise's part of a response.
pub(crate) const RESPONSE_NOISE: Range<usize> = 12..60;

/// The type of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// The first message of a handshake.
    Initiation,
    /// The second message of a handshake.
    Response,
    /// The answer of a responder under load, which gives its sender a cookie.
    CookieReply,
    /// A sealed packet, or a keepalive.
    Data,
}

impl MessageType {
    /// Returns the type of a datagram; `None` if its type field and length are those of no message.
    #[inline]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let (number, _) = datagram.split_first_chunk::<4>()?;
        match (u32::from_le_bytes(*number), datagram.len()) {
            (1, INITIATION_LENGTH) => Some(Self::Initiation),
            (2, RESPONSE_LENGTH) => Some(Self::Response),
            (3, COOKIE_REPLY_LENGTH) => Some(Self::CookieReply),
            (4, length) if length >= OVERHEAD => Some(Self::Data),
            _ => None,
        }
    }

    /// Returns the value of the type field.
    #[inline]
    pub fn number(self) -> u32 {
        match self {
            Self::Initiation => 1,
            Self::Response => 2,
            Self::CookieReply => 3,
            Self::Data => 4,
        }
    }
}

/// Reads the number at an offset; zero beyond the end.
#[inline]
pub fn read_u32(message: &[u8], offset: usize) -> u32 {
    message
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Writes a number at an offset.
///
/// # Panics
/// Panics if the message ends before the number does.
#[inline]
pub fn write_u32(message: &mut [u8], offset: usize, number: u32) {
    message[offset..offset + 4].copy_from_slice(&number.to_le_bytes());
}

/// An initiation with its type and its sender's index, and nothing else yet.
pub fn initiation(sender_index: u32) -> [u8; INITIATION_LENGTH] {
    let mut message = [0; INITIATION_LENGTH];
    write_u32(&mut message, 0, MessageType::Initiation.number());
    write_u32(&mut message, SENDER_INDEX, sender_index);
    message
}

/// A response with its type and both indices, and nothing else yet.
pub fn response(sender_index: u32, receiver_index: u32) -> [u8; RESPONSE_LENGTH] {
    let mut message = [0; RESPONSE_LENGTH];
    write_u32(&mut message, 0, MessageType::Response.number());
    write_u32(&mut message, SENDER_INDEX, sender_index);
    write_u32(&mut message, RESPONSE_RECEIVER_INDEX, receiver_index);
    message
}
