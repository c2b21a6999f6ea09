//! Records of join tokens and credentials.

use super::form;
use meshward_api_types::Role;
use meshward_types::NetworkName;
use serde::{Deserialize, Serialize};

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The token's id: the public part of its text.
    pub id: String,
    /// SHA-256 of the secret, in hexadecimal.
    pub secret_hash: String,
    /// The number of members that may still join with it.
    pub uses_left: u32,
    /// The time at which it expires, in seconds since the Unix epoch.
    pub expires: i64,
    /// The site of nodes that join with it.
    pub site: Option<String>,
    /// The networks that nodes which join with it may serve; empty for all.
    pub networks: Vec<NetworkName>,
    /// `true` if relays join with it, not nodes.
    #[serde(default)]
    pub relay: bool,
    /// `true` if nodes that join with it wait for an admin's approval.
    #[serde(default)]
    pub needs_approval: bool,
    /// The time without a session after which nodes that joined with it are removed, in seconds.
    #[serde(default)]
    pub forget_after: Option<u64>,
}

/// A credential for the API, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialRecord {
    /// The credential's name.
    pub name: String,
    /// SHA-256 of the secret, in hexadecimal.
    pub secret_hash: String,
    /// The rights that it gives.
    #[serde(with = "form")]
    pub role: Role,
    /// The networks in which it gives them; empty for all.
    pub networks: Vec<NetworkName>,
    /// The time at which it expires, in seconds since the Unix epoch; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

impl CredentialRecord {
    /// Returns `true` if it has expired at `now`, in seconds since the Unix epoch.
    pub fn is_expired(&self, now: i64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}
