//! WireGuard: peers, handshakes and sessions. Wire format and timers are those of the paper
//! (Donenfeld, NDSS 2017), so that a stock WireGuard can be a peer.
//!
//! Noise is `snow`'s, the AEAD is ring's. Sessions are shared: any worker seals and opens with them
//! in place, without a lock on the peer. Handshakes are slow, so workers hand their messages to one
//! thread, which calls [`Wireguard::receive`].

mod cookie;
mod gate;
mod keys;
mod message;
mod noise;
mod peer;
mod peers;
mod replay;
mod session;
mod stamp;
mod unproved;
mod ways;

#[cfg(any(test, fuzzing))]
pub(crate) use cookie::MacKeys;
pub use message::MAX_HANDSHAKE_MESSAGE;
use message::TAG;
pub(crate) use message::{DATA_HEADER, MessageType, number};
pub use peer::PathLossReason;
pub(crate) use peer::{Narrow, Peer, Sending};
pub(crate) use peers::Peers;

use crate::{
    drops::DropReason,
    probe::{self, Probe},
};
use cookie::Held;
use gate::Gate;
use keys::{OwnKey, OwnKeys};
use meshward_types::{PublicKey, relay::is_relayed};
use message::{INITIATION, RESPONSE, set_number};
use noise::{Initiator, Responder};
use parking_lot::{Mutex, RwLock};
use peer::{Attempt, BETWEEN_INITIATIONS, Due};
use session::Session;
use stamp::Stamps;
use std::{
    collections::HashSet,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use unproved::Bucket;
use x25519_dalek::StaticSecret;

/// Bytes that WireGuard adds to a packet: 16 of header and 16 of tag.
pub const OVERHEAD: usize = DATA_HEADER + TAG;

/// The most peers of an endpoint: an index has 24 bits for the peer and 8 for its session.
pub const MAX_PEERS: usize = 1 << 24;

/// Milliseconds since the endpoint was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(pub u64);

impl Millis {
    /// How long ago `earlier` was; zero if it was later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What time it is: for timers, and for the timestamps of handshakes.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For timers.
    pub instant: Instant,
    /// Since 1970. Initiations have timestamps that grow with it, and also if it goes back.
    pub unix: Duration,
}

/// An endpoint's private key. It can be neither printed nor serialised.
#[derive(Clone)]
pub struct SecretKey(StaticSecret);

impl SecretKey {
    /// The key with these bytes (RFC 7748 §5 clamps them).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// A secret for another purpose, from which the key cannot be found out.
    pub(crate) fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let mut derived = [0; 32];
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.bytes());
        derived.copy_from_slice(ring::hmac::sign(&key, purpose).as_ref());
        derived
    }

    fn bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// A direct way to a peer that was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostPath {
    /// Where it led.
    pub address: SocketAddr,
    /// How long ago.
    pub since: Duration,
    /// For how long it is not used again while the relay is good.
    pub avoided_for: Duration,
    /// Why it was lost.
    pub reason: PathLossReason,
}

/// What is known of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStats {
    /// Where packets to it go now.
    pub address: Option<SocketAddr>,
    /// The direct way that was lost, while packets to it are relayed.
    pub lost_path: Option<LostPath>,
    /// How long a packet to it may be without being cut on its way, in bytes, if that has been
    /// found out.
    pub path_mtu: Option<u16>,
    /// Time since the last handshake.
    pub handshake_age: Option<Duration>,
    /// Bytes sent, before encryption.
    pub sent: u64,
    /// Bytes received, after decryption.
    pub received: u64,
}

/// To how many addresses one answer to an initiation goes at the most.
const MOST_ANSWERED: usize = 16;
/// The most peers that wait to be called; who is not, is at the next attempt.
const MOST_CALLED: usize = 4096;
/// A ping that has no answer after this has none: the peer may have begun anew.
const PINGS_LAST: Duration = Duration::from_millis(500);

