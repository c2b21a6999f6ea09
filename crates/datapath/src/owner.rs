//! The owner to whose quota the state of a packet is charged.

use crate::index::{PeerIndex, WorkloadIndex};

/// The sender of packets, which is charged for what tables keep of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaOwner {
    /// A workload of this node.
    Workload(WorkloadIndex),
    /// A workload behind a peer.
    Remote {
        /// The peer.
        peer: PeerIndex,
        /// A number of the workload among the peer's.
        workload: u32,
    },
}

impl QuotaOwner {
    /// Returns the peer with whose workloads it shares a quota, if it is behind a peer.
    pub(crate) fn peer(self) -> Option<PeerIndex> {
        if let Self::Remote { peer, .. } = self { Some(peer) } else { None }
    }
}
