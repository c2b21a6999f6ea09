//! Reachability of machines: relays, routes behind gateways, devices, and the keys of endpoints.

use ipnet::IpNet;
use meshward_types::schema::{Address, Cidr, SocketAddress, WireGuardKey};
use meshward_types::{
    labels::Labels,
    names::{NetworkName, NodeName, WorkloadId, WorkloadName},
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use utoipa::ToSchema;

/// A relay.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Relay {
    /// The name.
    pub name: NodeName,
    /// The relay number, which is the port in the addresses of relayed peers.
    pub number: u16,
    /// The site, from the join token.
    pub site: Option<String>,
    /// The addresses at which nodes reach it.
    pub addresses: Vec<String>,
    /// `true` if the relay is connected to the coordinator now.
    pub connected: bool,
    /// The number of nodes that report this relay as a home relay.
    pub nodes: usize,
}

/// A prefix behind a gateway.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// The network whose workloads reach the prefix.
    pub network: NetworkName,
    /// The prefix.
    #[schema(value_type = Cidr)]
    pub prefix: IpNet,
    /// The gateway.
    pub node: NodeName,
    /// The workload that represents the machines there; null while no node advertises the prefix.
    pub workload: Option<WorkloadId>,
    /// The labels of the machines there.
    pub labels: Labels,
    /// `true` if the route was approved by hand.
    pub approved_by_hand: bool,
    /// The state.
    pub state: RouteState,
    /// The reason why it is not open.
    pub reasons: Vec<String>,
}

/// The state of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RouteState {
    /// It is used, as far as policy allows.
    Open,
    /// It waits for approval.
    Waiting,
    /// It is approved, and its node does not advertise it.
    NotAdvertised,
}

/// A rotation of endpoint keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKeys {
    /// Endpoints of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Endpoints of this network; with `node`, only that of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// All endpoints of all nodes and networks. Only without `node` and `network`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// The time for which the old keys stay valid, in seconds, for peers that have no session with
    /// the coordinator.
    #[serde(default = "ten_minutes")]
    #[schema(maximum = 2_592_000)]
    pub keep_old_seconds: u64,
}

fn ten_minutes() -> u64 {
    600
}

/// The result.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotatedKeys {
    /// The endpoints concerned.
    pub endpoints: usize,
    /// The endpoints with a new key.
    pub rotated: usize,
    /// The nodes that are away, which keep their keys.
    pub away: Vec<NodeName>,
    /// The time for which the old keys stay valid, in seconds.
    pub keep_old_seconds: u64,
}

/// A device to create.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDevice {
    /// The name, unique among the devices of the gateway.
    pub name: WorkloadName,
    /// The network.
    pub network: NetworkName,
    /// The labels.
    #[serde(default)]
    pub labels: Labels,
    /// The gateway: the node through which the device joins. Default: the only connected node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<NodeName>,
    /// The WireGuard public key, in base64.
    #[schema(value_type = WireGuardKey)]
    pub public_key: String,
}

/// The configuration for a device.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedDevice {
    /// The name.
    pub name: WorkloadName,
    /// The gateway: the node through which the device joins.
    pub gateway: NodeName,
    /// The workload of the device.
    pub workload: Option<WorkloadId>,
    /// The addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// The gateway's key for devices, in base64.
    pub public_key: String,
    /// The gateway's address and port.
    #[schema(value_type = SocketAddress)]
    pub endpoint: SocketAddr,
    /// The prefixes that the device reaches through the gateway.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
    /// The MTU of its interface, in bytes.
    pub mtu: u16,
}

impl CreatedDevice {
    /// Returns the file for `wg-quick(8)` of a device that reaches its gateway at `endpoint`, or at
    /// the address that the coordinator knows.
    pub fn wg_quick(&self, private_key: Option<&str>, endpoint: Option<&str>) -> String {
        let private = private_key.unwrap_or("(the private key of the device)");
        let endpoint = endpoint.map_or_else(|| self.endpoint.to_string(), ToOwned::to_owned);
        format!(
            "[Interface]\nPrivateKey = {private}\nAddress = {}\nMTU = {}\n\n[Peer]\nPublicKey = \
            {}\nEndpoint = {endpoint}\nAllowedIPs = {}\nPersistentKeepalive = 25\n",
            commas(&self.addresses),
            self.mtu,
            self.public_key,
            commas(&self.prefixes),
        )
    }
}

fn commas<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A device: a machine with any WireGuard client.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The name.
    pub name: WorkloadName,
    /// The network.
    pub network: NetworkName,
    /// The gateway: the node through which the device joins.
    pub gateway: NodeName,
    /// The workload of the device.
    pub workload: WorkloadId,
    /// The addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// The labels, including verified ones.
    pub labels: Labels,
    /// The WireGuard public key, in base64.
    #[schema(value_type = WireGuardKey)]
    pub public_key: String,
}

/// The approval of a route, or its withdrawal.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveRoute {
    /// The network. It may be omitted if only one is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// The prefix.
    #[schema(value_type = Cidr)]
    pub prefix: IpNet,
    /// The gateway.
    pub node: NodeName,
}

/// The approval of an egress gateway, or its withdrawal.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveEgress {
    /// The network. It may be omitted if the node is an egress gateway of one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// The gateway.
    pub node: NodeName,
}
