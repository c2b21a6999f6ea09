//! A peer: its sessions, its path, its timers, and the packets that wait for a session.
//!
//! Workers get the session to seal with from it, and note what they have received. Everything that
//! needs public-key operations is left to the thread for handshakes and timers.

use super::{
    handshake::{Attempt, HandshakeState},
    timers::{PeerTimers, TimerAction},
};
use crate::{
    index::PeerIndex,
    paths::{
        candidates::CandidatePaths,
        mtu::{PathMtu, PathMtuEstimate},
        prober::{Challenge, MtuStep, Proof},
        selection::{
            LastHeard, LostDirectPath, PATH_TIMEOUT, PathChange, PathLossReason, PathSelection,
        },
    },
};
use meshward_types::relay::is_relayed;
use meshward_wireguard::{
    Millis, PublicKey,
    cookie::MacKeys,
    session::{Role, Session, Sessions},
    timers::{KEEPALIVE_TIMEOUT, MAX_STAGED_PACKETS, REJECT_AFTER_TIME, REKEY_TIMEOUT},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Age at which the initiator of a session renews it when it receives: before the session ends, and
/// while there is time for a handshake (paper §6.2).
const REKEY_AFTER_TIME_RECEIVING: Duration =
    REJECT_AFTER_TIME.saturating_sub(KEEPALIVE_TIMEOUT).saturating_sub(REKEY_TIMEOUT);
/// Age at which sessions are forgotten, which nobody can use any more.
const SESSION_MEMORY: Duration = REJECT_AFTER_TIME.saturating_mul(3);
/// Time without an answer to an initiation after which a redundant gateway counts as down.
const GATEWAY_DOWN_AFTER: Duration = Duration::from_millis(600);
/// Bytes of packets of all peers of an endpoint that wait for sessions at the most.
const MAX_STAGED_BYTES: usize = 4 << 20;

/// The kind of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerKind {
    /// The endpoint of another node.
    Node,
    /// A machine with a stock WireGuard, which knows no probes and another key of ours.
    Device,
}

/// The path and the sessions of a peer, which change together.
#[derive(Default)]
struct Connectivity {
    path: PathSelection,
    sessions: Sessions,
}

/// A peer of an endpoint.
pub(crate) struct Peer {
    pub(crate) index: PeerIndex,
    pub(crate) key: PublicKey,
    pub(crate) kind: PeerKind,
    /// The keys of MACs of messages to it.
    pub(crate) macs: MacKeys,
    connectivity: RwLock<Connectivity>,
    pub(crate) handshake: Mutex<HandshakeState>,
    staged: Mutex<VecDeque<Vec<u8>>>,
    /// Bytes sent, before encryption, and received, after decryption.
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    timers: PeerTimers,
    heard: LastHeard,
    path_mtu: PathMtuEstimate,
    handshake_requested: AtomicBool,
    hole_punch_requested: AtomicBool,
}

/// The session and the address by which packets are sent to a peer.
#[derive(Clone)]
pub(crate) struct SendPath {
    pub(crate) session: Arc<Session>,
    pub(crate) address: SocketAddr,
}

/// The content of messages of one session that were received in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReceivedContent {
    /// Nothing but path challenges and responses, from which the path that the peer uses does not
    /// follow.
    PathProbes,
    /// Packets of so many bytes together, zero for keepalives.
    Packets(u64),
}

/// Messages of one session that were received in a row.
#[derive(Clone, Copy)]
pub(crate) struct ReceivedRun<'a> {
    pub(crate) session: &'a Arc<Session>,
    pub(crate) from: SocketAddr,
    pub(crate) content: ReceivedContent,
}

/// The consequences of messages that were received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AfterReceive {
    pub(crate) handshake_is_due: bool,
    /// The peer uses the session of our response: now it can be sent with.
    pub(crate) session_is_confirmed: bool,
}

/// The message that the timers of a peer and its handshake ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Keepalive,
    /// A first initiation.
    Initiation,
    /// Another initiation: the last one had no answer.
    Repetition,
    /// A copy of the last initiation.
    Copy,
}

