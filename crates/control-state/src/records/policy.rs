//! Records of policies.

use super::form;
use meshward_policy::Policy;
use meshward_types::{NetworkName, PolicyFile};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A network's policy, as its authors wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// The network.
    pub network: NetworkName,
    /// The files that have a document about this network.
    #[serde(with = "form")]
    pub files: Arc<Vec<PolicyFile>>,
    /// The revision of the last submission that asked for resets of the connections which it cut,
    /// or a later one; 0 if none did. It only grows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resets: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a field by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl PolicyRecord {
    /// Parses the files.
    ///
    /// # Errors
    /// Returns the first mistake in them, in words.
    pub fn policy(&self) -> Result<Arc<Policy>, String> {
        // Files that are about other networks, too, need not have all of theirs here.
        let own = meshward_policy::read_own(&self.files, &self.network)
            .map_err(|error| error.to_string())?;
        own.parsed
            .map(|own| Arc::new(own.policy))
            .ok_or_else(|| format!("no file is about network {}", self.network))
    }
}
