//! Policy files as their authors write them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One file of policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Its name, for messages.
    pub name: String,
    /// Its YAML text: documents, each of which names its network.
    pub text: String,
}
