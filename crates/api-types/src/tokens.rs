//! Join tokens.

use meshward_types::{NetworkName, schema::Time};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A join token to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// How many nodes may join with it.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 100_000)]
    pub uses: u32,
    /// For how many seconds it is good.
    #[serde(default = "one_day")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub ttl_seconds: u64,
    /// The site of the nodes that join with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The networks that those nodes may serve; all, if it is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// Whether relays join with it, and no nodes.
    #[serde(default)]
    pub relay: bool,
    /// Whether nodes that join with it serve no network before they are approved by name.
    #[serde(default)]
    pub needs_approval: bool,
    /// Nodes that join with it are ephemeral: they are removed once they were not seen for so many
    /// seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 31_536_000)]
    pub forget_after_seconds: Option<u64>,
}

fn one() -> u32 {
    1
}

fn one_day() -> u64 {
    86_400
}

/// A join token, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id, which is no secret.
    pub id: String,
    /// How many nodes may still join with it.
    pub uses_left: u32,
    /// When it expires.
    #[schema(value_type = Time)]
    pub expires: String,
    /// The site of the nodes that join with it.
    pub site: Option<String>,
    /// The networks that those nodes may serve; empty: all.
    pub networks: Vec<NetworkName>,
    /// Whether relays join with it, and no nodes.
    pub relay: bool,
    /// Whether nodes that join with it serve no network before they are approved by name.
    pub needs_approval: bool,
    /// After how many seconds without being seen nodes that join with it are removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget_after_seconds: Option<u64>,
}

/// A join token that was made just now; the only time that its text is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// What `meshward-node join` takes.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub kept: Token,
}
