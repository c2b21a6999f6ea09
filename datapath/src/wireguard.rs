//! The WireGuard engine: boringtun's noise layer behind the few verbs that an endpoint needs.
//!
//! boringtun reads the system clock for its timers; that is the one place where this crate does not take time as a
//! parameter. Wire format: the WireGuard paper (Donenfeld, NDSS 2017), §5.4.

use crate::{batch::Batch, drops::Cause, endpoint::Sink};
use boringtun::noise::{Packet, Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter};
use meshward_model::PublicKey;
use std::{collections::HashMap, fmt, net::SocketAddr, sync::Arc, time::Duration};
use x25519_dalek::StaticSecret;

/// Bytes that WireGuard adds to a packet: 16 of header and 16 of tag.
pub const OVERHEAD: usize = 32;

/// The least room that the engine wants for what it writes: a handshake initiation.
const LEAST_BUFFER: usize = 148;

/// Handshakes a second from which on initiators must show a cookie (WireGuard paper §5.3).
const HANDSHAKES_UNDER_LOAD: u64 = 100;

/// WireGuard's REJECT_AFTER_TIME: no session is older.
const REJECT_AFTER: Duration = Duration::from_secs(180);

/// An endpoint's private key. It can be neither printed nor serialised.
#[derive(Clone)]
pub struct SecretKey(StaticSecret);

impl SecretKey {
    /// The key with these bytes (RFC 7748 §5 clamps them).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// What is known of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStats {
    /// Where packets to it go now.
    pub address: Option<SocketAddr>,
    /// Time since the last handshake.
    pub handshake_age: Option<Duration>,
    /// Bytes sent, before encryption.
    pub sent: u64,
    /// Bytes received, after decryption.
    pub received: u64,
}

struct Peer {
    tunnel: Tunn,
    key: PublicKey,
    candidates: Vec<SocketAddr>,
    address: Option<SocketAddr>,
}

/// The peers of one endpoint, each in a slot.
pub(crate) struct Wireguard {
    secret: SecretKey,
    limiter: Arc<RateLimiter>,
    /// For the tunnels: messages reach them only after `limiter` has let them through.
    unlimited: Arc<RateLimiter>,
    peers: Vec<Option<Peer>>,
    by_key: HashMap<PublicKey, usize>,
    /// For what the engine says by itself.
    sealed: Vec<u8>,
}

