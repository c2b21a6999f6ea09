//! Joining: how a machine becomes a member.

use meshward_types::{Labels, NodeName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of a member of the mesh: it decides what its certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind {
    /// It runs workloads.
    Node,
    /// It passes packets on between nodes that cannot reach each other.
    Relay,
}

impl fmt::Display for MemberKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Relay => "relay",
        })
    }
}

/// A machine asks to become a member.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: String,
    /// The name that it wants.
    pub name: NodeName,
    /// The kind of member that it is to be.
    pub kind: MemberKind,
    /// Labels that the operator gives it.
    pub labels: Labels,
    /// A PKCS #10 request (DER) for its own key.
    pub csr: Vec<u8>,
    /// What its clock says, in seconds since the epoch.
    pub clock: i64,
    /// After how many seconds without being seen it is to be removed; `None`: as its token says.
    pub forget_after: Option<u64>,
}

/// The answer to a [`JoinRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum JoinReply {
    /// It is a member now.
    Accepted {
        /// Its certificate (DER).
        certificate: Vec<u8>,
        /// The mesh's id, as in the certificate's SPIFFE id.
        mesh: String,
        /// Its site, as its token says.
        site: Option<String>,
    },
    /// It is not, and this is why.
    Refused(String),
}
