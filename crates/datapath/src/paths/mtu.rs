//! Path MTU discovery by padded probes (RFC 8899): the longest packet that a path carries without
//! fragmenting it.

use meshward_wireguard::Millis;
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    time::Duration,
};

/// Probes of a length that are sent before it counts as too long.
const MAX_TRIES: u8 = 3;
/// Time between them.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);
/// Time after which the path MTU is found out anew: routes change.
const RAISE_INTERVAL: Duration = Duration::from_mins(10);
/// The shortest packet that is tried, in bytes: with the headers around it, it fits 1,200 bytes,
/// below which QUIC does not work either (RFC 9000 §14).
pub(crate) const MIN_PATH_MTU: u16 = 1120;
/// Packets that fit outer paths of common MTUs, which are tried beside even steps: 1,280 bytes
/// (IPv6's least) by IPv6 and by IPv4, 1,400 and 1,492 by IPv4.
const COMMON_PATH_MTUS: [u16; 4] = [1200, 1220, 1340, 1420];

/// The limit of a path that carries only packets which are shorter than the network's MTU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PathMtu {
    /// The longest packet, in bytes.
    pub(crate) bytes: u16,
    /// `true` if probes have found it, `false` if it is an assumption.
    pub(crate) is_known: bool,
}

/// The path MTU of a peer, as workers read it.
#[derive(Debug, Default)]
pub(crate) struct PathMtuEstimate {
    /// In bytes; 0: no limit is known.
    bytes: AtomicU16,
    is_known: AtomicBool,
}

impl PathMtuEstimate {
    /// Returns the limit, if it is below the network's MTU, `network_mtu` bytes.
    #[inline]
    pub(crate) fn below(&self, network_mtu: u16) -> Option<PathMtu> {
        let bytes = self.bytes.load(Relaxed);
        let is_known = self.is_known.load(Relaxed);
        (bytes != 0 && bytes < network_mtu).then_some(PathMtu { bytes, is_known })
    }

    /// Returns the path MTU in bytes, if probes have found it out.
    pub(crate) fn known(&self) -> Option<u16> {
        Some(self.bytes.load(Relaxed)).filter(|bytes| *bytes != 0 && self.is_known.load(Relaxed))
    }

    /// Assumes the least until probes have found out more: TCP then needs no fragments.
    pub(crate) fn assume_least(&self) {
        self.is_known.store(false, Relaxed);
        self.bytes.store(MIN_PATH_MTU, Relaxed);
    }

    /// Assumes no limit: nothing is found out on this path.
    pub(crate) fn assume_none(&self) {
        self.is_known.store(false, Relaxed);
        self.bytes.store(0, Relaxed);
    }

    /// Raises an assumption: a packet of this length has passed.
    pub(crate) fn raise(&self, bytes: u16) {
        self.bytes.fetch_max(bytes, Relaxed);
    }

    /// Sets what probes have found out.
    pub(crate) fn set_known(&self, bytes: u16) {
        self.bytes.store(bytes, Relaxed);
        self.is_known.store(true, Relaxed);
    }

    /// Copies the estimate of the same path.
    pub(crate) fn copy_from(&self, other: &Self) {
        self.bytes.store(other.bytes.load(Relaxed), Relaxed);
        self.is_known.store(other.is_known.load(Relaxed), Relaxed);
    }
}

/// The next step of path MTU discovery.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MtuStep {
    /// The lengths of probes to send, in bytes.
    pub(crate) probes: Vec<u16>,
    /// The path MTU that was found out, in bytes; zero if the peer answers no probe.
    pub(crate) found: Option<u16>,
}

/// Path MTU discovery on one path.
#[derive(Debug)]
pub(crate) struct MtuDiscovery {
    pub(crate) address: SocketAddr,
    network_mtu: u16,
    /// The lengths that are tried, the longest first.
    lengths: Vec<u16>,
    tries: u8,
    next: Millis,
    /// The longest that has passed.
    best: u16,
}

impl MtuDiscovery {
    pub(crate) fn new(now: Millis, address: SocketAddr, network_mtu: u16) -> Self {
        Self { address, network_mtu, lengths: vec![network_mtu], tries: 0, next: now, best: 0 }
    }

    /// Returns whether it is that of this path.
    pub(crate) fn is_of(&self, address: SocketAddr, network_mtu: u16) -> bool {
        (self.address, self.network_mtu) == (address, network_mtu)
    }

    /// Returns the next step: the network's MTU is tried alone at first, then shorter packets.
    pub(crate) fn step(&mut self, now: Millis) -> MtuStep {
        if now < self.next {
            return MtuStep::default();
        }
        if self.tries >= MAX_TRIES && self.best == 0 && self.lengths.len() == 1 {
            (self.lengths, self.tries) = (shorter_lengths(self.network_mtu), 0);
        }
        if self.best == self.lengths[0] || self.tries >= MAX_TRIES {
            let found = self.best;
            (self.lengths, self.tries, self.best) = (vec![self.network_mtu], 0, 0);
            self.next = now + RAISE_INTERVAL;
            return MtuStep { probes: vec![], found: Some(found) };
        }
        self.tries += 1;
        self.next = now + PROBE_INTERVAL;
        let longer = self.lengths.iter().copied().filter(|length| *length > self.best);
        MtuStep { probes: longer.collect(), found: None }
    }

    /// Notes that a probe of this length was answered.
    pub(crate) fn confirm(&mut self, length: u16) {
        self.best = self.best.max(length);
    }
}

/// Returns the lengths that are tried where the network's MTU does not pass, the longest first.
fn shorter_lengths(network_mtu: u16) -> Vec<u16> {
    let next = |length: &u16| Some(length - if *length > 2000 { length / 6 } else { length / 40 });
    let mut lengths: Vec<u16> = std::iter::successors(Some(network_mtu), next)
        .take_while(|length| *length > MIN_PATH_MTU)
        .collect();
    lengths.extend(COMMON_PATH_MTUS.into_iter().filter(|length| *length < network_mtu));
    lengths.push(MIN_PATH_MTU.min(network_mtu));
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.dedup();
    lengths
}
