//! One peer: its sessions, its timers (the WireGuard paper §6), and the packets that wait for a
//! session.
//!
//! Workers ask it for the session to seal with and tell it what came; whatever takes a handshake is
//! left to [`super::Wireguard`], which one thread at a time calls.

use super::{
    INITIATION, Millis,
    cookie::{Held, MacKeys},
    message::RESPONSE,
    noise::{Initiator, Timestamp},
    session::Session,
    stamp::Stamp,
    unproved::Unproved,
    ways::{Ask, Proof, SHORTEST, Ways},
};
use meshward_types::{PublicKey, relay::is_relayed};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// A session is renewed by who began it after this long (REKEY_AFTER_TIME), in milliseconds as all
/// that follow.
const REKEY_AFTER: u64 = 120_000;
/// No session is older (REJECT_AFTER_TIME).
pub(crate) const REJECT_AFTER: u64 = 180_000;
/// An initiation is repeated this often (REKEY_TIMEOUT) ...
pub(super) const REKEY_TIMEOUT: u64 = 5_000;
/// ... for this long (REKEY_ATTEMPT_TIME).
const REKEY_ATTEMPT: u64 = 90_000;
/// Copies of a first initiation leave after so long, to all candidates: what the first has opened
/// in the NATs of both sides, the next ones pass.
const COPIES: [u64; 5] = [200, 400, 800, 1_600, 3_200];
/// Who is behind a NAT says something this often, so that the NAT does not forget the peer.
const KEEP_OPEN: u64 = 20_000;
/// Who has sent data and hears nothing looks for another way after this long: longer each time,
/// until something is heard, because there may be nothing to say (the paper waits for
/// KEEPALIVE_TIMEOUT and REKEY_TIMEOUT, which is the longest).
const PATIENCE: u64 = 500;
const LONGEST_PATIENCE: u64 = KEEPALIVE + REKEY_TIMEOUT;
/// A path that is not relayed is kept to while something has come by it in this time.
const DIRECT_LASTS: u64 = 5_000;
/// A direct way that was lost is left alone for this long, twice as long each time ...
const LEFT_ALONE: u64 = 2_000;
const LONGEST_LEFT_ALONE: u64 = 300_000;
/// ... until one has lasted for so long.
const FORGIVEN: u64 = 600_000;
/// Who is one of several for the same is taken to be gone if an initiation had no answer for this
/// long, and is found out to be silent sooner than others.
const GONE: u64 = 600;
const PATIENCE_WATCHED: u64 = 350;
/// Who has received data and has none to send says so after this long (KEEPALIVE_TIMEOUT).
const KEEPALIVE: u64 = 10_000;
/// Initiations of one peer are taken this far apart (the kernel's INITIATIONS_PER_SECOND): each
/// costs public-key cryptography.
pub(crate) const BETWEEN_INITIATIONS: u64 = 20;
/// Keys that nobody can use any more are forgotten after this long.
const FORGET_AFTER: u64 = 3 * REJECT_AFTER;

/// The most keys of one peer whose timestamps are remembered: the one that it has, and those of
/// before.
const MOST_KEYS: usize = 4;
/// The most packets of one peer that wait for its session; then the oldest go (the kernel's
/// MAX_STAGED_PACKETS).
const MOST_STAGED: usize = 128;
/// The most bytes of all peers of an endpoint that wait.
const MOST_STAGED_BYTES: usize = 4 << 20;

