//! Indices of the workloads and peers of an endpoint.

/// A workload of this node, in its endpoint. The number of a workload that is gone is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadIndex(pub u32);

/// A peer of an endpoint: another node's endpoint, or a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u32);

/// Peers of an endpoint at the most: the index of a session has 24 bits for the peer, and 8 for the
/// session.
pub const MAX_PEERS: usize = 1 << 24;

impl WorkloadIndex {
    /// Returns the workload at a position in a list by index.
    pub fn of_position(position: usize) -> Self {
        Self(position as u32)
    }

    /// Returns the position in a list by index.
    #[inline]
    pub fn position(self) -> usize {
        self.0 as usize
    }
}

impl PeerIndex {
    pub(crate) fn of_position(position: usize) -> Self {
        Self(position as u32)
    }

    #[inline]
    pub(crate) fn position(self) -> usize {
        self.0 as usize
    }

    /// Returns the index of the peer's session with this number.
    pub(crate) fn session_index(self, number: u8) -> u32 {
        self.0 << 8 | u32::from(number)
    }

    /// Returns the peer that an index of a session belongs to.
    #[inline]
    pub(crate) fn of_session(index: u32) -> Self {
        Self(index >> 8)
    }
}
