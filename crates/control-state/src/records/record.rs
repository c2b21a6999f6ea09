//! Records under their keys, and changes of them.

use super::{
    access::{CredentialRecord, TokenRecord},
    drain::{DrainRecord, DrainTarget},
    network::{NetworkRecord, ServiceRecord},
    node::{ApprovalRecord, ApprovedNodeRecord, NodeRecord, RelayRecord},
    policy::PolicyRecord,
    quarantine::QuarantineRecord,
    workload::{IdentityRecord, ImageRecord, RefusedRecord, WorkloadRecord},
};
use meshward_types::{
    IdentityId, NetworkName, NodeName, ServiceName, WorkloadId, measurement::Sha256,
};
use serde::{Deserialize, Serialize};

/// One entry of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A network.
    Network(NetworkRecord),
    /// A node that has joined.
    Node(NodeRecord),
    /// A node that was approved by name.
    ApprovedNode(ApprovedNodeRecord),
    /// A relay that has joined.
    Relay(RelayRecord),
    /// The approval of a route.
    Approval(ApprovalRecord),
    /// A join token.
    Token(TokenRecord),
    /// A credential for the API.
    Credential(CredentialRecord),
    /// An identity.
    Identity(IdentityRecord),
    /// An admitted workload.
    Workload(WorkloadRecord),
    /// A workload that admission refuses, under the same key as a [`Record::Workload`].
    Refused(Box<RefusedRecord>),
    /// The signatures of an image.
    Image(ImageRecord),
    /// A network's policy.
    Policy(PolicyRecord),
    /// A quarantine in force.
    Quarantine(QuarantineRecord),
    /// The virtual addresses of a service.
    Service(ServiceRecord),
    /// A drain.
    Drain(DrainRecord),
}

/// The key of a record, which is unique in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKey {
    /// [`Record::Network`].
    Network(NetworkName),
    /// [`Record::Node`].
    Node(NodeName),
    /// [`Record::ApprovedNode`].
    ApprovedNode(NodeName),
    /// [`Record::Relay`].
    Relay(NodeName),
    /// [`Record::Approval`]: the whole record.
    Approval(ApprovalRecord),
    /// [`Record::Token`].
    Token(String),
    /// [`Record::Credential`].
    Credential(String),
    /// [`Record::Identity`].
    Identity(IdentityId),
    /// [`Record::Workload`] or [`Record::Refused`].
    Workload(WorkloadId),
    /// [`Record::Image`].
    Image(Sha256),
    /// [`Record::Policy`].
    Policy(NetworkName),
    /// [`Record::Quarantine`].
    Quarantine(String),
    /// [`Record::Service`].
    Service(NetworkName, ServiceName),
    /// [`Record::Drain`].
    Drain(DrainTarget),
}

/// A record's key as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The kind of record.
    pub kind: &'static str,
    /// The name, which is unique within the kind.
    pub name: String,
}

impl Record {
    /// Returns the position in the order of loading: a record comes after all that it refers to.
    pub fn load_order(&self) -> u8 {
        match self {
            Self::Network(_) | Self::Quarantine(_) | Self::Image(_) | Self::Drain(_) => 0,
            Self::Node(_)
            | Self::ApprovedNode(_)
            | Self::Relay(_)
            | Self::Approval(_)
            | Self::Service(_) => 1,
            Self::Identity(_) | Self::Policy(_) => 2,
            Self::Token(_) | Self::Credential(_) | Self::Workload(_) | Self::Refused(_) => 3,
        }
    }

    /// Returns the key under which the record is stored.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Network(record) => RecordKey::Network(record.name.clone()),
            Self::Node(record) => RecordKey::Node(record.name.clone()),
            Self::ApprovedNode(record) => RecordKey::ApprovedNode(record.name.clone()),
            Self::Relay(record) => RecordKey::Relay(record.name.clone()),
            Self::Approval(record) => RecordKey::Approval(record.clone()),
            Self::Token(record) => RecordKey::Token(record.id.clone()),
            Self::Credential(record) => RecordKey::Credential(record.name.clone()),
            Self::Identity(record) => RecordKey::Identity(record.id),
            Self::Workload(record) => RecordKey::Workload(record.id.clone()),
            Self::Refused(record) => RecordKey::Workload(record.report.id.clone()),
            Self::Image(record) => RecordKey::Image(record.digest),
            Self::Policy(record) => RecordKey::Policy(record.network.clone()),
            Self::Quarantine(record) => RecordKey::Quarantine(record.id.clone()),
            Self::Service(record) => {
                RecordKey::Service(record.network.clone(), record.name.clone())
            }
            Self::Drain(record) => RecordKey::Drain(record.target.clone()),
        }
    }
}

impl RecordKey {
    /// Returns `true` if the database keeps former states of the record, for the policy log,
    /// rollback and questions about the past.
    pub fn has_history(&self) -> bool {
        matches!(self, Self::Policy(_) | Self::Quarantine(_))
    }

    /// Returns the key as the database has it.
    pub fn stored(&self) -> StoredKey {
        let (kind, name) = match self {
            Self::Network(name) => ("network", name.to_string()),
            Self::Node(name) => ("node", name.to_string()),
            Self::ApprovedNode(name) => ("approved-node", name.to_string()),
            Self::Relay(name) => ("relay", name.to_string()),
            Self::Approval(ApprovalRecord { network, node, prefix }) => {
                ("approval", format!("{network}/{node}/{prefix}"))
            }
            Self::Token(id) => ("token", id.clone()),
            Self::Credential(name) => ("credential", name.clone()),
            Self::Identity(id) => ("identity", id.to_string()),
            Self::Workload(id) => ("workload", id.to_string()),
            Self::Image(digest) => ("image", digest.to_string()),
            Self::Policy(network) => ("policy", network.to_string()),
            Self::Quarantine(id) => ("quarantine", id.clone()),
            Self::Service(network, name) => ("service", format!("{network}/{name}")),
            Self::Drain(DrainTarget::Workload(id)) => ("drain", format!("workload/{id}")),
            Self::Drain(DrainTarget::Node(name)) => ("drain", format!("node/{name}")),
        };
        StoredKey { kind, name }
    }
}

/// A change of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Writes a record, and replaces the one that has the same key.
    Put(Record),
    /// Deletes a record, if there is one.
    Delete(RecordKey),
}
