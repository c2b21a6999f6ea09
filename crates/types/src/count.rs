//! Counters of packets.

use serde::{Deserialize, Serialize};

/// What passed a link, or was denied. A packet that passes is counted once in the mesh, by the node
/// of the workload that sent it; one that is denied, by the node that denied it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets that passed, both directions.
    pub packets: u64,
    /// Bytes that passed, IP headers included.
    pub bytes: u64,
    /// Packets that were denied.
    pub denied: u64,
    /// Packets that passed and would have been denied, were it not for observing.
    pub observed: u64,
}
