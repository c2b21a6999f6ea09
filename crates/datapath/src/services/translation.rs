//! A connection through a service: its mapping, and how far it has come.

use super::{
    counters::ServiceCounters,
    load::{InstanceLoad, Micros},
    mapping::{Ends, Mapping},
};
use crate::{
    headers::{FIN, Fragment, Headers, RST, SYN},
    offload::Offload,
};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
};

/// The instance has answered.
const ANSWERED: u16 = 1;
/// The client has sent data since.
const ASKED: u16 = 2;
/// The instance has sent data.
const RESPONDED: u16 = 4;
const CLIENT_CLOSED: u16 = 8;
const INSTANCE_CLOSED: u16 = 16;
/// It is closed on both sides, or reset.
const ENDED: u16 = 32;
/// The client's packets go to another instance now.
const MOVED: u16 = 64;
/// The instance has refused it.
const REFUSED: u16 = 128;
/// It counts for its instance.
const COUNTED: u16 = 256;
/// The instance has gone on with it after a crash, and the client has not spoken yet.
const PRESUMED: u16 = 512;

/// The longest SYN that is kept to be sent again, in bytes: longer ones carry data (RFC 7413).
const MAX_SYN: usize = 256;
/// The time after which a client that sends its SYN again has had no answer, in microseconds:
/// initial timeouts are a second (RFC 6298 §2), and some are set to less.
const UNANSWERED_AFTER: u64 = 400_000;

/// The instance that a connection counts for.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) counters: Arc<ServiceCounters>,
    pub(crate) load: Arc<InstanceLoad>,
}

/// A SYN, as the client has sent it.
#[derive(Debug)]
pub(crate) struct Syn {
    pub(crate) packet: Box<[u8]>,
    pub(crate) offload: Offload,
}

/// A connection through a service. Its flow holds it, and the table of connections.
#[derive(Debug)]
pub struct Translation {
    pub(crate) mapping: Mapping,
    /// The ends of what its client sends, as it goes to the instance.
    pub(crate) outer_request: Ends,
    /// `None`: the instance was not known any more after a restart, or it is a connection to a
    /// workload itself, which has another port for the other end.
    target: Option<Target>,
    /// Instances that were tried before.
    pub(crate) tried: Vec<std::net::IpAddr>,
    state: AtomicU16,
    /// The time of the client's SYN, or of what the instance has not answered yet.
    since: AtomicU64,
    /// Microseconds until the instance had answered the SYN.
    connect_time: AtomicU32,
    syn: Mutex<Option<Syn>>,
}

/// Something that a packet of an instance shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Nothing out of the ordinary.
    None,
    /// It refuses the connection.
    Refused,
}

/// The successor of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replacement {
    /// One with the same instance.
    Same,
    /// One with another instance.
    Elsewhere,
}

impl Translation {
    /// A connection that begins.
    pub(crate) fn new(mapping: Mapping, target: Option<Target>, now: Micros) -> Self {
        Self::with_state(mapping, target, now, 0)
    }

    /// A connection from before a restart.
    pub(crate) fn restored(mapping: Mapping, target: Option<Target>, now: Micros) -> Self {
        Self::with_state(mapping, target, now, ANSWERED | ASKED | RESPONDED)
    }

    /// A connection from before a crash that its instance goes on with, if there is such a one.
    pub(crate) fn presumed(mapping: Mapping, target: Option<Target>, now: Micros) -> Self {
        Self::with_state(mapping, target, now, ANSWERED | ASKED | RESPONDED | PRESUMED)
    }

    fn with_state(mapping: Mapping, target: Option<Target>, now: Micros, state: u16) -> Self {
        Self {
            outer_request: mapping.outer_request(),
            mapping,
            target,
            tried: vec![],
            state: AtomicU16::new(state),
            since: AtomicU64::new(now.0),
            connect_time: AtomicU32::new(0),
            syn: Mutex::new(None),
        }
    }

    /// Counts it for its instance: its first packet has passed.
    pub(crate) fn begin(&self) {
        if let Some(target) = &self.target
            && self.set(COUNTED)
        {
            target.load.begin();
            target.counters.connections.fetch_add(1, Relaxed);
        }
    }

    /// Keeps its SYN until it is answered.
    pub(crate) fn keep_syn(&self, packet: &[u8], offload: Offload) {
        if packet.len() <= MAX_SYN {
            *self.syn.lock() = Some(Syn { packet: packet.into(), offload });
        }
    }

    /// Returns whether it has a SYN that is not answered.
    pub(crate) fn keeps_syn(&self) -> bool {
        self.syn.lock().is_some()
    }

    /// Removes and returns its SYN.
    pub(crate) fn take_syn(&self) -> Option<Syn> {
        self.syn.lock().take()
    }

    fn is(&self, bits: u16) -> bool {
        self.state.load(Relaxed) & bits != 0
    }

    /// Sets bits. Returns whether any of them was not set.
    fn set(&self, bits: u16) -> bool {
        self.state.fetch_or(bits, Relaxed) & bits != bits
    }

