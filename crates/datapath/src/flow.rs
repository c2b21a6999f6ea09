//! The flow table: which conversations have been let through, in what state they are, and until
//! when they are kept.

use crate::{
    counters::Counters,
    packet::{Headers, Icmp},
    shares::{Class, Kept, Ledger, QuotaOwner, SharedTable, hash_of},
    tcp::{Connection, Segment, State},
    timeouts::Seconds,
};
use foldhash::fast::RandomState;
use meshward_types::Protocol;
use parking_lot::{Mutex, MutexGuard};
use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// The most flows of one endpoint.
pub const MAX_FLOWS: usize = 1 << 20;

/// The table is split by the address that has probably begun a flow, so that whoever opens many
/// slows no other down: what each touches lies in memory of its own, unless the addresses meet in
/// one of so many groups ...
const GROUPS: usize = 128;
/// ... and each group by flow, into parts with locks of their own, so that workers do not wait for
/// each other.
const PARTS: usize = 8;
const SHARDS: usize = GROUPS * PARTS;
/// How many parts one sweep looks through, and how many flows while it holds a lock.
const SWEPT_AT_ONCE: usize = SHARDS / 16;
const SWEPT_UNDER_LOCK: usize = 256;
/// The most ICMP errors about one flow that pass in a second.
const MOST_ERRORS: u8 = 10;

/// Both ends of a conversation, the same for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    low: [u64; 2],
    high: [u64; 2],
    /// Both ports, the IP protocol, and [`V6`] and [`ASKED_BY_LOW`].
    rest: u64,
}

const V6: u64 = 1;
/// Which end of an ICMP echo asks: the other may ask with the same identifier, and that is another
/// conversation.
const ASKED_BY_LOW: u64 = 2;

/// Which end a packet comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Low,
    High,
}

impl End {
    pub fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }
}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for word in [self.low[0], self.low[1], self.high[0], self.high[1], self.rest] {
            state.write_u64(word);
        }
    }
}

impl FlowKey {
    pub fn of(headers: &Headers) -> (Self, End) {
        let source = (words(headers.source), headers.source_port);
        let destination = (words(headers.destination), headers.destination_port);
        let (low, high, from) = match source <= destination {
            true => (source, destination, End::Low),
            false => (destination, source, End::High),
        };
        let asked_by_low = match headers.icmp {
            Icmp::Request => from == End::Low,
            Icmp::Reply => from == End::High,
            _ => false,
        };
        let marks = if headers.source.is_ipv6() { V6 } else { 0 }
            | if asked_by_low { ASKED_BY_LOW } else { 0 };
        let ports = u64::from(low.1) << 48 | u64::from(high.1) << 32;
        let rest = ports | u64::from(headers.ip_protocol) << 8 | marks;
        (Self { low: low.0, high: high.0, rest }, from)
    }

    pub fn to_words(self) -> [u64; 5] {
        [self.low[0], self.low[1], self.high[0], self.high[1], self.rest]
    }

    /// The key that has these words, if there is one.
    pub fn from_words([a, b, c, d, rest]: [u64; 5]) -> Option<Self> {
        let key = Self { low: [a, b], high: [c, d], rest };
        let is_address = rest & V6 != 0 || (a == 0 && c == 0 && b >> 32 == 0 && d >> 32 == 0);
        let is_ordered = (key.low, rest >> 48) <= (key.high, rest >> 32 & 0xffff);
        (is_address
            && is_ordered
            && rest & 0xffff_0000 == 0
            && rest & 0xff & !(V6 | ASKED_BY_LOW) == 0)
            .then_some(key)
    }

    /// The address of who has begun the flow, as far as its ports tell: who asks, in ICMP;
    /// otherwise the higher port is the one that nobody has chosen.
    fn probable_initiator(&self) -> [u64; 2] {
        let is_low = match self.ip_protocol() {
            1 | 58 => self.rest & ASKED_BY_LOW != 0,
            _ => self.rest >> 48 >= self.rest >> 32 & 0xffff,
        };
        if is_low { self.low } else { self.high }
    }

    fn ip_protocol(&self) -> u8 {
        (self.rest >> 8) as u8
    }

    /// The address that a flow was begun from.
    pub fn begun_from(&self, saved: &SavedFlow) -> IpAddr {
        self.begun_by(if saved.marks & BEGUN_BY_HIGH != 0 { End::High } else { End::Low }).source
    }

