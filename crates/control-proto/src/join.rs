//! Joining: the messages with which a machine becomes a member.

use meshward_types::{Labels, NodeName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of a member of the mesh, which decides what its certificate is valid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind {
    /// A node, which runs workloads.
    Node,
    /// A relay, which forwards packets between nodes that cannot reach each other.
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

/// A machine's request to become a member.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: String,
    /// The name that the machine wants.
    pub name: NodeName,
    /// The kind of member that it wants to be.
    pub kind: MemberKind,
    /// The labels that its operator gave it.
    pub labels: Labels,
    /// A PKCS #10 request (DER) for the machine's own key.
    pub csr: Vec<u8>,
    /// The machine's clock, in seconds since the Unix epoch.
    pub clock: i64,
    /// The time without a session after which it is removed, in seconds; `None` to use its token's.
    pub forget_after: Option<u64>,
}

/// The answer to a [`JoinRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum JoinReply {
    /// The machine is a member now.
    Accepted {
        /// The member's certificate (DER).
        certificate: Vec<u8>,
        /// The mesh's id, as in the certificate's SPIFFE id.
        mesh: String,
        /// The site, as in its token.
        site: Option<String>,
    },
    /// The request was refused, with the reason.
    Refused(String),
}
