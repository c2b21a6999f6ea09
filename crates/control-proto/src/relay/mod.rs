//! Relaying: how sealed packets of nodes that cannot reach each other go through a relay, in QUIC
//! datagrams of a connection of their own ([`crate::Channel::Relay`]). A relay sees `WireGuard`'s messages, no
//! plaintext and no key.
//!
//! For an endpoint, a peer behind a relay is at an address like any other
//! ([`meshward_types::relay`]).
//!
//! Messages that leave together are one *batch*: all of one size, but for the last, which may be
//! shorter. A batch is cut into frames wherever that fits, not at the bounds of its messages, so
//! that few frames carry many messages. A frame is a header of [`HEADER`] bytes and a part of a
//! batch: who it is for, or, once it is relayed, who it is from (8 bytes); the network (4 bytes);
//! the batch's number, its length, the size of its messages, and where in it the part belongs (2
//! bytes each), little-endian.

mod frames;

pub use frames::*;

use crate::InstanceId;
use meshward_types::{NodeName, bounded::as_printable, relay::RelayNumber};
use serde::{Deserialize, Serialize};

/// The most relays by which a node says that it can be reached.
pub const MOST_HOMES: usize = 2;
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
