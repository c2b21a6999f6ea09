//! The shared vocabulary of Meshward: names, labels, selectors, ports, ACLs, keys, tokens, relayed
//! addresses and STUN.
//!
//! Nothing here does I/O, starts a thread or reads a clock. Text from outside is parsed once, here,
//! into types that cannot hold an invalid value; all other code carries those types.
#![forbid(unsafe_code)]

pub mod accept;
pub mod acl;
mod acl_entry;
pub mod bounded;
pub mod conduct;
mod count;
pub mod dns;
pub mod environment;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod keys;
pub mod labels;
pub mod measurement;
pub mod names;
pub mod outside;
mod policy_file;
pub mod ports;
pub mod relay;
pub mod schema;
pub mod selector;
pub mod service;
pub mod stun;
pub mod token;
pub mod trigger;

pub use accept::AcceptFrom;
pub use acl::Acl;
pub use acl_entry::{AclEntry, Verdict, entries_of};
pub use conduct::{Conduct, FlowTimeouts, OnDeny, OnRevoke};
pub use count::Count;
pub use dns::{DnsSettings, DomainName, Upstream};
pub use keys::PublicKey;
pub use labels::{LabelKey, Labels};
pub use names::{
    IdentityId, NetworkName, NodeName, Revision, ServiceName, WorkloadId, WorkloadName,
};
pub use outside::{NamePattern, Outside, OutsideTarget};
pub use policy_file::PolicyFile;
pub use ports::{PortRange, PortSpec, Protocol};
pub use selector::Selector;
pub use service::{
    Affinity, FanOut, Health, HealthCheck, HealthProbe, InstanceStates, Nearness, ServicePort,
    Serving, Weight, WeightRule,
};
pub use trigger::{Condition, Lasting};

/// The default port of the coordinator: QUIC over UDP, HTTPS over TCP.
pub const DEFAULT_PORT: u16 = 7443;
