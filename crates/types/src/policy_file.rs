//! Policy files as their authors write them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// The file name, for messages.
    pub name: String,
    /// The YAML text: documents, each of which names its network.
    pub text: String,
}
