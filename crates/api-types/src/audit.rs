//! The audit log.

use meshward_types::{Revision, schema::Time};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A line of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// The revision that the change made.
    pub revision: Revision,
    /// When.
    #[schema(value_type = Time)]
    pub at: String,
    /// Who: `user:NAME` or `node:NAME`.
    pub actor: String,
    /// What.
    pub action: String,
    /// Why, as they said.
    pub why: Option<String>,
    /// From where.
    pub origin: Option<String>,
}
