//! A flow: the state of a conversation, the ruling on it, and the second in which it expires.

use super::key::{FlowEnd, FlowKey};
use crate::{
    fair_table::entry::{Evictable, EvictionClass},
    headers::Headers,
    link_counters::Counters,
    services::{mapping::Mapping, translation::Translation},
    tcp::{Connection, Noted, Segment, State},
    timeouts::Seconds,
};
use meshward_types::Protocol;
use std::{net::IpAddr, sync::Arc};

/// ICMP errors about one flow that pass in a second at the most.
const MAX_ERRORS_PER_SECOND: u8 = 10;

// The marks of a flow.
const BEGUN_BY_HIGH: u8 = 1;
const RIGHT_OF_HIGH: u8 = 2;
const OBSERVED: u8 = 4;
const DENIED: u8 = 8;
const USED: u8 = 16;
const TCP: u8 = 32;
const RESPONDER_HAS_SENT: u8 = 64;
/// Packets of it are rejected, until it is allowed again.
const IS_RESET: u8 = 128;

/// The ICMP errors about a flow in the last second in which any came.
#[derive(Debug, Clone, Copy, Default)]
struct ErrorCount {
    /// The second, modulo 256.
    second: u8,
    count: u8,
}

impl ErrorCount {
    /// Counts an error in a second. Returns how many there were in it.
    fn add_one(&mut self, second: u8) -> u8 {
        let before = if self.second == second { self.count } else { 0 };
        *self = Self { second, count: before.saturating_add(1) };
        self.count
    }
}

/// A conversation that was let through.
#[derive(Debug)]
pub(crate) struct Flow {
    /// The counters of its link.
    pub link: Arc<Counters>,
    /// The connection through a service that it is, or was.
    translation: Option<Arc<Translation>>,
    /// The generation of the rules that last checked it.
    generation: u32,
    deadline: u32,
    connection: Connection,
    marks: u8,
    errors: ErrorCount,
}

/// A flow without a ruling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SavedFlow {
    pub key: FlowKey,
    pub marks: u8,
    pub state: State,
    /// The ends that have closed their halves, a bit for each.
    pub closed: u8,
    /// Seconds until it expires if nothing is sent.
    pub left: u32,
    /// The connection through a service that it is.
    pub mapping: Option<Mapping>,
}

impl SavedFlow {
    /// Returns the address from which the flow was begun.
    pub(crate) fn initiator_address(&self) -> IpAddr {
        let by_high = self.marks & BEGUN_BY_HIGH != 0;
        self.key.tuple_from(if by_high { FlowEnd::High } else { FlowEnd::Low }).source
    }
}

/// The marks of a flow that are saved.
const SAVED: u8 = BEGUN_BY_HIGH | RIGHT_OF_HIGH | TCP | RESPONDER_HAS_SENT;
/// The generation of no rules: what comes from before is checked anew.
const NO_GENERATION: u32 = u32::MAX;

/// A packet of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowPacket<'a> {
    pub(crate) headers: &'a Headers,
    /// The end that has sent it.
    pub(crate) from: FlowEnd,
    /// The segment that it is in TCP.
    pub(crate) segment: Option<Segment>,
}

/// A ruling that a flow may pass.
#[derive(Debug)]
pub(crate) struct Ruling {
    /// The end that may begin such a flow: mostly the one that did.
    pub right: FlowEnd,
    /// The counters of its link.
    pub link: Arc<Counters>,
    /// The flow passes only because its link is observed, not enforced.
    pub observed: bool,
}

impl Flow {
    /// A flow that `initiator` has begun, or had begun before this table existed.
    pub(crate) fn new(initiator: FlowEnd, generation: u64, ruling: Ruling, state: State) -> Self {
        let marks = if initiator == FlowEnd::High { BEGUN_BY_HIGH } else { 0 };
        let connection = Connection::unknown(state);
        let link = ruling.link.clone();
        let mut flow = Self {
            link,
            translation: None,
            generation: 0,
            deadline: u32::MAX,
            connection,
            marks,
            errors: ErrorCount::default(),
        };
        flow.apply_ruling(generation, Some(ruling));
        flow
    }

