//! The flow table: which conversations have been let through, and until when.

use crate::packet::{FIN, Headers, RST, SYN};
use meshward_model::Protocol;
use std::{collections::HashMap, net::IpAddr};

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
/// Slots of the wheel, a second each.
const WHEEL: usize = 256;

/// Both ends of a conversation, the same for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    low: (IpAddr, u16),
    high: (IpAddr, u16),
    ip_protocol: u8,
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
        let source = (headers.source, headers.source_port);
        let destination = (headers.destination, headers.destination_port);
        let ip_protocol = headers.ip_protocol;
        if source <= destination {
            (Self { low: source, high: destination, ip_protocol }, End::Low)
        } else {
            (Self { low: destination, high: source, ip_protocol }, End::High)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Talking,
    Closing,
}

/// A conversation that was let through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    /// Who began it.
    pub initiator: End,
    /// The generation of the rules that last allowed it.
    pub stamp: u64,
    /// Its place in the link counters.
    pub link: usize,
    state: State,
    deadline: u32,
}

impl Flow {
    pub fn new(initiator: End, stamp: u64, link: usize) -> Self {
        Self { initiator, stamp, link, state: State::Opening, deadline: 0 }
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

    /// A flow that was under way before this table existed.
    pub fn resumed(mut self) -> Self {
        self.state = State::Talking;
        self
    }
}

/// The flows of one endpoint, at most [`MAX_FLOWS`], and a timer wheel that ends them.
#[derive(Debug)]
pub(crate) struct FlowTable {
    flows: HashMap<FlowKey, Flow>,
    wheel: Vec<Vec<FlowKey>>,
    swept: u32,
    limit: usize,
}

impl FlowTable {
    pub fn new(limit: usize) -> Self {
        Self { flows: HashMap::new(), wheel: vec![Vec::new(); WHEEL], swept: 0, limit }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn get_mut(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        self.flows.get_mut(key)
    }

    pub fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }

    pub fn remove(&mut self, key: &FlowKey) {
        self.flows.remove(key);
    }

    /// Adds a flow; `false` if there is no room.
    pub fn insert(&mut self, key: FlowKey, flow: Flow) -> bool {
        if self.flows.len() >= self.limit {
            return false;
        }
        self.schedule(key, flow.deadline);
        self.flows.insert(key, flow);
        true
    }

    fn schedule(&mut self, key: FlowKey, deadline: u32) {
        let ahead = deadline.saturating_sub(self.swept).clamp(1, WHEEL as u32 - 1);
        self.wheel[(self.swept + ahead) as usize % WHEEL].push(key);
    }

    /// Ends the flows whose time is up at `now`, in seconds.
    pub fn sweep(&mut self, now: u32) {
        while self.swept < now {
            self.swept += 1;
            for key in std::mem::take(&mut self.wheel[self.swept as usize % WHEEL]) {
                match self.flows.get(&key) {
                    Some(flow) if flow.deadline > self.swept => {
                        let deadline = flow.deadline;
                        self.schedule(key, deadline);
                    }
                    Some(_) => self.remove(&key),
                    None => {}
                }
            }
        }
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
    }

    #[test]
    fn an_idle_flow_ends_and_a_busy_one_stays() {
        let mut table = FlowTable::new(10);
        let packet = headers(("10.0.0.1", 9), ("10.0.0.2", 80));
        let reply = headers(("10.0.0.2", 80), ("10.0.0.1", 9));
        let (key, end) = FlowKey::of(&packet);
        let mut flow = Flow::new(end, 1, 0);
        flow.touch(0, &packet, end);
        assert!(table.insert(key, flow));
        table.sweep(OPENING - 1);
        table.get_mut(&key).unwrap().touch(OPENING - 1, &reply, end.other());
        table.sweep(3 * 3600);
        assert_eq!(table.len(), 1);
        table.sweep(OPENING + TCP_ESTABLISHED);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let mut table = FlowTable::new(1);
        let (key, end) = FlowKey::of(&headers(("10.0.0.1", 9), ("10.0.0.2", 80)));
        assert!(table.insert(key, Flow::new(end, 1, 0)));
        let (other, end) = FlowKey::of(&headers(("10.0.0.1", 10), ("10.0.0.2", 80)));
        assert!(!table.insert(other, Flow::new(end, 1, 0)));
    }
}
