//! What happens to a packet: who sent it, whether it may pass, and where it goes.
//!
//! No I/O, no thread, no clock: bytes and the time come in, and a [`Sink`] is told what to send. An
//! [`Endpoint`] is shared by all workers of a node. A worker goes through it in [`PacketBatch`]s: what
//! the coordinator said cannot change during one, and from the next one on a change is enforced.
#![forbid(unsafe_code)]

mod answer;
mod aside;
mod batch;
mod checksum;
mod claims;
mod coalesce;
mod counters;
mod drops;
mod ecn;
mod endpoint;
mod filter;
mod flow;
mod fragment;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gateways;
mod icmp_error;
mod offload;
mod packet;
mod probe;
mod reflexive;
mod round;
mod rules;
mod saved_flows;
mod seen;
mod segment;
mod shares;
mod tables;
mod tcp;
mod timeouts;
mod too_big;
mod vouch;
mod wireguard;

pub use coalesce::{CoalesceOptions, GatherList, MAX_GATHER_PARTS};
pub use counters::{LinkStats, Tally};
pub use drops::{DropCounts, DropReason};
pub use ecn::Ecn;
pub use endpoint::{Endpoint, EndpointStats, LocalWorkload, Sink, UnknownPeer, WorkloadIndex};
pub use filter::{Filter, RESUME_WINDOW};
pub use flow::MAX_FLOWS;
pub use offload::{Offload, SegmentKind, VIRTIO_HEADER_LENGTH};
pub use packet::{Fragment, Headers, Icmp, Unforwardable};
pub use round::{PacketBatch, Received, WorkerScratch};
pub use rules::{Party, Rules};
pub use saved_flows::SavedFlowsError;
pub use seen::{Denial, FlowKind};
pub use shares::QuotaOwner;
pub use timeouts::Timeouts;
pub use wireguard::{
    LostPath, MAX_HANDSHAKE_MESSAGE, MAX_PEERS, Now, OVERHEAD, PathLossReason, PeerStats, SecretKey,
};
