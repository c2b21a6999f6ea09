//! Records of networks.

use ipnet::IpNet;
use meshward_types::NetworkName;
use serde::{Deserialize, Serialize};

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
}
