//! The messages of a session.

use crate::{
    Change, EndpointReport, Fired, InstanceLoad, LinkCount, LoggedFlow, MAX_ANSWER, MAX_LOADS,
    WorkloadReport,
    codec::PART_ELEMENTS,
    in_parts,
    relay::RelaySpec,
    view::{Digest, ResourceHashes},
};
use ipnet::IpNet;
use meshward_types::{
    Acl, Health, IdentityId, Labels, NetworkName, NodeName, PublicKey, Revision, ServiceName,
    WorkloadId, WorkloadName,
    bounded::{as_printable, as_printable_if_any, at_most},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The id of one start of a node's daemon, chosen at random at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub [u8; 16]);

/// A message from a node in its session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromNode {
    /// The first message: the node's state and the view that it holds. [`Self::Inventory`] follows.
    Hello {
        /// The version of the software.
        #[serde(deserialize_with = "as_printable")]
        version: String,
        /// The start of the daemon that sends it.
        instance: InstanceId,
        /// The node's clock, in seconds since the Unix epoch.
        clock: i64,
        /// The revision of the view that it holds.
        revision: Revision,
        /// The digest of that view.
        digest: Digest,
    },
    /// A part of the endpoints and workloads that the node has. All parts together are the whole.
    Inventory {
        /// The endpoints of this part.
        #[serde(deserialize_with = "at_most::<_, _, PART_ELEMENTS>")]
        endpoints: Vec<EndpointReport>,
        /// The workloads of this part.
        #[serde(deserialize_with = "at_most::<_, _, PART_ELEMENTS>")]
        workloads: Vec<WorkloadReport>,
        /// `true` for the last part.
        is_last: bool,
    },
    /// A part of the answer to [`FromCoordinator::Compare`].
    ResourceHashes {
        /// Keys and hashes of resources.
        part: ResourceHashes,
        /// `true` for the last part.
        is_last: bool,
    },
    /// An endpoint was created or has moved.
    Endpoint(EndpointReport),
    /// A workload has started.
    Started(WorkloadReport),
    /// A workload has stopped.
    Stopped(WorkloadId),
    /// The node enforces this revision. Its view is on disk, unless the node is degraded.
    Enforced(Revision),
    /// A trigger has fired for a workload of the node.
    Fired(Fired),
    /// A hole-punch request: the node has no session with the peer, which is to send packets to it,
    /// so that NATs on both sides open.
    PunchHole {
        /// The network.
        network: NetworkName,
        /// The peer.
        peer: NodeName,
    },
    /// A request to renew the certificate.
    Renew {
        /// A PKCS #10 request (DER).
        csr: Vec<u8>,
    },
    /// The reason why the node cannot write its state, in words; `None` if it can. It enforces
    /// policy all the same.
    Degraded(#[serde(deserialize_with = "as_printable_if_any")] Option<String>),
    /// The node leaves the mesh. The coordinator removes it, then closes the connection with
    /// [`CLOSE_REMOVED`](crate::CLOSE_REMOVED).
    Leave,
    /// A service's health check of a workload of the node has another finding.
    Health {
        /// The workload.
        workload: WorkloadId,
        /// The service.
        service: ServiceName,
        /// The finding.
        health: Health,
    },
    /// The load of all instances that the node's workloads have flows with through services: at most
    /// once a second, and only if it has changed.
    Load(#[serde(deserialize_with = "at_most::<_, _, MAX_LOADS>")] Vec<InstanceLoad>),
}

impl FromNode {
    /// Returns the node's endpoints and workloads, in parts.
    pub fn inventory(endpoints: Vec<EndpointReport>, workloads: Vec<WorkloadReport>) -> Vec<Self> {
        let endpoints = in_parts(endpoints).into_iter().map(|part| (part, vec![]));
        let workloads = in_parts(workloads.into_iter().map(WorkloadReport::fitted));
        let parts: Vec<_> =
            endpoints.chain(workloads.into_iter().map(|part| (vec![], part))).collect();
        let last = parts.len() - 1;
        let message = |(at, (endpoints, workloads))| Self::Inventory {
            endpoints,
            workloads,
            is_last: at == last,
        };
        parts.into_iter().enumerate().map(message).collect()
    }

    /// Returns a view's hashes, in parts.
    pub fn resource_hashes(hashes: ResourceHashes) -> Vec<Self> {
        let parts = in_parts(hashes);
        let last = parts.len() - 1;
        let part = |(at, part): (usize, Vec<_>)| Self::ResourceHashes {
            part: part.into_iter().collect(),
            is_last: at == last,
        };
        parts.into_iter().enumerate().map(part).collect()
    }
}

/// A message from the coordinator in a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromCoordinator {
    /// The digests differ: the node is to send the hashes of its resources.
    Compare,
    /// Changes that lead to a revision.
    Update {
        /// The revision after these changes.
        revision: Revision,
        /// The changes.
        changes: Vec<Change>,
        /// `true` if somebody may wait for this revision. Then the node acknowledges it at once,
        /// otherwise within [`ENFORCED_WITHIN`](crate::ENFORCED_WITHIN).
        urgent: bool,
    },
    /// A workload is refused: it stays closed.
    Refused {
        /// The workload's id.
        workload: WorkloadId,
        /// The reason, and how to fix it.
        reason: String,
    },
    /// The node has reached a limit that the coordinator sets for each node.
    OverBudget {
        /// The limit, and what happens beyond it.
        budget: String,
    },
    /// Another machine with this node's identity has the session: this one is to wait.
    StandBy {
        /// The reason, and how to fix it.
        reason: String,
    },
    /// A hole-punch request of a peer: the node is to send packets to it.
    PunchHole {
        /// The network.
        network: NetworkName,
        /// The peer.
        peer: NodeName,
    },
    /// The renewed certificate (DER).
    Renewed {
        /// The certificate.
        certificate: Vec<u8>,
    },
    /// All relays but the coordinator.
    Relays(Vec<RelaySpec>),
    /// A request to rotate the keys of endpoints.
    RotateKeys {
        /// The networks of these endpoints; empty for all.
        networks: Vec<NetworkName>,
        /// The time for which the old keys stay valid, in seconds.
        keep_old_seconds: u64,
    },
    /// An endpoint is refused because its key belongs to another node. The endpoint stays as it was
    /// known.
    RefusedEndpoint {
        /// The network.
        network: NetworkName,
        /// The reason, and how to fix it.
        reason: String,
    },
}

/// A request of the coordinator to a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Question {
    /// A check that the node answers.
    Alive,
    /// The counters of every link since the daemon started.
    Links,
    /// The live flows that would be cut if these links had these ACLs.
    Cuts {
        /// The network of the links.
        network: NetworkName,
        /// The links, with the ACLs that they would have.
        links: Vec<LinkAcl>,
    },
    /// The flows that were begun or tried lately.
    Flows {
        /// The network.
        network: NetworkName,
        /// The length of the time before now, in seconds.
        seconds: u64,
    },
    /// Adds a device.
    AddDevice(DeviceOrder),
    /// Removes a device.
    RemoveDevice(WorkloadId),
    /// The open flows that others have begun to these workloads of the node.
    OpenFlows {
        /// The network.
        network: NetworkName,
        /// The workloads.
        workloads: Vec<WorkloadId>,
    },
}

