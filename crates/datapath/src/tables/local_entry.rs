//! The tables' entry of a workload of this node.

use crate::{
    config::Quarantine,
    index::{PeerIndex, WorkloadIndex},
    owner::QuotaOwner,
    rules::Party,
    workload::LocalWorkload,
};

/// The claimant of an address or a prefix: a number that no other workload gets again.
pub(super) type Claimant = u32;

/// The next hop of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextHop {
    /// A workload of this node, through its TUN.
    Workload(WorkloadIndex),
    /// A device of this node: a peer with a stock WireGuard.
    Device(PeerIndex),
    /// The node of a remote workload.
    Peer(PeerIndex),
}

/// A workload of this node.
#[derive(Debug)]
pub(crate) struct LocalEntry {
    pub(crate) workload: LocalWorkload,
    pub(crate) owner: QuotaOwner,
    pub(super) claimant: Claimant,
    /// The party that the coordinator has admitted; `None`: it has not.
    pub(super) admitted: Option<Party>,
    /// The peer that it is, if it is a device.
    pub(crate) device: Option<PeerIndex>,
    /// `true` if the node has quarantined it by its own decision.
    pub(super) is_quarantined_locally: bool,
}

impl LocalEntry {
    /// Returns the next hop to it, which is the workload with this index.
    #[inline]
    pub(crate) fn next_hop(&self, index: WorkloadIndex) -> NextHop {
        self.device.map_or(NextHop::Workload(index), NextHop::Device)
    }

    /// Returns the party that it is; `None`: neither the coordinator nor the node has admitted it.
    #[inline]
    pub(crate) fn party(&self) -> Option<Party> {
        let vouched =
            self.workload.vouched.map(|identity| Party::of_identity(identity, self.owner));
        let party = self.admitted.or(vouched)?;
        match self.is_quarantined_locally && !party.quarantine.is_active() {
            true => Some(Party { quarantine: Quarantine::Silent, ..party }),
            false => Some(party),
        }
    }
}
