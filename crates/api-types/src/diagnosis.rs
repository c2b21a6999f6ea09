//! Diagnosis by a node: the path to another node, and the network around this one.

use meshward_types::{
    labels::Labels,
    names::{NetworkName, NodeName, WorkloadId, WorkloadName},
    relay::RelayNumber,
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A node to be pinged, by the path that packets to it take.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// A node's name, or an id, the name on this node or an address of a workload.
    pub target: String,
    /// The network; the only one, if this is left out.
    #[serde(default)]
    pub network: Option<NetworkName>,
    /// The node of the workload, where this node does not know the workload.
    #[serde(default)]
    pub node: Option<NodeName>,
}

/// The kind of path to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// It is this node.
    Local,
    /// Directly from one to the other.
    Direct,
    /// By a relay.
    Relayed,
    /// None: there is no session.
    None,
}

/// The result of a ping.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pong {
    /// The node that was asked.
    pub node: NodeName,
    /// The network.
    pub network: NetworkName,
    /// The workload that was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadId>,
    /// The labels, as policy sees them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// The round-trip time in microseconds; left out if no answer came.
    pub round_trip_us: Option<u64>,
    /// The kind of path.
    pub path: PathKind,
    /// The destination address, if the path is direct.
    pub address: Option<SocketAddr>,
    /// The relay, if the path is relayed.
    pub relay: Option<RelayNumber>,
    /// The path MTU in bytes, once it is known.
    pub path_mtu: Option<u16>,
    /// The network's MTU in bytes.
    pub network_mtu: u16,
    /// The policy between each workload of this node in the network and the target
    /// workload.
    #[serde(default)]
    pub policy: Vec<PolicyBetween>,
}

/// The policy between a workload of this node and another workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyBetween {
    /// The workload of this node.
    pub workload: WorkloadId,
    /// The name.
    pub name: WorkloadName,
    /// The flows that the local workload may begin, such as `tcp/8080`; empty: none.
    pub to: String,
    /// The flows that the other workload may begin.
    pub from: String,
    /// `true` if one of the two is quarantined or refused, so that only forensics passes.
    pub isolated: bool,
}

/// The network around a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Netcheck {
    /// The node.
    pub node: NodeName,
    /// `true` if the node has a session with the coordinator.
    pub connected: bool,
    /// `true` if UDP passes; null if no server answers by UDP or TCP.
    pub udp: Option<bool>,
    /// The node's outer IPv4 address and port.
    pub ipv4: Option<SocketAddr>,
    /// The node's outer IPv6 address and port.
    pub ipv6: Option<SocketAddr>,
    /// `true` if the node has a global IPv6 address.
    pub has_ipv6: bool,
    /// The NAT in front of this node, as far as STUN shows it.
    pub nat: NatProfile,
    /// Port mappings from the router, by PCP or NAT-PMP.
    pub port_mapping: PortMappings,
    /// The relays, the nearest first.
    pub relays: Vec<RelayCheck>,
    /// The home relays: those by which peers can reach this node.
    pub home_relays: Vec<RelayNumber>,
    /// The addresses of this machine.
    pub addresses: Vec<IpAddr>,
}

/// The behaviour of the NAT in front of a node, in the terms of RFC 4787.
///
/// Filtering and hairpinning are not measured: that takes a STUN server that answers from a second
/// address (RFC 5780).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatProfile {
    /// The mapping behaviour.
    pub mapping: NatMapping,
    /// `true` if the outer port of the socket is the inner one (port preservation, RFC 4787
    /// §4.2.1); null if there is no NAT, or none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preserves_port: Option<bool>,
}

/// The mapping behaviour of a NAT (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatMapping {
    /// There is no NAT: the address that STUN servers see is one of this machine's.
    None,
    /// A socket has one outer address and port for all destinations (a "cone" NAT), so peers can
    /// connect to it by hole punching.
    EndpointIndependent,
    /// A socket has another outer address or port for each destination (a "symmetric" NAT):
    /// address-dependent, or address- and port-dependent mapping. A peer connects directly only if
    /// this node can reach it first.
    EndpointDependent,
    /// There is a NAT. Its mapping takes answers from STUN servers at two addresses, and there was
    /// one.
    Undetermined,
    /// No STUN server outside this machine answered.
    Unknown,
}

/// Port mappings from the router, by PCP (RFC 6887) or NAT-PMP (RFC 6886).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappings {
    /// `true` if this node asks the router (`port_mapping`).
    pub wanted: bool,
    /// The router's external address, if it answers NAT-PMP or PCP.
    pub router: Option<IpAddr>,
    /// The ports that are mapped for this node's endpoints.
    pub mapped: Vec<SocketAddr>,
}

/// The reachability of a relay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RelayCheck {
    /// The relay number; 1 is the coordinator.
    pub number: RelayNumber,
    /// The first of its addresses.
    pub address: String,
    /// The round-trip time by UDP in microseconds, if it answers.
    pub udp_us: Option<u64>,
    /// The time to open a TCP connection in microseconds, if that succeeds.
    pub tcp_us: Option<u64>,
}
