//! Services, and drains of their instances.

use crate::Enforcement;
use meshward_types::{
    NetworkName, NodeName, PortSpec, Revision, Selector, ServiceName, WorkloadId, WorkloadName,
    schema::{Address, Time},
    service::{Nearness, Serving},
};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};
use utoipa::ToSchema;

/// A service: a name and virtual addresses in front of workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// The network.
    pub network: NetworkName,
    /// The name, unique in the network.
    pub name: ServiceName,
    /// The DNS name.
    pub dns_name: String,
    /// The virtual addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// The instances, by their labels.
    pub selector: Selector,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// The kinds of nearness by which instances are preferred, the first one first.
    pub prefer: Vec<Nearness>,
    /// The health check, such as `http /healthz every 2s`; null if there is none.
    pub health: Option<String>,
    /// The number of instances that a client's node is linked with: `auto`, `all`, a number, or a
    /// range such as `5-50`.
    #[schema(pattern = "^(auto|all|[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?)$")]
    pub fan_out: String,
    /// How long a client keeps its instance, in seconds; null if each connection has its own choice.
    pub affinity_seconds: Option<u64>,
    /// The number of instances that get new connections.
    pub ready: usize,
    /// The number of instances that are drained.
    pub draining: usize,
    /// The number of instances whose health check fails.
    pub unhealthy: usize,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServicePort {
    /// The protocol.
    pub protocol: ServiceProtocol,
    /// The port at the virtual addresses.
    #[schema(minimum = 1)]
    pub port: u16,
    /// The port of the instances.
    #[schema(minimum = 1)]
    pub target: u16,
}

impl fmt::Display for ServicePort {
    /// Writes `tcp/80`, or `tcp/80 to 8080` if the instances have another port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, port, target } = self;
        let protocol = match protocol {
            ServiceProtocol::Tcp => "tcp",
            ServiceProtocol::Udp => "udp",
        };
        match port == target {
            true => write!(f, "{protocol}/{port}"),
            false => write!(f, "{protocol}/{port} to {target}"),
        }
    }
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A service with its instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceDetails {
    /// The service.
    pub service: Service,
    /// The rules by which clients reach it, in the order of the policy. Other rules and guardrails
    /// may deny what they allow.
    pub clients: Vec<ServiceClients>,
    /// The live load, as the nodes of clients report it.
    pub load: ServiceLoad,
    /// The instances, by node.
    pub instances: Vec<Instance>,
}

/// A rule by which clients reach a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceClients {
    /// The clients.
    pub from: Selector,
    /// The ports of the service.
    pub ports: Vec<PortSpec>,
    /// The name of the rule.
    pub rule: String,
}

/// The live load of a service: of the connections that clients have through it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceLoad {
    /// Open connections.
    pub open: u64,
    /// New connections a second.
    pub connects_per_second: u64,
    /// The number of instances that would be used to seven tenths of their limit.
    pub desired: usize,
    /// The nodes that are linked with a subset of the instances.
    pub clients: usize,
    /// The smallest subset; null if there are no clients with subsets.
    pub least_fan_out: Option<usize>,
    /// The largest subset.
    pub most_fan_out: Option<usize>,
}

/// The live load of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceLoad {
    /// Open connections.
    pub open: u64,
    /// New connections a second.
    pub connects_per_second: u64,
    /// The mean of the clients' smoothed times to connect, in microseconds; null if none is known.
    pub connect_micros: Option<u64>,
    /// The use in percent: 100 at the limit.
    pub used_percent: u64,
}

/// An instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// The workload.
    pub workload: WorkloadId,
    /// The name.
    pub name: WorkloadName,
    /// The node.
    pub node: NodeName,
    /// The site of the node.
    pub site: Option<String>,
    /// The addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// The share of new connections that it gets, in proportion to those of others.
    #[schema(minimum = 0, maximum = 1000)]
    pub weight: u16,
    /// The state.
    pub serving: Serving,
    /// The drain, of the instance itself or of its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// `true` if the instance is quarantined.
    pub quarantined: bool,
    /// The live load; null if no client reports any.
    pub load: Option<InstanceLoad>,
}

/// The target of a drain: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainTarget {
    /// One workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadId>,
    /// All workloads of a node, later ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

/// A drain to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BeginDrain {
    /// The target.
    #[serde(flatten)]
    pub target: DrainTarget,
    /// The reason, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A drain: workloads that get no new connections through services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// The target.
    #[serde(flatten)]
    pub target: DrainTarget,
    /// The time at which it began.
    #[schema(value_type = Time)]
    pub since: String,
    /// The actor that began it: `user:NAME`.
    pub by: String,
    /// The reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The number of workloads.
    pub workloads: usize,
}

/// The result of the beginning or the end of a drain.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DrainResult {
    /// The revision of the change.
    pub revision: Revision,
    /// The workloads that it affects.
    pub workloads: Vec<WorkloadId>,
    /// The enforcement.
    #[serde(flatten)]
    pub enforcement: Enforcement,
}

/// The open flows of drained workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainProgress {
    /// The workloads that still have flows which others began, with their number.
    pub workloads: Vec<OpenFlows>,
    /// The nodes that did not answer.
    pub nodes_silent: Vec<NodeName>,
}

/// The open flows of a workload that others began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenFlows {
    /// The workload.
    pub workload: WorkloadId,
    /// The number of flows.
    pub flows: u64,
}
