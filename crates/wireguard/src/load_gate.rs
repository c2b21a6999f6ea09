//! The load gate: what a handshake message passes before it waits for the thread that does
//! public-key cryptography. A flood ends here, for a microsecond a message, instead of filling that
//! thread's queue.
//!
//! While there is no load, every message passes whose first MAC is right. Under load, initiators
//! have to show a cookie, as in the kernel, and both what passes and what is answered is limited:
//! by source, and for all sources together. Addresses that peers are known to have share limits of
//! their own, so that forged sources are not in their way.

use crate::{
    Millis,
    cookie::{CookieIssuer, MacKeys, has_mac2},
    message::{MessageType, RESPONSE_RECEIVER_INDEX, read_u32},
    rate_limit::{SourceLimiter, TokenBucket},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Messages within [`LOAD_WINDOW`] from which on there is load. A thread that does nothing but
/// handshakes manages some four times that.
const LOAD_MESSAGES: u32 = 200;
const LOAD_WINDOW: Duration = Duration::from_millis(100);
/// The duration of the load after that.
const LOAD_DURATION: Duration = Duration::from_secs(1);

/// Why a message does not pass the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GateRefusal {
    /// The first MAC is wrong: the sender does not know our public key.
    #[error("the first MAC is wrong")]
    WrongMac,
    /// There is load, and the source has no cookie or has reached its limit.
    #[error("too many handshake messages")]
    OverLimit,
}

/// A handshake message and its source.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// The source.
    pub from: SocketAddr,
    /// The message.
    pub message: &'a [u8],
}

/// The interface behind the gate.
pub trait Interface {
    /// Returns the keys of the first MAC of a message, if it is right for any of the interface's
    /// own keys.
    fn verify_mac1(&self, message: &[u8]) -> Option<&MacKeys>;
    /// Returns whether an index is one of a peer.
    fn has_index(&self, index: u32) -> bool;
    /// Returns whether a response with this index may be the answer to an initiation of ours, of
    /// which only few have come so far. Counts the response.
    fn try_response(&self, index: u32) -> bool;
}

/// A detector of more messages than a thread can process.
#[derive(Debug, Default)]
struct LoadDetector {
    window: AtomicU64,
    count: AtomicU32,
    until: AtomicU64,
}

impl LoadDetector {
    /// Counts a message. Returns whether there is load.
    fn count_message(&self, now: Millis) -> bool {
        let window = now.0 / LOAD_WINDOW.as_millis() as u64;
        if self.window.swap(window, Relaxed) != window {
            self.count.store(0, Relaxed);
        }
        if self.count.fetch_add(1, Relaxed) >= LOAD_MESSAGES {
            self.begin(now);
        }
        self.is_loaded(now)
    }

    fn begin(&self, now: Millis) {
        self.until.store((now + LOAD_DURATION).0, Relaxed);
    }

    fn is_loaded(&self, now: Millis) -> bool {
        now.0 < self.until.load(Relaxed)
    }
}

/// The limits under load of sources of one kind.
#[derive(Debug)]
struct LoadLimits {
    admitted: TokenBucket,
    replies: TokenBucket,
}

impl LoadLimits {
    fn new(burst: u64, per_second: u64) -> Self {
        Self {
            admitted: TokenBucket::new(burst, per_second),
            replies: TokenBucket::new(burst, per_second),
        }
    }

    /// Returns whether a message could pass or be answered, whatever its MACs are.
    fn has_room(&mut self, now: Millis, has_cookie: bool) -> bool {
        self.replies.has_token(now) || has_cookie && self.admitted.has_token(now)
    }
}

struct Limits {
    cookies: CookieIssuer,
    admitted: SourceLimiter,
    answered: SourceLimiter,
    known: LoadLimits,
    strangers: LoadLimits,
    other_messages: TokenBucket,
}

/// The load gate of an interface. Any number of threads may use it.
pub struct LoadGate {
    load: LoadDetector,
    limits: Mutex<Limits>,
    /// The addresses of peers, with how many peers have each.
    known: RwLock<HashMap<IpAddr, usize>>,
}

impl Default for LoadGate {
    fn default() -> Self {
        let limits = Limits {
            cookies: CookieIssuer::default(),
            admitted: SourceLimiter::default(),
            answered: SourceLimiter::default(),
            known: LoadLimits::new(200, 1_000),
            strangers: LoadLimits::new(100, 500),
            other_messages: TokenBucket::new(200, 1_000),
        };
        Self { load: LoadDetector::default(), limits: Mutex::new(limits), known: RwLock::default() }
    }
}

