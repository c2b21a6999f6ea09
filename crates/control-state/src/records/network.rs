//! Records of networks.

use ipnet::IpNet;
use meshward_types::{NetworkName, ServiceName};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The network's name.
    pub name: NetworkName,
    /// The network's prefixes: at most one of each address family.
    pub prefixes: Vec<IpNet>,
    /// The prefix length of a node's IPv4 block.
    pub block_v4: u8,
    /// The prefix length of a node's IPv6 block.
    pub block_v6: u8,
    /// The MTU of the workloads' interfaces, in bytes.
    pub mtu: u16,
    /// The blocks from which services get virtual addresses; no node has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_blocks: Vec<IpNet>,
    /// The addresses at which nodes answer DNS: at most one of each address family, in the first
    /// service block of the family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolver: Vec<IpAddr>,
}

impl NetworkRecord {
    /// Returns the prefix length of a node's block of one of the prefixes.
    pub fn block_length(&self, prefix: IpNet) -> u8 {
        if matches!(prefix, IpNet::V4(_)) { self.block_v4 } else { self.block_v6 }
    }
}

/// The virtual addresses of a service, which it keeps while the network's policy names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// The network.
    pub network: NetworkName,
    /// The service's name.
    pub name: ServiceName,
    /// The virtual addresses: at most one of each address family.
    pub addresses: Vec<IpAddr>,
}
