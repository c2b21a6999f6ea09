//! The encrypted transport of an endpoint: its peers, their handshakes and sessions, and the paths
//! to them. Wire format and timers are WireGuard's, so that a stock WireGuard can be a peer (a
//! *device*).
//!
//! Workers seal and open with sessions in place, without a lock on the peer. Handshakes are slow,
//! so workers hand their messages to one thread, which calls
//! [`state::Transport::receive_handshake`].

pub(crate) mod handshake;
pub(crate) mod initiator;
pub(crate) mod keys;
pub(crate) mod outbound;
pub(crate) mod peer;
pub(crate) mod peer_table;
pub(crate) mod responder;
pub(crate) mod state;
pub(crate) mod stats;
pub(crate) mod ticks;
pub(crate) mod timers;

#[cfg(test)]
mod interop_tests;
#[cfg(test)]
mod path_tests;
