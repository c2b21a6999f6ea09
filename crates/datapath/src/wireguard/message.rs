//! The four messages of WireGuard (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel",
//! NDSS 2017, §5.4): lengths, and where their fields stand. Numbers are little-endian.

use std::ops::Range;

/// Length of an initiation, in bytes.
pub(crate) const INITIATION: usize = 148;
/// Length of a response, in bytes.
pub(crate) const RESPONSE: usize = 92;
/// Length of a cookie reply, in bytes.
pub(crate) const COOKIE_REPLY: usize = 64;
/// The longest message of a handshake, in bytes.
pub const MAX_HANDSHAKE_MESSAGE: usize = INITIATION;
/// Bytes in front of a data message's ciphertext: type, receiver's index, counter.
pub(crate) const DATA_HEADER: usize = 16;
/// Bytes of an authentication tag.
pub(crate) const TAG: usize = 16;
/// Bytes of a MAC; a message of a handshake ends with two of them.
pub(crate) const MAC: usize = 16;

/// Where Noise's part of an initiation stands.
pub(crate) const INITIATION_NOISE: Range<usize> = 8..116;
/// Where Noise's part of a response stands.
pub(crate) const RESPONSE_NOISE: Range<usize> = 12..60;

/// What a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageType {
    Initiation,
    Response,
    CookieReply,
    Data,
}

impl MessageType {
    /// The kind of a datagram; `None` if its type and length are no message's.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let (kind, _) = datagram.split_first_chunk::<4>()?;
        match (u32::from_le_bytes(*kind), datagram.len()) {
            (1, INITIATION) => Some(Self::Initiation),
            (2, RESPONSE) => Some(Self::Response),
            (3, COOKIE_REPLY) => Some(Self::CookieReply),
            (4, length) if length >= DATA_HEADER + TAG => Some(Self::Data),
            _ => None,
        }
    }

    /// The type field.
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
pub(crate) fn number(message: &[u8], at: usize) -> u32 {
    message
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Writes a number at an offset.
pub(crate) fn set_number(message: &mut [u8], at: usize, number: u32) {
    message[at..at + 4].copy_from_slice(&number.to_le_bytes());
}
