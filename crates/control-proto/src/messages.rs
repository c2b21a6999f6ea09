//! The messages of a session.

use crate::{
    Change, EndpointReport, Fired, FlowSeen, LinkCount, MAX_ANSWER, WorkloadReport,
    codec::PART_ELEMENTS,
    in_parts,
    relay::RelaySpec,
    view::{Digest, ResourceHashes},
};
use ipnet::IpNet;
use meshward_types::{
    Acl, IdentityId, Labels, NetworkName, NodeName, PublicKey, Revision, WorkloadId, WorkloadName,
    bounded::{as_printable, as_printable_if_any, at_most},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What tells one start of a node daemon from another: made at random at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub [u8; 16]);

/// What a node says in its session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromNode {
    /// First message: who the node is, and what view it has. [`Self::Has`] follows.
    Hello {
        /// The software's version.
        #[serde(deserialize_with = "as_printable")]
        version: String,
        /// The start of the daemon that speaks.
        instance: InstanceId,
        /// What its clock says, in seconds since the epoch.
        clock: i64,
        /// The revision of the view that it has.
        revision: Revision,
        /// The digest of that view.
        digest: Digest,
    },
    /// A part of what the node has. The parts together are all of it.
    Has {
        /// Endpoints.
        #[serde(deserialize_with = "at_most::<_, _, PART_ELEMENTS>")]
        endpoints: Vec<EndpointReport>,
        /// Workloads.
        #[serde(deserialize_with = "at_most::<_, _, PART_ELEMENTS>")]
        workloads: Vec<WorkloadReport>,
        /// Whether this is the last part.
        is_last: bool,
    },
    /// A part of the answer to [`FromCoordinator::Compare`].
    ResourceHashes {
        /// Items and their hashes.
        part: ResourceHashes,
        /// Whether this is the last part.
        is_last: bool,
    },
    /// An endpoint is new or has moved.
    Endpoint(EndpointReport),
    /// A workload has started.
    Started(WorkloadReport),
    /// A workload has stopped.
    Stopped(WorkloadId),
    /// The view of this revision is enforced, and on disk unless the node is degraded.
    Enforced(Revision),
    /// A workload of the node has done what a trigger waits for.
    Fired(Fired),
    /// The node calls a peer that it has no session with: the peer is to call back, so that NATs on
    /// both sides open.
    Call {
        /// The network.
        network: NetworkName,
        /// The peer.
        peer: NodeName,
    },
    /// The certificate is to be renewed.
    Renew {
        /// A PKCS #10 request (DER).
        csr: Vec<u8>,
    },
    /// What keeps the node from writing down what it has to, in words; nothing: all is well. It
    /// enforces all the same.
    Degraded(#[serde(deserialize_with = "as_printable_if_any")] Option<String>),
    /// The node leaves the mesh. The connection is closed with [`CLOSE_REMOVED`] once it is no
    /// member any more.
    Leave,
}

impl FromNode {
    /// What a node has, in parts.
    pub fn has(endpoints: Vec<EndpointReport>, workloads: Vec<WorkloadReport>) -> Vec<Self> {
        let endpoints = in_parts(endpoints).into_iter().map(|part| (part, vec![]));
        let workloads = in_parts(workloads.into_iter().map(WorkloadReport::fitted));
        let parts: Vec<_> =
            endpoints.chain(workloads.into_iter().map(|part| (vec![], part))).collect();
        let last = parts.len() - 1;
        let has =
            |(at, (endpoints, workloads))| Self::Has { endpoints, workloads, is_last: at == last };
        parts.into_iter().enumerate().map(has).collect()
    }

    /// What a view holds, in parts.
    pub fn resource_hashes(shadow: ResourceHashes) -> Vec<Self> {
        let parts = in_parts(shadow);
        let last = parts.len() - 1;
        let part = |(at, part): (usize, Vec<_>)| Self::ResourceHashes {
            part: part.into_iter().collect(),
            is_last: at == last,
        };
        parts.into_iter().enumerate().map(part).collect()
    }
}

