//! Records of nodes, relays and approved routes.

use ipnet::IpNet;
use meshward_types::{Labels, NetworkName, NodeName, PublicKey};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's name.
    pub name: NodeName,
    /// The site that its token gave it.
    pub site: Option<String>,
    /// The node's labels.
    pub labels: Labels,
    /// The networks that its token allowed; empty for all.
    pub networks: Vec<NetworkName>,
    /// SHA-256 of the public key in its certificate, in hexadecimal. It tells this node from an
    /// earlier one of the same name.
    pub key: String,
    /// The node's endpoints by network.
    pub endpoints: BTreeMap<NetworkName, EndpointRecord>,
    /// The blocks from which its workloads get addresses, by network.
    pub blocks: BTreeMap<NetworkName, Vec<IpNet>>,
    /// The reasons why it has no block of a network that it should serve.
    pub problems: BTreeMap<NetworkName, String>,
    /// `true` if it serves no network until an admin approves it.
    #[serde(default)]
    pub waiting: bool,
    /// The time without a session after which it is removed, in seconds.
    #[serde(default)]
    pub forget_after: Option<u64>,
}

impl NodeRecord {
    /// Returns `true` if its token and approval let it serve a network.
    pub fn may_serve(&self, network: &NetworkName) -> bool {
        !self.waiting && (self.networks.is_empty() || self.networks.contains(network))
    }
}

/// A node that was approved by name, before or after it joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovedNodeRecord {
    /// The node's name.
    pub name: NodeName,
    /// Labels that take precedence over those that the node joins with.
    pub labels: Labels,
}

/// A node's endpoint of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// The endpoint's WireGuard key.
    pub public_key: PublicKey,
    /// The addresses at which it may be reached, the most likely first.
    pub candidates: Vec<SocketAddr>,
    /// The key before the last rotation, which stays the node's as long as peers may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_key: Option<PublicKey>,
}

impl EndpointRecord {
    /// Returns the keys that belong to the node.
    pub fn keys(&self) -> impl Iterator<Item = PublicKey> {
        std::iter::once(self.public_key).chain(self.previous_key)
    }
}

/// A relay that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRecord {
    /// The relay's name.
    pub name: NodeName,
    /// The relay's number, by which nodes name it among their candidates.
    pub number: u16,
    /// The site that its token gave it.
    pub site: Option<String>,
    /// SHA-256 of the public key in its certificate, in hexadecimal.
    pub key: String,
    /// The addresses at which nodes reach it, as `HOST:PORT`; empty until it has connected.
    pub addresses: Vec<String>,
    /// The relay's UDP port for STUN.
    pub stun_port: u16,
}

/// The approval of a route: the prefix may be behind workloads of the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ApprovalRecord {
    /// The network.
    pub network: NetworkName,
    /// The node that runs the gateway.
    pub node: NodeName,
    /// The prefix behind the gateway.
    pub prefix: IpNet,
}
