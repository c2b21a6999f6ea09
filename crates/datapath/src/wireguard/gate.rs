//! What workers look at before a message of a handshake waits for the thread that does public-key
//! cryptography: a flood ends here, for a microsecond a message, instead of filling that thread's
//! queue.
//!
//! While there is no load, all that holds its first MAC passes. Under load, initiators show a
//! cookie, as in the kernel, and what passes and what is answered is limited: by source, and for
//! all together. Sources at which the coordinator says a peer may be have limits of their own, so
//! those of forged sources are not in their way.

use super::{
    MessageType, Millis, Peers, Send, Wireguard,
    cookie::Guard,
    message::{MAC, number},
    unproved::Bucket,
};
use crate::drops::DropReason;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Instant,
};

/// From how many messages in so many milliseconds on there is load. A thread that does nothing else
/// manages some four times that.
const LOAD: u32 = 200;
const WINDOW: u64 = 100;
/// For how long there is load after that, in milliseconds.
const LOAD_LASTS: u64 = 1_000;
/// The most responses to one of our initiations that are tried without a cookie.
const TRIED: u8 = 4;

/// Whether more comes than the thread is to be asked for.
#[derive(Debug, Default)]
struct Load {
    window: AtomicU64,
    count: AtomicU32,
    until: AtomicU64,
}

impl Load {
    /// Notes a message: whether there is load.
    fn note(&self, now: Millis) -> bool {
        let window = now.0 / WINDOW;
        if self.window.swap(window, Relaxed) != window {
            self.count.store(0, Relaxed);
        }
        if self.count.fetch_add(1, Relaxed) >= LOAD {
            self.begin(now);
        }
        self.lasts(now)
    }

    /// Has it last for a while from now on.
    fn begin(&self, now: Millis) {
        self.until.store(now.0 + LOAD_LASTS, Relaxed);
    }

    /// Whether there is load.
    fn lasts(&self, now: Millis) -> bool {
        now.0 < self.until.load(Relaxed)
    }
}

/// What is admitted and answered under load, for sources of one kind.
#[derive(Debug)]
struct Share {
    admitted: Bucket,
    replies: Bucket,
}

impl Share {
    fn new(most: u64, each_second: u64) -> Self {
        Self { admitted: Bucket::new(most, each_second), replies: Bucket::new(most, each_second) }
    }

    /// Whether anything may come of a message, whatever its MACs say.
    fn has_room(&mut self, now: Millis, shows_cookie: bool) -> bool {
        self.replies.has_one(now) || shows_cookie && self.admitted.has_one(now)
    }
}

/// The gate of an endpoint.
pub(crate) struct Gate {
    load: Load,
    limits: parking_lot::Mutex<Limits>,
    /// Where peers may be, and of how many.
    known: parking_lot::RwLock<HashMap<IpAddr, usize>>,
}

struct Limits {
    guard: Guard,
    /// For counting replies to one source.
    answered: Guard,
    known: Share,
    strangers: Share,
    others: Bucket,
}

impl Default for Gate {
    fn default() -> Self {
        let limits = Limits {
            guard: Guard::new(),
            answered: Guard::new(),
            known: Share::new(200, 1_000),
            strangers: Share::new(100, 500),
            others: Bucket::new(200, 1_000),
        };
        Self {
            load: Load::default(),
            limits: parking_lot::Mutex::new(limits),
            known: parking_lot::RwLock::default(),
        }
    }
}

impl Gate {
    /// Notes where a peer may be, and where it may not be any more.
    pub fn note_places(&self, before: &[SocketAddr], after: &[SocketAddr]) {
        let mut known = self.known.write();
        for place in after {
            *known.entry(place.ip().to_canonical()).or_default() += 1;
        }
        for place in before {
            let ip = place.ip().to_canonical();
            if let Some(count) = known.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    known.remove(&ip);
                }
            }
        }
    }

    fn is_known(&self, source: IpAddr) -> bool {
        self.known.read().contains_key(&source.to_canonical())
    }

    /// Whether the limits leave anything for a message from a source.
    fn has_room(&self, now: Millis, source: IpAddr, message: &[u8]) -> bool {
        let is_known = self.is_known(source);
        let mut limits = self.limits.lock();
        let share = if is_known { &mut limits.known } else { &mut limits.strangers };
        share.has_room(now, shows_cookie(message))
    }

    /// Forgets the sources that have been quiet.
    pub fn tick(&self, now: Millis) {
        let mut limits = self.limits.lock();
        limits.guard.forget_quiet_sources(now);
        limits.answered.forget_quiet_sources(now);
    }
}