/// What is known of a peer.
pub(crate) struct Peer {
    /// Its place in the endpoint.
    pub slot: u32,
    pub key: PublicKey,
    /// Whether it is a device, which runs a stock WireGuard.
    pub device: bool,
    /// For messages to it.
    pub macs: MacKeys,
    path: RwLock<Path>,
    /// What only handshakes touch.
    pub handshake: Mutex<Handshake>,
    staged: Mutex<VecDeque<Vec<u8>>>,
    /// Bytes sent before encryption, and received after it.
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// Since when data has been sent and nothing came back; 0: not so.
    unanswered: AtomicU64,
    /// For how long that is borne.
    patience: AtomicU64,
    /// When a keepalive is due; 0: never.
    keepalive: AtomicU64,
    /// When something was sent last.
    spoke: AtomicU64,
    /// When something came last that was not relayed, and that was; 0: never.
    direct: AtomicU64,
    relayed: AtomicU64,
    /// When anything came last.
    heard: AtomicU64,
    /// Whether another stands in for it if it does not answer.
    watched: AtomicBool,
    /// How long a packet may be on the way that it has, in bytes; 0: not known.
    reach: AtomicU16,
    /// Whether that has been found out; before, it is a guess.
    reach_is_known: AtomicBool,
    /// Whether a worker has asked for a handshake.
    wanted: AtomicBool,
    /// Whether the peer has called.
    summoned: AtomicBool,
}

/// A direct way that was lost. It is left alone for a while, longer each time, so that packets do
/// not change between it and a relay with each second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lost {
    pub address: SocketAddr,
    pub at: Millis,
    /// Until when it is left alone.
    pub until: Millis,
    pub why: PathLossReason,
    /// How often in a row.
    times: u32,
}

/// Why a direct way was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathLossReason {
    /// Nothing has come by it any more.
    Silence,
    /// A handshake was answered by a relay alone.
    Handshake,
}

/// How a peer is reached now.
#[derive(Default)]
struct Path {
    address: Option<SocketAddr>,
    /// Since when that is direct, and the last that was and was lost.
    direct_since: Option<Millis>,
    lost: Option<Lost>,
    current: Option<Arc<Session>>,
    /// The one before: packets of it may still be under way.
    previous: Option<Arc<Session>>,
    /// Made by our response; used for sending once the peer has used it.
    next: Option<Arc<Session>>,
}

impl Path {
    /// Notes that a direct way gives way to a relay.
    fn lose(&mut self, now: Millis, address: SocketAddr, why: PathLossReason) {
        let lasted = self.direct_since.take().map_or(0, |since| now.since(since));
        let before = self.lost.map_or(0, |lost| if lasted >= FORGIVEN { 0 } else { lost.times });
        let pause = LEFT_ALONE.saturating_mul(1 << before.min(16)).min(LONGEST_LEFT_ALONE);
        self.lost =
            Some(Lost { address, at: now, until: Millis(now.0 + pause), why, times: before + 1 });
    }

    fn is_next(&self, session: &Arc<Session>) -> bool {
        self.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, session))
    }
}

/// What follows from something that a peer has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    pub handshake_is_due: bool,
    /// The peer has begun to use a session that it asked for: now it can be sent with.
    pub session_is_new: bool,
}

/// What handshakes need to know.
#[derive(Default)]
pub(crate) struct Handshake {
    /// Where the peer may be, the best guess first.
    pub candidates: Vec<SocketAddr>,
    /// The one that is under way.
    pub attempt: Option<Attempt>,
    /// The greatest timestamps that it has sent by the keys that it has and had, so that no
    /// initiation is taken twice. A key that is new begins anew: who has lost its key may have lost
    /// what its timestamps were, too.
    pub timestamps: Vec<(PublicKey, Timestamp)>,
    /// That of our last initiation.
    pub stamped: Option<Stamp>,
    /// When its last initiation was taken.
    pub taken: Option<Millis>,
    /// The cookie that it has given us, and the MAC that a reply has to be for.
    pub cookie: Option<Held>,
    pub mac1: Option<[u8; 16]>,
    /// When the last session was made.
    pub completed: Option<Millis>,
    /// How many sessions were begun, for their indices.
    pub begun: u8,
    pub ways: Ways,
    /// What was sent to its addresses that have not answered.
    pub(super) unproved: Unproved,
    /// Our answer to its last initiation, and where it has gone.
    pub answer: Option<([u8; RESPONSE], Vec<SocketAddr>)>,
    /// Its answer to our last initiation.
    pub answered: Option<[u8; RESPONSE]>,
}

impl Handshake {
    /// The greatest timestamp that the peer has sent by a key.
    pub fn timestamp(&self, key: &PublicKey) -> Option<Timestamp> {
        self.timestamps.iter().find(|(known, _)| known == key).map(|(_, timestamp)| *timestamp)
    }