impl Peer {
    pub(crate) fn new(
        index: PeerIndex,
        key: PublicKey,
        kind: PeerKind,
        candidates: CandidatePaths,
    ) -> Self {
        let address = candidates.first();
        let path = PathSelection::new(address);
        let peer = Self {
            index,
            key,
            kind,
            macs: MacKeys::of(&key),
            connectivity: RwLock::new(Connectivity { path, sessions: Sessions::default() }),
            handshake: Mutex::new(HandshakeState::new(candidates)),
            staged: Mutex::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            timers: PeerTimers::default(),
            heard: LastHeard::default(),
            path_mtu: PathMtuEstimate::default(),
            handshake_requested: AtomicBool::new(false),
            hole_punch_requested: AtomicBool::new(false),
        };
        peer.reset_path_mtu(address);
        peer
    }

    /// Returns the same peer under another key: its sessions and its path go on.
    pub(crate) fn with_key(&self, key: PublicKey, candidates: CandidatePaths) -> Self {
        let successor = Self::new(self.index, key, self.kind, candidates);
        successor.sent.store(self.sent.load(Relaxed), Relaxed);
        successor.received.store(self.received.load(Relaxed), Relaxed);
        successor.timers.copy_from(&self.timers);
        successor.heard.copy_from(&self.heard);
        successor.path_mtu.copy_from(&self.path_mtu);
        *successor.connectivity.write() = std::mem::take(&mut *self.connectivity.write());
        *successor.staged.lock() = std::mem::take(&mut *self.staged.lock());
        successor.handshake.lock().succeed(&mut self.handshake.lock());
        successor
    }

    /// Replaces the candidate paths. While there is a session, its path is better than any of them.
    pub(crate) fn set_candidates(&self, now: Millis, candidates: CandidatePaths) {
        let mut handshake = self.handshake.lock();
        if handshake.candidates == candidates {
            return;
        }
        if self.send_path(now).is_none() {
            self.connectivity.write().path.guess(candidates.first());
            self.reset_path_mtu(candidates.first());
        }
        handshake.candidates = candidates;
    }

    /// Returns the path that is used, and all other candidate paths.
    pub(crate) fn all_paths(&self, handshake: &HandshakeState) -> Vec<SocketAddr> {
        handshake.candidates.after_current(self.address())
    }

