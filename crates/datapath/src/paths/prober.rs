//! The path prober of a peer: which challenges are sent, and what their responses prove. While a
//! peer is reached through a relay, it tries all other candidate paths; on a direct path it finds
//! out the path MTU. Pings are challenges whose round-trip time somebody waits for.

use super::mtu::MtuDiscovery;
use meshward_wireguard::Millis;
use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Time between two rounds of challenges to the other candidate paths; it doubles with each.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);
const MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Pings that are remembered at the most.
const MAX_PINGS: usize = 32;
/// Challenges that may await a response at the most.
const MAX_CHALLENGES: usize = 64;
/// Time after which a ping without a response is lost.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// A challenge that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) number: u32,
    pub(crate) address: SocketAddr,
    /// Length of its packet in bytes, if that is to be found out; otherwise it is as short as can
    /// be.
    pub(crate) padded_to: Option<u16>,
}

/// The proof that a response gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The path is good in both directions.
    Path(SocketAddr),
    /// Packets of this length in bytes pass.
    Length(u16),
}

/// The next round of challenges to other paths.
#[derive(Debug, Clone, Copy)]
struct NextRound {
    at: Millis,
    /// The time until the one after it.
    interval: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Ping {
    number: u32,
    sent: Instant,
    round_trip: Option<Duration>,
}

/// The path prober of a peer.
#[derive(Debug, Default)]
pub(crate) struct PathProber {
    challenges: VecDeque<Challenge>,
    last_number: u32,
    next_round: Option<NextRound>,
    mtu: Option<MtuDiscovery>,
    pings: VecDeque<Ping>,
}

/// A step of path MTU discovery.
pub(crate) struct MtuStep {
    /// The challenges that are due.
    pub(crate) challenges: Vec<Challenge>,
    /// The path MTU, in bytes, if it was found.
    pub(crate) found: Option<u16>,
}

impl PathProber {
    /// Returns the challenges to other paths that are due, while the peer is reached through a
    /// relay.
    pub(crate) fn challenge_others(
        &mut self,
        now: Millis,
        addresses: impl Iterator<Item = SocketAddr>,
    ) -> Vec<Challenge> {
        let NextRound { at, interval } =
            self.next_round.unwrap_or(NextRound { at: now, interval: FIRST_INTERVAL });
        if now < at {
            return vec![];
        }
        let next = (interval * 2).min(MAX_INTERVAL);
        self.next_round = Some(NextRound { at: now + interval, interval: next });
        addresses.map(|address| self.challenge(address, None)).collect()
    }

    /// Starts the next round at once, with the shortest interval.
    pub(crate) fn reset_interval(&mut self) {
        self.next_round = None;
    }

    /// Takes the next step of path MTU discovery on a direct path.
    pub(crate) fn discover_mtu(
        &mut self,
        now: Millis,
        address: SocketAddr,
        network_mtu: u16,
    ) -> MtuStep {
        let known = self.mtu.take().filter(|mtu| mtu.is_of(address, network_mtu));
        let mut mtu = known.unwrap_or_else(|| MtuDiscovery::new(now, address, network_mtu));
        let step = mtu.step(now);
        self.mtu = Some(mtu);
        let challenges =
            step.probes.into_iter().map(|length| self.challenge(address, Some(length)));
        MtuStep { challenges: challenges.collect(), found: step.found }
    }

    fn challenge(&mut self, address: SocketAddr, padded_to: Option<u16>) -> Challenge {
        let challenge = Challenge { number: self.next_number(), address, padded_to };
        if self.challenges.len() >= MAX_CHALLENGES {
            self.challenges.pop_front();
        }
        self.challenges.push_back(challenge);
        challenge
    }

    fn next_number(&mut self) -> u32 {
        self.last_number = self.last_number.wrapping_add(1);
        self.last_number
    }

    /// Returns the proof that a response is. Each response counts once.
    pub(crate) fn accept_response(&mut self, number: u32) -> Option<Proof> {
        let at = self.challenges.iter().position(|challenge| challenge.number == number)?;
        let challenge = self.challenges.remove(at)?;
        let Some(length) = challenge.padded_to else {
            return Some(Proof::Path(challenge.address));
        };
        self.mtu.as_mut().filter(|mtu| mtu.address == challenge.address)?.confirm(length);
        Some(Proof::Length(length))
    }

    /// Begins a ping. Returns its number.
    pub(crate) fn begin_ping(&mut self, now: Instant) -> u32 {
        let number = self.next_number();
        if self.pings.len() >= MAX_PINGS {
            self.pings.pop_front();
        }
        self.pings.push_back(Ping { number, sent: now, round_trip: None });
        number
    }

    /// Notes a response, if it is that of a ping.
    pub(crate) fn note_ping_response(&mut self, now: Instant, number: u32) {
        let awaited = |ping: &&mut Ping| ping.number == number && ping.round_trip.is_none();
        if let Some(ping) = self.pings.iter_mut().find(awaited) {
            ping.round_trip = Some(now.saturating_duration_since(ping.sent));
        }
    }

    /// Returns the round-trip time of a ping, once its response is there.
    pub(crate) fn ping_rtt(&self, number: u32) -> Option<Duration> {
        self.pings.iter().find(|ping| ping.number == number)?.round_trip
    }

    /// Returns whether the last ping was lost.
    pub(crate) fn last_ping_is_lost(&self, now: Instant) -> bool {
        self.pings.back().is_some_and(|ping| {
            let waited = now.saturating_duration_since(ping.sent);
            ping.round_trip.is_none() && waited > PING_TIMEOUT
        })
    }

    #[cfg(test)]
    pub(crate) fn remembered(&self) -> [usize; 2] {
        [self.challenges.len(), self.pings.len()]
    }
}
