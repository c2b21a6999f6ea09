//! The audit log.

use meshward_types::{Revision, schema::Time};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A line of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// The revision that the change made.
    pub revision: Revision,
    /// The time.
    #[schema(value_type = Time)]
    pub at: String,
    /// The actor: `user:NAME`, `node:NAME` or `trigger:NAME`.
    pub actor: String,
    /// The action.
    pub action: String,
    /// The reason that they gave.
    pub why: Option<String>,
    /// The source address.
    pub origin: Option<String>,
}