/// The WireGuard half of an endpoint.
pub(crate) struct Wireguard {
    keys: RwLock<OwnKeys>,
    start: Instant,
    pub peers: RwLock<Peers>,
    gate: Gate,
    pub stamps: Stamps,
    /// How much may still be sent to addresses that have not answered.
    unproved: Mutex<Bucket>,
    /// The peers that workers want a handshake with.
    wanted: Mutex<Vec<u32>>,
    /// The peers that a handshake was begun with while there was no session: they are to be called.
    called: Mutex<Vec<u32>>,
    /// Whether others see the endpoint under another address than it has.
    behind_nat: AtomicBool,
    /// Probes that must not be cut into fragments on their way.
    whole: Mutex<Vec<(SocketAddr, Vec<u8>)>>,
    /// Bytes of all packets that wait for a session.
    pub staged: AtomicUsize,
}

/// Where messages go.
pub(crate) type Send<'a> = &'a mut dyn FnMut(SocketAddr, &[u8]);

impl Wireguard {
    pub fn new(secret: SecretKey, start: Instant) -> Self {
        Self {
            gate: Gate::default(),
            stamps: Stamps::default(),
            unproved: Mutex::new(Bucket::of_endpoint()),
            keys: RwLock::new(OwnKeys::new(secret)),
            start,
            peers: RwLock::default(),
            wanted: Mutex::default(),
            called: Mutex::default(),
            behind_nat: AtomicBool::new(false),
            whole: Mutex::default(),
            staged: AtomicUsize::new(0),
        }
    }

    pub fn public(&self) -> PublicKey {
        self.keys.read().current().public
    }

    /// Takes another key; the one of now is good for a time, so that no handshake is lost.
    pub fn rotate(&self, now: Instant, next: SecretKey, keep: Duration) {
        self.keys.write().rotate(self.millis(now), next, keep.as_millis() as u64);
    }

    /// Sets the key that devices know.
    pub fn set_device_key(&self, secret: SecretKey) {
        self.keys.write().set_devices(secret);
    }

    /// The key that devices know.
    pub fn device_key(&self) -> Option<PublicKey> {
        self.keys.read().for_devices().map(|key| key.public)
    }

    pub fn millis(&self, now: Instant) -> Millis {
        // One at the least: zero stands for "never" in a peer's timers.
        Millis(now.saturating_duration_since(self.start).as_millis() as u64 + 1)
    }

    /// Puts a peer into a slot; its sessions go on, if its key is another one, too: the one of
    /// before is taken for a while.
    pub fn put(&self, now: Instant, slot: usize, key: PublicKey, candidates: Vec<SocketAddr>) {
        self.put_peer(now, slot, key, candidates, false);
    }

    /// Puts a device, which runs a stock WireGuard, into a slot.
    pub fn put_device(
        &self,
        now: Instant,
        slot: usize,
        key: PublicKey,
        seen_at: Option<SocketAddr>,
    ) {
        self.put_peer(now, slot, key, seen_at.into_iter().collect(), true);
    }

    fn put_peer(
        &self,
        now: Instant,
        slot: usize,
        key: PublicKey,
        candidates: Vec<SocketAddr>,
        device: bool,
    ) {
        let now = self.millis(now);
        let mut peers = self.peers.write();
        self.gate.note_places(&peers.candidates(slot), &candidates);
        peers.put(now, slot, key, candidates, device, &self.staged);
    }

    pub fn remove(&self, slot: usize) {
        let mut peers = self.peers.write();
        self.gate.note_places(&peers.candidates(slot), &[]);
        peers.remove(slot, &self.staged);
    }

    pub fn stats(&self, now: Instant, slot: usize) -> Option<PeerStats> {
        let peers = self.peers.read();
        let (peer, now) = (peers.get(slot)?, self.millis(now));
        let completed = peer.handshake.lock().completed;
        Some(PeerStats {
            address: peer.address(),
            lost_path: peer.lost().map(|lost| LostPath {
                address: lost.address,
                since: Duration::from_millis(now.since(lost.at)),
                avoided_for: Duration::from_millis(lost.until.since(now)),
                reason: lost.why,
            }),
            path_mtu: peer.reach(),
            handshake_age: completed.map(|at| Duration::from_millis(now.since(at))),
            sent: peer.sent.load(Relaxed),
            received: peer.received.load(Relaxed),
        })
    }

