//! Reports of a node: its endpoints, workloads, flows and packet counters.

use crate::{codec::PART_BYTES, encoded_size};
use ipnet::IpNet;
use meshward_types::{
    AcceptFrom, Count, IdentityId, Labels, NetworkName, Protocol, PublicKey, ServiceName,
    WorkloadId, WorkloadName,
    bounded::{as_printable, as_printable_if_any, at_most},
    measurement::{ImageSignature, Measurement, Sha256},
    relay::RelayNumber,
};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// The largest number of elements in a list of a report. Lists that users control have lower
/// limits, with an error that explains them.
pub(crate) const MAX_LISTED: usize = 1024;

pub(crate) const MAX_SEEN: usize = 256;

/// The largest number of services for which a workload is unhealthy: those of a network.
const MAX_UNHEALTHY: usize = 4096;

/// A node's endpoint of a network, with its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// The network.
    pub network: NetworkName,
    /// The endpoint's key.
    pub public_key: PublicKey,
    /// The endpoint's UDP port.
    pub port: u16,
    /// The endpoint's addresses as STUN servers see it.
    #[serde(deserialize_with = "at_most::<_, _, MAX_SEEN>")]
    pub reflexive: Vec<SocketAddr>,
    /// The addresses at which its operator says it can be reached.
    #[serde(deserialize_with = "at_most::<_, _, MAX_SEEN>")]
    pub advertised: Vec<SocketAddr>,
    /// The addresses of the node's interfaces; the coordinator adds the one that it sees.
    pub interfaces: Vec<SocketAddr>,
    /// The relays through which it can be reached, the nearest first.
    pub relays: Vec<RelayNumber>,
}

impl WorkloadReport {
    /// Returns the report without those of its signatures that would make it too long for a
    /// message.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        while !self.signatures.is_empty() && encoded_size(&self) > PART_BYTES {
            self.signatures.pop();
        }
        self
    }
}

/// A workload that a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// The workload's id.
    pub id: WorkloadId,
    /// The workload's network.
    pub network: NetworkName,
    /// The name that people use for it.
    pub name: WorkloadName,
    /// The labels that its owner declares.
    pub labels: Labels,
    /// The addresses that it has from the node's blocks.
    #[serde(deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is the route of a gateway.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub prefixes: Vec<IpNet>,
    /// The WireGuard key of a device.
    #[serde(default)]
    pub device: Option<PublicKey>,
    /// The workloads that its owner lets reach it.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub accepts: Vec<AcceptFrom>,
    /// The node's measurement; `None` for a process without a container runtime.
    #[serde(default)]
    pub measurement: Option<Arc<Measurement>>,
    /// The signatures found of its images.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub signatures: Vec<ImageSignatures>,
    /// The reason for refusing it under any policy: a configuration that the node could not
    /// understand.
    #[serde(default, deserialize_with = "as_printable_if_any")]
    pub objection: Option<String>,
    /// The services whose health check of it fails.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_UNHEALTHY>")]
    pub unhealthy: Vec<ServiceName>,
}

impl WorkloadReport {
    /// Creates the report of a workload of which a node reports no more than this: a process with
    /// addresses from the node's blocks.
    pub fn of_process(
        id: WorkloadId,
        network: NetworkName,
        name: WorkloadName,
        labels: Labels,
        addresses: Vec<IpAddr>,
    ) -> Self {
        Self {
            id,
            network,
            name,
            labels,
            addresses,
            prefixes: vec![],
            device: None,
            accepts: vec![],
            measurement: None,
            signatures: vec![],
            objection: None,
            unhealthy: vec![],
        }
    }
}

/// The signatures found of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSignatures {
    /// The image's digest.
    pub image: Sha256,
    /// The signatures.
    pub signatures: Vec<ImageSignature>,
}

/// The largest number of instances of which a node reports the load.
pub const MAX_LOADS: usize = 1024;

/// The load of an instance: the flows that a node's workloads have with it through a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLoad {
    /// The network.
    pub network: NetworkName,
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: WorkloadId,
    /// The flows that are open.
    pub open: u32,
    /// The flows that were begun in the last second.
    pub begun: u32,
    /// The smoothed time to connect; `None` if it is not known.
    pub connect_time: Option<Duration>,
}

/// A trigger that has fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fired {
    /// The network.
    pub network: NetworkName,
    /// The trigger.
    #[serde(deserialize_with = "as_printable")]
    pub trigger: String,
    /// The workload.
    pub workload: WorkloadId,
    /// The number of denied flows within the trigger's time span.
    pub denied_flows: u32,
    /// The number of different destination ports.
    pub distinct_ports: u32,
    /// The number of different destination addresses.
    pub distinct_addresses: u32,
}

/// Flows of one kind that the node's workloads began or tried to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedFlow {
    /// The identity that began them.
    pub from: IdentityId,
    /// The identity at the other end.
    pub to: IdentityId,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; 0 where the protocol has none.
    pub port: u16,
    /// `true` if they passed.
    pub passed: bool,
}

/// The counters of one ordered pair of identities on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCount {
    /// The network.
    pub network: NetworkName,
    /// The identity that began the flows.
    pub from: IdentityId,
    /// The identity at the other end.
    pub to: IdentityId,
    /// The counters.
    pub count: Count,
}
