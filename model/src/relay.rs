//! Relaying: how sealed packets of nodes that cannot reach each other go through a relay, in QUIC datagrams of a connection
//! of their own ([`ALPN_RELAY`]). A relay sees WireGuard's messages, no plaintext and no key.
//!
//! For an endpoint, a peer behind a relay is at an address like any other: in `100::/64`, which nothing routes (RFC 6666), with
//! the relay's number as the port.
//!
//! A frame is a header of [`HEADER`] bytes and a part of a message: who it is for, or, once it is relayed, who it is from (8 bytes);
//! the network (4 bytes); which part of how many (4 bits each); the message's number (2 bytes), little-endian.

use crate::names::{NetworkName, NodeName};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// ALPN of a node's connection for relayed packets.
pub const ALPN_RELAY: &[u8] = b"meshward-relay/1";
/// ALPN of the connection that a relay holds to its coordinator: one stream with [`FromRelay`] one way and [`ToRelay`] the other.
pub const ALPN_RELAY_LINK: &[u8] = b"meshward-relay-link/1";
/// The most relays by which a node says that it can be reached.
pub const MOST_HOMES: usize = 2;
/// The bytes in front of a part.
pub const HEADER: usize = 15;

const PREFIX: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
const MOST_PARTS: usize = 15;
/// The most messages of which parts wait.
const MOST_WAITING: usize = 256;

/// Which relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelayNumber(pub u16);

impl RelayNumber {
    /// The coordinator, which is a relay, too.
    pub const COORDINATOR: Self = Self(1);
}

impl fmt::Display for RelayNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What nodes know of a relay that is not the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelaySpec {
    /// Its number.
    pub number: RelayNumber,
    /// Its name.
    pub name: NodeName,
    /// Where it is, as `HOST:PORT`.
    pub addresses: Vec<String>,
    /// Its port for STUN.
    pub stun_port: u16,
}

/// The DNS name in a relay's certificate: clients ask for it, whatever address they dial.
pub fn server_name(relay: &NodeName) -> String {
    format!("{relay}.relay.meshward.internal")
}

/// What a relay says to its coordinator.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromRelay {
    /// First message.
    Hello {
        /// The software's version.
        version: String,
        /// Where nodes reach it, as `HOST:PORT`; a host that is left out is where the coordinator sees the relay.
        addresses: Vec<String>,
        /// Its port for STUN.
        stun_port: u16,
    },
    /// The certificate is to be renewed.
    Renew {
        /// A PKCS #10 request (DER).
        csr: Vec<u8>,
    },
}

/// What a coordinator says to a relay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToRelay {
    /// These are the nodes, all of them, with the keys of their certificates (SHA-256, hexadecimal).
    Members(Vec<(NodeName, String)>),
    /// This node has come, or has another key.
    Admit(NodeName, String),
    /// This node is none any more.
    Expel(NodeName),
    /// The renewed certificate (DER).
    Renewed {
        /// The certificate.
        certificate: Vec<u8>,
    },
}

/// A node, as relays know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelayId([u8; 8]);

/// A network, as frames name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelayNetwork([u8; 4]);

fn begin<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..N]);
    bytes
}

impl RelayId {
    /// The id of a node: the beginning of its name's SHA-256.
    pub fn of(node: &NodeName) -> Self {
        Self(begin(node.as_str()))
    }

    /// The address at which endpoints see it behind a relay.
    pub fn address(self, relay: RelayNumber) -> SocketAddr {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&PREFIX);
        bytes[8..].copy_from_slice(&self.0);
        SocketAddr::new(Ipv6Addr::from(bytes).into(), relay.0)
    }

    /// Who is at such an address, and behind which relay.
    pub fn at(address: &SocketAddr) -> Option<(Self, RelayNumber)> {
        let IpAddr::V6(ip) = address.ip() else { return None };
        let bytes = ip.octets();
        let (prefix, id) = (bytes.first_chunk::<8>()?, bytes.last_chunk::<8>()?);
        (*prefix == PREFIX).then_some((Self(*id), RelayNumber(address.port())))
    }
}

impl RelayNetwork {
    /// How frames name a network: by the beginning of its name's SHA-256.
    pub fn of(network: &NetworkName) -> Self {
        Self(begin(network.as_str()))
    }
}

/// Whether an address is that of a peer behind a relay.
pub fn is_relayed(address: &SocketAddr) -> bool {
    RelayId::at(address).is_some()
}