    /// A flow as the packet that began it.
    pub fn begun_by(&self, initiator: End) -> Begun {
        let (low, high) =
            ((self.low, (self.rest >> 48) as u16), (self.high, (self.rest >> 32) as u16));
        let (source, destination) = match initiator {
            End::Low => (low, high),
            End::High => (high, low),
        };
        let v6 = self.rest & V6 != 0;
        let address = |words: [u64; 2]| match v6 {
            true => IpAddr::V6(((u128::from(words[0]) << 64) | u128::from(words[1])).into()),
            false => IpAddr::V4((words[1] as u32).into()),
        };
        let protocol = match (self.ip_protocol(), v6) {
            // ICMP of the other family is no ICMP.
            (1, true) | (58, false) => Protocol::Other,
            (number, _) => Protocol::from_ip(number),
        };
        Begun {
            source: address(source.0),
            destination: address(destination.0),
            protocol,
            destination_port: destination.1,
            source_port: source.1,
        }
    }
}

/// A flow as the packet that began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Begun {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    pub destination_port: u16,
    pub source_port: u16,
}

fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, u64::from(address.to_bits())],
        IpAddr::V6(address) => [(address.to_bits() >> 64) as u64, address.to_bits() as u64],
    }
}

// What is marked of a flow.
const BEGUN_BY_HIGH: u8 = 1;
const RIGHT_OF_HIGH: u8 = 2;
const OBSERVED: u8 = 4;
const DENIED: u8 = 8;
const USED: u8 = 16;
const TCP: u8 = 32;
const OTHER_HAS_SPOKEN: u8 = 64;
/// Its ends are told that it has ended, until it is allowed again.
const IS_RESET: u8 = 128;

/// A conversation that was let through.
#[derive(Debug)]
pub(crate) struct Flow {
    /// The counters of its link.
    pub link: Arc<Counters>,
    /// The generation of the rules that last judged it.
    stamp: u32,
    deadline: u32,
    connection: Connection,
    marks: u8,
    /// In which second, modulo 256, the last ICMP error about it came, and how many did.
    errors: (u8, u8),
}

/// A flow without what rules say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SavedFlow {
    pub key: FlowKey,
    pub marks: u8,
    pub state: State,
    /// Which ends have closed their halves.
    pub closed: u8,
    /// For how many seconds more it is kept if nothing is said.
    pub left: u32,
}

/// What is kept of a flow's marks.
const SAVED: u8 = BEGUN_BY_HIGH | RIGHT_OF_HIGH | TCP | OTHER_HAS_SPOKEN;
/// The generation of no rules: what comes from before is judged anew.
const NO_GENERATION: u32 = u32::MAX;

/// What rules say of a flow.
#[derive(Debug)]
pub(crate) struct Ruling {
    /// By whose right to begin such a flow it passes: mostly who did.
    pub right: End,
    /// The counters of its link.
    pub link: Arc<Counters>,
    /// Whether it passes only because it is observed.
    pub observed: bool,
}

impl Flow {
    /// A flow that `initiator` has begun, or had begun before this table existed.
    pub fn new(initiator: End, generation: u64, ruling: Ruling, state: State) -> Self {
        let marks = if initiator == End::High { BEGUN_BY_HIGH } else { 0 };
        let connection = Connection::unknown(state);
        let link = ruling.link.clone();
        let mut flow =
            Self { link, stamp: 0, deadline: u32::MAX, connection, marks, errors: (0, 0) };
        flow.rule(generation, Some(ruling));
        flow
    }

    fn saved(&self, key: FlowKey, now: u32) -> SavedFlow {
        let (state, closed) = (self.connection.state(), self.connection.closed());
        SavedFlow {
            key,
            marks: self.marks & SAVED,
            state,
            closed,
            left: self.deadline.saturating_sub(now),
        }
    }

    fn restored(saved: &SavedFlow, link: Arc<Counters>, now: u32) -> Self {
        let connection = Connection::restored(saved.state, saved.closed);
        let (marks, deadline) = (saved.marks & SAVED, now.saturating_add(saved.left));
        Self { link, stamp: NO_GENERATION, deadline, connection, marks, errors: (0, 0) }
    }

    /// Who began it.
    pub fn initiator(&self) -> End {
        if self.is(BEGUN_BY_HIGH) { End::High } else { End::Low }
    }

    /// By whose right it passes.
    pub fn right(&self) -> End {
        if self.is(RIGHT_OF_HIGH) { End::High } else { End::Low }
    }

    /// Whether a packet of the side that did not begin it has passed.
    pub fn other_has_spoken(&self) -> bool {
        self.is(OTHER_HAS_SPOKEN)
    }

    pub fn is_observed(&self) -> bool {
        self.is(OBSERVED)
    }

    pub fn is_denied(&self) -> bool {
        self.is(DENIED)
    }

    /// Whether its ends are told that it has ended.
    pub fn is_reset(&self) -> bool {
        self.is(IS_RESET)
    }