    /// Takes an answer to a probe: what it proves.
    pub fn answered(&mut self, number: u32) -> Option<Proof> {
        let proof = self.ways.answered(number);
        if let Some(Proof::Way(place)) = proof {
            self.unproved.note_answer(place);
        }
        proof
    }

    /// Notes a greater one.
    pub fn note_timestamp(&mut self, key: PublicKey, timestamp: Timestamp) {
        self.timestamps.retain(|(known, _)| *known != key);
        if self.timestamps.len() >= MOST_KEYS {
            self.timestamps.remove(0);
        }
        self.timestamps.push((key, timestamp));
    }
}

/// A handshake that we began.
pub(crate) struct Attempt {
    pub initiator: Initiator,
    pub local_index: u32,
    pub began: Millis,
    pub repeat: Millis,
    /// The message, and how many copies of it have left; none leave while there is a session.
    pub message: [u8; INITIATION],
    pub sent: Millis,
    pub copies: usize,
    /// How many responses were tried under load without a cookie.
    pub tried: u8,
}

/// What the way to a peer takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Narrow {
    /// The longest packet, in bytes.
    pub longest: u16,
    /// Whether that has been found out; if not, it is a guess.
    pub is_known: bool,
}

/// What it takes to send to a peer.
#[derive(Clone)]
pub(crate) struct Sending {
    pub session: Arc<Session>,
    pub address: SocketAddr,
}

/// What a peer's timers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Keepalive,
    /// A first initiation.
    Initiation,
    /// Another initiation: the last had no answer.
    Repetition,
    /// A copy of the last initiation.
    Copy,
}

impl Peer {
    pub fn new(slot: u32, key: PublicKey, candidates: Vec<SocketAddr>, device: bool) -> Self {
        let address = candidates.first().copied();
        let peer = Self {
            slot,
            key,
            device,
            macs: MacKeys::of(&key),
            path: RwLock::new(Path { address, ..Path::default() }),
            handshake: Mutex::new(Handshake { candidates, ..Handshake::default() }),
            staged: Mutex::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            patience: AtomicU64::new(PATIENCE),
            keepalive: AtomicU64::new(0),
            spoke: AtomicU64::new(0),
            direct: AtomicU64::new(0),
            relayed: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            reach: AtomicU16::new(0),
            reach_is_known: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            summoned: AtomicBool::new(false),
        };
        peer.forget_reach(address);
        peer
    }

    /// The same peer with another key: what was agreed with the one of before holds on.
    pub fn succeeded_by(&self, key: PublicKey, candidates: Vec<SocketAddr>) -> Self {
        let successor = Self::new(self.slot, key, candidates, self.device);
        let copy = |from: &AtomicU64, to: &AtomicU64| to.store(from.load(Relaxed), Relaxed);
        for (from, to) in [
            (&self.sent, &successor.sent),
            (&self.received, &successor.received),
            (&self.spoke, &successor.spoke),
            (&self.direct, &successor.direct),
            (&self.relayed, &successor.relayed),
            (&self.heard, &successor.heard),
        ] {
            copy(from, to);
        }
        successor.reach.store(self.reach.load(Relaxed), Relaxed);
        successor.reach_is_known.store(self.reach_is_known.load(Relaxed), Relaxed);
        *successor.path.write() = std::mem::take(&mut *self.path.write());
        *successor.staged.lock() = std::mem::take(&mut *self.staged.lock());
        {
            let (mut before, mut after) = (self.handshake.lock(), successor.handshake.lock());
            // Indices of sessions that live are not used again, nor are initiations of before taken
            // again.
            after.timestamps.clone_from(&before.timestamps);
            after.unproved = std::mem::take(&mut before.unproved);
            (after.begun, after.stamped, after.completed) =
                (before.begun, before.stamped, before.completed);
        }
        successor
    }

    /// Takes new guesses where the peer is. With a live session the address that authenticated is
    /// better than any of them.
    pub fn set_candidates(&self, now: Millis, candidates: Vec<SocketAddr>) {
        let mut handshake = self.handshake.lock();
        if handshake.candidates == candidates {
            return;
        }
        if self.sending(now).is_none() {
            self.path.write().address = candidates.first().copied();
            self.forget_reach(candidates.first().copied());
        }
        handshake.candidates = candidates;
    }