    /// Notes that a worker wants a handshake with a peer; `true` if nobody had said so.
    pub fn want(&self, peer: &Peer) -> bool {
        let first = peer.want_handshake();
        if first {
            self.wanted.lock().push(peer.slot);
        }
        first
    }

    /// Takes a message of a handshake that the gate has let in. The peer comes back if there is a
    /// session for the packets that wait.
    ///
    /// # Errors
    /// The cause for which the message is dropped.
    pub fn receive(
        &self,
        now: Now,
        from: SocketAddr,
        message: &[u8],
        send: Send,
    ) -> Result<Option<Arc<Peer>>, DropReason> {
        let kind = MessageType::of(message).ok_or(DropReason::UnknownPeer)?;
        let millis = self.millis(now.instant);
        if kind == MessageType::CookieReply {
            return self.receive_cookie(millis, message).map(|()| None);
        }
        let key = self.keys.read().all().find(|key| key.macs.holds(message)).cloned();
        let key = key.ok_or(DropReason::BadCrypto)?;
        match kind {
            MessageType::Initiation => self.receive_initiation(&key, millis, from, message, send),
            MessageType::Response => self.receive_response(millis, from, message),
            _ => Err(DropReason::UnknownPeer),
        }
    }

    fn receive_cookie(&self, now: Millis, reply: &[u8]) -> Result<(), DropReason> {
        let peer =
            self.peers.read().by_index(number(reply, 4)).cloned().ok_or(DropReason::UnknownPeer)?;
        let mut handshake = peer.handshake.lock();
        let mac1 = handshake.mac1.ok_or(DropReason::BadCrypto)?;
        let cookie = peer.macs.read_reply(reply, &mac1).ok_or(DropReason::BadCrypto)?;
        handshake.cookie = Some(Held::new(cookie, now));
        handshake.mac1 = None;
        Ok(())
    }

    fn receive_initiation(
        &self,
        key: &OwnKey,
        now: Millis,
        from: SocketAddr,
        message: &[u8],
        send: Send,
    ) -> Result<Option<Arc<Peer>>, DropReason> {
        let begun = Responder::read(&key.secret, message).map_err(|_| DropReason::BadCrypto)?;
        let peer = self.peers.read().by_key(&begun.peer).cloned().ok_or(DropReason::UnknownPeer)?;
        if peer.device != key.devices {
            return Err(DropReason::BadCrypto);
        }
        let mut handshake = peer.handshake.lock();
        let last = handshake.timestamp(&begun.peer);
        if last == Some(begun.timestamp) {
            // A copy that came another way: the answer to it goes back by that, because the first
            // may not have come through.
            if let Some((response, places)) = &mut handshake.answer
                && places.len() < MOST_ANSWERED
                && !places.contains(&from)
            {
                places.push(from);
                send(from, response);
            }
            return Ok(None);
        }
        if last.is_some_and(|last| begun.timestamp < last) {
            return Err(DropReason::BadCrypto);
        }
        if handshake.taken.is_some_and(|last| now.since(last) < BETWEEN_INITIATIONS) {
            return Err(DropReason::HandshakeLimit);
        }
        handshake.note_timestamp(begun.peer, begun.timestamp);
        handshake.taken = Some(now);
        let (remote_index, local_index) = (number(message, 4), handshake.next_index(peer.slot));
        let mut response = [0; RESPONSE];
        set_number(&mut response, 0, MessageType::Response.number());
        set_number(&mut response, 4, local_index);
        set_number(&mut response, 8, remote_index);
        let keys = begun.finish(&mut response).map_err(|_| DropReason::BadCrypto)?;
        let session = Session::new(&keys, local_index, remote_index, now, false);
        handshake.sign(now, &peer, &mut response);
        handshake.completed = Some(now);
        peer.install(session.map_err(|_| DropReason::BadCrypto)?);
        peer.note_initiation(now, from);
        handshake.answer = Some((response, vec![from]));
        send(from, &response);
        Ok(None)
    }

