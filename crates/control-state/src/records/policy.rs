//! Records of policies.

use meshward_policy::Policy;
use meshward_types::{NetworkName, PolicyFile};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A network's policy, as its authors wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    pub network: NetworkName,
    pub files: Arc<Vec<PolicyFile>>,
    /// When connections that it had cut were last to be reset: a number that grows; 0: never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resets: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl PolicyRecord {
    /// Parses the files.
    ///
    /// # Errors
    /// The mistake that was found first.
    pub fn policy(&self) -> Result<Arc<Policy>, String> {
        // Files that are about other networks, too, need not have all of theirs here.
        let own = meshward_policy::read_own(&self.files, &self.network)
            .map_err(|error| error.to_string())?;
        own.parsed
            .map(|own| Arc::new(own.policy))
            .ok_or_else(|| format!("no file is about network {}", self.network))
    }
}
