//! Packet counters.

use serde::{Deserialize, Serialize};

/// The packets of a link. A packet that passes is counted once in the mesh, by the node of the
/// workload that sent it; a packet that is denied, by the node that denied it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets that passed, in both directions.
    pub packets: u64,
    /// Bytes that passed, including IP headers.
    pub bytes: u64,
    /// Packets that were denied.
    pub denied: u64,
    /// Packets that passed only because the policy observes instead of denying.
    pub observed: u64,
}
