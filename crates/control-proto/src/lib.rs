//! The messages between a node and the coordinator, over QUIC with mutual TLS.
//!
//! A node opens one bidirectional stream, the *session*, with [`FromNode`] one way and
//! [`FromCoordinator`] the other. The coordinator opens a stream for each [`Question`], which gets
//! one [`Answer`]. Joining uses another ALPN and no client certificate: one [`JoinRequest`], one
//! [`JoinReply`].
//!
//! Each message is a little-endian `u32` length and a postcard body, of at most [`MAX_FRAME`] bytes
//! from a node and [`MAX_UPDATE`] bytes from the coordinator, which is trusted. A node splits
//! longer content into parts.
#![forbid(unsafe_code)]

mod channel;
mod codec;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod join;
mod messages;
pub mod relay;
mod reports;
#[cfg(test)]
mod tests;
pub mod view;

pub use channel::{Channel, ChannelVersion};
pub use codec::*;
pub use join::*;
pub use messages::*;
pub use reports::*;
pub use view::{Change, Resource, ResourceKey, View, ViewReplica};

use std::time::Duration;

/// The largest body of a node's message, in bytes.
pub const MAX_FRAME: usize = 1 << 20;
/// The largest body of a coordinator's message, in bytes.
pub const MAX_UPDATE: usize = 64 << 20;
/// The largest number of elements in an answer that comes in parts.
pub const MAX_ANSWER: usize = 1 << 18;
/// The largest difference between the clocks of a node and the coordinator.
pub const CLOCK_TOLERANCE: Duration = Duration::from_mins(10);
/// The largest body of a message from a machine that has not joined yet, in bytes.
pub const MAX_JOIN_FRAME: usize = 64 << 10;
/// The error code of QUIC's `CONNECTION_CLOSE` (RFC 9000 §19.19) for a member that was removed.
pub const CLOSE_REMOVED: u32 = 2;
/// The time within which a node acknowledges a revision that nobody waits for. Delaying halves the
/// number of messages under churn.
pub const ENFORCED_WITHIN: Duration = Duration::from_secs(10);
/// The DNS name in every coordinator's certificate, which clients verify whatever address they
/// dial.
pub const COORDINATOR_NAME: &str = "coordinator.meshward.internal";
