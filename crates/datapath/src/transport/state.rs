//! The transport of an endpoint: what its peers share.

use super::{
    keys::OwnKeys,
    outbound::SendMessage,
    peer::{Peer, PeerKind},
    peer_table::{PeerSettings, PeerTable},
};
use crate::{
    index::PeerIndex,
    paths::{budget::endpoint_budget, candidates::CandidatePaths},
};
use meshward_wireguard::{
    Millis, PublicKey, SecretKey, load_gate::LoadGate, rate_limit::TokenBucket,
    timestamp::TimestampSource,
};
use parking_lot::{Mutex, RwLock};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::{Duration, Instant},
};

/// Hole-punch requests that wait to be sent at the most; a peer beyond has its own at the next
/// attempt.
const MAX_HOLE_PUNCH_REQUESTS: usize = 4096;

/// The time: for timers, and for the timestamps of handshakes.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The monotonic clock, for timers.
    pub instant: Instant,
    /// Time since 1970. Initiations have timestamps that grow with it, and also if it goes back.
    pub unix: Duration,
}

/// The transport of an endpoint.
pub(crate) struct Transport {
    pub(super) keys: RwLock<OwnKeys>,
    start: Instant,
    pub(crate) peers: RwLock<PeerTable>,
    pub(crate) gate: LoadGate,
    pub(crate) timestamps: TimestampSource,
    /// Messages that may still be sent to addresses that are not validated.
    pub(super) budget: Mutex<TokenBucket>,
    /// The peers that workers have requested handshakes with.
    pub(super) requested: Mutex<Vec<PeerIndex>>,
    /// The peers that are to be asked by the coordinator to begin a handshake, too.
    hole_punch_requests: Mutex<Vec<PeerIndex>>,
    /// `true` if others see the endpoint under another address than it has.
    pub(super) behind_nat: AtomicBool,
    /// Challenges that must not be fragmented on their way.
    pub(super) unfragmented: Mutex<Vec<(SocketAddr, Vec<u8>)>>,
    /// Bytes of all packets that wait for a session.
    pub(crate) staged: AtomicUsize,
}

impl Transport {
    pub(crate) fn new(secret: SecretKey, start: Instant) -> Self {
        Self {
            keys: RwLock::new(OwnKeys::new(secret)),
            start,
            peers: RwLock::default(),
            gate: LoadGate::default(),
            timestamps: TimestampSource::default(),
            budget: Mutex::new(endpoint_budget()),
            requested: Mutex::default(),
            hole_punch_requests: Mutex::default(),
            behind_nat: AtomicBool::new(false),
            unfragmented: Mutex::default(),
            staged: AtomicUsize::new(0),
        }
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.keys.read().current().public
    }

    /// Makes `next` the endpoint's key; the one of now is good for `keep` more, so that no
    /// handshake is lost.
    pub(crate) fn rotate_key(&self, now: Instant, next: SecretKey, keep: Duration) {
        self.keys.write().rotate(self.millis(now), next, keep);
    }

    /// Sets the key that devices know.
    pub(crate) fn set_device_key(&self, secret: SecretKey) {
        self.keys.write().set_for_devices(secret);
    }

    /// Returns the key that devices know.
    pub(crate) fn device_key(&self) -> Option<PublicKey> {
        self.keys.read().for_devices().map(|key| key.public)
    }

    /// Returns the time of timers. It is never zero, which stands for "never".
    pub(crate) fn millis(&self, now: Instant) -> Millis {
        Millis(now.saturating_duration_since(self.start).as_millis() as u64 + 1)
    }

    /// Adds or changes a node's endpoint.
    pub(crate) fn put_node(
        &self,
        now: Instant,
        index: PeerIndex,
        key: PublicKey,
        candidates: Vec<SocketAddr>,
    ) {
        let candidates = CandidatePaths::new(candidates);
        self.put(now, index, PeerSettings { key, kind: PeerKind::Node, candidates });
    }

    /// Adds or changes a device. `last_address`: where it was last, if that is known.
    pub(crate) fn put_device(
        &self,
        now: Instant,
        index: PeerIndex,
        key: PublicKey,
        last_address: Option<SocketAddr>,
    ) {
        let candidates = CandidatePaths::new(last_address.into_iter().collect());
        self.put(now, index, PeerSettings { key, kind: PeerKind::Device, candidates });
    }

    fn put(&self, now: Instant, index: PeerIndex, config: PeerSettings) {
        let now = self.millis(now);
        let mut peers = self.peers.write();
        let before = peers.candidates(index);
        self.gate.replace_known(before.as_slice(), config.candidates.as_slice());
        peers.put(now, index, config, &self.staged);
    }

    /// Removes a peer.
    pub(crate) fn remove(&self, index: PeerIndex) {
        let mut peers = self.peers.write();
        self.gate.replace_known(peers.candidates(index).as_slice(), &[]);
        peers.remove(index, &self.staged);
    }

    /// Requests a handshake with a peer. Returns false if one is requested already.
    #[inline]
    pub(crate) fn request_handshake(&self, peer: &Peer) -> bool {
        let is_first = peer.request_handshake();
        if is_first {
            self.requested.lock().push(peer.index);
        }
        is_first
    }

    pub(super) fn request_hole_punch(&self, peer: PeerIndex) {
        let mut requests = self.hole_punch_requests.lock();
        // They may never be read.
        if requests.len() < MAX_HOLE_PUNCH_REQUESTS {
            requests.push(peer);
        }
    }

    /// Removes and returns the peers that need hole-punch requests.
    pub(crate) fn take_hole_punch_requests(&self) -> Vec<PeerIndex> {
        std::mem::take(&mut *self.hole_punch_requests.lock())
    }

    /// Answers a hole-punch request: a handshake with the peer is begun, on all its paths. Returns
    /// whether one is to be begun.
    pub(crate) fn answer_hole_punch(&self, index: PeerIndex) -> bool {
        let Some(peer) = self.peers.read().get(index).cloned() else { return false };
        if peer.handshake.lock().attempt.is_some() {
            return false;
        }
        peer.request_hole_punch();
        self.request_handshake(&peer)
    }

    /// Sends a keepalive to every peer with a session, so that it learns our address.
    pub(crate) fn announce_address(&self, now: Instant, send: SendMessage) {
        let now = self.millis(now);
        let all: Vec<Arc<Peer>> = self.peers.read().all();
        for peer in &all {
            peer.send_keepalive(now, send);
        }
    }
}
