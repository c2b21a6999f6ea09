//! The state of the mesh.

use meshward_types::Revision;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The coordinator in short.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The coordinator's version.
    pub version: String,
    /// The mesh's id.
    pub mesh: String,
    /// SHA-256 of the CA's certificate, hexadecimal.
    pub ca_fingerprint: String,
    /// The revision that is distributed now.
    pub revision: Revision,
    /// Nodes that have joined.
    pub nodes: usize,
    /// Nodes with a session now.
    pub nodes_connected: usize,
    /// Networks.
    pub networks: usize,
    /// Workloads.
    pub workloads: usize,
    /// Workloads under quarantine.
    pub workloads_quarantined: usize,
}
