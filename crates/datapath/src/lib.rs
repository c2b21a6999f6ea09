//! The data path: the sender of a packet, the verdict on it, and its next hop.
//!
//! No I/O, no thread, no clock: bytes and the time come in, and a [`Sink`] gets what is to be sent.
//! An [`Endpoint`] is shared by all workers of a node. A worker passes packets through it in a
//! [`PacketBatch`]: the configuration cannot change during one, and from the next one on a change
//! is enforced.
#![forbid(unsafe_code)]

mod checksum;
mod claims;
mod config;
mod drop_reason;
mod ecn;
mod egress;
mod endpoint;
mod endpoint_state;
mod fair_table;
mod filter;
mod flow;
mod flow_log;
mod fragment;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gateways;
mod gather;
mod headers;
mod icmp_error;
mod in_band;
mod index;
mod ingress;
mod keys;
mod learnt_names;
mod link_counters;
mod offload;
mod owner;
mod packet_batch;
mod paths;
mod reflexive;
mod reject;
mod resolver;
mod rules;
mod saved_flows;
mod services;
mod sink;
mod tables;
mod tcp;
mod timeouts;
mod transport;
mod workload;

pub use config::{
    ConfigChange, Link, NetworkConfig, PeerConfig, PeerSite, Quarantine, ServiceConfig,
    WorkloadConfig,
};
pub use drop_reason::{DropCounts, DropReason};
pub use ecn::Ecn;
pub use endpoint::{
    api::{Endpoint, UnknownPeer},
    names::{AddressFamily, NameGateway, NameRoute},
    stats::{EndpointStats, InstanceStats, ServiceStats},
};
pub use filter::{Filter, FilterInput, Passed, RESUME_WINDOW};
pub use flow::table::MAX_FLOWS;
pub use flow_log::{Denial, FlowKind};
pub use gather::{GatherList, MAX_GATHER_PARTS};
pub use headers::{Fragment, Headers, Icmp, Unforwardable};
pub use in_band::name_message::{NAME_ANSWER_OVERHEAD, NameMessage};
pub use index::{MAX_PEERS, PeerIndex, WorkloadIndex};
pub use ingress::{Received, coalesce::CoalesceOptions};
pub use keys::SecretKey;
pub use learnt_names::{LearntName, NameAsker};
pub use link_counters::{LinkFlow, LinkStats, Tally};
pub use meshward_wireguard::load_gate::Incoming;
pub use meshward_wireguard::message::{MAX_HANDSHAKE_MESSAGE, OVERHEAD};
pub use offload::{Offload, SegmentKind, VIRTIO_HEADER_LENGTH};
pub use owner::QuotaOwner;
pub use packet_batch::{PacketBatch, WorkerScratch};
pub use paths::selection::PathLossReason;
pub use resolver::{DatagramQuery, Intercept, QueryAsker, QueryEnds, ResolverConfig};
pub use rules::{Party, Rules};
pub use saved_flows::SavedFlowsError;
pub use services::{
    counters::{CONNECT_BOUNDS, ConnectTimes},
    translation::Translation,
};
pub use sink::Sink;
pub use timeouts::Timeouts;
pub use transport::{
    state::Now,
    stats::{LostPath, PeerStats},
    ticks::SentPing,
};
pub use workload::LocalWorkload;
