//! Relaying: sealed packets of nodes that cannot reach each other go through a relay, in QUIC
//! datagrams of a separate connection ([`crate::Channel::Relay`]). A relay sees WireGuard
//! messages, no plaintext and no key.
//!
//! To an endpoint, a peer behind a relay has an address like any other ([`meshward_types::relay`]).
//!
//! Messages that leave together are one *batch*: all of one size, but for a shorter last one. A
//! batch is cut into frames at any byte, not at the bounds of its messages, so that few frames
//! carry many messages. A frame is a header of [`HEADER`] bytes and a part of a batch. The header
//! has the id of the receiver or, once it is relayed, of the sender (8 bytes); the network (4
//! bytes); and the batch's number, its length, the size of its messages and the offset of the part
//! (2 bytes each), little-endian.

mod frames;

pub use frames::*;

use crate::InstanceId;
use meshward_types::{NodeName, bounded::as_printable, relay::RelayNumber};
use serde::{Deserialize, Serialize};

/// The largest number of relays through which a node says that it can be reached.
pub const MAX_HOME_RELAYS: usize = 2;
/// A relay other than the coordinator, as nodes know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelaySpec {
    /// The relay's number.
    pub number: RelayNumber,
    /// The relay's name.
    pub name: NodeName,
    /// The relay's addresses, as `HOST:PORT`.
    pub addresses: Vec<String>,
    /// The relay's port for STUN.
    pub stun_port: u16,
}

/// Returns the DNS name in a relay's certificate, which clients verify whatever address they dial.
pub fn server_name(relay: &NodeName) -> String {
    format!("{relay}.relay.meshward.internal")
}

/// A message from a relay to its coordinator.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromRelay {
    /// The first message.
    Hello {
        /// The version of the software.
        #[serde(deserialize_with = "as_printable")]
        version: String,
        /// The addresses at which nodes reach it, as `HOST:PORT`. Without a host, it is where the
        /// coordinator sees the relay.
        addresses: Vec<String>,
        /// The relay's port for STUN.
        stun_port: u16,
    },
    /// A request to renew the certificate.
    Renew {
        /// A PKCS #10 request (DER).
        csr: Vec<u8>,
    },
}

/// A node that a relay serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedNode {
    /// The node.
    pub node: NodeName,
    /// The key of the node's certificate (SHA-256 in hexadecimal).
    pub key: String,
}

/// The start of a node's daemon that has a session with a coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInstance {
    /// The node.
    pub node: NodeName,
    /// The start.
    pub instance: InstanceId,
}

/// A message from the coordinator to a relay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToRelay {
    /// All nodes.
    Members(Vec<ServedNode>),
    /// A node has joined, or has a new key.
    Admit(ServedNode),
    /// A node was removed.
    Expel(NodeName),
    /// All starts of nodes' daemons that have sessions. While one has, the relay accepts no other
    /// start of the same node.
    Sessions(Vec<NodeInstance>),
    /// A node's session has begun, ended or passed to another start of its daemon.
    Session {
        /// The node.
        node: NodeName,
        /// The start that has the session now; `None` if none has.
        instance: Option<InstanceId>,
    },
    /// The renewed certificate (DER).
    Renewed {
        /// The certificate.
        certificate: Vec<u8>,
    },
}
