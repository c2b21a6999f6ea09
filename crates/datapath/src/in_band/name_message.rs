//! Names: DNS queries that a node has an egress gateway's node ask, and its answers. So both know
//! the same addresses of a name, and the gateway's node believes nobody but its own upstreams.
//!
//! Body of a query: its number (big-endian `u64`), the address of the workload that asks (16 bytes,
//! IPv4 mapped as in RFC 4291 §2.5.5.2), and a DNS message (RFC 1035). Body of an answer: the
//! number of the query, and a DNS message.

use super::{ADDRESS, HEADER, decode_address, encode_address, write_header};
use std::net::IpAddr;

const QUERY: [u8; 4] = *b"MWN1";
const ANSWER: [u8; 4] = *b"MWN2";
const NUMBER: usize = 8;

/// Bytes of the packet with an answer beside the DNS message: an answer is at most so much shorter
/// than the network's MTU.
pub const NAME_ANSWER_OVERHEAD: u16 = (HEADER + NUMBER) as u16;

/// A message about a name between a node and an egress gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMessage<'a> {
    /// A query of a workload of the sender's.
    Query {
        /// The number of the query, as the sender counts them.
        number: u64,
        /// The address of the workload.
        asker: IpAddr,
        /// The DNS message.
        message: &'a [u8],
    },
    /// The answer to a query.
    Answer {
        /// The number of the query.
        number: u64,
        /// The DNS message.
        message: &'a [u8],
    },
}

impl<'a> NameMessage<'a> {
    /// Returns the packet that carries the message; `None` if it is too long for one.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; HEADER];
        let (kind, message) = match self {
            Self::Query { number, asker, message } => {
                packet.extend(number.to_be_bytes());
                packet.extend(encode_address(*asker));
                (QUERY, message)
            }
            Self::Answer { number, message } => {
                packet.extend(number.to_be_bytes());
                (ANSWER, message)
            }
        };
        packet.extend(*message);
        u16::try_from(packet.len()).ok()?;
        write_header(kind, &mut packet);
        Some(packet)
    }

    /// Reads a message by its kind and body; `None` if it is of another kind, or too short.
    pub(crate) fn read(kind: [u8; 4], body: &'a [u8]) -> Option<Self> {
        let (number, rest) = body.split_first_chunk::<NUMBER>()?;
        let number = u64::from_be_bytes(*number);
        match kind {
            QUERY => {
                let (asker, message) = rest.split_first_chunk::<ADDRESS>()?;
                Some(Self::Query { number, asker: decode_address(*asker), message })
            }
            ANSWER => Some(Self::Answer { number, message: rest }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_band::read;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let message = &b"a DNS message"[..];
        let query = |asker: &str| NameMessage::Query {
            number: u64::MAX - 7,
            asker: asker.parse().unwrap(),
            message,
        };
        let answer = NameMessage::Answer { number: 3, message: &[] };
        for own in [query("10.42.0.1"), query("fd00::1"), answer] {
            let packet = own.encode().unwrap();
            let (kind, body) = read(&packet).unwrap();
            assert_eq!(NameMessage::read(kind, body), Some(own));
            assert_eq!(NameMessage::read(kind, &body[..NUMBER - 1]), None);
            assert_eq!(NameMessage::read(*b"MWV1", body), None);
        }
        let message = vec![0; 65_536];
        assert_eq!(NameMessage::Answer { number: 0, message: &message }.encode(), None);
    }
}