/// Cuts a message into frames of at most `most` bytes; there is none if that is too little.
pub fn frames(
    to: RelayId,
    network: RelayNetwork,
    number: u16,
    message: &[u8],
    most: usize,
) -> impl Iterator<Item = Vec<u8>> {
    let room = most.saturating_sub(HEADER).max(1);
    let count = message.len().div_ceil(room);
    let fits = most > HEADER && (1..=MOST_PARTS).contains(&count);
    let parts = message.chunks(room).take(if fits { count } else { 0 }).enumerate();
    parts.map(move |(at, part)| {
        let mut frame = Vec::with_capacity(HEADER + part.len());
        frame.extend(to.0);
        frame.extend(network.0);
        frame.push((at << 4 | count) as u8);
        frame.extend(number.to_le_bytes());
        frame.extend(part);
        frame
    })
}

/// Whom a frame is for.
pub fn destination(frame: &[u8]) -> Option<RelayId> {
    (frame.len() > HEADER).then(|| frame.first_chunk().copied().map(RelayId)).flatten()
}

/// Writes into a frame who it is from.
pub fn set_source(frame: &mut [u8], from: RelayId) {
    if let Some(place) = frame.first_chunk_mut() {
        *place = from.0;
    }
}

type Key = (RelayId, RelayNetwork, u16);

/// Puts messages together again.
#[derive(Debug, Default)]
pub struct Gathering {
    waiting: HashMap<Key, Vec<Option<Vec<u8>>>>,
    order: VecDeque<Key>,
}

impl Gathering {
    /// Takes a frame; gives a message once it is whole, and who it is from.
    pub fn take(&mut self, frame: &[u8]) -> Option<(RelayId, RelayNetwork, Vec<u8>)> {
        let (head, part) = frame.split_first_chunk::<HEADER>()?;
        let (from, network) =
            (RelayId(*head.first_chunk()?), RelayNetwork([head[8], head[9], head[10], head[11]]));
        let (at, count) = (usize::from(head[12] >> 4), usize::from(head[12] & 15));
        if part.is_empty() || at >= count {
            return None;
        }
        if count == 1 {
            return Some((from, network, part.to_vec()));
        }
        let key = (from, network, u16::from_le_bytes([head[13], head[14]]));
        if !self.waiting.contains_key(&key) {
            self.order.push_back(key);
            if self.order.len() > MOST_WAITING
                && let Some(oldest) = self.order.pop_front()
            {
                self.waiting.remove(&oldest);
            }
        }
        let parts = self.waiting.entry(key).or_insert_with(|| vec![None; count]);
        *parts.get_mut(at)? = Some(part.to_vec());
        if parts.iter().any(Option::is_none) {
            return None;
        }
        self.order.retain(|own| *own != key);
        let whole = self.waiting.remove(&key)?.into_iter().flatten().flatten().collect();
        Some((from, network, whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids() -> (RelayId, RelayNetwork) {
        (RelayId::of(&"rack".parse().unwrap()), RelayNetwork::of(&"shop".parse().unwrap()))
    }

    #[test]
    fn a_node_is_known_by_its_address() {
        let (id, _) = ids();
        let address = id.address(RelayNumber(7));
        assert_eq!(RelayId::at(&address), Some((id, RelayNumber(7))));
        assert!(is_relayed(&address));
        for other in ["192.0.2.1:1", "[::1]:1", "[100:0:0:1::]:1"] {
            assert!(!is_relayed(&other.parse().unwrap()), "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_message_comes_out_as_it_went_in(
            message in prop::collection::vec(any::<u8>(), 1..4000), most in 300usize..1500, number: u16,
        ) {
            let (to, network) = ids();
            let mut frames: Vec<Vec<u8>> = frames(to, network, number, &message, most).collect();
            prop_assert!(frames.iter().all(|frame| frame.len() <= most && destination(frame) == Some(to)));
            frames.reverse();
            let mut gathering = Gathering::default();
            let out: Vec<_> = frames.iter().filter_map(|frame| gathering.take(frame)).collect();
            prop_assert_eq!(out, vec![(to, network, message)]);
            prop_assert!(gathering.waiting.is_empty() && gathering.order.is_empty());
        }

        #[test]
        fn whatever_comes_is_bounded(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..600)) {
            let mut gathering = Gathering::default();
            for frame in &frames {
                let _ = gathering.take(frame);
                prop_assert!(gathering.waiting.len() <= MOST_WAITING && gathering.order.len() <= MOST_WAITING);
            }
        }
    }
}
