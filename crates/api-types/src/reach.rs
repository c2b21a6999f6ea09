//! How machines are reached: relays, routes to what is behind gateways, devices, and the keys of
//! endpoints.

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
    /// Its name.
    pub name: NodeName,
    /// Its number, which addresses of relayed peers have as their port.
    pub number: u16,
    /// Its site, as its token says.
    pub site: Option<String>,
    /// Where nodes reach it.
    pub addresses: Vec<String>,
    /// Whether it is connected to the coordinator now.
    pub connected: bool,
    /// Nodes that can be reached by it, by their own word.
    pub nodes: usize,
}

/// A prefix behind a gateway.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// The network whose workloads reach it.
    pub network: NetworkName,
    /// The prefix.
    #[schema(value_type = Cidr)]
    pub prefix: IpNet,
    /// The gateway.
    pub node: NodeName,
    /// The workload that stands for what is behind it; none while nobody advertises it.
    pub workload: Option<WorkloadId>,
    /// The labels of all machines there.
    pub labels: Labels,
    /// Whether somebody has approved it by hand.
    pub approved_by_hand: bool,
    /// How far it has come.
    pub state: RouteState,
    /// Why it is not open.
    pub reasons: Vec<String>,
}

/// How far a route has come.
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

/// Other keys for endpoints.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKeys {
    /// Those of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Those of this network; with `node`, only those of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// Those of all nodes in all networks. Only without `node` and `network`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// How long the keys of before are good, in seconds: for peers that are away from the
    /// coordinator.
    #[serde(default = "ten_minutes")]
    #[schema(maximum = 2_592_000)]
    pub keep_old_seconds: u64,
}

fn ten_minutes() -> u64 {
    600
}

/// What has become of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotatedKeys {
    /// The endpoints that it is about.
    pub endpoints: usize,
    /// Those that have another key now.
    pub rotated: usize,
    /// The nodes that are away: they keep theirs.
    pub away: Vec<NodeName>,
    /// How long the keys of before are good, in seconds.
    pub keep_old_seconds: u64,
}

/// A machine with a stock WireGuard, to be taken in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDevice {
    /// Its name, unique among the devices of its gateway.
    pub name: WorkloadName,
    /// Its network.
    pub network: NetworkName,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// The node by which it joins; the only connected one, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<NodeName>,
    /// Its WireGuard key, in base64.
    #[schema(value_type = WireGuardKey)]
    pub public_key: String,
}

/// What a device has to know.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedDevice {
    /// Its name.
    pub name: WorkloadName,
    /// The node by which it joins.
    pub gateway: NodeName,
    /// The workload that it is.
    pub workload: Option<WorkloadId>,
    /// Its addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// The gateway's key for devices, in base64.
    pub public_key: String,
    /// Where the gateway is.
    #[schema(value_type = SocketAddress)]
    pub endpoint: SocketAddr,
    /// What it reaches by the gateway.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
    /// MTU of its interface, in bytes.
    pub mtu: u16,
}

impl CreatedDevice {
    /// The file that wg-quick(8) takes, of a device that reaches its gateway at `endpoint`, or else
    /// where the coordinator knows it to be.
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

/// A machine with a stock WireGuard.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// Its name.
    pub name: WorkloadName,
    /// Its network.
    pub network: NetworkName,
    /// The node by which it joins.
    pub gateway: NodeName,
    /// The workload that it is.
    pub workload: WorkloadId,
    /// Its addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// Its labels, verified ones included.
    pub labels: Labels,
    /// Its WireGuard key, in base64.
    #[schema(value_type = WireGuardKey)]
    pub public_key: String,
}

/// An approval of a route, or its end.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveRoute {
    /// The network; may be left out if it is plain which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// The prefix.
    #[schema(value_type = Cidr)]
    pub prefix: IpNet,
    /// The gateway.
    pub node: NodeName,
}
