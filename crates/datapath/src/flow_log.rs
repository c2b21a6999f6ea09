//! The flow log: the kinds of flows of each link, for suggestions, and single denials, for
//! triggers.

use crate::{headers::Headers, index::WorkloadIndex};
use meshward_types::Protocol;
use parking_lot::Mutex;
use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Maximum number of kinds of flows of one link.
const MAX_KINDS: usize = 64;
/// Maximum number of denials that wait to be read.
const MAX_DENIALS: usize = 4096;

/// A kind of flow: the protocol, the destination port, and the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKind {
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; 0 where the protocol has none.
    pub port: u16,
    /// `true` if it passed.
    pub passed: bool,
}

impl FlowKind {
    /// Returns the kind of flow that a packet with these headers would begin.
    pub(crate) fn of(headers: &Headers, passed: bool) -> Self {
        let protocol = headers.protocol();
        let port = if protocol.has_ports() { headers.destination_port } else { 0 };
        Self { protocol, port, passed }
    }
}

/// The kinds of flows of a link, each with the second of its last flow.
#[derive(Debug, Default)]
pub(crate) struct FlowKinds(Mutex<Vec<(FlowKind, u32)>>);

impl FlowKinds {
    /// Notes a flow at a second.
    pub(crate) fn note(&self, now: u32, kind: FlowKind) {
        let mut kinds = self.0.lock();
        if let Some((_, last)) = kinds.iter_mut().find(|(known, _)| *known == kind) {
            *last = now;
        } else if kinds.len() < MAX_KINDS {
            kinds.push((kind, now));
        } else if let Some(oldest) = kinds.iter_mut().min_by_key(|(_, last)| *last) {
            // The least recent one is replaced.
            *oldest = (kind, now);
        }
    }

    /// Returns the kinds of which there was a flow in a second or later.
    pub(crate) fn since(&self, second: u32) -> Vec<FlowKind> {
        self.0.lock().iter().filter(|(_, last)| *last >= second).map(|(kind, _)| *kind).collect()
    }
}

/// A packet that a workload sent and that was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Denial {
    /// The workload.
    pub workload: WorkloadIndex,
    /// The destination address.
    pub destination: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; 0 where the protocol has none.
    pub port: u16,
    /// The source port.
    pub source_port: u16,
}

/// The denials since the last read; none are kept while nothing watches.
#[derive(Debug, Default)]
pub(crate) struct Denials {
    watched: AtomicBool,
    waiting: Mutex<Vec<Denial>>,
}

impl Denials {
    pub(crate) fn watch(&self, watched: bool) {
        self.watched.store(watched, Relaxed);
        if !watched {
            self.waiting.lock().clear();
        }
    }

    pub(crate) fn note(&self, denial: Denial) {
        if self.watched.load(Relaxed) {
            let mut waiting = self.waiting.lock();
            // A flood says enough with what is kept.
            if waiting.len() < MAX_DENIALS {
                waiting.push(denial);
            }
        }
    }

    pub(crate) fn drain(&self) -> Vec<Denial> {
        std::mem::take(&mut *self.waiting.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(port: u16) -> FlowKind {
        FlowKind { protocol: Protocol::Tcp, port, passed: true }
    }

    #[test]
    fn kinds_are_bounded_and_the_oldest_is_replaced() {
        let kinds = FlowKinds::default();
        for port in 0..1000u16 {
            kinds.note(u32::from(port), kind(port));
            kinds.note(u32::from(port), kind(7));
        }
        let recent = kinds.since(0);
        assert_eq!(recent.len(), MAX_KINDS);
        assert!(recent.contains(&kind(7)) && recent.contains(&kind(999)));
        assert_eq!(kinds.since(1000), []);
    }

    #[test]
    fn denials_wait_only_while_they_are_watched() {
        let denial = Denial {
            workload: WorkloadIndex(0),
            destination: [10, 0, 0, 1].into(),
            protocol: Protocol::Tcp,
            port: 22,
            source_port: 4000,
        };
        let denials = Denials::default();
        denials.note(denial);
        assert_eq!(denials.drain(), []);
        denials.watch(true);
        (0..2 * MAX_DENIALS).for_each(|_| denials.note(denial));
        assert_eq!(denials.drain().len(), MAX_DENIALS);
        assert_eq!(denials.drain(), []);
    }
}