impl Wireguard {
    /// Notes that the thread that takes handshakes does not keep up: initiators show a cookie for a
    /// second.
    pub fn note_overload(&self, now: Instant) {
        self.gate.load.begin(self.millis(now));
    }

    #[cfg(any(test, fuzzing))]
    pub fn end_load(&self) {
        self.gate.load.until.store(0, Relaxed);
    }

    /// Whether a message of a handshake is to wait for the thread that takes it.
    ///
    /// # Errors
    /// The cause for which it is dropped; it may have been answered with a cookie.
    pub fn admit(
        &self,
        peers: &Peers,
        now: Millis,
        from: SocketAddr,
        message: &[u8],
        send: Send,
    ) -> Result<(), DropReason> {
        let kind = MessageType::of(message);
        if !matches!(kind, Some(MessageType::Initiation | MessageType::Response)) {
            // A cookie, or what a STUN server says: few are waited for.
            let within = !self.gate.load.note(now) || self.gate.limits.lock().others.take_one(now);
            return if within { Ok(()) } else { Err(DropReason::HandshakeLimit) };
        }
        let may_be_awaited =
            kind == Some(MessageType::Response) && peers.by_index(number(message, 8)).is_some();
        if self.gate.load.lasts(now)
            && !may_be_awaited
            && !self.gate.has_room(now, from.ip(), message)
        {
            // Its MACs would cost more than all the rest.
            self.gate.load.note(now);
            return Err(DropReason::HandshakeLimit);
        }
        let keys = self.keys.read();
        let key = keys.all().find(|key| key.macs.holds(message)).ok_or(DropReason::BadCrypto)?;
        if !self.gate.load.note(now) || may_be_awaited && is_awaited(peers, message) {
            return Ok(());
        }
        let is_known = self.gate.is_known(from.ip());
        let mut limits = self.gate.limits.lock();
        let Limits { guard, answered, known, strangers, .. } = &mut *limits;
        let share = if is_known { known } else { strangers };
        if shows_cookie(message) && guard.has_cookie(now, from, message) {
            let within = guard.admits(now, from.ip()) && share.admitted.take_one(now);
            return if within { Ok(()) } else { Err(DropReason::HandshakeLimit) };
        }
        // Strangers have one limit, or so many sources would have to be told apart.
        if (!is_known || answered.admits(now, from.ip())) && share.replies.take_one(now) {
            let reply = guard.reply(&key.macs, now, from, message);
            drop(limits);
            send(from, &reply);
        }
        Err(DropReason::HandshakeLimit)
    }
}

/// Whether a message has a second MAC; whether that holds is another question.
fn shows_cookie(message: &[u8]) -> bool {
    message[message.len() - MAC..] != [0; MAC]
}

