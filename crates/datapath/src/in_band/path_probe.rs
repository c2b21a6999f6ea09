//! Path probes: whether a path to a peer is good in both directions, and how long a packet on it
//! may be.
//!
//! A response goes back to the address that its challenge came from, by the same path. So a
//! response proves the path, which a message that merely arrives does not (RFC 9000 §8.2 has the
//! same for QUIC), and, as challenges can be padded, that packets of their length pass (RFC 8899).
//!
//! Body: the challenge's number (big-endian `u32`), then padding. The response has the number
//! alone.

use super::{HEADER, read, write_header};

const CHALLENGE: [u8; 4] = *b"MWP1";
const RESPONSE: [u8; 4] = *b"MWA1";
/// Length of the shortest challenge and of a response, in bytes.
pub(crate) const LENGTH: usize = HEADER + 4;

/// A path probe, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathProbe {
    /// Asks for a response (QUIC's `PATH_CHALLENGE`).
    Challenge(u32),
    /// Answers a challenge (QUIC's `PATH_RESPONSE`).
    Response(u32),
}

impl PathProbe {
    /// Writes the probe into a packet of [`LENGTH`] bytes or more.
    pub(crate) fn encode(self, packet: &mut [u8]) {
        let (kind, number) = match self {
            Self::Challenge(number) => (CHALLENGE, number),
            Self::Response(number) => (RESPONSE, number),
        };
        write_header(kind, packet);
        packet[HEADER..LENGTH].copy_from_slice(&number.to_be_bytes());
        packet[LENGTH..].fill(0);
    }

    /// Reads a probe; `None` if the packet is something else.
    #[inline]
    pub(crate) fn decode(packet: &[u8]) -> Option<Self> {
        let (kind, body) = read(packet)?;
        let number = u32::from_be_bytes(*body.first_chunk()?);
        match kind {
            CHALLENGE => Some(Self::Challenge(number)),
            RESPONSE => Some(Self::Response(number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_of_any_length_is_read_and_nothing_else_is() {
        for probe in [PathProbe::Challenge(7), PathProbe::Response(u32::MAX)] {
            for length in [LENGTH, LENGTH + 1, 1420] {
                let mut packet = vec![9; length];
                probe.encode(&mut packet);
                assert_eq!(PathProbe::decode(&packet), Some(probe));
                packet.extend([0; 12]);
                assert_eq!(PathProbe::decode(&packet), Some(probe), "with the session's padding");
                assert_eq!(PathProbe::decode(&packet[..length - 1]), None);
            }
        }
        let other = super::super::vouch::Vouch {
            identity: meshward_types::IdentityId(1),
            address: [10, 0, 0, 1].into(),
        };
        assert_eq!(PathProbe::decode(&other.encode()), None);
        assert_eq!(PathProbe::decode(&[]), None);
    }
}