    /// Everywhere that it may be: where it was last, and the candidates.
    pub fn places(&self, handshake: &Handshake) -> Vec<SocketAddr> {
        let mut places: Vec<SocketAddr> = self.address().into_iter().collect();
        let others = handshake.candidates.iter().filter(|place| !places.contains(place));
        let others: Vec<SocketAddr> = others.copied().collect();
        places.extend(others);
        places
    }

    /// Where packets to it go now.
    pub fn address(&self) -> Option<SocketAddr> {
        self.path.read().address
    }

    /// What to send with; `None` where a handshake has to come first.
    pub fn sending(&self, now: Millis) -> Option<Sending> {
        let path = self.path.read();
        let session =
            path.current.as_ref().filter(|session| now.since(session.born) < REJECT_AFTER)?;
        Some(Sending { session: session.clone(), address: path.address? })
    }

    /// The session with this index of ours, if it may still be received with.
    pub fn receiving(&self, now: Millis, index: u32) -> Option<Arc<Session>> {
        let path = self.path.read();
        let all = [&path.current, &path.next, &path.previous];
        let session = all.into_iter().flatten().find(|session| session.local_index == index)?;
        (now.since(session.born) < REJECT_AFTER).then(|| session.clone())
    }

    /// Installs the session that a handshake has made.
    pub fn install(&self, session: Session) {
        let (session, mut path) = (Arc::new(session), self.path.write());
        if session.initiator {
            let next = path.next.take();
            path.previous = next.or_else(|| path.current.take());
            path.current = Some(session);
        } else {
            path.next = Some(session);
            path.previous = None;
        }
    }

    /// Notes data that was sent. `true` if a handshake is due.
    pub fn note_sent(&self, now: Millis, session: &Session, bytes: u64) -> bool {
        self.sent.fetch_add(bytes, Relaxed);
        self.note_spoke(now);
        if self.unanswered.load(Relaxed) == 0 {
            self.unanswered.store(now.0, Relaxed);
        }
        session.is_worn() || session.initiator && now.since(session.born) >= REKEY_AFTER
    }

    /// Notes that something authentic was sent: no keepalive is due.
    pub fn note_spoke(&self, now: Millis) {
        self.spoke.store(now.0, Relaxed);
        if self.keepalive.load(Relaxed) != 0 {
            self.keepalive.store(0, Relaxed);
        }
    }

    /// Notes what came from `from` by a session: `bytes` of data, zero for a keepalive; `None` for
    /// nothing but probes, which say nothing of the way that the peer's packets take.
    pub fn note_received(
        &self,
        now: Millis,
        session: &Arc<Session>,
        from: SocketAddr,
        bytes: Option<u64>,
    ) -> Heard {
        let Some(bytes) = bytes else {
            let news = self.path.read().is_next(session);
            let session_is_new = news && self.take_up(now, session, None);
            return Heard { handshake_is_due: false, session_is_new };
        };
        self.heard.store(now.0, Relaxed);
        if self.unanswered.load(Relaxed) != 0 {
            self.unanswered.store(0, Relaxed);
            let watched = self.watched.load(Relaxed);
            self.patience.store(if watched { PATIENCE_WATCHED } else { PATIENCE }, Relaxed);
        }
        if bytes > 0 {
            self.received.fetch_add(bytes, Relaxed);
            if self.keepalive.load(Relaxed) == 0 {
                self.keepalive.store(now.0 + KEEPALIVE, Relaxed);
            }
        }
        let heard = if is_relayed(&from) { &self.relayed } else { &self.direct };
        heard.store(now.0, Relaxed);
        let news = {
            let path = self.path.read();
            path.is_next(session) || path.address != Some(from) && self.may_move(now, &path, &from)
        };
        let due = session.initiator
            && now.since(session.born) >= REJECT_AFTER - KEEPALIVE - REKEY_TIMEOUT;
        Heard {
            handshake_is_due: due,
            session_is_new: news && self.take_up(now, session, Some(from)),
        }
    }

