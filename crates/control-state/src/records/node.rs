//! Records of nodes, relays and approved routes.

use ipnet::IpNet;
use meshward_types::{Labels, NetworkName, NodeName, PublicKey};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: NodeName,
    pub site: Option<String>,
    pub labels: Labels,
    /// The networks that its token allowed; empty: all.
    pub networks: Vec<NetworkName>,
    /// SHA-256 of the public key in its certificate, hexadecimal: an older node of the same name is
    /// another one.
    pub key: String,
    pub endpoints: BTreeMap<NetworkName, EndpointRecord>,
    pub blocks: BTreeMap<NetworkName, Vec<IpNet>>,
    /// Why it has no block of a network that it should serve.
    pub problems: BTreeMap<NetworkName, String>,
    /// Whether it serves no network before it is approved.
    #[serde(default)]
    pub waiting: bool,
    /// After how many seconds without being seen it is removed.
    #[serde(default)]
    pub forget_after: Option<u64>,
}

impl NodeRecord {
    pub fn may_serve(&self, network: &NetworkName) -> bool {
        !self.waiting && (self.networks.is_empty() || self.networks.contains(network))
    }
}

/// A node that was approved by name, whether or not it has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovedNodeRecord {
    pub name: NodeName,
    /// They stand over those that it joins with.
    pub labels: Labels,
}

/// Where a node's endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    pub public_key: PublicKey,
    pub candidates: Vec<SocketAddr>,
    /// The key that it had before: still the node's, as long as peers may know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_key: Option<PublicKey>,
}

impl EndpointRecord {
    /// The keys that are the node's by it.
    pub fn keys(&self) -> impl Iterator<Item = PublicKey> {
        std::iter::once(self.public_key).chain(self.previous_key)
    }
}

/// A relay that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRecord {
    pub name: NodeName,
    pub number: u16,
    pub site: Option<String>,
    /// SHA-256 of the public key in its certificate, hexadecimal.
    pub key: String,
    /// `HOST:PORT`; none before it has connected.
    pub addresses: Vec<String>,
    pub stun_port: u16,
}

/// That a prefix may be behind a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ApprovalRecord {
    pub network: NetworkName,
    pub node: NodeName,
    pub prefix: IpNet,
}