    /// Returns the address that packets to it go to.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.connectivity.read().path.address()
    }

    /// Returns the session and the address to send with; `None` if a handshake has to come first.
    #[inline]
    pub(crate) fn send_path(&self, now: Millis) -> Option<SendPath> {
        let link = self.connectivity.read();
        let session = link.sessions.current(now)?;
        Some(SendPath { session: session.clone(), address: link.path.address()? })
    }

    /// Returns the session that the peer names by `index`, if it may still be received with.
    #[inline]
    pub(crate) fn receive_session(&self, now: Millis, index: u32) -> Option<Arc<Session>> {
        self.connectivity.read().sessions.by_local_index(now, index).cloned()
    }

    /// Adds the session that a handshake has made.
    pub(crate) fn install(&self, session: Session) {
        self.connectivity.write().sessions.install(session);
    }

    /// Notes data that was sent. Returns whether the session is to be renewed.
    #[inline]
    pub(crate) fn note_data_sent(&self, now: Millis, session: &Session, bytes: u64) -> bool {
        self.sent.fetch_add(bytes, Relaxed);
        self.timers.data_sent(now);
        session.needs_rekey(now)
    }

    /// Notes that something authentic was sent.
    pub(crate) fn note_sent(&self, now: Millis) {
        self.timers.any_sent(now);
    }

    /// Notes messages that were received.
    pub(crate) fn note_received(&self, now: Millis, run: &ReceivedRun<'_>) -> AfterReceive {
        let ReceivedRun { session, from, content } = *run;
        let ReceivedContent::Packets(bytes) = content else {
            let is_next = self.connectivity.read().sessions.is_next(session);
            let session_is_confirmed = is_next && self.roam(now, session, None);
            return AfterReceive { handshake_is_due: false, session_is_confirmed };
        };
        self.heard.note(now);
        self.timers.any_received();
        if bytes > 0 {
            self.received.fetch_add(bytes, Relaxed);
            self.timers.data_received(now);
        }
        self.heard.note_path(now, &from);
        let changes = {
            let Connectivity { path, sessions } = &*self.connectivity.read();
            sessions.is_next(session)
                || path.address() != Some(from) && path.may_follow(now, &self.heard, &from)
        };
        let handshake_is_due = session.role() == Role::Initiator
            && now.has_passed(REKEY_AFTER_TIME_RECEIVING, session.created());
        AfterReceive {
            handshake_is_due,
            session_is_confirmed: changes && self.roam(now, session, Some(from)),
        }
    }

    /// Moves the peer to a new address, or to the next session. Returns whether it was the next
    /// session.
    fn roam(&self, now: Millis, session: &Arc<Session>, from: Option<SocketAddr>) -> bool {
        let mut link = self.connectivity.write();
        let is_next = link.sessions.is_next(session);
        if let Some(from) = from
            && (is_next || link.path.may_follow(now, &self.heard, &from))
        {
            self.change_path(now, &mut link.path, from, PathLossReason::Silence);
        }
        if is_next {
            link.sessions.confirm_next();
        }
        is_next
    }

    /// Notes that the peer has begun a handshake from `from`. Only where there is no session this
    /// becomes the path: it may be good in one direction alone.
    pub(crate) fn note_initiation(&self, now: Millis, from: SocketAddr) {
        let mut link = self.connectivity.write();
        if link.sessions.current(now).is_none() {
            self.change_path(now, &mut link.path, from, PathLossReason::Silence);
        }
    }

    /// Notes that the peer has answered from `from` to an initiation that was sent at `sent`.
    pub(crate) fn note_response(&self, now: Millis, from: SocketAddr, sent: Millis) {
        self.heard.note(now);
        self.timers.handshake_answered();
        let path = &mut self.connectivity.write().path;
        // A relay is better than a direct path on which nothing has come since.
        if self.heard.direct() < sent || path.may_follow(now, &self.heard, &from) {
            self.change_path(now, path, from, PathLossReason::Handshake);
        }
        self.heard.note_path(now, &from);
    }

    /// Notes that a copy of the response has come from `from`, which is one of the peer's paths.
    pub(crate) fn note_response_copy(&self, now: Millis, from: SocketAddr) {
        let path = &mut self.connectivity.write().path;
        let is_better = !is_relayed(&from) && path.is_relayed();
        if is_better && path.may_follow(now, &self.heard, &from) {
            self.heard.note_path(now, &from);
            self.change_path(now, path, from, PathLossReason::Silence);
        }
    }

    /// Applies what the response to a challenge has proved.
    pub(crate) fn apply_proof(&self, now: Millis, proof: Proof) {
        match proof {
            Proof::Path(address) => {
                let path = &mut self.connectivity.write().path;
                let is_better = path.address().is_none() || path.is_relayed();
                if is_better && path.may_follow(now, &self.heard, &address) {
                    self.heard.note_path(now, &address);
                    self.change_path(now, path, address, PathLossReason::Silence);
                }
            }
            Proof::Length(length) => self.path_mtu.raise(length),
        }
    }

    fn change_path(
        &self,
        now: Millis,
        path: &mut PathSelection,
        to: SocketAddr,
        reason: PathLossReason,
    ) {
        let change = path.change(now, &self.heard, to, reason);
        if change == PathChange::BecameDirect {
            self.timers.send_keepalive_soon(now);
        }
        if change != PathChange::None {
            self.reset_path_mtu(Some(to));
        }
    }

    /// Returns the limit of its path, if that is below the network's MTU.
    #[inline]
    pub(crate) fn path_mtu_below(&self, network_mtu: u16) -> Option<PathMtu> {
        self.path_mtu.below(network_mtu)
    }

    /// Returns the path MTU in bytes, if it is known.
    pub(crate) fn path_mtu(&self) -> Option<u16> {
        self.path_mtu.known()
    }

    fn reset_path_mtu(&self, address: Option<SocketAddr>) {
        let is_direct = address.is_some_and(|address| !is_relayed(&address));
        match self.kind {
            PeerKind::Node if is_direct => self.path_mtu.assume_least(),
            _ => self.path_mtu.assume_none(),
        }
    }

    /// Returns the direct path that was lost, while packets to it are relayed.
    pub(crate) fn lost_path(&self) -> Option<LostDirectPath> {
        self.connectivity.read().path.lost()
    }

    /// Returns the challenges that are due: to other paths while its packets are relayed, otherwise
    /// those that find out the path MTU, up to the network's.
    pub(crate) fn challenges(
        &self,
        now: Millis,
        handshake: &mut HandshakeState,
        network_mtu: u16,
    ) -> Vec<Challenge> {
        let HandshakeState { prober, candidates, .. } = handshake;
        let Some(SendPath { address, .. }) = self.send_path(now) else { return vec![] };
        if self.kind == PeerKind::Device {
            return vec![];
        }
        if is_relayed(&address) {
            let path = &self.connectivity.read().path;
            let others = candidates.direct().filter(|other| !path.avoids(now, &self.heard, other));
            return prober.challenge_others(now, others);
        }
        prober.reset_interval();
        if network_mtu == 0 {
            return vec![];
        }
        let MtuStep { challenges, found } = prober.discover_mtu(now, address, network_mtu);
        if let Some(found) = found.filter(|found| *found != 0 || self.path_mtu().is_none()) {
            self.path_mtu.set_known(found);
        }
        challenges
    }

    /// Shortens the time in which it is found that this redundant gateway is down.
    pub(crate) fn watch_closely(&self) {
        self.timers.watch_closely();
    }

    /// Returns whether a redundant gateway counts as down. `attempt` is that of its handshake,
    /// `was_down` whether it was down before.
    pub(crate) fn is_down(&self, now: Millis, attempt: Option<&Attempt>, was_down: bool) -> bool {
        let heard = self.heard.any();
        match attempt {
            Some(attempt) => {
                let waited = now.has_passed(GATEWAY_DOWN_AFTER, attempt.began);
                heard < attempt.began && (was_down || waited)
            }
            None => was_down && now.has_passed(PATH_TIMEOUT, heard),
        }
    }

    /// Requests a handshake. Returns false if one is requested already.
    #[inline]
    pub(crate) fn request_handshake(&self) -> bool {
        !self.handshake_requested.load(Relaxed) && !self.handshake_requested.swap(true, Relaxed)
    }

    /// Withdraws the request for a handshake, which is begun now.
    pub(crate) fn handshake_begins(&self) {
        self.handshake_requested.store(false, Relaxed);
    }

    /// Notes that the peer has sent a hole-punch request.
    pub(crate) fn request_hole_punch(&self) {
        self.hole_punch_requested.store(true, Relaxed);
    }

    /// Withdraws a hole-punch request. Returns whether there was one.
    pub(crate) fn take_hole_punch_request(&self) -> bool {
        self.hole_punch_requested.swap(false, Relaxed)
    }

    /// Keeps a packet until there is a session. Returns how many packets were dropped for it.
    /// `total` counts the bytes of all peers.
    pub(crate) fn stage(&self, packet: Vec<u8>, total: &AtomicUsize) -> u64 {
        if total.load(Relaxed) + packet.len() > MAX_STAGED_BYTES {
            return 1;
        }
        let mut staged = self.staged.lock();
        let oldest = if staged.len() >= MAX_STAGED_PACKETS { staged.pop_front() } else { None };
        total.fetch_sub(oldest.as_ref().map_or(0, Vec::len), Relaxed);
        total.fetch_add(packet.len(), Relaxed);
        staged.push_back(packet);
        u64::from(oldest.is_some())
    }

    /// Removes and returns the packets that have waited for a session.
    pub(crate) fn take_staged(&self, total: &AtomicUsize) -> VecDeque<Vec<u8>> {
        let staged = std::mem::take(&mut *self.staged.lock());
        total.fetch_sub(staged.iter().map(Vec::len).sum(), Relaxed);
        staged
    }

    /// Returns what is due now. `attempt` is that of its handshake; `behind_nat`: `true` if a NAT's
    /// mapping is to be kept.
    pub(crate) fn due(&self, now: Millis, attempt: Option<&Attempt>, behind_nat: bool) -> Due {
        if let Some(attempt) = attempt {
            return match attempt {
                _ if attempt.repetition_is_due(now) => Due::Repetition,
                _ if attempt.copy_is_due(now)
                    && (attempt.is_peer_silent || self.send_path(now).is_none()) =>
                {
                    Due::Copy
                }
                _ => Due::Nothing,
            };
        }
        let has_session = behind_nat.then(|| self.send_path(now).is_some());
        match self.timers.due(now, has_session) {
            TimerAction::None => Due::Nothing,
            TimerAction::SendKeepalive => Due::Keepalive,
            TimerAction::BeginHandshake => Due::Initiation,
        }
    }

    /// Returns whether an answer is awaited.
    #[cfg(test)]
    pub(crate) fn awaits_answer(&self) -> bool {
        self.timers.awaits_answer()
    }

    /// Forgets sessions that nobody can use any more, and their keys.
    pub(crate) fn forget_old_sessions(&self, now: Millis) {
        let any = self.connectivity.read().sessions.any_older_than(now, SESSION_MEMORY);
        if any {
            self.connectivity.write().sessions.forget_older_than(now, SESSION_MEMORY);
        }
    }
}
