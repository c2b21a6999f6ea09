//! Records under their keys, and changes of them.

use super::{access::*, node::*, policy::*, workload::*};
use meshward_api_types::{Network, Quarantine};
use meshward_types::{IdentityId, NetworkName, NodeName, WorkloadId, measurement::Sha256};
use serde::{Deserialize, Serialize};

/// One thing that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    Network(Network),
    Node(NodeRecord),
    ApprovedNode(ApprovedNodeRecord),
    Relay(RelayRecord),
    /// Of a route.
    Approval(ApprovalRecord),
    Token(TokenRecord),
    Credential(CredentialRecord),
    Identity(IdentityRecord),
    Workload(WorkloadRecord),
    /// Kept in the place of a [`Record::Workload`].
    Refused(Box<RefusedRecord>),
    Image(ImageRecord),
    Policy(PolicyRecord),
    Quarantine(Quarantine),
}

/// Under what a record is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKey {
    Network(NetworkName),
    Node(NodeName),
    ApprovedNode(NodeName),
    Relay(NodeName),
    Approval(ApprovalRecord),
    Token(String),
    Credential(String),
    Identity(IdentityId),
    Workload(WorkloadId),
    Image(Sha256),
    Policy(NetworkName),
    Quarantine(String),
}

impl Record {
    /// In which order records are taken up: each after those that it names.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Network(_) | Self::Quarantine(_) | Self::Image(_) => 0,
            Self::Node(_) | Self::ApprovedNode(_) | Self::Relay(_) | Self::Approval(_) => 1,
            Self::Identity(_) | Self::Policy(_) => 2,
            Self::Token(_) | Self::Credential(_) | Self::Workload(_) | Self::Refused(_) => 3,
        }
    }

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
        }
    }
}

impl RecordKey {
    /// Whether every state is kept, for the log and for questions about the past.
    pub fn is_kept_for_ever(&self) -> bool {
        matches!(self, Self::Policy(_) | Self::Quarantine(_))
    }

    /// The key as the store has it: a kind, and a name within the kind.
    pub fn columns(&self) -> (&'static str, String) {
        match self {
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
        }
    }
}

/// One change of what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    Put(Record),
    Delete(RecordKey),
}