impl Wireguard {
    pub fn new(secret: SecretKey) -> Self {
        let public = x25519_dalek::PublicKey::from(&secret.0);
        Self {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_UNDER_LOAD)),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret,
            peers: Vec::new(),
            by_key: HashMap::new(),
            sealed: vec![0; LEAST_BUFFER],
        }
    }

    pub fn public(&self) -> PublicKey {
        self.secret.public()
    }

    /// Puts a peer into a slot; its session goes on if its key is the same.
    pub fn put(&mut self, slot: usize, key: PublicKey, candidates: Vec<SocketAddr>) {
        if self.peers.len() <= slot {
            self.peers.resize_with(slot + 1, || None);
        }
        if let Some(peer) = &mut self.peers[slot]
            && peer.key == key
        {
            if peer.candidates != candidates {
                // With a live session the address that authenticated is better than any hint.
                if peer.tunnel.time_since_last_handshake().is_none_or(|age| age > REJECT_AFTER) {
                    peer.address = candidates.first().copied();
                }
                peer.candidates = candidates;
            }
            return;
        }
        self.remove(slot);
        let tunnel = Tunn::new(
            self.secret.0.clone(),
            x25519_dalek::PublicKey::from(key.0),
            None,
            None,
            slot as u32,
            Some(self.unlimited.clone()),
        );
        self.by_key.insert(key, slot);
        let address = candidates.first().copied();
        self.peers[slot] = Some(Peer { tunnel, key, candidates, address });
    }

    pub fn remove(&mut self, slot: usize) {
        if let Some(peer) = self.peers.get_mut(slot).and_then(Option::take)
            && self.by_key.get(&peer.key) == Some(&slot)
        {
            self.by_key.remove(&peer.key);
        }
    }

    pub fn stats(&self, slot: usize) -> Option<PeerStats> {
        let peer = self.peers.get(slot)?.as_ref()?;
        let (handshake_age, sent, received, _, _) = peer.tunnel.stats();
        Some(PeerStats { address: peer.address, handshake_age, sent: sent as u64, received: received as u64 })
    }

    /// Seals a packet for a peer into a batch, or begins a handshake and keeps the packet for its end.
    pub fn seal(&mut self, slot: usize, packet: &[u8], batch: &mut Batch, sink: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { return };
        // Without an address the packet waits with the engine until the peer has shown where it is.
        let Some(address) = peer.address else {
            make_room(&mut self.sealed, packet.len());
            peer.tunnel.encapsulate(packet, &mut self.sealed);
            return;
        };
        let length = packet.len() + OVERHEAD;
        let room = batch.room(address, length, LEAST_BUFFER, sink);
        match peer.tunnel.encapsulate(packet, room) {
            TunnResult::WriteToNetwork(datagram) if datagram.len() == length && is_data(datagram) => {
                batch.keep(length);
            }
            TunnResult::WriteToNetwork(handshake) => {
                sink.to_network(address, handshake, handshake.len());
            }
            _ => {}
        }
    }

    /// Opens a datagram into `opened`. A data packet comes back with its peer's slot; everything else the engine
    /// answers by itself through `send`.
    pub fn open<'a>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        opened: &'a mut [u8],
        mut send: impl FnMut(SocketAddr, &[u8]),
    ) -> Result<Option<(usize, &'a [u8])>, Cause> {
        let mut cookie = [0; LEAST_BUFFER];
        let message = match self.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(reply)) => {
                send(from, reply);
                return Ok(None);
            }
            Err(TunnResult::Err(WireGuardError::InvalidPacket)) => return Err(Cause::UnknownPeer),
            Err(_) => return Err(Cause::BadCrypto),
        };
        let slot = self.slot_of(&message)?;
        let peer = self.peers.get_mut(slot).and_then(Option::as_mut).ok_or(Cause::UnknownPeer)?;
        match peer.tunnel.decapsulate(None, datagram, opened) {
            TunnResult::Err(_) => Err(Cause::BadCrypto),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                peer.address = Some(from);
                Ok(Some((slot, packet)))
            }
            TunnResult::Done => {
                // A cookie reply does not prove where the peer is; a keepalive does.
                if matches!(message, Packet::PacketData(_)) {
                    peer.address = Some(from);
                }
                Ok(None)
            }
            TunnResult::WriteToNetwork(reply) => {
                peer.address = Some(from);
                send(from, reply);
                peer.flush(&mut self.sealed, &mut send);
                Ok(None)
            }
        }
    }

    fn slot_of(&self, message: &Packet) -> Result<usize, Cause> {
        let index = match message {
            Packet::HandshakeInit(init) => {
                let public = x25519_dalek::PublicKey::from(&self.secret.0);
                let half = boringtun::noise::handshake::parse_handshake_anon(&self.secret.0, &public, init)
                    .map_err(|_| Cause::BadCrypto)?;
                let key = PublicKey(half.peer_static_public);
                return self.by_key.get(&key).copied().ok_or(Cause::UnknownPeer);
            }
            Packet::HandshakeResponse(response) => response.receiver_idx,
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
            Packet::PacketData(data) => data.receiver_idx,
        };
        Ok((index >> 8) as usize)
    }

    /// Runs the timers: rekeying, keepalives, retries.
    pub fn tick(&mut self, mut send: impl FnMut(SocketAddr, &[u8])) {
        self.limiter.reset_count();
        make_room(&mut self.sealed, 0);
        for peer in self.peers.iter_mut().flatten() {
            let TunnResult::WriteToNetwork(datagram) = peer.tunnel.update_timers(&mut self.sealed) else {
                continue;
            };
            let retry = datagram.first() == Some(&1);
            if let Some(address) = peer.address {
                send(address, datagram);
            }
            if retry && peer.tunnel.time_since_last_handshake().is_none_or(|age| age > REJECT_AFTER) {
                peer.try_next_candidate();
            }
        }
    }
}

impl Peer {
    /// Sends what waited for the session.
    fn flush(&mut self, sealed: &mut Vec<u8>, send: &mut impl FnMut(SocketAddr, &[u8])) {
        // What waits was read from a workload, so it is at most an IP packet long.
        make_room(sealed, usize::from(u16::MAX));
        while let TunnResult::WriteToNetwork(datagram) = self.tunnel.decapsulate(None, &[], sealed) {
            if let Some(address) = self.address {
                send(address, datagram);
            }
        }
    }

    fn try_next_candidate(&mut self) {
        let at = self.candidates.iter().position(|own| Some(*own) == self.address);
        let next = at.map_or(0, |at| at + 1) % self.candidates.len().max(1);
        self.address = self.candidates.get(next).copied().or(self.address);
    }
}

/// Whether a message is transport data: type 4 (WireGuard paper §5.4.6).
fn is_data(datagram: &[u8]) -> bool {
    datagram.first() == Some(&4)
}

fn make_room(buffer: &mut Vec<u8>, packet: usize) {
    let need = (packet + OVERHEAD).max(LEAST_BUFFER);
    if buffer.len() < need {
        buffer.resize(need, 0);
    }
}