/// What the coordinator says in a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromCoordinator {
    /// The digests differ: say what you have.
    Compare,
    /// These changes lead to this revision.
    Update {
        /// The revision after the changes.
        revision: Revision,
        /// The changes.
        changes: Vec<Change>,
        /// Whether somebody may wait for it: then the node says at once that it enforces the
        /// revision, otherwise within [`ENFORCED_WITHIN`].
        urgent: bool,
    },
    /// A workload is not admitted: it stays closed.
    Refused {
        /// Which.
        workload: WorkloadId,
        /// Why, and how to mend it.
        reason: String,
    },
    /// The node is over a budget that the coordinator has for each node.
    OverBudget {
        /// Which, and what becomes of it.
        budget: String,
    },
    /// Another machine with the same identity has the session: this one is to wait.
    Held {
        /// Why, and how to mend it.
        reason: String,
    },
    /// A peer calls: the node is to call back.
    Called {
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
    /// These are the relays, apart from the coordinator.
    Relays(Vec<RelaySpec>),
    /// Endpoints are to get other keys: those of these networks, or all.
    RotateKeys {
        /// The networks; none: all.
        networks: Vec<NetworkName>,
        /// How long the keys of before are good, in seconds.
        keep_old_seconds: u64,
    },
    /// An endpoint is not taken as it was reported: its key belongs to somebody else. What was
    /// known of it stays.
    RefusedEndpoint {
        /// The network.
        network: NetworkName,
        /// Why, and how to mend it.
        reason: String,
    },
}

/// What the coordinator asks of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Question {
    /// Whether the node is there.
    Alive,
    /// The counters of every link since the daemon started.
    Links,
    /// How many live flows these links would cut, were they like this.
    Cuts(NetworkName, Vec<(IdentityId, IdentityId, Acl)>),
    /// The flows that were begun or tried in the last so many seconds.
    Flows(NetworkName, u64),
    /// To take a device in.
    AddDevice(DeviceOrder),
    /// To turn a device away.
    RemoveDevice(WorkloadId),
}

/// A machine with a stock `WireGuard` that is to join by a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceOrder {
    /// The network.
    pub network: NetworkName,
    /// What people call it.
    pub name: WorkloadName,
    /// Its labels.
    pub labels: Labels,
    /// Its key.
    pub public_key: PublicKey,
}

/// What a device has to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceAnswer {
    /// The workload that it is.
    pub id: WorkloadId,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The key of the node's endpoint, for devices.
    pub public_key: PublicKey,
    /// What it reaches by the node.
    pub prefixes: Vec<IpNet>,
    /// MTU of its interface, in bytes.
    pub mtu: u16,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Question::Alive`].
    Alive,
    /// To [`Question::Links`].
    Links(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<LinkCount>),
    /// To [`Question::Cuts`]: by the workload of the node that began them.
    Cuts(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<(WorkloadId, u64)>),
    /// To [`Question::Flows`].
    Flows(#[serde(deserialize_with = "at_most::<_, _, MAX_ANSWER>")] Vec<FlowSeen>),
    /// To [`Question::AddDevice`], or why not.
    Device(Result<DeviceAnswer, String>),
    /// To [`Question::RemoveDevice`], or why not.
    Removed(Result<(), String>),
}

impl Answer {
    /// The answer in parts, of which each fits into a message.
    pub fn parts(self) -> Vec<Self> {
        match self {
            Self::Links(all) => in_parts(all).into_iter().map(Self::Links).collect(),
            Self::Cuts(all) => in_parts(all).into_iter().map(Self::Cuts).collect(),
            Self::Flows(all) => in_parts(all).into_iter().map(Self::Flows).collect(),
            other => vec![other],
        }
    }

    /// Adds a further part. `false`: it is none, or there is too much already.
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
            _ => false,
        }
    }
}