    /// The peer speaks from a new address, or has begun to use the next session: whether that. Who
    /// has begun a session has proved the way by which it first uses it.
    fn take_up(&self, now: Millis, session: &Arc<Session>, from: Option<SocketAddr>) -> bool {
        let mut path = self.path.write();
        let new = path.is_next(session);
        if let Some(from) = from
            && (new || self.may_move(now, &path, &from))
        {
            self.move_to(now, &mut path, from);
        }
        if new {
            path.previous = path.current.take();
            path.current = path.next.take();
        }
        new
    }

    /// Notes that the peer has begun a handshake from `from`. Only where there is no way yet is
    /// this the one: it may be good in one direction alone.
    pub fn note_initiation(&self, now: Millis, from: SocketAddr) {
        let mut path = self.path.write();
        let lives =
            path.current.as_ref().is_some_and(|session| now.since(session.born) < REJECT_AFTER);
        if !lives {
            self.move_to(now, &mut path, from);
        }
    }

    /// Notes that the peer has answered from `from` to an initiation that was sent at `begun`.
    pub fn note_response(&self, now: Millis, from: SocketAddr, begun: Millis) {
        self.heard.store(now.0, Relaxed);
        self.unanswered.store(0, Relaxed);
        let mut path = self.path.write();
        let heard = self.direct.load(Relaxed);
        // The relay is better than a way on which nothing has come since.
        if heard < begun.0 || self.may_move(now, &path, &from) {
            self.move_by(now, &mut path, from, PathLossReason::Handshake);
        }
        let heard = if is_relayed(&from) { &self.relayed } else { &self.direct };
        heard.store(now.0, Relaxed);
    }

    /// Notes that the same answer has come from `from`, too, where it had been asked for.
    pub fn note_copy(&self, now: Millis, from: SocketAddr) {
        let mut path = self.path.write();
        let relayed = path.address.is_some_and(|address| is_relayed(&address));
        if !is_relayed(&from) && relayed && self.may_move(now, &path, &from) {
            self.direct.store(now.0, Relaxed);
            self.move_to(now, &mut path, from);
        }
    }

    /// Notes what the answer to a probe has proved.
    pub fn prove(&self, now: Millis, proof: Proof) {
        match proof {
            Proof::Way(place) => {
                let mut path = self.path.write();
                let relayed = path.address.is_none_or(|before| is_relayed(&before));
                if relayed && self.may_move(now, &path, &place) {
                    self.direct.store(now.0, Relaxed);
                    self.move_to(now, &mut path, place);
                }
            }
            Proof::Length(length) => drop(self.reach.fetch_max(length, Relaxed)),
        }
    }

    /// Packets to the peer go there from now on.
    fn move_to(&self, now: Millis, path: &mut Path, to: SocketAddr) {
        self.move_by(now, path, to, PathLossReason::Silence);
    }

    /// The same. `why`: if a direct way is left for a relay.
    fn move_by(&self, now: Millis, path: &mut Path, to: SocketAddr, why: PathLossReason) {
        if path.address == Some(to) {
            return;
        }
        // What has never been heard was no way, only a guess.
        let was_good = self.direct.load(Relaxed) != 0;
        match path.address.filter(|before| !is_relayed(before)) {
            Some(before) if is_relayed(&to) && was_good => path.lose(now, before, why),
            Some(_) => {}
            None if !is_relayed(&to) => path.direct_since = Some(now),
            None => {}
        }
        if path.address.is_some_and(|before| is_relayed(&before)) && !is_relayed(&to) {
            // Said soon, so that the peer knows this way, too.
            self.keepalive.store(now.0, Relaxed);
        }
        self.forget_reach(Some(to));
        path.address = Some(to);
    }

    /// How long a packet to it may be, in bytes, if its way takes only shorter ones than the
    /// network, `longest`.
    pub fn narrows(&self, longest: u16) -> Option<Narrow> {
        let reach = self.reach.load(Relaxed);
        let is_known = self.reach_is_known.load(Relaxed);
        (reach != 0 && reach < longest).then_some(Narrow { longest: reach, is_known })
    }

