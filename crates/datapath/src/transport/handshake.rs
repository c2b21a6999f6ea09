//! The state of a peer's handshakes. Only the thread for handshakes and timers holds its lock for
//! long.

use crate::{
    index::PeerIndex,
    paths::{
        budget::UnvalidatedBudget,
        candidates::CandidatePaths,
        prober::{PathProber, Proof},
    },
};
use meshward_wireguard::{
    Millis, PublicKey,
    cookie::{MacKeys, ReceivedCookie},
    handshake::Initiator,
    message::{INITIATION_LENGTH, MAC, RESPONSE_LENGTH},
    timers::{REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX},
    timestamp::{Tai64n, Timestamp},
};
use std::{net::SocketAddr, time::Duration};

/// The times at which copies of an initiation are sent to all candidate paths, unless the peer is
/// known to answer: the first opens the NATs of both sides, and the next ones pass, or meet a peer
/// that was just restarting.
const INITIATION_COPIES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1_600),
    Duration::from_millis(3_200),
];
/// Keys of one peer whose timestamps are remembered at the most: the one that it has, and those of
/// before.
const MAX_REMEMBERED_KEYS: usize = 4;
/// Responses to one of our initiations that are tried under load without a cookie.
const MAX_TRIED_RESPONSES: u8 = 4;
/// Addresses that one response goes to at the most.
const MAX_RESPONSE_COPIES: usize = 16;

/// Our response to a peer's last initiation, and where it was sent.
pub(crate) struct SentResponse {
    pub(crate) message: [u8; RESPONSE_LENGTH],
    pub(crate) sent_to: Vec<SocketAddr>,
}

impl SentResponse {
    /// Returns whether the response is to be sent to an address, too, from which a copy of the
    /// initiation has come. Notes the address.
    pub(crate) fn add_copy(&mut self, to: SocketAddr) -> bool {
        let is_new = self.sent_to.len() < MAX_RESPONSE_COPIES && !self.sent_to.contains(&to);
        if is_new {
            self.sent_to.push(to);
        }
        is_new
    }
}

/// The state of a peer's handshakes.
#[derive(Default)]
pub(crate) struct HandshakeState {
    pub(crate) candidates: CandidatePaths,
    /// The handshake of ours that is under way.
    pub(crate) attempt: Option<Attempt>,
    /// The greatest timestamps of the peer, by the keys that it has and had, so that no initiation
    /// is answered twice. A new key begins anew: who has lost its key may have lost its timestamps,
    /// too.
    timestamps: Vec<(PublicKey, Tai64n)>,
    /// The timestamp of our last initiation.
    pub(crate) last_timestamp: Option<Timestamp>,
    /// The time at which an initiation of the peer was answered last.
    pub(crate) last_answered: Option<Millis>,
    /// The cookie that the peer has given us, and the MAC that a cookie reply has to be for.
    pub(crate) cookie: Option<ReceivedCookie>,
    pub(crate) mac1: Option<[u8; MAC]>,
    /// The time at which the last session began.
    pub(crate) completed: Option<Millis>,
    /// Sessions begun, modulo 256, for their indices.
    pub(crate) sessions_begun: u8,
    pub(crate) prober: PathProber,
    pub(crate) budget: UnvalidatedBudget,
    pub(crate) sent_response: Option<SentResponse>,
    /// The peer's response to our last initiation.
    pub(crate) accepted_response: Option<[u8; RESPONSE_LENGTH]>,
}

impl HandshakeState {
    pub(crate) fn new(candidates: CandidatePaths) -> Self {
        Self { candidates, ..Self::default() }
    }

    /// Continues from the same peer's state under its previous key: indices of live sessions are
    /// not used again, and initiations that were answered are not answered again.
    pub(crate) fn succeed(&mut self, before: &mut Self) {
        self.timestamps.clone_from(&before.timestamps);
        self.budget = std::mem::take(&mut before.budget);
        self.sessions_begun = before.sessions_begun;
        self.last_timestamp = before.last_timestamp;
        self.completed = before.completed;
    }