    /// Whether its ends may believe in a connection of TCP, of which they have not been told that
    /// it has ended.
    pub fn may_be_reset(&self, now: u32) -> bool {
        let ended = self.connection.state() == State::Reset;
        self.deadline > now && !ended && !self.is(IS_RESET)
    }

    /// Denies it, and has its ends told that it has ended.
    pub fn reset(&mut self, generation: u64) {
        self.rule(generation, None);
        self.marks |= IS_RESET;
    }

    /// The sequence numbers of resets for an end of it.
    pub fn resets(&self, end: End) -> impl Iterator<Item = u32> {
        self.connection.resets(end as usize)
    }

    /// Whether what is known of it is by the rules of this generation.
    pub fn is_of(&self, generation: u64) -> bool {
        self.stamp == generation as u32
    }

    fn is(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    fn mark(&mut self, mark: u8, on: bool) {
        self.marks = if on { self.marks | mark } else { self.marks & !mark };
    }

    /// Notes what the rules of a generation say of it; `None`: they deny it.
    pub fn rule(&mut self, generation: u64, ruling: Option<Ruling>) {
        self.stamp = generation as u32;
        self.mark(DENIED, ruling.is_none());
        self.mark(IS_RESET, self.is(IS_RESET) && ruling.is_none());
        if let Some(Ruling { right, link, observed }) = ruling {
            self.mark(RIGHT_OF_HIGH, right == End::High);
            self.mark(OBSERVED, observed);
            self.link = link;
        }
    }

    /// Notes a packet of the flow that passes. `segment`: what it is in TCP.
    #[inline]
    pub fn touch(
        &mut self,
        now: u32,
        timeouts: &Seconds,
        headers: &Headers,
        from: End,
        segment: Option<Segment>,
    ) {
        let initiator = self.initiator();
        if from != initiator {
            self.marks |= OTHER_HAS_SPOKEN;
        }
        let Some(segment) = segment else {
            self.marks |= USED;
            if from != initiator {
                self.connection.answer();
            }
            return self.extend(now, timeouts, headers.protocol());
        };
        let (accepted, began) = self.connection.note(from as usize, initiator as usize, &segment);
        self.marks |= TCP;
        if began != initiator as usize {
            // The side that has answered until now has begun a connection. Whether it may is judged
            // at the next packet.
            self.mark(BEGUN_BY_HIGH, initiator == End::Low);
            self.stamp = self.stamp.wrapping_sub(1);
        }
        if accepted {
            self.marks |= USED;
            self.extend(now, timeouts, Protocol::Tcp);
        } else {
            // Where numbers were lost track of, a conversation that goes on is not cut.
            self.deadline = self.deadline.max(now.saturating_add(timeouts.tcp_opening));
        }
    }

    /// Keeps it for as long as its state allows from now on.
    pub fn extend(&mut self, now: u32, timeouts: &Seconds, protocol: Protocol) {
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

    /// Whether an ICMP error about a packet that `from` has sent may be true, and is not one of too
    /// many. `sequence` is what the error quotes of TCP.
    pub fn takes_error(&mut self, now: u32, from: End, sequence: Option<u32>) -> bool {
        if from != self.initiator() && !self.other_has_spoken() {
            return false;
        }
        if sequence.is_some_and(|sequence| !self.connection.has_in_flight(from as usize, sequence))
        {
            return false;
        }
        let (second, count) = self.errors;
        let count = if second == now as u8 { count } else { 0 };
        self.errors = (now as u8, count.saturating_add(1));
        count < MOST_ERRORS
    }
}

impl Kept for Flow {
    fn class(&self) -> Class {
        let state = self.connection.state();
        match state {
            _ if self.is(DENIED) => Class::Denied,
            State::Established => Class::Lasting,
            State::Answered if !self.is(TCP) => Class::Lasting,
            _ => Class::Fleeting,
        }
    }

    fn deadline(&self) -> u32 {
        self.deadline
    }

    fn take_used(&mut self) -> bool {
        let used = self.is(USED);
        self.mark(USED, false);
        used
    }
}

/// The flows of one endpoint, at most [`MAX_FLOWS`].
#[derive(Debug)]
pub(crate) struct FlowTable {
    shards: Vec<Mutex<SharedTable<FlowKey, Flow>>>,
    ledger: Arc<Ledger>,
    /// Seeded, so that nobody who chooses ports can have all flows meet in one place.
    hasher: RandomState,
    next_sweep: AtomicUsize,
}

/// The part of the table that a flow belongs to, locked.
pub(crate) struct Place<'a> {
    shard: MutexGuard<'a, SharedTable<FlowKey, Flow>>,
    hash: u32,
    key: FlowKey,
    found: Option<u32>,
}

impl FlowTable {
    pub fn new(limit: usize) -> Self {
        let ledger = Arc::new(Ledger::new(limit));
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(SharedTable::of(ledger.clone()))).collect(),
            ledger,
            hasher: RandomState::default(),
            next_sweep: AtomicUsize::new(0),
        }
    }

    /// How many flows there are that the rules allowed when they were last asked.
    pub fn len(&self) -> usize {
        let passing = self.shards.iter().map(|shard| {
            let shard = shard.lock();
            shard.len() - shard.len_of(Class::Denied)
        });
        passing.sum()
    }

    /// Locks the place of a flow.
    #[inline]
    pub fn place(&self, key: FlowKey) -> Place<'_> {
        let hash = hash_of(&self.hasher, &key);
        let group = hash_of(&self.hasher, &key.probable_initiator()) as usize % GROUPS;
        // The table itself uses the lowest bits.
        let part = (hash >> 26) as usize % PARTS;
        let shard = self.shards[group * PARTS + part].lock();
        let found = shard.find(hash, &key);
        Place { shard, hash, key, found }
    }

    /// Shows every flow that passes and whose time is not up at `now`, in seconds. Few are looked
    /// at while a lock is held, so one that moves meanwhile may be shown twice or not at all.
    pub fn visit(&self, now: u32, mut visit: impl FnMut(Begun)) {
        for shard in &self.shards {
            for number in 0.. {
                let begun: Vec<Begun> = {
                    let shard = shard.lock();
                    let Some(part) = shard.part(number) else { break };
                    let live = part.filter(|(_, flow)| flow.deadline > now && !flow.is_denied());
                    live.map(|(key, flow)| key.begun_by(flow.initiator())).collect()
                };
                begun.into_iter().for_each(&mut visit);
            }
        }
    }

    /// Changes some hundreds of the flows: the first, second and so on. `false`: there are no more.
    pub fn change_part(
        &self,
        (shard, number): (usize, usize),
        change: impl FnMut(&FlowKey, &mut Flow),
    ) -> bool {
        self.shards[shard].lock().change_part(number, change)
    }

    /// Into how many shards they are split.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The flows whose time is not up at `now`, in seconds: those first that are worth most.
    pub fn save(&self, now: u32) -> Vec<SavedFlow> {
        let (mut saved, mut fleeting) = (Vec::new(), Vec::new());
        for shard in &self.shards {
            for number in 0.. {
                let shard = shard.lock();
                let Some(part) = shard.part(number) else { break };
                for (key, flow) in part.filter(|(_, flow)| flow.deadline > now) {
                    let list =
                        if flow.class() == Class::Fleeting { &mut fleeting } else { &mut saved };
                    list.push(flow.saved(*key, now));
                }
            }
        }
        saved.append(&mut fleeting);
        saved
    }

    /// Takes up a flow of before, unless it has gone on already.
    pub fn restore(
        &self,
        now: u32,
        saved: &SavedFlow,
        owner: QuotaOwner,
        link: &Arc<Counters>,
    ) -> bool {
        let mut place = self.place(saved.key);
        let fresh = place.get(now).is_none();
        if fresh {
            place.insert(owner, Flow::restored(saved, link.clone(), now));
        }
        fresh
    }

    /// Ends the flows of some parts of the table whose time is up at `now`, in seconds. All parts
    /// have had their turn after sixteen calls. No lock is held for longer than a few flows take.
    pub fn sweep(&self, now: u32) {
        let first = self.next_sweep.fetch_add(SWEPT_AT_ONCE, Relaxed);
        for number in first..first + SWEPT_AT_ONCE {
            let shard = &self.shards[number % SHARDS];
            while !shard.lock().sweep(now, SWEPT_UNDER_LOCK) {}
        }
        if self.ledger.owes() {
            self.shards.iter().for_each(|shard| while shard.lock().pay_debts() {});
        }
    }
}

impl Place<'_> {
    /// The flow, unless its time was up at `now`, in seconds.
    #[inline]
    pub fn get(&mut self, now: u32) -> Option<&mut Flow> {
        let flow = self.shard.value(self.found?);
        (flow.deadline > now).then_some(flow)
    }

    /// Has the table know in what state the flow is now.
    #[inline]
    pub fn settle(&mut self) {
        if let Some(id) = self.found {
            self.shard.settle(id);
        }
    }

    /// Adds a flow in the place of what may have been there, charged to `owner`.
    pub fn insert(&mut self, owner: QuotaOwner, flow: Flow) {
        if let Some(id) = self.found.take() {
            self.shard.remove(id);
        }
        self.found = Some(self.shard.insert(self.hash, self.key, owner, flow));
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
