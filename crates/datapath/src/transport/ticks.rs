//! The timers of all peers, pings, and gateways that do not answer.

use super::{
    handshake::HandshakeState,
    initiator::Occasion,
    outbound::SendMessage,
    peer::{Due, Peer, SendPath},
    state::{Now, Transport},
};
use crate::{
    in_band::path_probe::{self, PathProbe},
    index::PeerIndex,
    paths::prober::Challenge,
};
use meshward_wireguard::Millis;
use parking_lot::MutexGuard;
use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A ping that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentPing {
    /// The number by which its response is asked for.
    pub number: u32,
    /// The address that it was sent to.
    pub address: SocketAddr,
}

/// The outcome of [`Transport::ping`].
#[derive(Debug)]
pub(crate) struct PingStart {
    /// The ping; `None` without a session.
    pub(crate) sent: Option<SentPing>,
    pub(crate) handshake_requested: bool,
}

/// The outcome of [`Transport::watch_gateways`].
#[derive(Debug, Default)]
pub(crate) struct GatewayState {
    /// The gateways that are down.
    pub(crate) down: HashSet<PeerIndex>,
    pub(crate) handshakes_requested: bool,
}

impl Transport {
    /// Runs the timers of all peers: repetitions, keepalives, path challenges, the end of old keys.
    /// Returns how many packets were given up with their handshakes.
    pub(crate) fn tick(&self, now: Now, network_mtu: u16, send: SendMessage) -> u64 {
        let millis = self.millis(now.instant);
        self.gate.tick(millis);
        if self.keys.read().is_due(millis) {
            self.keys.write().tick(millis);
        }
        if self.peers.read().has_expired_keys(millis) {
            self.peers.write().forget_expired_keys(millis);
        }
        let all: Vec<Arc<Peer>> = self.peers.read().all();
        all.iter().map(|peer| self.tick_peer(now, peer, network_mtu, send)).sum()
    }

    fn tick_peer(&self, now: Now, peer: &Peer, network_mtu: u16, send: SendMessage) -> u64 {
        let millis = self.millis(now.instant);
        peer.forget_old_sessions(millis);
        let mut handshake = peer.handshake.lock();
        let challenges = self.due_challenges(millis, peer, &mut handshake, network_mtu);
        self.send_challenges(millis, peer, challenges, send);
        match peer.due(millis, handshake.attempt.as_ref(), self.behind_nat.load(Relaxed)) {
            Due::Nothing => {}
            Due::Keepalive => peer.send_keepalive(millis, send),
            Due::Initiation => {
                drop(handshake);
                self.initiate(now, peer, Occasion::Silence, send);
            }
            Due::Copy => self.send_copies(millis, peer, &mut handshake, send),
            Due::Repetition => return self.repeat(now, peer, handshake, send),
        }
        0
    }

    /// Returns the path challenges of a peer that are due and within the budget.
    fn due_challenges(
        &self,
        now: Millis,
        peer: &Peer,
        handshake: &mut HandshakeState,
        network_mtu: u16,
    ) -> Vec<Challenge> {
        let mut challenges = peer.challenges(now, handshake, network_mtu);
        challenges.retain(|challenge| {
            challenge.padded_to.is_some()
                || !self.within_budget(now, handshake, vec![challenge.address]).is_empty()
        });
        challenges
    }

    fn send_challenges(
        &self,
        now: Millis,
        peer: &Peer,
        challenges: Vec<Challenge>,
        send: SendMessage,
    ) {
        for Challenge { number, address, padded_to } in challenges {
            let length = padded_to.map_or(path_probe::LENGTH, usize::from);
            let probe = PathProbe::Challenge(number);
            let sealed = peer.seal(now, length, |packet| probe.encode(packet));
            let Some(datagram) = sealed else { break };
            match padded_to {
                Some(_) => self.unfragmented.lock().push((address, datagram)),
                None => send(address, &datagram),
            }
        }
    }

    fn send_copies(
        &self,
        now: Millis,
        peer: &Peer,
        handshake: &mut HandshakeState,
        send: SendMessage,
    ) {
        let paths = peer.all_paths(handshake);
        let paths = self.within_budget(now, handshake, paths);
        let Some(attempt) = handshake.attempt.as_mut() else { return };
        attempt.copies += 1;
        for address in &paths {
            send(*address, &attempt.message);
        }
    }

    /// Repeats an initiation, or gives the handshake up. Returns how many packets were given up.
    fn repeat(
        &self,
        now: Now,
        peer: &Peer,
        mut handshake: MutexGuard<'_, HandshakeState>,
        send: SendMessage,
    ) -> u64 {
        let Some(attempt) = handshake.attempt.take() else { return 0 };
        drop(handshake);
        if attempt.is_expired(self.millis(now.instant)) {
            return peer.take_staged(&self.staged).len() as u64;
        }
        self.initiate(now, peer, Occasion::Repetition(attempt.began), send);
        0
    }

    /// Removes and returns the challenges that must not be fragmented on their way.
    pub(crate) fn take_unfragmented(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut *self.unfragmented.lock())
    }

    /// Sets whether others see the endpoint under another address than it has: then the mappings of
    /// NATs are kept.
    pub(crate) fn set_behind_nat(&self, behind_nat: bool) {
        self.behind_nat.store(behind_nat, Relaxed);
    }

    /// Finds out which redundant gateways are down. One that was down before stays so until it is
    /// heard.
    pub(crate) fn watch_gateways(
        &self,
        now: Instant,
        gateways: &HashSet<PeerIndex>,
        before: &HashSet<PeerIndex>,
    ) -> GatewayState {
        let (millis, peers) = (self.millis(now), self.peers.read());
        let mut state = GatewayState::default();
        for gateway in gateways {
            let Some(peer) = peers.get(*gateway) else { continue };
            peer.watch_closely();
            let handshake = peer.handshake.lock();
            if !peer.is_down(millis, handshake.attempt.as_ref(), before.contains(gateway)) {
                continue;
            }
            state.down.insert(*gateway);
            let is_idle = handshake.attempt.is_none();
            drop(handshake);
            state.handshakes_requested |= is_idle && self.request_handshake(peer);
        }
        state
    }

    /// Sends a ping on a peer's path, if there is a session.
    pub(crate) fn ping(&self, now: Instant, index: PeerIndex, send: SendMessage) -> PingStart {
        let Some(peer) = self.peers.read().get(index).cloned() else {
            return PingStart { sent: None, handshake_requested: false };
        };
        let millis = self.millis(now);
        let Some(SendPath { address, .. }) = peer.send_path(millis) else {
            return PingStart { sent: None, handshake_requested: self.request_handshake(&peer) };
        };
        let (number, last_is_lost) = {
            let prober = &mut peer.handshake.lock().prober;
            let last_is_lost = prober.last_ping_is_lost(now);
            // While packets are relayed, all other paths are tried at once.
            prober.reset_interval();
            (prober.begin_ping(now), last_is_lost)
        };
        let challenge = PathProbe::Challenge(number);
        let sealed = peer.seal(millis, path_probe::LENGTH, |packet| challenge.encode(packet));
        let sent = sealed.map(|datagram| {
            send(address, &datagram);
            SentPing { number, address }
        });
        // The peer may have restarted, and not know this session.
        PingStart { sent, handshake_requested: last_is_lost && self.request_handshake(&peer) }
    }

    /// Returns the round-trip time of a ping, once its response is there.
    pub(crate) fn ping_rtt(&self, index: PeerIndex, number: u32) -> Option<Duration> {
        let peer = self.peers.read().get(index).cloned()?;
        peer.handshake.lock().prober.ping_rtt(number)
    }
}