    /// How long a packet to it may be, in bytes, if that has been found out.
    pub fn reach(&self) -> Option<u16> {
        Some(self.reach.load(Relaxed))
            .filter(|reach| *reach != 0 && self.reach_is_known.load(Relaxed))
    }

    /// Until it is found out, a new way is taken to be narrow where that costs nothing.
    fn forget_reach(&self, address: Option<SocketAddr>) {
        let direct = !self.device && address.is_some_and(|address| !is_relayed(&address));
        self.reach_is_known.store(false, Relaxed);
        self.reach.store(if direct { SHORTEST } else { 0 }, Relaxed);
    }

    /// The direct way that was lost, while there is none.
    pub fn lost(&self) -> Option<Lost> {
        let path = self.path.read();
        path.lost.filter(|_| path.address.is_some_and(|address| is_relayed(&address)))
    }

    /// Whether a direct way is left alone: it was lost, and the relay is good.
    fn leaves_alone(&self, now: Millis, path: &Path, place: &SocketAddr) -> bool {
        let relayed = path.address.is_some_and(|address| is_relayed(&address));
        let heard = self.relayed.load(Relaxed);
        let relay_is_good = heard != 0 && now.since(Millis(heard)) < DIRECT_LASTS;
        let lost = path.lost.is_some_and(|lost| lost.address == *place && now < lost.until);
        relayed && relay_is_good && lost
    }

    /// Whether packets to the peer are to go where one has come from: not by a relay while another
    /// way is good, nor by a way that was lost a moment ago.
    fn may_move(&self, now: Millis, path: &Path, from: &SocketAddr) -> bool {
        if self.leaves_alone(now, path, from) {
            return false;
        }
        let direct = path.address.is_some_and(|address| !is_relayed(&address));
        let heard = self.direct.load(Relaxed);
        !(is_relayed(from) && direct && heard != 0 && now.since(Millis(heard)) < DIRECT_LASTS)
    }

    /// The probes that are due: of other ways while it is relayed to, otherwise of how long packets
    /// of up to `longest` bytes may be.
    pub fn probes(&self, now: Millis, handshake: &mut Handshake, longest: u16) -> Vec<Ask> {
        let Handshake { ways, candidates, .. } = handshake;
        let Some(Sending { address, .. }) = self.sending(now) else { return vec![] };
        if self.device {
            // Nobody there knows probes.
            return vec![];
        }
        if is_relayed(&address) {
            let path = self.path.read();
            let tried =
                |place: &&SocketAddr| !is_relayed(place) && !self.leaves_alone(now, &path, place);
            return ways.others(now, candidates.iter().filter(tried).copied());
        }
        ways.rest();
        if longest == 0 {
            return vec![];
        }
        let (asks, found) = ways.lengths(now, address, longest);
        if let Some(found) = found.filter(|found| *found != 0 || self.reach().is_none()) {
            self.reach.store(found, Relaxed);
            self.reach_is_known.store(true, Relaxed);
        }
        asks
    }

    /// Has it found out sooner that it does not answer.
    pub fn watch_closely(&self) {
        if !self.watched.swap(true, Relaxed) {
            self.patience.store(PATIENCE_WATCHED, Relaxed);
        }
    }

    /// Whether it is taken to be gone. `attempt` is that of its handshake; `before`: whether it
    /// was.
    pub fn is_silent(&self, now: Millis, attempt: Option<&Attempt>, before: bool) -> bool {
        let heard = self.heard.load(Relaxed);
        match attempt {
            Some(attempt) => {
                heard < attempt.began.0 && (before || now.since(attempt.began) >= GONE)
            }
            None => before && now.since(Millis(heard)) >= DIRECT_LASTS,
        }
    }

    /// Asks for a handshake; `true` if nobody had.
    pub fn want_handshake(&self) -> bool {
        !self.wanted.load(Relaxed) && !self.wanted.swap(true, Relaxed)
    }

    /// Notes that the peer has called.
    pub fn summon(&self) {
        self.summoned.store(true, Relaxed);
    }