    fn receive_response(
        &self,
        now: Millis,
        from: SocketAddr,
        message: &[u8],
    ) -> Result<Option<Arc<Peer>>, DropReason> {
        let index = number(message, 8);
        let peer = self.peers.read().by_index(index).cloned().ok_or(DropReason::UnknownPeer)?;
        let mut handshake = peer.handshake.lock();
        if handshake.answered.is_some_and(|first| first == *message) {
            // The same answer by another way.
            if peer.places(&handshake).contains(&from) {
                peer.note_copy(now, from);
            }
            return Ok(None);
        }
        let attempt = handshake.attempt.as_mut().filter(|attempt| attempt.local_index == index);
        let attempt = attempt.ok_or(DropReason::BadCrypto)?;
        let begun = attempt.sent;
        let keys = attempt.initiator.finish(message).map_err(|_| DropReason::BadCrypto)?;
        let session = Session::new(&keys, index, number(message, 4), now, true);
        handshake.attempt = None;
        handshake.answered = message.try_into().ok();
        handshake.completed = Some(now);
        handshake.unproved.note_answer(from);
        peer.install(session.map_err(|_| DropReason::BadCrypto)?);
        peer.note_response(now, from, begun);
        drop(handshake);
        Ok(Some(peer))
    }

    /// Begins the handshakes that workers have asked for.
    pub fn begin_wanted(&self, now: Now, send: Send) {
        for slot in std::mem::take(&mut *self.wanted.lock()) {
            let Some(peer) = self.peers.read().get(slot as usize).cloned() else { continue };
            peer.handshake_begins();
            if peer.handshake.lock().attempt.is_none() {
                self.initiate(now, &peer, None, false, send);
            }
        }
    }

    /// Sends an initiation, to wherever the peer may be if it is not known to answer. `began`: when
    /// the first of these was sent; `unanswered`: what was sent to it lately had no answer.
    fn initiate(&self, now: Now, peer: &Peer, began: Option<Millis>, unanswered: bool, send: Send) {
        let millis = self.millis(now.instant);
        let gone = self.peers.read().stamped_gone();
        let mut handshake = peer.handshake.lock();
        // While the peer answers where it is, nothing else is tried.
        let summoned = peer.take_summons();
        let answers = peer.sending(millis).is_some() && began.is_none() && !unanswered && !summoned;
        if !answers && !summoned {
            let mut called = self.called.lock();
            // Nobody may ask for them.
            if called.len() < MOST_CALLED {
                called.push(peer.slot);
            }
        }
        // Without an address the packets wait until the peer has shown where it is.
        let places =
            if answers { peer.address().into_iter().collect() } else { peer.places(&handshake) };
        if summoned {
            handshake.unproved.note_call(millis);
        }
        if places.is_empty() {
            return;
        }
        // If none may be sent to now, the attempt goes on all the same, until one may.
        let places = if answers { places } else { self.bounded(millis, &mut handshake, places) };
        let local_index = handshake.next_index(peer.slot);
        let mut message = [0; INITIATION];
        set_number(&mut message, 0, MessageType::Initiation.number());
        set_number(&mut message, 4, local_index);
        let tried = began.map_or(0, |began| millis.since(began) / peer::REKEY_TIMEOUT);
        let Some(own) = self.keys.read().to_begin(millis, peer.device, tried) else { return };
        // A peer may be one that was removed and came back.
        let stamp = self.stamps.next(handshake.stamped.or(gone), now.unix);
        handshake.stamped = Some(stamp);
        let begun = Initiator::begin(&own.secret, &peer.key, stamp.into(), &mut message);
        // Only a key of low order is refused, and such a peer cannot be talked to.
        let Ok(initiator) = begun else { return };
        handshake.sign(millis, peer, &mut message);
        let attempt =
            Attempt::new(initiator, local_index, began.unwrap_or(millis), millis, message);
        handshake.attempt = Some(attempt);
        places.iter().for_each(|place| send(*place, &message));
    }

