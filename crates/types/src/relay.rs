//! Relaying: how sealed packets of nodes that cannot reach each other go through a relay, in QUIC
//! datagrams of a connection of their own ([`ALPN_RELAY`]). A relay sees WireGuard's messages, no
//! plaintext and no key.
//!
//! For an endpoint, a peer behind a relay is at an address like any other: in `100::/64`, which
//! nothing routes (RFC 6666), with the relay's number as the port.
//!
//! Messages that leave together are one *batch*: all of one size, but for the last, which may be
//! shorter. A batch is cut into frames wherever that fits, not at the bounds of its messages, so
//! that few frames carry many messages. A frame is a header of [`HEADER`] bytes and a part of a
//! batch: who it is for, or, once it is relayed, who it is from (8 bytes); the network (4 bytes);
//! the batch's number, its length, the size of its messages, and where in it the part belongs (2
//! bytes each), little-endian.

use crate::{
    bounded::as_printable,
    control::InstanceId,
    names::{NetworkName, NodeName},
};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::Range,
};

/// ALPN of a node's connection for relayed packets. It begins with a unidirectional stream of the
/// node's, with the [`InstanceId`] of its daemon, and nothing else.
pub const ALPN_RELAY: &[u8] = b"meshward-relay/2";
/// ALPN of the connection that a relay holds to its coordinator: one stream with [`FromRelay`] one
/// way and [`ToRelay`] the other.
pub const ALPN_RELAY_LINK: &[u8] = b"meshward-relay-link/2";
/// The most relays by which a node says that it can be reached.
pub const MOST_HOMES: usize = 2;
/// The bytes in front of a part.
pub const HEADER: usize = 20;

const PREFIX: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
/// The most batches that are being put together; then the oldest are given up.
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
        #[serde(deserialize_with = "as_printable")]
        version: String,
        /// Where nodes reach it, as `HOST:PORT`; a host that is left out is where the coordinator
        /// sees the relay.
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
    /// These are the nodes, all of them, with the keys of their certificates (SHA-256,
    /// hexadecimal).
    Members(Vec<(NodeName, String)>),
    /// This node has come, or has another key.
    Admit(NodeName, String),
    /// This node is none any more.
    Expel(NodeName),
    /// These starts of nodes' daemons have sessions, and no others: while one has, no other start
    /// of the same node is relayed to.
    Sessions(Vec<(NodeName, InstanceId)>),
    /// Which start of a node's daemon has a session now, if one has.
    Session(NodeName, Option<InstanceId>),
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

/// Cuts a batch of messages, each of `size` bytes but for the last, into frames of at most `most`
/// bytes; there is none if that is too little, or the batch too long.
pub fn frames(
    to: RelayId,
    network: RelayNetwork,
    number: u16,
    messages: &[u8],
    size: usize,
    most: usize,
) -> impl Iterator<Item = Vec<u8>> {
    let room = most.saturating_sub(HEADER).max(1);
    let fits = most > HEADER
        && messages.len() <= usize::from(u16::MAX)
        && (1..=messages.len()).contains(&size);
    let parts = messages.chunks(room).take(if fits { usize::MAX } else { 0 }).enumerate();
    let length = messages.len() as u16;
    parts.map(move |(at, part)| {
        let mut frame = Vec::with_capacity(HEADER + part.len());
        frame.extend(to.0);
        frame.extend(network.0);
        for field in [number, length, size as u16, (at * room) as u16] {
            frame.extend(field.to_le_bytes());
        }
        frame.extend(part);
        frame
    })
}

