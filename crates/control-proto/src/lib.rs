//! The messages between a node and the coordinator, over QUIC with mutual TLS.
//!
//! A node opens one bidirectional stream, the *session*: [`FromNode`] one way, [`FromCoordinator`]
//! the other. The coordinator opens a stream of its own for each question: one [`Question`] and one
//! [`Answer`]. Joining uses another ALPN and no client certificate: one [`JoinRequest`], one
//! [`JoinReply`].
//!
//! Each message is a little-endian `u32` length and a postcard body: of at most [`MAX_FRAME`] bytes
//! from a node, and [`MAX_UPDATE`] from the coordinator, which is trusted. What a node has more of
//! than fits comes in parts.
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

/// The most bytes of the body of a node's message.
pub const MAX_FRAME: usize = 1 << 20;
/// The most bytes of the body of a coordinator's message.
pub const MAX_UPDATE: usize = 64 << 20;
/// The most elements of an answer that came in parts.
pub const MAX_ANSWER: usize = 1 << 18;
/// A node's clock and the coordinator's may differ by this much.
pub const CLOCK_TOLERANCE: Duration = Duration::from_mins(10);
/// The most bytes of the messages that come from a machine that has not joined yet.
pub const MAX_JOIN_FRAME: usize = 64 << 10;
/// The code of QUIC's close (RFC 9000 §19.19) that tells a member that it is none any more.
pub const CLOSE_REMOVED: u32 = 2;
/// How long a node may take to say that it enforces a revision for which nobody waits: so what
/// churns costs half as many messages.
pub const ENFORCED_WITHIN: Duration = Duration::from_secs(10);
/// The DNS name in every coordinator's certificate: clients ask for it, whatever address they dial.
pub const COORDINATOR_NAME: &str = "coordinator.meshward.internal";
