//! Candidate paths: the addresses that a peer may have, as the coordinator says, the best guess
//! first and relays last.

use meshward_types::relay::is_relayed;
use std::net::SocketAddr;

/// The candidate paths of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CandidatePaths(Vec<SocketAddr>);

impl CandidatePaths {
    pub(crate) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(addresses)
    }

    /// Returns the best guess.
    pub(crate) fn first(&self) -> Option<SocketAddr> {
        self.0.first().copied()
    }

    pub(crate) fn as_slice(&self) -> &[SocketAddr] {
        &self.0
    }

    /// Returns the candidates without a relay.
    pub(crate) fn direct(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().copied().filter(|address| !is_relayed(address))
    }

    /// Returns the path that is used now, and then all others.
    pub(crate) fn after_current(&self, current: Option<SocketAddr>) -> Vec<SocketAddr> {
        let others = self.0.iter().copied().filter(|address| Some(*address) != current);
        current.into_iter().chain(others).collect()
    }
}
