//! What happens to a packet: who sent it, whether it may pass, and where it goes.
//!
//! No I/O, no thread, no clock but the WireGuard engine's own: bytes and an [`std::time::Instant`] come in, and a
//! [`Sink`] is told what to send. One [`Endpoint`] is owned by one thread, so nothing here locks.
#![forbid(unsafe_code)]

mod batch;
mod checksum;
mod coalesce;
mod drops;
mod endpoint;
mod filter;
mod flow;
mod fragment;
mod offload;
mod packet;
mod segment;
mod vouch;
mod wireguard;

pub use drops::{Cause, Drops};
pub use endpoint::{Endpoint, EndpointStats, LocalWorkload, Sink, Slot};
pub use filter::{Filter, LinkStats, Party, Passed, RESUME_WINDOW};
pub use flow::MAX_FLOWS;
pub use offload::{Kind, OFFLOAD_LENGTH, Offload};
pub use packet::{Fragment, Headers, Icmp, Malformed};
pub use wireguard::{OVERHEAD, PeerStats, SecretKey};