    /// Returns the greatest timestamp that the peer has sent by a key.
    pub(crate) fn timestamp(&self, key: &PublicKey) -> Option<Tai64n> {
        self.timestamps.iter().find(|(known, _)| known == key).map(|(_, timestamp)| *timestamp)
    }

    /// Notes a greater timestamp.
    pub(crate) fn note_timestamp(&mut self, key: PublicKey, timestamp: Tai64n) {
        self.timestamps.retain(|(known, _)| *known != key);
        if self.timestamps.len() >= MAX_REMEMBERED_KEYS {
            self.timestamps.remove(0);
        }
        self.timestamps.push((key, timestamp));
    }

    /// Returns the proof that a response to a challenge is.
    pub(crate) fn accept_path_response(&mut self, number: u32) -> Option<Proof> {
        let proof = self.prober.accept_response(number);
        if let Some(Proof::Path(address)) = proof {
            self.budget.validate(address);
        }
        proof
    }

    /// Returns the index of the next session with the peer.
    pub(crate) fn next_session_index(&mut self, peer: PeerIndex) -> u32 {
        self.sessions_begun = self.sessions_begun.wrapping_add(1);
        peer.session_index(self.sessions_begun)
    }

    /// Writes the MACs of a message to the peer, whose keys are `macs`.
    pub(crate) fn sign(&mut self, now: Millis, macs: &MacKeys, message: &mut [u8]) {
        let cookie = self.cookie.as_ref().and_then(|cookie| cookie.get(now));
        self.mac1 = Some(macs.sign(message, cookie));
    }
}

/// A handshake that we have begun.
pub(crate) struct Attempt {
    pub(crate) initiator: Initiator,
    pub(crate) local_index: u32,
    /// The time at which its first initiation was sent.
    pub(crate) began: Millis,
    /// The time at which this initiation was sent.
    pub(crate) sent: Millis,
    repeat_at: Millis,
    pub(crate) message: [u8; INITIATION_LENGTH],
    /// `true` if the peer has not answered lately, whether or not there is a session.
    pub(crate) is_peer_silent: bool,
    /// Copies of the message that have left.
    pub(crate) copies: usize,
    tried_responses: u8,
}

impl Attempt {
    /// An attempt whose initiation is sent now. `began`: when the first one was.
    pub(crate) fn new(
        initiator: Initiator,
        local_index: u32,
        message: [u8; INITIATION_LENGTH],
        began: Millis,
        now: Millis,
    ) -> Self {
        let random = u64::from(local_index).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let jitter = random % (REKEY_TIMEOUT_JITTER_MAX.as_millis() as u64 + 1);
        let repeat_at = now + REKEY_TIMEOUT + Duration::from_millis(jitter);
        Self {
            initiator,
            local_index,
            began,
            sent: now,
            repeat_at,
            message,
            is_peer_silent: false,
            copies: 0,
            tried_responses: 0,
        }
    }

    /// Returns whether another initiation is due.
    pub(crate) fn repetition_is_due(&self, now: Millis) -> bool {
        now >= self.repeat_at
    }

    /// Returns whether a copy of the initiation is due.
    pub(crate) fn copy_is_due(&self, now: Millis) -> bool {
        INITIATION_COPIES.get(self.copies).is_some_and(|after| now.has_passed(*after, self.sent))
    }

    /// Returns whether the peer has not answered for so long that the handshake is given up.
    pub(crate) fn is_expired(&self, now: Millis) -> bool {
        now.has_passed(REKEY_ATTEMPT_TIME, self.began)
    }

    /// Returns whether one more response is tried under load without a cookie.
    pub(crate) fn try_response(&mut self) -> bool {
        let may_try = self.tried_responses < MAX_TRIED_RESPONSES;
        self.tried_responses += u8::from(may_try);
        may_try
    }
}
