//! Reports of a node: its endpoints, its workloads, the flows and packets that it has counted.

use crate::{codec::PART_BYTES, encoded_size};
use ipnet::IpNet;
use meshward_types::{
    AcceptFrom, Count, IdentityId, Labels, NetworkName, Protocol, PublicKey, WorkloadId,
    WorkloadName,
    bounded::{as_printable, as_printable_if_any, at_most},
    measurement::{ImageSignature, Measurement, Sha256},
    relay::RelayNumber,
};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The most elements of one list of a report. What people can get wrong has lower limits, and a
/// sentence.
pub(crate) const MAX_LISTED: usize = 1024;

pub(crate) const MAX_SEEN: usize = 256;

/// Where a node's endpoint of a network can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// The network.
    pub network: NetworkName,
    /// The endpoint's key.
    pub public_key: PublicKey,
    /// Its UDP port.
    pub port: u16,
    /// The addresses under which STUN servers see it.
    #[serde(deserialize_with = "at_most::<_, _, MAX_SEEN>")]
    pub reflexive: Vec<SocketAddr>,
    /// Addresses that its operator says it can be reached at.
    #[serde(deserialize_with = "at_most::<_, _, MAX_SEEN>")]
    pub advertised: Vec<SocketAddr>,
    /// The addresses of its interfaces; the coordinator adds the one that it sees.
    pub interfaces: Vec<SocketAddr>,
    /// The relays by which it can be reached, the nearest first.
    pub relays: Vec<RelayNumber>,
}

impl WorkloadReport {
    /// The report, without those of its signatures with which it would be too long for a message.
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
    /// Its id.
    pub id: WorkloadId,
    /// Its network.
    pub network: NetworkName,
    /// What people call it.
    pub name: WorkloadName,
    /// The labels that its owner declares.
    pub labels: Labels,
    /// Its addresses, out of the node's blocks.
    #[serde(deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway's route.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub prefixes: Vec<IpNet>,
    /// Its `WireGuard` key, if it is a device.
    #[serde(default)]
    pub device: Option<PublicKey>,
    /// What its owner declares about who may reach it.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub accepts: Vec<AcceptFrom>,
    /// What its node has measured; nothing for a process that no container runtime runs.
    #[serde(default)]
    pub measurement: Option<Arc<Measurement>>,
    /// The signatures that were found of its images.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_LISTED>")]
    pub signatures: Vec<(Sha256, Vec<ImageSignature>)>,
    /// Why it cannot be let in, whatever the network wants: what its node could not make sense of.
    #[serde(default, deserialize_with = "as_printable_if_any")]
    pub objection: Option<String>,
}

/// What a trigger has caught.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fired {
    /// The network.
    pub network: NetworkName,
    /// The trigger.
    #[serde(deserialize_with = "as_printable")]
    pub trigger: String,
    /// The workload.
    pub workload: WorkloadId,
    /// Flows that were denied in the trigger's time.
    pub denied_flows: u32,
    /// To so many ports.
    pub distinct_ports: u32,
    /// And so many addresses.
    pub distinct_addresses: u32,
}

/// Flows of one kind that a workload of the node has begun, or tried to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSeen {
    /// Who began them.
    pub from: IdentityId,
    /// With whom.
    pub to: IdentityId,
    /// What.
    pub protocol: Protocol,
    /// The destination port; 0 where the protocol has none.
    pub port: u16,
    /// Whether they passed.
    pub passed: bool,
}

/// The counters of one ordered pair of identities on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCount {
    /// The network.
    pub network: NetworkName,
    /// Who began the flows.
    pub from: IdentityId,
    /// With whom.
    pub to: IdentityId,
    /// The counters.
    pub count: Count,
}
