//! The flow table: which conversations have been let through, and until when.

use crate::{
    filter::Counters,
    packet::{FIN, Headers, RST, SYN},
};
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use meshward_model::Protocol;
use parking_lot::{Mutex, MutexGuard};
use std::{
    hash::BuildHasher,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// The most flows of one endpoint.
pub const MAX_FLOWS: usize = 1 << 20;

/// Seconds for which a flow that saw one direction only is kept.
const OPENING: u32 = 30;
/// Seconds for which an idle TCP connection is kept.
const TCP_ESTABLISHED: u32 = 24 * 3600;
/// Seconds for which an idle conversation of another protocol is kept.
const TALKING: u32 = 180;
/// Seconds for which a finished TCP connection is kept.
const CLOSING: u32 = 20;
/// Into how many parts the table is split, each with its own lock, so that workers do not wait for each other.
const SHARDS: usize = 64;
/// How many parts one sweep looks through.
const SWEPT_AT_ONCE: usize = 4;

/// Both ends of a conversation, the same for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    low: ([u64; 2], u16),
    high: ([u64; 2], u16),
    ip_protocol: u8,
    v6: bool,
}

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

impl FlowKey {
    pub fn of(headers: &Headers) -> (Self, End) {
        let source = (words(headers.source), headers.source_port);
        let destination = (words(headers.destination), headers.destination_port);
        let (ip_protocol, v6) = (headers.ip_protocol, headers.source.is_ipv6());
        if source <= destination {
            (Self { low: source, high: destination, ip_protocol, v6 }, End::Low)
        } else {
            (Self { low: destination, high: source, ip_protocol, v6 }, End::High)
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
}

impl FlowKey {
    fn begun_by(&self, initiator: End) -> Begun {
        let (source, destination) = match initiator {
            End::Low => (self.low, self.high),
            End::High => (self.high, self.low),
        };
        let address = |words: [u64; 2]| match self.v6 {
            true => IpAddr::V6(((u128::from(words[0]) << 64) | u128::from(words[1])).into()),
            false => IpAddr::V4((words[1] as u32).into()),
        };
        Begun {
            source: address(source.0),
            destination: address(destination.0),
            protocol: Protocol::from_ip(self.ip_protocol),
            destination_port: destination.1,
        }
    }
}

fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, u64::from(address.to_bits())],
        IpAddr::V6(address) => [(address.to_bits() >> 64) as u64, address.to_bits() as u64],
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Talking,
    Closing,
}

/// A conversation that was let through.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Who began it.
    pub initiator: End,
    /// The generation of the rules that last allowed it.
    pub stamp: u64,
    /// The counters of its link.
    pub link: Arc<Counters>,
    /// Whether it passes only because it is observed.
    pub observed: bool,
    state: State,
    deadline: u32,
}

impl Flow {
    pub fn new(initiator: End, stamp: u64, link: Arc<Counters>) -> Self {
        Self { initiator, stamp, link, observed: false, state: State::Opening, deadline: 0 }
    }

    /// Notes a packet of the flow.
    pub fn touch(&mut self, now: u32, headers: &Headers, from: End) {
        let tcp = headers.protocol() == Protocol::Tcp;
        if tcp && headers.tcp_flags & (FIN | RST) != 0 {
            self.state = State::Closing;
        } else if tcp && headers.tcp_flags & SYN != 0 && from == self.initiator {
            self.state = State::Opening;
        } else if self.state == State::Opening && from != self.initiator {
            self.state = State::Talking;
        }
        self.deadline = now
            + match self.state {
                State::Opening => OPENING,
                State::Talking if tcp => TCP_ESTABLISHED,
                State::Talking => TALKING,
                State::Closing => CLOSING,
            };
    }

    /// The flow, observed or not.
    pub fn observed(mut self, observed: bool) -> Self {
        self.observed = observed;
        self
    }

    /// A flow that was under way before this table existed.
    pub fn resumed(mut self) -> Self {
        self.state = State::Talking;
        self
    }
}

/// The flows of one endpoint, at most [`MAX_FLOWS`].
#[derive(Debug)]
pub(crate) struct FlowTable {
    shards: Vec<Mutex<Shard>>,
    /// Seeded, so that nobody who chooses ports can have all flows meet in one place.
    hasher: RandomState,
    next_sweep: AtomicUsize,
}

/// One part of the table.
#[derive(Debug)]
pub(crate) struct Shard {
    flows: HashTable<(FlowKey, Flow)>,
    limit: usize,
}

/// The part of the table that a flow belongs to, locked.
pub(crate) struct Place<'a> {
    shard: MutexGuard<'a, Shard>,
    hasher: &'a RandomState,
    hash: u64,
    key: FlowKey,
}