/// Whether a response may be the one to an initiation of ours, and few have come for that.
fn is_awaited(peers: &Peers, message: &[u8]) -> bool {
    let index = number(message, 8);
    let Some(mut handshake) = peers.by_index(index).and_then(|peer| peer.handshake.try_lock())
    else {
        return false;
    };
    let attempt = handshake.attempt.as_mut().filter(|attempt| attempt.local_index == index);
    let awaited = attempt.filter(|attempt| attempt.tried < TRIED);
    awaited.map(|attempt| attempt.tried += 1).is_some()
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    const KNOWN: &str = "192.0.2.2:51820";

    fn wireguard() -> (Wireguard, Instant) {
        let start = Instant::now();
        let own = Wireguard::new(SecretKey::from_bytes([1; 32]), start);
        own.put(start, 0, SecretKey::from_bytes([2; 32]).public(), vec![KNOWN.parse().unwrap()]);
        (own, start)
    }

    /// An initiation with a first MAC that holds, and nothing else.
    fn forged(own: &Wireguard, number: u32) -> [u8; INITIATION] {
        let mut message = [0; INITIATION];
        set_number(&mut message, 0, MessageType::Initiation.number());
        set_number(&mut message, 4, number);
        own.keys.read().current().macs.sign(&mut message, None);
        message
    }

    fn source(number: u32) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + number), 7))
    }

    #[test]
    fn of_a_flood_from_forged_sources_few_pass_and_few_are_answered_and_a_peer_still_gets_its_cookie()
     {
        let (own, _) = wireguard();
        let peers = own.peers.read();
        let (mut passed, mut answered, mut cookies) = (0, 0, 0);
        for number in 0..300_000u32 {
            // 100,000 a second.
            let now = Millis(1 + u64::from(number) / 100);
            let done =
                own.admit(&peers, now, source(number), &forged(&own, number), &mut |_, _| {
                    answered += 1
                });
            passed += u32::from(done.is_ok());
            if number % 50_000 == 49_999 {
                let from = KNOWN.parse().unwrap();
                let _ =
                    own.admit(&peers, now, from, &forged(&own, number), &mut |_, _| cookies += 1);
            }
        }
        assert!(passed <= 2 * LOAD, "{passed}");
        assert!(answered <= 100 + 3 * 500 + 10, "{answered}");
        assert_eq!(cookies, 6, "each time that the peer asked");
    }

    #[test]
    fn what_does_not_hold_its_first_mac_never_waits() {
        let (own, _) = wireguard();
        let mut message = forged(&own, 1);
        message[50] ^= 1;
        let done = own.admit(&own.peers.read(), Millis(1), source(1), &message, &mut |_, _| {
            panic!("an answer")
        });
        assert_eq!(done, Err(DropReason::BadCrypto));
    }

    #[test]
    fn where_no_limit_leaves_anything_a_flood_costs_no_macs_and_the_load_lasts() {
        let (own, _) = wireguard();
        let peers = own.peers.read();
        let flood = |from: u32, now: u64, spoil: usize| {
            (from..from + 1_000).map(move |number| (number, Millis(now), spoil))
        };
        let judge = |(number, now, spoil): (u32, Millis, usize)| {
            let mut message = forged(&own, number);
            message[spoil] ^= 1;
            own.admit(&peers, now, source(number), &message, &mut |_, _| {})
        };
        // Without load each MAC is looked at, and what does not hold begins none.
        assert!(flood(0, 1, 50).all(|message| judge(message) == Err(DropReason::BadCrypto)));
        assert!(
            flood(1_000, 2, INITIATION - 1).filter(|message| judge(*message).is_ok()).count()
                <= LOAD as usize
        );
        // The strangers' share is used up.
        assert!(
            flood(2_000, 2, 50).all(|message| judge(message) == Err(DropReason::HandshakeLimit))
        );
        let lasting = (1..50)
            .flat_map(|tenth| flood(3_000 + tenth as u32 * 1_000, 2 + tenth * 100, INITIATION - 1));
        assert_eq!(
            lasting.filter(|message| judge(*message).is_ok()).count(),
            0,
            "none gets in without its cookie"
        );
        let (known, mut cookies) = (KNOWN.parse().unwrap(), 0);
        let asked =
            own.admit(&peers, Millis(5_000), known, &forged(&own, 1), &mut |_, _| cookies += 1);
        assert_eq!(
            (asked, cookies),
            (Err(DropReason::HandshakeLimit), 1),
            "where a peer may be, it is answered"
        );
    }

    #[test]
    fn who_shows_its_cookie_passes_under_load_up_to_its_limit() {
        let (own, _) = wireguard();
        let (peers, from) = (own.peers.read(), KNOWN.parse().unwrap());
        for number in 0..2 * LOAD {
            let _ =
                own.admit(&peers, Millis(1), source(number), &forged(&own, number), &mut |_, _| {});
        }
        let mut reply = Vec::new();
        let mut message = forged(&own, 7);
        let asked =
            own.admit(&peers, Millis(2), from, &message, &mut |_, sent| reply = sent.to_vec());
        assert_eq!(asked, Err(DropReason::HandshakeLimit));
        let keys = own.keys.read().current().clone();
        let mac1 = message[INITIATION - 32..INITIATION - 16].try_into().unwrap();
        let cookie = keys.macs.read_reply(&reply, &mac1).unwrap();
        keys.macs.sign(&mut message, Some(&cookie));
        let passed = (0..100)
            .filter(|_| own.admit(&peers, Millis(3), from, &message, &mut |_, _| {}).is_ok());
        assert_eq!(passed.count(), 5, "five in a row, as in the kernel");
    }

    #[test]
    fn places_are_counted_for_as_many_peers_as_have_them() {
        let (own, start) = wireguard();
        let shared = vec![KNOWN.parse().unwrap(), source(3)];
        own.put(start, 1, SecretKey::from_bytes([3; 32]).public(), shared);
        own.remove(0);
        assert_eq!(own.gate.known.read().len(), 2);
        own.put(start, 1, SecretKey::from_bytes([3; 32]).public(), vec![source(4)]);
        assert_eq!(own.gate.known.read().keys().copied().collect::<Vec<_>>(), [source(4).ip()]);
        own.remove(1);
        assert!(own.gate.known.read().is_empty());
    }
}
