//! A workload of this node, as the tables hold it.

use crate::{
    index::{PeerIndex, WorkloadIndex},
    owner::QuotaOwner,
    rules::Party,
    workload::LocalWorkload,
};

/// The claimant of an address or a prefix: a number that no other workload gets again.
pub(super) type Claimant = u32;

/// Where a packet goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextHop {
    /// To a workload of this node, by its TUN.
    Workload(WorkloadIndex),
    /// To a device of this node, which is a peer with a stock WireGuard.
    Device(PeerIndex),
    /// To a workload of another node.
    Peer(PeerIndex),
}

/// A workload of this node.
#[derive(Debug)]
pub(crate) struct LocalEntry {
    pub(crate) workload: LocalWorkload,
    pub(crate) owner: QuotaOwner,
    pub(super) claimant: Claimant,
    /// Its identity by the coordinator's word; `None`: the coordinator has not admitted it.
    pub(super) admitted: Option<Party>,
    /// The peer that it is, if it is a device.
    pub(crate) device: Option<PeerIndex>,
    /// Whether the node has quarantined it by its own decision.
    pub(super) is_quarantined_locally: bool,
}

impl LocalEntry {
    /// Returns the next hop to it, which is the workload with this index.
    #[inline]
    pub(crate) fn next_hop(&self, index: WorkloadIndex) -> NextHop {
        self.device.map_or(NextHop::Workload(index), NextHop::Device)
    }

    /// Returns who it is; `None`: neither the coordinator nor the node has said so.
    #[inline]
    pub(crate) fn party(&self) -> Option<Party> {
        let vouched =
            self.workload.vouched.map(|identity| Party::of_identity(identity, self.owner));
        let party = self.admitted.or(vouched)?;
        Some(Party { quarantined: party.quarantined || self.is_quarantined_locally, ..party })
    }
}