impl LoadGate {
    /// Replaces the addresses of a peer, `before`, by `after`.
    pub fn replace_known(&self, before: &[SocketAddr], after: &[SocketAddr]) {
        let mut known = self.known.write();
        for address in after {
            *known.entry(address.ip().to_canonical()).or_default() += 1;
        }
        for address in before {
            let ip = address.ip().to_canonical();
            if let Some(count) = known.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    known.remove(&ip);
                }
            }
        }
    }

    /// Begins load: the thread that does handshakes does not keep up.
    pub fn begin_load(&self, now: Millis) {
        self.load.begin(now);
    }

    /// Ends the load.
    #[doc(hidden)]
    pub fn end_load(&self) {
        self.load.until.store(0, Relaxed);
    }

    /// Forgets the sources that have been quiet. To be called every second or more often.
    pub fn tick(&self, now: Millis) {
        let mut limits = self.limits.lock();
        limits.admitted.forget_idle(now);
        limits.answered.forget_idle(now);
    }

    /// Decides whether a message may wait for public-key cryptography. A cookie reply to it is
    /// handed to `reply`.
    ///
    /// # Errors
    /// The reason for which the message is to be dropped.
    pub fn admit(
        &self,
        now: Millis,
        incoming: Incoming<'_>,
        interface: &impl Interface,
        reply: impl FnOnce(&[u8]),
    ) -> Result<(), GateRefusal> {
        let Incoming { from, message } = incoming;
        let kind = MessageType::of(message);
        if !matches!(kind, Some(MessageType::Initiation | MessageType::Response)) {
            // A cookie reply, or a message of another protocol: they are rare.
            let admitted =
                !self.load.count_message(now) || self.limits.lock().other_messages.try_take(now);
            return admitted.then_some(()).ok_or(GateRefusal::OverLimit);
        }
        let index = read_u32(message, RESPONSE_RECEIVER_INDEX);
        let may_be_awaited = kind == Some(MessageType::Response) && interface.has_index(index);
        if self.load.is_loaded(now) && !may_be_awaited && !self.has_room(now, incoming) {
            // Verifying its MACs would cost more than all the rest.
            self.load.count_message(now);
            return Err(GateRefusal::OverLimit);
        }
        let keys = interface.verify_mac1(message).ok_or(GateRefusal::WrongMac)?;
        if !self.load.count_message(now) || may_be_awaited && interface.try_response(index) {
            return Ok(());
        }
        self.admit_under_load(now, Incoming { from, message }, keys, reply)
    }

    fn admit_under_load(
        &self,
        now: Millis,
        Incoming { from, message }: Incoming<'_>,
        keys: &MacKeys,
        reply: impl FnOnce(&[u8]),
    ) -> Result<(), GateRefusal> {
        let is_known = self.is_known(from.ip());
        let mut limits = self.limits.lock();
        let Limits { cookies, admitted, answered, known, strangers, .. } = &mut *limits;
        let kind_limits = if is_known { known } else { strangers };
        if has_mac2(message) && cookies.verify(now, from, message) {
            let admitted = admitted.try_take(now, from.ip()) && kind_limits.admitted.try_take(now);
            return admitted.then_some(()).ok_or(GateRefusal::OverLimit);
        }
        // Strangers share one limit, or the gate would have to know any number of sources.
        let may_answer = !is_known || answered.try_take(now, from.ip());
        if may_answer && kind_limits.replies.try_take(now) {
            let message = cookies.reply(keys, now, from, message);
            drop(limits);
            reply(&message);
        }
        Err(GateRefusal::OverLimit)
    }

    fn is_known(&self, source: IpAddr) -> bool {
        self.known.read().contains_key(&source.to_canonical())
    }

    /// Returns whether the limits leave anything for a message.
    fn has_room(&self, now: Millis, Incoming { from, message }: Incoming<'_>) -> bool {
        let is_known = self.is_known(from.ip());
        let mut limits = self.limits.lock();
        let limits = if is_known { &mut limits.known } else { &mut limits.strangers };
        limits.has_room(now, has_mac2(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        SecretKey,
        message::{INITIATION_LENGTH, initiation},
    };

    const KNOWN: &str = "192.0.2.2:51820";

    struct Own(MacKeys);

    impl Interface for Own {
        fn verify_mac1(&self, message: &[u8]) -> Option<&MacKeys> {
            self.0.verify(message).then_some(&self.0)
        }
        fn has_index(&self, _: u32) -> bool {
            false
        }
        fn try_response(&self, _: u32) -> bool {
            false
        }
    }

    struct Bench {
        gate: LoadGate,
        own: Own,
    }

    impl Bench {
        fn new() -> Self {
            let own = Own(MacKeys::of(&SecretKey::from_bytes([1; 32]).public()));
            let gate = LoadGate::default();
            gate.replace_known(&[], &[known()]);
            Self { gate, own }
        }

        /// An initiation whose first MAC is right, and nothing else.
        fn forged(&self, number: u32) -> [u8; INITIATION_LENGTH] {
            let mut message = initiation(number);
            self.own.0.sign(&mut message, None);
            message
        }

        fn admit(
            &self,
            at: u64,
            from: SocketAddr,
            message: &[u8],
            reply: impl FnOnce(&[u8]),
        ) -> Result<(), GateRefusal> {
            self.gate.admit(Millis(at), Incoming { from, message }, &self.own, reply)
        }
    }

    fn known() -> SocketAddr {
        KNOWN.parse().unwrap()
    }

    fn source(number: u32) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + number), 7))
    }

    #[test]
    fn a_flood_of_forged_sources_is_limited_and_a_peer_still_gets_its_cookie() {
        let bench = Bench::new();
        let (mut passed, mut answered, mut cookies) = (0, 0, 0);
        for number in 0..300_000u32 {
            // 100,000 a second.
            let now = 1 + u64::from(number) / 100;
            let forged = bench.forged(number);
            let done = bench.admit(now, source(number), &forged, |_| answered += 1);
            passed += u32::from(done.is_ok());
            if number % 50_000 == 49_999 {
                let _ = bench.admit(now, known(), &forged, |_| cookies += 1);
            }
        }
        assert!(passed <= 2 * LOAD_MESSAGES, "{passed}");
        assert!(answered <= 100 + 3 * 500 + 10, "{answered}");
        assert_eq!(cookies, 6, "each time that the peer asked");
    }

    #[test]
    fn a_message_with_a_wrong_first_mac_never_passes() {
        let bench = Bench::new();
        let mut message = bench.forged(1);
        message[50] ^= 1;
        let done = bench.admit(1, source(1), &message, |_| panic!("an answer"));
        assert_eq!(done, Err(GateRefusal::WrongMac));
    }

    #[test]
    fn where_no_limit_leaves_anything_a_flood_costs_no_macs_and_the_load_lasts() {
        let bench = Bench::new();
        let flood = |from: u32, now: u64, spoil: usize| {
            (from..from + 1_000).map(move |number| (number, now, spoil))
        };
        let check = |(number, now, spoil): (u32, u64, usize)| {
            let mut message = bench.forged(number);
            message[spoil] ^= 1;
            bench.admit(now, source(number), &message, |_| {})
        };
        // Without load each MAC is verified, and a wrong one begins no load.
        assert!(flood(0, 1, 50).all(|message| check(message) == Err(GateRefusal::WrongMac)));
        let passed =
            flood(1_000, 2, INITIATION_LENGTH - 1).filter(|message| check(*message).is_ok());
        assert!(passed.count() <= LOAD_MESSAGES as usize);
        // The strangers' share is used up.
        assert!(flood(2_000, 2, 50).all(|message| check(message) == Err(GateRefusal::OverLimit)));
        let lasting = (1..50).flat_map(|tenth| {
            flood(3_000 + tenth as u32 * 1_000, 2 + tenth * 100, INITIATION_LENGTH - 1)
        });
        let passed = lasting.filter(|message| check(*message).is_ok()).count();
        assert_eq!(passed, 0, "none gets in without its cookie");
        let mut cookies = 0;
        let asked = bench.admit(5_000, known(), &bench.forged(1), |_| cookies += 1);
        assert_eq!(asked, Err(GateRefusal::OverLimit));
        assert_eq!(cookies, 1, "an address of a peer is answered");
    }

    #[test]
    fn a_source_with_a_cookie_passes_under_load_up_to_its_limit() {
        let bench = Bench::new();
        for number in 0..2 * LOAD_MESSAGES {
            let _ = bench.admit(1, source(number), &bench.forged(number), |_| {});
        }
        let mut reply = Vec::new();
        let mut message = bench.forged(7);
        let asked = bench.admit(2, known(), &message, |sent| reply = sent.to_vec());
        assert_eq!(asked, Err(GateRefusal::OverLimit));
        let mac1 = message[INITIATION_LENGTH - 32..INITIATION_LENGTH - 16].try_into().unwrap();
        let cookie = bench.own.0.open_reply(&reply, &mac1).unwrap();
        bench.own.0.sign(&mut message, Some(&cookie));
        let passed = (0..100).filter(|_| bench.admit(3, known(), &message, |_| {}).is_ok());
        assert_eq!(passed.count(), 5, "five at once, as in the kernel");
    }

    #[test]
    fn a_known_address_is_counted_for_each_peer_that_has_it() {
        let gate = LoadGate::default();
        gate.replace_known(&[], &[known()]);
        gate.replace_known(&[], &[known(), source(3)]);
        gate.replace_known(&[known()], &[]);
        assert_eq!(gate.known.read().len(), 2);
        gate.replace_known(&[known(), source(3)], &[source(4)]);
        assert_eq!(gate.known.read().keys().copied().collect::<Vec<_>>(), [source(4).ip()]);
        gate.replace_known(&[source(4)], &[]);
        assert!(gate.known.read().is_empty());
    }
}
