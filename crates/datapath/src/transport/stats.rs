//! The state of a peer, for people and metrics.

use super::state::Transport;
use crate::{index::PeerIndex, paths::selection::PathLossReason};
use std::{
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

/// A direct path that was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostPath {
    /// The address of the path.
    pub address: SocketAddr,
    /// The time since it was lost.
    pub since: Duration,
    /// The time for which it is not used again while a relay is good.
    pub avoided_for: Duration,
    /// Why it was lost.
    pub reason: PathLossReason,
}

/// The state of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStats {
    /// The address that packets to it go to.
    pub address: Option<SocketAddr>,
    /// The direct path that was lost, while packets to it are relayed.
    pub lost_path: Option<LostPath>,
    /// The longest packet that its path carries without fragmenting it, in bytes, if that is known.
    pub path_mtu: Option<u16>,
    /// Time since the last handshake.
    pub handshake_age: Option<Duration>,
    /// Bytes sent, before encryption.
    pub sent: u64,
    /// Bytes received, after decryption.
    pub received: u64,
}

impl Transport {
    /// Returns the state of a peer.
    pub(crate) fn stats(&self, now: Instant, index: PeerIndex) -> Option<PeerStats> {
        let peers = self.peers.read();
        let (peer, now) = (peers.get(index)?, self.millis(now));
        let completed = peer.handshake.lock().completed;
        Some(PeerStats {
            address: peer.address(),
            lost_path: peer.lost_path().map(|lost| LostPath {
                address: lost.address,
                since: now.since(lost.at),
                avoided_for: lost.avoided_until.since(now),
                reason: lost.reason,
            }),
            path_mtu: peer.path_mtu(),
            handshake_age: completed.map(|at| now.since(at)),
            sent: peer.sent.load(Relaxed),
            received: peer.received.load(Relaxed),
        })
    }
}