    /// Returns whether the instance has answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.is(ANSWERED)
    }

    /// Returns whether it has ended, so that its addresses and ports may be used again.
    pub(crate) fn is_over(&self) -> bool {
        self.is(ENDED | MOVED)
    }

    /// Returns whether the client's packets go to another instance now.
    pub(crate) fn is_moved(&self) -> bool {
        self.is(MOVED)
    }

    /// Returns whether the client has still to show that there is such a connection.
    pub(crate) fn is_presumed(&self) -> bool {
        self.is(PRESUMED)
    }

    /// Returns whether the instance has refused it.
    pub(crate) fn is_refused(&self) -> bool {
        self.is(REFUSED)
    }

    /// Returns whether a SYN that the client sends now says that the instance has not answered.
    pub(crate) fn is_unanswered(&self, now: Micros) -> bool {
        !self.is(ANSWERED | ENDED)
            && now.since(Micros(self.since.load(Relaxed))) >= UNANSWERED_AFTER
    }

    /// Ends it: it does not count for its instance any more.
    fn end(&self) {
        if self.set(ENDED)
            && self.is(COUNTED)
            && let Some(target) = &self.target
        {
            target.load.end();
        }
    }

    /// Notes that the client's packets belong to another connection from now on, with the same
    /// instance or with another one.
    pub(crate) fn note_replaced(&self, by: Replacement) {
        let had_ended = self.is(ENDED) && !self.is(REFUSED);
        self.set(MOVED);
        self.end();
        if let (Replacement::Elsewhere, false, Some(target)) = (by, had_ended, &self.target) {
            target.counters.moved.fetch_add(1, Relaxed);
        }
    }

    /// Notes that the instance has not answered.
    pub(crate) fn note_unanswered(&self, now: Micros) {
        if let Some(target) = &self.target {
            target.load.unanswered.fetch_add(1, Relaxed);
            target.counters.unanswered.fetch_add(1, Relaxed);
            target.load.note_failure(now);
        }
    }

    /// Notes that the instance, or its node, refuses it.
    pub(crate) fn note_refused(&self, now: Micros) {
        if self.set(REFUSED)
            && let Some(target) = &self.target
        {
            target.load.refused.fetch_add(1, Relaxed);
            target.counters.refused.fetch_add(1, Relaxed);
            target.load.note_failure(now);
        }
        self.end();
    }

    /// Notes a packet of the client.
    #[inline]
    pub(crate) fn note_request(&self, packet: &[u8], headers: &Headers, now: Micros) {
        let state = self.state.load(Relaxed);
        if state & PRESUMED != 0 {
            self.state.fetch_and(!PRESUMED, Relaxed);
        }
        if headers.tcp_flags & (SYN | FIN | RST) == 0 && state & (RESPONDED | ASKED) != 0 {
            return;
        }
        if headers.tcp_flags & RST != 0 {
            return self.end();
        }
        if headers.tcp_flags & FIN != 0 {
            self.close(CLIENT_CLOSED);
        }
        if state & (ANSWERED | ASKED) == ANSWERED && has_data(packet, headers) {
            self.set(ASKED);
            self.since.store(now.0, Relaxed);
        }
    }

    /// Notes a packet of the instance.
    #[inline]
    pub(crate) fn note_answer(&self, packet: &[u8], headers: &Headers, now: Micros) -> Sign {
        let state = self.state.load(Relaxed);
        if headers.tcp_flags & (SYN | FIN | RST) == 0 && state & RESPONDED != 0 {
            return Sign::None;
        }
        if headers.tcp_flags & RST != 0 {
            if state & ANSWERED == 0 {
                self.note_refused(now);
                return Sign::Refused;
            }
            self.end();
            return Sign::None;
        }
        if headers.tcp_flags & FIN != 0 {
            self.close(INSTANCE_CLOSED);
        }
        if state & ANSWERED == 0 {
            self.note_connected(headers, now);
        }
        if state & RESPONDED == 0 && has_data(packet, headers) && self.set(RESPONDED) {
            self.note_answer_time(now);
        }
        Sign::None
    }

    /// Notes the first packet of the instance.
    fn note_connected(&self, headers: &Headers, now: Micros) {
        if !self.set(ANSWERED) {
            return;
        }
        *self.syn.lock() = None;
        let Some(target) = &self.target else { return };
        target.load.note_success();
        if headers.ip_protocol == 6 {
            let took = now.since(Micros(self.since.swap(now.0, Relaxed)));
            self.connect_time.store(took.try_into().unwrap_or(u32::MAX), Relaxed);
            target.counters.note_connect(took);
        }
    }

    /// Notes that the instance answers what it was asked. How long it takes to accept a connection
    /// counts, too: the kernel of a slow program accepts as fast as others.
    fn note_answer_time(&self, now: Micros) {
        let Some(target) = &self.target else { return };
        let connect_time = u64::from(self.connect_time.load(Relaxed));
        let took = connect_time + now.since(Micros(self.since.load(Relaxed)));
        target.load.note_answer(now, took);
        target.counters.usual.note(took);
    }

    fn close(&self, side: u16) {
        self.set(side);
        let both = CLIENT_CLOSED | INSTANCE_CLOSED;
        if self.state.load(Relaxed) & both == both {
            self.end();
        }
    }
}

impl Drop for Translation {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns whether a packet of TCP has any data, or is one of another protocol.
fn has_data(packet: &[u8], headers: &Headers) -> bool {
    if headers.ip_protocol != 6 || !matches!(headers.fragment, Fragment::Whole) {
        return true;
    }
    let header = packet.get(headers.payload + 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    headers.length > headers.payload + header
}
