//! Join tokens.

use meshward_types::{NetworkName, schema::Time};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A join token to create.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// The number of nodes that may join with the token.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 100_000)]
    pub uses: u32,
    /// The lifetime in seconds.
    #[serde(default = "one_day")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub ttl_seconds: u64,
    /// The site of the nodes that join with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The networks that these nodes may serve. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// `true` if the token is for relays instead of nodes.
    #[serde(default)]
    pub relay: bool,
    /// `true` if nodes that join with the token must be approved by name before they serve a
    /// network.
    #[serde(default)]
    pub needs_approval: bool,
    /// Makes nodes that join with the token ephemeral: they are removed after so many seconds
    /// without contact.
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

/// A join token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// The id, which is not secret.
    pub id: String,
    /// The number of nodes that may still join with the token.
    pub uses_left: u32,
    /// The time at which it expires.
    #[schema(value_type = Time)]
    pub expires: String,
    /// The site of the nodes that join with it.
    pub site: Option<String>,
    /// The networks that these nodes may serve; empty: all.
    pub networks: Vec<NetworkName>,
    /// `true` if the token is for relays instead of nodes.
    pub relay: bool,
    /// `true` if nodes that join with the token must be approved by name before they serve a
    /// network.
    pub needs_approval: bool,
    /// The time without contact after which nodes that joined with this token are removed, in
    /// seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget_after_seconds: Option<u64>,
}

/// A new join token. Its text is shown only once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The join token, for `meshward-node join`.
    pub token: String,
    /// The token, as it is listed.
    #[serde(flatten)]
    pub kept: Token,
}