/// A link with its ACL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkAcl {
    /// The identity that begins the flows.
    pub from: IdentityId,
    /// The identity at the other end.
    pub to: IdentityId,
    /// The ACL.
    pub acl: Acl,
}

/// The live flows of a workload that would be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadCuts {
    /// The workload that began the flows.
    pub workload: WorkloadId,
    /// The number of flows.
    pub flows: u64,
}

/// The live flows that others have begun to a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadFlows {
    /// The workload.
    pub workload: WorkloadId,
    /// The number of flows.
    pub flows: u64,
}

/// A machine with a stock WireGuard that joins through a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceOrder {
    /// The network.
    pub network: NetworkName,
    /// The name that people use for it.
    pub name: WorkloadName,
    /// The device's labels.
    pub labels: Labels,
    /// The device's WireGuard key.
    pub public_key: PublicKey,
}

/// The settings that a device needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceAnswer {
    /// The id of the device's workload.
    pub id: WorkloadId,
    /// The device's addresses.
    pub addresses: Vec<IpAddr>,
    /// The key of the node's endpoint for devices.
    pub public_key: PublicKey,
    /// The prefixes that it reaches through the node.
    pub prefixes: Vec<IpNet>,
    /// The MTU of the device's interface, in bytes.
    pub mtu: u16,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// The answer to [`Question::Alive`].
    Alive,
    /// The answer to [`Question::Links`].
    Links(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<LinkCount>),
    /// The answer to [`Question::Cuts`], by the workload of the node that began the flows.
    Cuts(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<WorkloadCuts>),
    /// The answer to [`Question::Flows`].
    Flows(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<LoggedFlow>),
    /// The answer to [`Question::AddDevice`], or the reason for refusing it.
    Device(Result<DeviceAnswer, String>),
    /// The answer to [`Question::RemoveDevice`], or the reason for refusing it.
    Removed(Result<(), String>),
    /// The answer to [`Question::OpenFlows`]: the workloads that have any, with their number.
    OpenFlows(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<WorkloadFlows>),
}

impl Answer {
    /// Returns the answer in parts that fit into a message each.
    pub fn parts(self) -> Vec<Self> {
        match self {
            Self::Links(all) => in_parts(all).into_iter().map(Self::Links).collect(),
            Self::Cuts(all) => in_parts(all).into_iter().map(Self::Cuts).collect(),
            Self::Flows(all) => in_parts(all).into_iter().map(Self::Flows).collect(),
            Self::OpenFlows(all) => in_parts(all).into_iter().map(Self::OpenFlows).collect(),
            other => vec![other],
        }
    }

    /// Appends a further part. Returns `false` if it is of another kind, or the answer gets too
    /// long.
    pub fn add(&mut self, part: Self) -> bool {
        fn join<T>(all: &mut Vec<T>, part: Vec<T>) -> bool {
            let fits = all.len() + part.len() <= MAX_ANSWER;
            if fits {
                all.extend(part);
            }
            fits
        }
        match (self, part) {
            (Self::Links(all), Self::Links(part)) => join(all, part),
            (Self::Cuts(all), Self::Cuts(part)) => join(all, part),
            (Self::Flows(all), Self::Flows(part)) => join(all, part),
            (Self::OpenFlows(all), Self::OpenFlows(part)) => join(all, part),
            _ => false,
        }
    }
}
