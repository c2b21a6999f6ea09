//! The state of the mesh.

use meshward_types::Revision;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A summary of the coordinator.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The coordinator's version.
    pub version: String,
    /// The mesh's id.
    pub mesh: String,
    /// SHA-256 of the CA's certificate, hexadecimal.
    pub ca_fingerprint: String,
    /// The current revision.
    pub revision: Revision,
    /// The number of nodes that have joined.
    pub nodes: usize,
    /// The number of nodes with a session now.
    pub nodes_connected: usize,
    /// The number of networks.
    pub networks: usize,
    /// The number of workloads.
    pub workloads: usize,
    /// The number of workloads under quarantine.
    pub workloads_quarantined: usize,
}