    pub(super) fn saved(&self, key: FlowKey, now: u32) -> SavedFlow {
        let (state, closed) = (self.connection.state(), self.connection.closed());
        SavedFlow {
            key,
            marks: self.marks & SAVED,
            state,
            closed,
            left: self.deadline.saturating_sub(now),
            mapping: self.translation().map(|translation| translation.mapping),
        }
    }

    /// A flow from before a restart. `translation`: the connection through a service that it is.
    pub(super) fn restored(
        saved: &SavedFlow,
        link: Arc<Counters>,
        translation: Option<Arc<Translation>>,
        now: u32,
    ) -> Self {
        let connection = Connection::restored(saved.state, saved.closed);
        let (marks, deadline) = (saved.marks & SAVED, now.saturating_add(saved.left));
        Self {
            link,
            translation,
            generation: NO_GENERATION,
            deadline,
            connection,
            marks,
            errors: ErrorCount::default(),
        }
    }

    /// Returns the connection through a service that it is, unless its client has another instance
    /// now.
    pub(crate) fn translation(&self) -> Option<&Arc<Translation>> {
        self.translation.as_ref().filter(|translation| !translation.is_moved())
    }

    /// Returns the connection through a service that it is, or was.
    #[inline]
    pub(crate) fn any_translation(&self) -> Option<&Arc<Translation>> {
        self.translation.as_ref()
    }

    /// Returns whether it is a connection through a service whose client has another instance now.
    pub(super) fn is_moved(&self) -> bool {
        self.translation.as_ref().is_some_and(|translation| translation.is_moved())
    }

