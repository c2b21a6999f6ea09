//! Beginning handshakes.

use super::{
    handshake::{Attempt, HandshakeState},
    outbound::SendMessage,
    peer::Peer,
    state::{Now, Transport},
};
use meshward_types::relay::is_relayed;
use meshward_wireguard::{
    Millis, handshake::Initiator, message::initiation, timers::REKEY_TIMEOUT,
};
use std::net::SocketAddr;

/// Why a handshake is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// A worker has requested it: there is no session, or the session is to be renewed.
    Requested,
    /// The peer has not answered what was sent to it lately.
    Silence,
    /// The initiation before had no answer. The first one was sent at this time.
    Repetition(Millis),
}

impl Transport {
    /// Begins the handshakes that were requested.
    pub(crate) fn begin_requested(&self, now: Now, send: SendMessage) {
        for index in std::mem::take(&mut *self.requested.lock()) {
            let Some(peer) = self.peers.read().get(index).cloned() else { continue };
            peer.handshake_begins();
            if peer.handshake.lock().attempt.is_none() {
                self.initiate(now, &peer, Occasion::Requested, send);
            }
        }
    }

    /// Sends an initiation, on all paths if the peer is not known to answer on the current one.
    pub(super) fn initiate(&self, now: Now, peer: &Peer, occasion: Occasion, send: SendMessage) {
        let millis = self.millis(now.instant);
        let removed_timestamp = self.peers.read().removed_timestamp();
        let mut handshake = peer.handshake.lock();
        let answers_hole_punch = peer.take_hole_punch_request();
        // While the peer answers on its path, no other is tried.
        let is_reachable = peer.send_path(millis).is_some()
            && occasion == Occasion::Requested
            && !answers_hole_punch;
        if !is_reachable && !answers_hole_punch {
            self.request_hole_punch(peer.index);
        }
        if answers_hole_punch {
            handshake.budget.allow_hole_punch(millis);
        }
        // Without an address the packets wait until the peer has shown where it is.
        let paths = match is_reachable {
            true => peer.address().into_iter().collect(),
            false => peer.all_paths(&handshake),
        };
        if paths.is_empty() {
            return;
        }
        // If no message may be sent now, the attempt goes on all the same, until one may.
        let paths =
            if is_reachable { paths } else { self.within_budget(millis, &mut handshake, paths) };
        let local_index = handshake.next_session_index(peer.index);
        let mut message = initiation(local_index);
        let began = if let Occasion::Repetition(began) = occasion { began } else { millis };
        let tries = millis.since(began).as_secs() / REKEY_TIMEOUT.as_secs();
        let Some(own) = self.keys.read().to_begin(millis, peer.kind, tries) else { return };
        // A peer may be one that was removed and has come back.
        let last = handshake.last_timestamp.or(removed_timestamp);
        let timestamp = self.timestamps.next(last, now.unix);
        handshake.last_timestamp = Some(timestamp);
        let begun = Initiator::begin(&own.secret, &peer.key, timestamp.into(), &mut message);
        // Only a key of low order is refused, and such a peer cannot be reached.
        let Ok(initiator) = begun else { return };
        handshake.sign(millis, &peer.macs, &mut message);
        let mut attempt = Attempt::new(initiator, local_index, message, began, millis);
        attempt.is_peer_silent = occasion != Occasion::Requested;
        handshake.attempt = Some(attempt);
        for address in &paths {
            send(*address, &message);
        }
    }

    /// Returns the paths of a peer to which the budget lets an unsolicited message be sent.
    pub(super) fn within_budget(
        &self,
        now: Millis,
        handshake: &mut HandshakeState,
        paths: Vec<SocketAddr>,
    ) -> Vec<SocketAddr> {
        let mut budget = self.budget.lock();
        let may_send = |address: &SocketAddr| {
            // A relay forwards only what its connection bears, and to a peer that has asked for it.
            is_relayed(address) || handshake.budget.spend(now, *address, &mut budget)
        };
        paths.into_iter().filter(may_send).collect()
    }
}
