//! Records of join tokens and credentials.

use meshward_api_types::Role;
use meshward_types::NetworkName;
use serde::{Deserialize, Serialize};

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub id: String,
    pub secret_hash: String,
    pub uses_left: u32,
    /// Seconds since the epoch.
    pub expires: i64,
    pub site: Option<String>,
    pub networks: Vec<NetworkName>,
    /// Whether it is for relays.
    #[serde(default)]
    pub relay: bool,
    /// Whether nodes that join with it wait for approval.
    #[serde(default)]
    pub needs_approval: bool,
    /// After how many seconds without being seen nodes that join with it are removed.
    #[serde(default)]
    pub forget_after: Option<u64>,
}

/// Who may use the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialRecord {
    pub name: String,
    pub secret_hash: String,
    pub role: Role,
    /// Where it holds; empty: everywhere.
    pub networks: Vec<NetworkName>,
    /// When it expires, in seconds since 1970; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

impl CredentialRecord {
    /// Whether its time is over.
    pub fn is_over(&self, now: i64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}
