//! Networks.

use ipnet::IpNet;
use meshward_types::{
    NetworkName,
    schema::{Address, Cidr},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;

/// A network to create.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// The name.
    pub name: NetworkName,
    /// The prefixes: at most one of each address family.
    #[schema(value_type = Vec<Cidr>, min_items = 1, max_items = 2)]
    pub prefixes: Vec<IpNet>,
    /// The prefix length of each node's IPv4 block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 30)]
    pub block_v4: Option<u8>,
    /// The prefix length of each node's IPv6 block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 124)]
    pub block_v6: Option<u8>,
    /// The MTU of the workloads' interfaces, in bytes (1280 to 9000).
    #[serde(default = "default_mtu")]
    #[schema(minimum = 1280, maximum = 9000)]
    pub mtu: u16,
}

fn default_mtu() -> u16 {
    1420
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// The name.
    pub name: NetworkName,
    /// The prefixes.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
    /// The prefix length of a node's IPv4 block.
    pub block_v4: u8,
    /// The prefix length of a node's IPv6 block.
    pub block_v6: u8,
    /// The MTU of the workloads' interfaces, in bytes.
    pub mtu: u16,
    /// The blocks from which services get virtual addresses.
    #[serde(default)]
    #[schema(value_type = Vec<Cidr>)]
    pub service_blocks: Vec<IpNet>,
    /// The addresses at which nodes answer DNS queries of workloads: at most one of each address
    /// family.
    #[serde(default)]
    #[schema(value_type = Vec<Address>)]
    pub resolver: Vec<IpAddr>,
}

/// A node's block of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Block {
    /// The network.
    pub network: NetworkName,
    /// The prefixes from which the node assigns addresses to its workloads.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
}