    /// Those of a peer's addresses to which a message may go that has not been asked for.
    fn bounded(
        &self,
        now: Millis,
        handshake: &mut peer::Handshake,
        places: Vec<SocketAddr>,
    ) -> Vec<SocketAddr> {
        let mut all = self.unproved.lock();
        let may = |place: &SocketAddr| {
            // A relay takes only what its connection bears, and asks nobody else.
            is_relayed(place) || handshake.unproved.may_send(now, *place, &mut all)
        };
        places.into_iter().filter(may).collect()
    }

    /// Has a handshake begun with a peer that calls, from wherever it may be.
    pub fn answer_hole_punch(&self, slot: usize) -> bool {
        let Some(peer) = self.peers.read().get(slot).cloned() else { return false };
        if peer.handshake.lock().attempt.is_some() {
            return false;
        }
        peer.summon();
        self.want(&peer)
    }

    /// Which of these peers do not answer, and whether handshakes are wanted with some that did not
    /// before: one that is down stays so until it is heard.
    pub fn watch(
        &self,
        now: Instant,
        places: &HashSet<usize>,
        before: &HashSet<usize>,
    ) -> (HashSet<usize>, bool) {
        let (millis, peers) = (self.millis(now), self.peers.read());
        let (mut down, mut wanted) = (HashSet::new(), false);
        for place in places {
            let Some(peer) = peers.get(*place) else { continue };
            peer.watch_closely();
            let handshake = peer.handshake.lock();
            if !peer.is_silent(millis, handshake.attempt.as_ref(), before.contains(place)) {
                continue;
            }
            down.insert(*place);
            let idle = handshake.attempt.is_none();
            drop(handshake);
            wanted |= idle && self.want(peer);
        }
        (down, wanted)
    }

    /// The peers that are to be called.
    pub fn take_hole_punch_requests(&self) -> Vec<u32> {
        std::mem::take(&mut *self.called.lock())
    }

    /// Whether others see the endpoint under another address than it has: then NATs have to be kept
    /// open.
    pub fn set_behind_nat(&self, behind: bool) {
        self.behind_nat.store(behind, Relaxed);
    }

    /// Runs the timers: repetitions, keepalives, probes for packets of up to `longest` bytes, the
    /// end of old keys. How many packets were given up with their handshake.
    pub fn tick(&self, now: Now, longest: u16, send: Send) -> u64 {
        let millis = self.millis(now.instant);
        self.gate.tick(millis);
        if self.keys.read().is_due(millis) {
            self.keys.write().tick(millis);
        }
        if self.peers.read().has_old_keys(millis) {
            self.peers.write().forget_old_keys(millis);
        }
        let all: Vec<Arc<Peer>> = self.peers.read().all();
        all.iter().map(|peer| self.tick_peer(now, millis, peer, longest, send)).sum()
    }

