//! Probes: whether a way to a peer is good in both directions, and how long a packet may be on it.
//!
//! A probe is said [aside](crate::aside); its answer goes back to where it came from, by the way
//! that it took. So an answer proves the way, which a message that merely arrives does not (RFC
//! 9000 §8.2 has the same for QUIC), and, as probes can be padded, that packets of their length
//! pass (RFC 8899).
//!
//! Body: the probe's number (big-endian `u32`), then padding. The answer has the number alone.

use crate::aside::{self, HEADER};

const PROBE: &[u8; 4] = b"MWP1";
const ANSWER: &[u8; 4] = b"MWA1";
/// Length of the shortest probe and of an answer, in bytes.
pub(crate) const LENGTH: usize = HEADER + 4;

/// A probe or an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    Question(u32),
    Answer(u32),
}

impl Probe {
    /// Writes it into a packet of at least [`LENGTH`] bytes.
    pub fn encode(self, packet: &mut [u8]) {
        let (kind, number) = match self {
            Self::Question(number) => (PROBE, number),
            Self::Answer(number) => (ANSWER, number),
        };
        aside::wrap(kind, packet);
        packet[HEADER..LENGTH].copy_from_slice(&number.to_be_bytes());
        packet[LENGTH..].fill(0);
    }

    /// Reads one; `None` if the packet is something else.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let (kind, body) = aside::unwrap(packet)?;
        let number = u32::from_be_bytes(*body.first_chunk()?);
        match kind {
            PROBE => Some(Self::Question(number)),
            ANSWER => Some(Self::Answer(number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_of_any_length_is_read_and_nothing_else_is() {
        for probe in [Probe::Question(7), Probe::Answer(u32::MAX)] {
            for length in [LENGTH, LENGTH + 1, 1420] {
                let mut packet = vec![9; length];
                probe.encode(&mut packet);
                assert_eq!(Probe::decode(&packet), Some(probe));
                packet.extend([0; 12]);
                assert_eq!(Probe::decode(&packet), Some(probe), "with the session's padding");
                assert_eq!(Probe::decode(&packet[..length - 1]), None);
            }
        }
        assert_eq!(
            Probe::decode(&crate::vouch::encode(
                meshward_types::IdentityId(1),
                [10, 0, 0, 1].into()
            )),
            None
        );
        assert_eq!(Probe::decode(&[]), None);
    }
}