    /// Returns whether it is a connection that both ends have closed, or one has reset. It is kept
    /// for what may still come.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.connection.state(), State::Closing | State::Reset)
    }

    /// Returns whether its addresses and ports may be used for another connection.
    pub(crate) fn is_free(&self) -> bool {
        self.is_closed()
            || self.translation.as_ref().is_some_and(|translation| translation.is_over())
    }

    /// Makes it the connection through a service that a packet of it belongs to. A connection that
    /// begins without a service takes the place of one that is over.
    #[inline]
    pub(crate) fn join(&mut self, translation: Option<&Arc<Translation>>, begins: bool) {
        match (translation, &self.translation) {
            (None, None) => {}
            (Some(next), own) => {
                if own.as_ref().is_none_or(|own| !Arc::ptr_eq(own, next)) {
                    self.translation = Some(next.clone());
                }
            }
            (None, Some(own)) => {
                if begins && own.is_over() {
                    self.translation = None;
                }
            }
        }
    }

    /// Makes it a connection without a service.
    pub(crate) fn forget_translation(&mut self) {
        self.translation = None;
    }

    /// Returns the end that began it.
    #[inline]
    pub(crate) fn initiator(&self) -> FlowEnd {
        if self.is(BEGUN_BY_HIGH) { FlowEnd::High } else { FlowEnd::Low }
    }

    /// Returns the end by whose right it passes.
    #[inline]
    pub(crate) fn right(&self) -> FlowEnd {
        if self.is(RIGHT_OF_HIGH) { FlowEnd::High } else { FlowEnd::Low }
    }

    /// Returns whether a packet of the side that did not begin it has passed.
    #[inline]
    pub(crate) fn responder_has_sent(&self) -> bool {
        self.is(RESPONDER_HAS_SENT)
    }

    #[inline]
    pub(crate) fn is_observed(&self) -> bool {
        self.is(OBSERVED)
    }

    #[inline]
    pub(crate) fn is_denied(&self) -> bool {
        self.is(DENIED)
    }

    /// Returns whether its ends get a reset.
    pub(crate) fn is_reset(&self) -> bool {
        self.is(IS_RESET)
    }

    /// Returns whether its ends may still have a TCP connection: they have had no reset.
    pub(crate) fn may_be_reset(&self, now: u32) -> bool {
        let ended = self.connection.state() == State::Reset;
        self.deadline > now && !ended && !self.is(IS_RESET)
    }

    /// Denies it, and has its ends get a reset.
    pub(crate) fn reset(&mut self, generation: u64) {
        self.apply_ruling(generation, None);
        self.marks |= IS_RESET;
    }

    /// Returns the sequence numbers of resets for an end of it.
    pub(crate) fn reset_sequences(&self, end: FlowEnd) -> impl Iterator<Item = u32> {
        self.connection.resets(end as usize)
    }

    /// Returns whether what is known of it is by the rules of this generation.
    #[inline]
    pub(crate) fn is_of(&self, generation: u64) -> bool {
        self.generation == generation as u32
    }

    #[inline]
    fn is(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    #[inline]
    fn mark(&mut self, mark: u8, on: bool) {
        self.marks = if on { self.marks | mark } else { self.marks & !mark };
    }

    /// Notes what the rules of a generation say of it; `None`: they deny it.
    pub(crate) fn apply_ruling(&mut self, generation: u64, ruling: Option<Ruling>) {
        self.generation = generation as u32;
        self.mark(DENIED, ruling.is_none());
        self.mark(IS_RESET, self.is(IS_RESET) && ruling.is_none());
        if let Some(Ruling { right, link, observed }) = ruling {
            self.mark(RIGHT_OF_HIGH, right == FlowEnd::High);
            self.mark(OBSERVED, observed);
            self.link = link;
        }
    }

    /// Notes a packet of the flow that passes.
    #[inline]
    pub(crate) fn note_packet(
        &mut self,
        now: u32,
        timeouts: &Seconds,
        FlowPacket { headers, from, segment }: FlowPacket<'_>,
    ) {
        let initiator = self.initiator();
        if from != initiator {
            self.marks |= RESPONDER_HAS_SENT;
        }
        let Some(segment) = segment else {
            self.marks |= USED;
            if from != initiator {
                self.connection.answer();
            }
            return self.extend(now, timeouts, headers.protocol());
        };
        let Noted { is_accepted, began } =
            self.connection.note(from as usize, initiator as usize, &segment);
        self.marks |= TCP;
        if began != initiator as usize {
            // The side that has answered until now has begun a connection. Whether it may is
            // checked at the next packet.
            self.mark(BEGUN_BY_HIGH, initiator == FlowEnd::Low);
            self.generation = self.generation.wrapping_sub(1);
        }
        if is_accepted {
            self.marks |= USED;
            self.extend(now, timeouts, Protocol::Tcp);
        } else {
            // Where numbers were lost track of, a conversation that goes on is not cut.
            self.deadline = self.deadline.max(now.saturating_add(timeouts.tcp_opening));
        }
    }

    /// Keeps it for as long as its state allows from now on.
    pub(crate) fn extend(&mut self, now: u32, timeouts: &Seconds, protocol: Protocol) {
        let state = self.connection.state();
        let timeout = match (protocol, state) {
            (Protocol::Tcp, State::Opening) => timeouts.tcp_opening,
            (Protocol::Tcp, State::Established) => timeouts.tcp_established,
            (Protocol::Tcp, State::Reset) if !self.connection.was_established() => {
                timeouts.tcp_opening
            }
            (Protocol::Tcp, _) => timeouts.tcp_transitory,
            (Protocol::Udp, State::Opening) => timeouts.udp_opening,
            (Protocol::Udp, _) => timeouts.udp,
            (Protocol::Icmp, _) => timeouts.icmp,
            (Protocol::Sctp | Protocol::Other, _) => timeouts.other,
        };
        self.deadline = now.saturating_add(timeout);
    }

    /// Returns whether an ICMP error about a packet that `from` has sent may be true, and is not
    /// one of too many. `sequence` is what the error quotes of TCP.
    pub(crate) fn accepts_icmp_error(
        &mut self,
        now: u32,
        from: FlowEnd,
        sequence: Option<u32>,
    ) -> bool {
        if from != self.initiator() && !self.responder_has_sent() {
            return false;
        }
        if sequence.is_some_and(|sequence| !self.connection.has_in_flight(from as usize, sequence))
        {
            return false;
        }
        self.errors.add_one(now as u8) <= MAX_ERRORS_PER_SECOND
    }
}

impl Evictable for Flow {
    #[inline]
    fn eviction_class(&self) -> EvictionClass {
        let state = self.connection.state();
        match state {
            _ if self.is(DENIED) => EvictionClass::Denied,
            State::Established => EvictionClass::Lasting,
            State::Answered if !self.is(TCP) => EvictionClass::Lasting,
            _ => EvictionClass::Fleeting,
        }
    }

    #[inline]
    fn expires_at(&self) -> u32 {
        self.deadline
    }

    fn reset_referenced(&mut self) -> bool {
        let used = self.is(USED);
        self.mark(USED, false);
        used
    }
}