    /// The probes that must not be cut into fragments on their way.
    pub fn take_whole(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut *self.whole.lock())
    }

    fn tick_peer(
        &self,
        now: Now,
        millis: Millis,
        peer: &Arc<Peer>,
        longest: u16,
        send: Send,
    ) -> u64 {
        peer.forget_old_sessions(millis);
        let mut handshake = peer.handshake.lock();
        for ask in peer.probes(millis, &mut handshake, longest) {
            if ask.length.is_none()
                && self.bounded(millis, &mut handshake, vec![ask.place]).is_empty()
            {
                continue;
            }
            let length = ask.length.map_or(probe::LENGTH, usize::from);
            let Some(datagram) = self.ask(millis, peer, Probe::Question(ask.number), length) else {
                break;
            };
            match ask.length {
                Some(_) => self.whole.lock().push((ask.place, datagram)),
                None => send(ask.place, &datagram),
            }
        }
        match peer.due(millis, handshake.attempt.as_ref(), self.behind_nat.load(Relaxed)) {
            Due::Nothing => {}
            Due::Keepalive => self.keepalive(millis, peer, send),
            Due::Initiation => {
                drop(handshake);
                self.initiate(now, peer, None, true, send);
            }
            Due::Copy => {
                let places = peer.places(&handshake);
                let places = self.bounded(millis, &mut handshake, places);
                let Some(attempt) = handshake.attempt.as_mut() else { return 0 };
                attempt.copies += 1;
                places.iter().for_each(|place| send(*place, &attempt.message));
            }
            Due::Repetition => {
                let Some(attempt) = handshake.attempt.take() else { return 0 };
                drop(handshake);
                if attempt.is_hopeless(millis) {
                    return peer.take_staged(&self.staged).len() as u64;
                }
                self.initiate(now, peer, Some(attempt.began), true, send);
            }
        }
        0
    }

    /// Sends an empty data message.
    pub fn keepalive(&self, now: Millis, peer: &Peer, send: Send) {
        let Some(Sending { address, .. }) = peer.sending(now) else { return };
        self.say_nothing(now, peer, address, send);
    }

    /// Says something to every peer with a session, so that it knows from where.
    pub fn announce_address(&self, now: Instant, send: Send) {
        let millis = self.millis(now);
        let all: Vec<Arc<Peer>> = self.peers.read().all();
        all.iter().for_each(|peer| self.keepalive(millis, peer, send));
    }

    /// Asks a peer for an answer by the way that packets to it take: the ping's number, and where
    /// it went; nothing while there is no session, which is begun then. Whether a handshake is
    /// wanted.
    pub fn ping(&self, now: Instant, slot: usize, send: Send) -> (Option<(u32, SocketAddr)>, bool) {
        let Some(peer) = self.peers.read().get(slot).cloned() else { return (None, false) };
        let millis = self.millis(now);
        let Some(Sending { address, .. }) = peer.sending(millis) else {
            return (None, self.want(&peer));
        };
        let (number, lost) = {
            let mut handshake = peer.handshake.lock();
            let lost = handshake.ways.pings_are_lost(now, PINGS_LAST);
            // While it is relayed to, all other ways are tried at once.
            handshake.ways.rest();
            (handshake.ways.ping(now), lost)
        };
        let question = self.ask(millis, &peer, Probe::Question(number), probe::LENGTH);
        let sent = question.map(|datagram| {
            send(address, &datagram);
            (number, address)
        });
        // The peer may have begun anew, and know nothing of this session.
        (sent, lost && self.want(&peer))
    }

    /// How long the answer to a ping took, once it is there.
    pub fn pong(&self, slot: usize, number: u32) -> Option<Duration> {
        let peer = self.peers.read().get(slot).cloned()?;
        peer.handshake.lock().ways.pong(number)
    }

    /// A probe or an answer in a packet of so many bytes, sealed.
    pub fn ask(&self, now: Millis, peer: &Peer, probe: Probe, length: usize) -> Option<Vec<u8>> {
        let Sending { session, .. } = peer.sending(now)?;
        let counter = session.reserve(1)?;
        let mut datagram = vec![0; length + OVERHEAD];
        probe.encode(&mut datagram[DATA_HEADER..DATA_HEADER + length]);
        session.seal(counter, &mut datagram);
        Some(datagram)
    }

    /// Sends an empty data message to where the peer may be.
    fn say_nothing(&self, now: Millis, peer: &Peer, address: SocketAddr, send: Send) {
        let Some(Sending { session, .. }) = peer.sending(now) else { return };
        let Some(counter) = session.reserve(1) else { return };
        let mut datagram = [0; OVERHEAD];
        session.seal(counter, &mut datagram);
        peer.note_spoke(now);
        send(address, &datagram);
    }
}

impl peer::Handshake {
    fn next_index(&mut self, slot: u32) -> u32 {
        self.begun = self.begun.wrapping_add(1);
        slot << 8 | u32::from(self.begun)
    }

    /// Writes a message's MACs, and notes what a cookie reply to it has to be for.
    fn sign(&mut self, now: Millis, peer: &Peer, message: &mut [u8]) {
        let cookie = self.cookie.as_ref().and_then(|held| held.cookie(now));
        self.mac1 = Some(peer.macs.sign(message, cookie));
    }
}

#[cfg(test)]
mod interop_tests;
#[cfg(test)]
mod path_tests;
