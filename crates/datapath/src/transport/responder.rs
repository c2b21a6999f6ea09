//! Receiving handshake messages: the load gate, initiations, responses and cookie replies.

use super::{
    handshake::SentResponse,
    keys::{OwnKey, OwnKeys},
    outbound::SendMessage,
    peer::Peer,
    peer_table::PeerTable,
    state::{Now, Transport},
};
use crate::drop_reason::DropReason;
use meshward_wireguard::{
    Millis,
    cookie::{MacKeys, ReceivedCookie},
    handshake::{Responder, Unauthentic},
    load_gate::{GateRefusal, Incoming, Interface},
    message::{
        MessageType, RECEIVER_INDEX, RESPONSE_RECEIVER_INDEX, SENDER_INDEX, read_u32, response,
    },
    session::{Indices, Role, Session},
    timers::INITIATION_INTERVAL,
};
use parking_lot::RwLockReadGuard;
use std::sync::Arc;

/// The interface of an endpoint to the load gate.
struct GateInterface<'a> {
    keys: RwLockReadGuard<'a, OwnKeys>,
    peers: &'a PeerTable,
}

impl Interface for GateInterface<'_> {
    fn verify_mac1(&self, message: &[u8]) -> Option<&MacKeys> {
        self.keys.of_message(message).map(|key| &key.macs)
    }

    fn has_index(&self, index: u32) -> bool {
        self.peers.by_session(index).is_some()
    }

    fn try_response(&self, index: u32) -> bool {
        let handshake = self.peers.by_session(index).and_then(|peer| peer.handshake.try_lock());
        handshake.is_some_and(|mut handshake| {
            let attempt = handshake.attempt.as_mut();
            attempt.is_some_and(|attempt| attempt.local_index == index && attempt.try_response())
        })
    }
}

impl From<GateRefusal> for DropReason {
    fn from(refusal: GateRefusal) -> Self {
        match refusal {
            GateRefusal::WrongMac => Self::BadCrypto,
            GateRefusal::OverLimit => Self::HandshakeLimit,
        }
    }
}

impl From<Unauthentic> for DropReason {
    fn from(_: Unauthentic) -> Self {
        Self::BadCrypto
    }
}

impl Transport {
    /// Decides whether a handshake message may wait for [`Self::receive_handshake`].
    ///
    /// # Errors
    /// The reason for which it is dropped; it may have been answered with a cookie.
    pub(crate) fn pass_load_gate(
        &self,
        peers: &PeerTable,
        now: Millis,
        incoming: Incoming<'_>,
        send: SendMessage,
    ) -> Result<(), DropReason> {
        let interface = GateInterface { keys: self.keys.read(), peers };
        let reply = |reply: &[u8]| send(incoming.from, reply);
        Ok(self.gate.admit(now, incoming, &interface, reply)?)
    }

    /// Receives a handshake message that has passed the load gate. Returns the peer if there is now
    /// a session for the packets that wait.
    ///
    /// # Errors
    /// The reason for which the message is dropped.
    pub(crate) fn receive_handshake(
        &self,
        now: Now,
        incoming: Incoming<'_>,
        send: SendMessage,
    ) -> Result<Option<Arc<Peer>>, DropReason> {
        let message = incoming.message;
        let kind = MessageType::of(message).ok_or(DropReason::UnknownPeer)?;
        let millis = self.millis(now.instant);
        if kind == MessageType::CookieReply {
            return self.receive_cookie(millis, message).map(|()| None);
        }
        let key = self.keys.read().of_message(message).cloned();
        let key = key.ok_or(DropReason::BadCrypto)?;
        match kind {
            MessageType::Initiation => self.receive_initiation(&key, millis, incoming, send),
            MessageType::Response => self.receive_response(millis, incoming),
            _ => Err(DropReason::UnknownPeer),
        }
    }

    fn receive_cookie(&self, now: Millis, reply: &[u8]) -> Result<(), DropReason> {
        let index = read_u32(reply, RECEIVER_INDEX);
        let peer = self.peers.read().by_session(index).cloned().ok_or(DropReason::UnknownPeer)?;
        let mut handshake = peer.handshake.lock();
        let mac1 = handshake.mac1.ok_or(DropReason::BadCrypto)?;
        let cookie = peer.macs.open_reply(reply, &mac1).ok_or(DropReason::BadCrypto)?;
        handshake.cookie = Some(ReceivedCookie::new(cookie, now));
        handshake.mac1 = None;
        Ok(())
    }

    fn receive_initiation(
        &self,
        key: &OwnKey,
        now: Millis,
        Incoming { from, message }: Incoming<'_>,
        send: SendMessage,
    ) -> Result<Option<Arc<Peer>>, DropReason> {
        let responder = Responder::read(&key.secret, message)?;
        let (sender, timestamp) = (responder.peer, responder.timestamp);
        let peer = self.peers.read().by_key(&sender).cloned().ok_or(DropReason::UnknownPeer)?;
        if peer.kind != key.peers {
            return Err(DropReason::BadCrypto);
        }
        let mut handshake = peer.handshake.lock();
        let last = handshake.timestamp(&sender);
        if last == Some(timestamp) {
            // A copy on another path: the response to it goes back by that path, because the first
            // may not have come through.
            if let Some(response) = &mut handshake.sent_response
                && response.add_copy(from)
            {
                send(from, &response.message);
            }
            return Ok(None);
        }
        if last.is_some_and(|last| timestamp < last) {
            return Err(DropReason::BadCrypto);
        }
        if handshake.last_answered.is_some_and(|last| !now.has_passed(INITIATION_INTERVAL, last)) {
            return Err(DropReason::HandshakeLimit);
        }
        handshake.note_timestamp(sender, timestamp);
        handshake.last_answered = Some(now);
        let remote = read_u32(message, SENDER_INDEX);
        let indices = Indices { local: handshake.next_session_index(peer.index), remote };
        let mut message = response(indices.local, indices.remote);
        let keys = responder.finish(&mut message)?;
        let session = Session::new(&keys, indices, now, Role::Responder);
        handshake.sign(now, &peer.macs, &mut message);
        handshake.completed = Some(now);
        peer.install(session?);
        peer.note_initiation(now, from);
        handshake.sent_response = Some(SentResponse { message, sent_to: vec![from] });
        send(from, &message);
        Ok(None)
    }

    fn receive_response(
        &self,
        now: Millis,
        Incoming { from, message }: Incoming<'_>,
    ) -> Result<Option<Arc<Peer>>, DropReason> {
        let index = read_u32(message, RESPONSE_RECEIVER_INDEX);
        let peer = self.peers.read().by_session(index).cloned().ok_or(DropReason::UnknownPeer)?;
        let mut handshake = peer.handshake.lock();
        if handshake.accepted_response.is_some_and(|first| first == *message) {
            // The same response on another path.
            if peer.all_paths(&handshake).contains(&from) {
                peer.note_response_copy(now, from);
            }
            return Ok(None);
        }
        let attempt = handshake.attempt.as_mut().filter(|attempt| attempt.local_index == index);
        let attempt = attempt.ok_or(DropReason::BadCrypto)?;
        let sent = attempt.sent;
        let keys = attempt.initiator.finish(message)?;
        let indices = Indices { local: index, remote: read_u32(message, SENDER_INDEX) };
        let session = Session::new(&keys, indices, now, Role::Initiator);
        handshake.attempt = None;
        handshake.accepted_response = message.try_into().ok();
        handshake.completed = Some(now);
        handshake.budget.validate(from);
        peer.install(session?);
        peer.note_response(now, from, sent);
        drop(handshake);
        Ok(Some(peer))
    }
}