/// Cuts a frame into frames of at most `most` bytes, for a way that takes only shorter ones; there
/// is none if that is too little.
pub fn cut(frame: &[u8], most: usize) -> impl Iterator<Item = Vec<u8>> {
    let room = most.saturating_sub(HEADER);
    let whole = frame.split_first_chunk::<HEADER>().filter(|_| room > 0);
    whole.into_iter().flat_map(move |(head, part)| {
        let begin = u16::from_le_bytes([head[18], head[19]]);
        part.chunks(room).enumerate().map(move |(at, piece)| {
            let mut cut = Vec::with_capacity(HEADER + piece.len());
            cut.extend(&head[..18]);
            cut.extend(begin.wrapping_add((at * room) as u16).to_le_bytes());
            cut.extend(piece);
            cut
        })
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

type Key = (RelayId, RelayNetwork);

/// Messages that have come whole and in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Who has sent them.
    pub from: RelayId,
    /// The network.
    pub network: RelayNetwork,
    /// The messages.
    pub messages: Vec<u8>,
    /// The size of each but the last, which may be shorter.
    pub size: usize,
}

/// Puts batches together again: one of each sender and network at a time.
#[derive(Debug, Default)]
pub struct Gathering {
    waiting: HashMap<Key, Batch>,
    order: VecDeque<Key>,
    /// Those of which something has come since the last look.
    touched: Vec<Key>,
    whole: Vec<Run>,
}

/// A batch that is being put together.
#[derive(Debug)]
struct Batch {
    number: u16,
    size: usize,
    bytes: Vec<u8>,
    /// What has come, in places that neither touch nor overlap.
    came: Vec<Range<usize>>,
    /// Up to where messages were handed on.
    done: usize,
}

impl Gathering {
    /// Takes a frame. What comes of it is given by [`Self::take_whole`].
    pub fn take(&mut self, frame: &[u8]) {
        let Some((head, part)) = frame.split_first_chunk::<HEADER>() else { return };
        let Some(from) = head.first_chunk().copied().map(RelayId) else { return };
        let field = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let key = (from, RelayNetwork([head[8], head[9], head[10], head[11]]));
        let (number, length, size, at) =
            (field(12), usize::from(field(14)), usize::from(field(16)), usize::from(field(18)));
        let place = at..at + part.len();
        if part.is_empty() || place.end > length || !(1..=length).contains(&size) {
            return;
        }
        let same =
            |batch: &Batch| (batch.number, batch.bytes.len(), batch.size) == (number, length, size);
        if !self.waiting.get(&key).is_some_and(same) {
            // What is missing of the one before will not come any more.
            self.give_up(&key);
            self.order.push_back(key);
            if self.order.len() > MOST_WAITING
                && let Some(oldest) = self.order.front().copied()
            {
                self.give_up(&oldest);
            }
            let batch = Batch { number, size, bytes: vec![0; length], came: vec![], done: 0 };
            self.waiting.insert(key, batch);
        }
        if let Some(batch) = self.waiting.get_mut(&key) {
            batch.bytes[place.clone()].copy_from_slice(part);
            batch.note(place);
        }
        if self.touched.last() != Some(&key) {
            self.touched.push(key);
        }
    }

    /// What has come whole since the last call.
    pub fn take_whole(&mut self) -> Vec<Run> {
        for key in std::mem::take(&mut self.touched) {
            let Some(batch) = self.waiting.get_mut(&key) else { continue };
            batch.hand_on(key, false, &mut self.whole);
            if batch.done == batch.bytes.len() {
                self.waiting.remove(&key);
                self.order.retain(|own| *own != key);
            }
        }
        std::mem::take(&mut self.whole)
    }

    fn give_up(&mut self, key: &Key) {
        if let Some(mut batch) = self.waiting.remove(key) {
            batch.hand_on(*key, true, &mut self.whole);
            self.order.retain(|own| own != key);
        }
    }
}

impl Batch {
    fn note(&mut self, mut place: Range<usize>) {
        self.came.retain(|known| {
            let apart = known.end < place.start || place.end < known.start;
            if !apart {
                place = place.start.min(known.start)..place.end.max(known.end);
            }
            apart
        });
        self.came.push(place);
    }

    /// Hands on the whole messages that are next; those behind a gap only if it is final.
    fn hand_on(&mut self, (from, network): Key, is_final: bool, into: &mut Vec<Run>) {
        self.came.sort_unstable_by_key(|place| place.start);
        for place in &self.came {
            let begin = place.start.max(self.done).next_multiple_of(self.size);
            if begin > self.done && !is_final {
                return;
            }
            let whole = if place.end == self.bytes.len() {
                place.end
            } else {
                place.end - place.end % self.size
            };
            if whole <= begin {
                continue;
            }
            let messages = self.bytes[begin..whole].to_vec();
            into.push(Run { from, network, messages, size: self.size });
            self.done = whole;
        }
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

    /// The messages of runs, one by one.
    fn messages(runs: &[Run]) -> Vec<Vec<u8>> {
        runs.iter().flat_map(|run| run.messages.chunks(run.size)).map(<[u8]>::to_vec).collect()
    }

    proptest! {
        #[test]
        fn batches_come_out_as_they_went_in(
            batches in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20_000), 1usize..3000), 1..5),
            most in 300usize..1500, at_once in 1usize..8,
        ) {
            let (to, network) = ids();
            let (mut gathering, mut out, mut sent) = (Gathering::default(), vec![], vec![]);
            for (number, (batch, size)) in batches.iter().enumerate() {
                let size = (*size).min(batch.len());
                sent.extend(batch.chunks(size).map(<[u8]>::to_vec));
                let frames: Vec<Vec<u8>> = frames(to, network, number as u16, batch, size, most).collect();
                prop_assert_eq!(frames.len(), batch.len().div_ceil(most - HEADER));
                for some in frames.chunks(at_once) {
                    for frame in some {
                        prop_assert!(frame.len() <= most && destination(frame) == Some(to));
                        gathering.take(frame);
                    }
                    out.extend(gathering.take_whole());
                }
            }
            prop_assert_eq!(messages(&out), sent);
            prop_assert!(gathering.waiting.is_empty() && gathering.order.is_empty());
        }

        #[test]
        fn frames_that_are_cut_on_their_way_carry_the_same(
            batch in prop::collection::vec(any::<u8>(), 1..20_000), size in 1usize..3000, most in 21usize..1500,
        ) {
            let (to, network) = ids();
            let size = size.min(batch.len());
            let mut gathering = Gathering::default();
            for frame in frames(to, network, 1, &batch, size, 1400) {
                for piece in cut(&frame, most) {
                    prop_assert!(piece.len() <= most && destination(&piece) == Some(to));
                    gathering.take(&piece);
                }
            }
            let expected: Vec<Vec<u8>> = batch.chunks(size).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(messages(&gathering.take_whole()), expected);
            prop_assert_eq!(cut(&[0; HEADER + 9], HEADER).count(), 0);
        }

        #[test]
        fn what_is_lost_takes_only_its_own_messages_along(
            batch in prop::collection::vec(any::<u8>(), 5_000..20_000), size in 200usize..2000,
            lost in prop::collection::vec(any::<bool>(), 100), swapped in any::<bool>(),
        ) {
            let (to, network) = ids();
            let mut all: Vec<Vec<u8>> = frames(to, network, 1, &batch, size, 1200).collect();
            let room = 1200 - HEADER;
            let is_lost = |at: usize| lost[at % lost.len()];
            let expected: Vec<Vec<u8>> = batch
                .chunks(size)
                .enumerate()
                .filter(|(at, message)| {
                    let (first, last) = (at * size / room, (at * size + message.len() - 1) / room);
                    !(first..=last).any(is_lost)
                })
                .map(|(_, message)| message.to_vec())
                .collect();
            let mut kept: Vec<Vec<u8>> =
                all.drain(..).enumerate().filter(|(at, _)| !is_lost(*at)).map(|(_, frame)| frame).collect();
            if swapped && kept.len() > 1 {
                kept.swap(0, 1);
            }
            let (mut gathering, mut out) = (Gathering::default(), vec![]);
            kept.iter().for_each(|frame| gathering.take(frame));
            out.extend(gathering.take_whole());
            // The next batch shows that what is missing is lost.
            frames(to, network, 2, &[9; 10], 10, 1200).for_each(|frame| gathering.take(&frame));
            out.extend(gathering.take_whole());
            let mut got = messages(&out);
            prop_assert_eq!(got.pop(), Some(vec![9; 10]));
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn whatever_comes_is_bounded(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..600)) {
            let mut gathering = Gathering::default();
            for frame in &frames {
                gathering.take(frame);
                prop_assert!(gathering.waiting.len() <= MOST_WAITING && gathering.order.len() <= MOST_WAITING);
            }
            gathering.take_whole();
        }
    }
}