impl FlowTable {
    pub fn new(limit: usize) -> Self {
        let shard = || Mutex::new(Shard { flows: HashTable::new(), limit: limit.div_ceil(SHARDS) });
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::default(),
            next_sweep: AtomicUsize::new(0),
        }
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().flows.len()).sum()
    }

    /// Locks the place of a flow.
    pub fn place(&self, key: FlowKey) -> Place<'_> {
        let hash = self.hasher.hash_one(key);
        // The table itself uses the lowest and the seven highest bits.
        let shard = self.shards[(hash >> 32) as usize % SHARDS].lock();
        Place { shard, hasher: &self.hasher, hash, key }
    }

    /// Shows every flow whose time is not up at `now`, in seconds; one part of the table is locked at a time.
    pub fn visit(&self, now: u32, mut visit: impl FnMut(Begun)) {
        for shard in &self.shards {
            let begun: Vec<Begun> = {
                let shard = shard.lock();
                let live = shard.flows.iter().filter(|(_, flow)| flow.deadline > now);
                live.map(|(key, flow)| key.begun_by(flow.initiator)).collect()
            };
            begun.into_iter().for_each(&mut visit);
        }
    }

    /// Ends the flows of some parts of the table whose time is up at `now`, in seconds. All parts have had their turn
    /// after sixteen calls.
    pub fn sweep(&self, now: u32) {
        let first = self.next_sweep.fetch_add(SWEPT_AT_ONCE, Relaxed);
        for number in first..first + SWEPT_AT_ONCE {
            let mut shard = self.shards[number % SHARDS].lock();
            shard.flows.retain(|(_, flow)| flow.deadline > now);
            let (flows, room) = (shard.flows.len(), shard.flows.capacity());
            if room > 64 && flows < room / 4 {
                shard.flows.shrink_to(flows * 2, |(key, _)| self.hasher.hash_one(key));
            }
        }
    }
}

impl Place<'_> {
    /// The flow, unless its time was up at `now`, in seconds.
    pub fn get(&mut self, now: u32) -> Option<&mut Flow> {
        let found = self.shard.flows.find_mut(self.hash, |(key, _)| *key == self.key)?;
        (found.1.deadline > now).then_some(&mut found.1)
    }

    pub fn remove(&mut self) {
        if let Ok(entry) = self.shard.flows.find_entry(self.hash, |(key, _)| *key == self.key) {
            entry.remove();
        }
    }

    /// Adds a flow; `false` if there is no room.
    pub fn insert(&mut self, flow: Flow) -> bool {
        self.remove();
        if self.shard.flows.len() >= self.shard.limit {
            return false;
        }
        let hasher = self.hasher;
        self.shard.flows.insert_unique(self.hash, (self.key, flow), |(key, _)| hasher.hash_one(key));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build;

    fn headers(a: (&str, u16), b: (&str, u16)) -> Headers {
        Headers::parse(&build::packet(a.0, b.0, 6, (a.1, b.1), b"")).unwrap()
    }

    #[test]
    fn both_directions_have_one_key() {
        let (there, one) = FlowKey::of(&headers(("10.0.0.1", 9), ("10.0.0.2", 80)));
        let (back, other) = FlowKey::of(&headers(("10.0.0.2", 80), ("10.0.0.1", 9)));
        assert_eq!(there, back);
        assert_eq!(one, other.other());
        let begun = there.begun_by(one);
        assert_eq!(begun, back.begun_by(other.other()));
        assert_eq!((begun.source.to_string().as_str(), begun.destination_port), ("10.0.0.1", 80));
        let (key, end) = FlowKey::of(&headers(("fd00::2", 9), ("fd00::1", 80)));
        assert_eq!(key.begun_by(end).source.to_string(), "fd00::2");
    }

    fn counters() -> Arc<Counters> {
        Arc::default()
    }

    fn sweep_all(table: &FlowTable, now: u32) {
        (0..SHARDS / SWEPT_AT_ONCE).for_each(|_| table.sweep(now));
    }

    #[test]
    fn an_idle_flow_ends_and_a_busy_one_stays() {
        let table = FlowTable::new(10);
        let packet = headers(("10.0.0.1", 9), ("10.0.0.2", 80));
        let reply = headers(("10.0.0.2", 80), ("10.0.0.1", 9));
        let (key, end) = FlowKey::of(&packet);
        let mut flow = Flow::new(end, 1, counters());
        flow.touch(0, &packet, end);
        assert!(table.place(key).insert(flow));
        sweep_all(&table, OPENING - 1);
        table.place(key).get(OPENING - 1).unwrap().touch(OPENING - 1, &reply, end.other());
        sweep_all(&table, 3 * 3600);
        assert_eq!(table.len(), 1);
        let over = OPENING + TCP_ESTABLISHED;
        assert!(table.place(key).get(over).is_none(), "its time is up though nothing swept it");
        sweep_all(&table, over);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let table = FlowTable::new(SHARDS);
        let taken = (0..1000).filter(|port| {
            let (key, end) = FlowKey::of(&headers(("10.0.0.1", *port), ("10.0.0.2", 80)));
            table.place(key).insert(Flow::new(end, 1, counters()))
        });
        assert_eq!(taken.count(), SHARDS);
    }

    #[test]
    fn an_ipv4_address_and_its_ipv6_form_are_not_one() {
        let v4 = FlowKey::of(&headers(("10.0.0.1", 9), ("10.0.0.2", 80)));
        let v6 = FlowKey::of(&headers(("::10.0.0.1", 9), ("::10.0.0.2", 80)));
        assert_ne!(v4.0, v6.0);
    }
}
