//! The timers of a peer (the WireGuard paper §6), as workers move them: atomics, without a lock.

use meshward_wireguard::{
    Millis,
    timers::{KEEPALIVE_TIMEOUT, REKEY_TIMEOUT},
};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The silence timeout at first: who has sent data and hears nothing for so long begins a handshake
/// on all paths. It doubles until something is heard, because there may be nothing to answer (the
/// paper waits for `KEEPALIVE_TIMEOUT` and `REKEY_TIMEOUT`, which is the longest).
const SILENCE_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_SILENCE_TIMEOUT: Duration = KEEPALIVE_TIMEOUT.saturating_add(REKEY_TIMEOUT);
/// The silence timeout at first of a gateway that another can stand in for.
const GATEWAY_SILENCE_TIMEOUT: Duration = Duration::from_millis(350);
/// Time after which an endpoint behind a NAT sends something, so that the NAT keeps its mapping
/// (RFC 4787 REQ-5 asks NATs for two minutes, and many keep to less).
const NAT_KEEPALIVE: Duration = Duration::from_secs(20);

/// The action that the timers of a peer ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimerAction {
    None,
    SendKeepalive,
    /// The peer is silent: begin a handshake.
    BeginHandshake,
}

/// The timers of a peer, in [`Millis`]; 0: not running.
#[derive(Debug)]
pub(crate) struct PeerTimers {
    /// Since when data has been sent and nothing has come back.
    unanswered_since: AtomicU64,
    /// In milliseconds.
    silence_timeout: AtomicU64,
    /// The time at which a keepalive is due.
    keepalive_at: AtomicU64,
    last_sent: AtomicU64,
    /// `true` if the peer is a gateway that another can stand in for.
    is_redundant_gateway: AtomicBool,
}

impl Default for PeerTimers {
    fn default() -> Self {
        Self {
            unanswered_since: AtomicU64::new(0),
            silence_timeout: AtomicU64::new(SILENCE_TIMEOUT.as_millis() as u64),
            keepalive_at: AtomicU64::new(0),
            last_sent: AtomicU64::new(0),
            is_redundant_gateway: AtomicBool::new(false),
        }
    }
}

impl PeerTimers {
    /// Data was sent: an answer is awaited.
    #[inline]
    pub(crate) fn data_sent(&self, now: Millis) {
        self.any_sent(now);
        if self.unanswered_since.load(Relaxed) == 0 {
            self.unanswered_since.store(now.0, Relaxed);
        }
    }

    /// Notes that something authentic was sent: no keepalive is due.
    #[inline]
    pub(crate) fn any_sent(&self, now: Millis) {
        self.last_sent.store(now.0, Relaxed);
        if self.keepalive_at.load(Relaxed) != 0 {
            self.keepalive_at.store(0, Relaxed);
        }
    }

    /// Notes that something authentic was received.
    pub(crate) fn any_received(&self) {
        if self.unanswered_since.load(Relaxed) != 0 {
            self.unanswered_since.store(0, Relaxed);
            let gateway = self.is_redundant_gateway.load(Relaxed);
            let timeout = if gateway { GATEWAY_SILENCE_TIMEOUT } else { SILENCE_TIMEOUT };
            self.silence_timeout.store(timeout.as_millis() as u64, Relaxed);
        }
    }

    /// Data was received: a keepalive is due if nothing is sent before.
    pub(crate) fn data_received(&self, now: Millis) {
        if self.keepalive_at.load(Relaxed) == 0 {
            self.keepalive_at.store((now + KEEPALIVE_TIMEOUT).0, Relaxed);
        }
    }

    /// A handshake was answered: no other answer is awaited.
    pub(crate) fn handshake_answered(&self) {
        self.unanswered_since.store(0, Relaxed);
    }

    /// Makes a keepalive due now.
    pub(crate) fn send_keepalive_soon(&self, now: Millis) {
        self.keepalive_at.store(now.0, Relaxed);
    }

    /// Shortens the time in which the silence of a redundant gateway is noticed.
    pub(crate) fn watch_closely(&self) {
        if !self.is_redundant_gateway.swap(true, Relaxed) {
            self.silence_timeout.store(GATEWAY_SILENCE_TIMEOUT.as_millis() as u64, Relaxed);
        }
    }

    /// Copies the timers of the peer under its previous key.
    pub(crate) fn copy_from(&self, other: &Self) {
        self.last_sent.store(other.last_sent.load(Relaxed), Relaxed);
    }

    /// Returns what is due now. `has_session`: `true` if there is a session for the keepalives that
    /// keep a NAT's mapping; `None`: the endpoint is behind no NAT.
    pub(crate) fn due(&self, now: Millis, has_session: Option<bool>) -> TimerAction {
        let unanswered = self.unanswered_since.load(Relaxed);
        let timeout = Duration::from_millis(self.silence_timeout.load(Relaxed));
        if unanswered != 0 && now.has_passed(timeout, Millis(unanswered)) {
            self.unanswered_since.store(0, Relaxed);
            let next = (timeout * 2).min(MAX_SILENCE_TIMEOUT);
            self.silence_timeout.store(next.as_millis() as u64, Relaxed);
            return TimerAction::BeginHandshake;
        }
        let keepalive = self.keepalive_at.load(Relaxed);
        let last_sent = self.last_sent.load(Relaxed);
        let holds_nat = last_sent != 0
            && now.has_passed(NAT_KEEPALIVE, Millis(last_sent))
            && has_session == Some(true);
        if keepalive != 0 && now.0 >= keepalive || holds_nat {
            self.any_sent(now);
            return TimerAction::SendKeepalive;
        }
        TimerAction::None
    }

    /// Returns whether an answer is awaited.
    #[cfg(test)]
    pub(crate) fn awaits_answer(&self) -> bool {
        self.unanswered_since.load(Relaxed) != 0
    }
}