    /// Whether the peer has called since the last time.
    pub fn take_summons(&self) -> bool {
        self.summoned.swap(false, Relaxed)
    }

    /// Takes the wish for a handshake back, as it is being done.
    pub fn handshake_begins(&self) {
        self.wanted.store(false, Relaxed);
    }

    /// Keeps a packet until there is a session: how many packets had to go for it.
    pub fn stage(&self, packet: Vec<u8>, total: &AtomicUsize) -> u64 {
        if total.load(Relaxed) + packet.len() > MOST_STAGED_BYTES {
            return 1;
        }
        let mut staged = self.staged.lock();
        let oldest = if staged.len() >= MOST_STAGED { staged.pop_front() } else { None };
        total.fetch_sub(oldest.as_ref().map_or(0, Vec::len), Relaxed);
        total.fetch_add(packet.len(), Relaxed);
        staged.push_back(packet);
        u64::from(oldest.is_some())
    }

    /// Takes out the packets that waited.
    pub fn take_staged(&self, total: &AtomicUsize) -> VecDeque<Vec<u8>> {
        let staged = std::mem::take(&mut *self.staged.lock());
        total.fetch_sub(staged.iter().map(Vec::len).sum(), Relaxed);
        staged
    }

    /// What is due now. `attempt` is that of its handshake.
    pub fn due(&self, now: Millis, attempt: Option<&Attempt>, behind_nat: bool) -> Due {
        if let Some(attempt) = attempt {
            return match attempt {
                _ if now >= attempt.repeat => Due::Repetition,
                _ if attempt.copy_is_due(now) && self.sending(now).is_none() => Due::Copy,
                _ => Due::Nothing,
            };
        }
        let unanswered = self.unanswered.load(Relaxed);
        let patience = self.patience.load(Relaxed);
        if unanswered != 0 && now.since(Millis(unanswered)) >= patience {
            self.unanswered.store(0, Relaxed);
            self.patience.store((patience * 2).min(LONGEST_PATIENCE), Relaxed);
            return Due::Initiation;
        }
        let keepalive = self.keepalive.load(Relaxed);
        if keepalive != 0 && now.0 >= keepalive {
            self.note_spoke(now);
            return Due::Keepalive;
        }
        let spoke = self.spoke.load(Relaxed);
        if behind_nat
            && spoke != 0
            && now.since(Millis(spoke)) >= KEEP_OPEN
            && self.sending(now).is_some()
        {
            self.note_spoke(now);
            return Due::Keepalive;
        }
        Due::Nothing
    }

    /// Whether an answer is awaited.
    #[cfg(test)]
    pub fn awaits_answer(&self) -> bool {
        self.unanswered.load(Relaxed) != 0
    }

    /// Forgets keys that nobody can use any more.
    pub fn forget_old_sessions(&self, now: Millis) {
        let old = |session: &Arc<Session>| now.since(session.born) >= FORGET_AFTER;
        let any = {
            let Path { current, previous, next, .. } = &*self.path.read();
            [current, previous, next].into_iter().flatten().any(old)
        };
        if any {
            let Path { current, previous, next, .. } = &mut *self.path.write();
            for session in [current, previous, next] {
                session.take_if(|session| old(session));
            }
        }
    }
}

impl Attempt {
    pub fn new(
        initiator: Initiator,
        local_index: u32,
        began: Millis,
        now: Millis,
        message: [u8; INITIATION],
    ) -> Self {
        // Up to a third of a second apart, so that two who begin at once do not go on so (paper
        // §6.1).
        let jitter = u64::from(local_index).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let repeat = Millis(now.0 + REKEY_TIMEOUT + jitter % 334);
        Self { initiator, local_index, began, repeat, message, sent: now, copies: 0, tried: 0 }
    }

    fn copy_is_due(&self, now: Millis) -> bool {
        COPIES.get(self.copies).is_some_and(|after| now.since(self.sent) >= *after)
    }

    /// Whether it has been tried for long enough.
    pub fn is_hopeless(&self, now: Millis) -> bool {
        now.since(self.began) >= REKEY_ATTEMPT
    }
}
