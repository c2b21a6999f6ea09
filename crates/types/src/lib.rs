//! The shared vocabulary of Meshward: names, labels, keys, ports, ACLs, views, messages and API
//! bodies.
//!
//! Nothing here does I/O, starts a thread or reads a clock. Text that comes from outside is parsed
//! once, here, into types that cannot hold an illegal value; everything behind carries those types.
#![forbid(unsafe_code)]

pub mod accept;
pub mod acl;
pub mod bounded;
pub mod conduct;
mod count;
pub mod environment;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod keys;
pub mod labels;
pub mod measurement;
pub mod names;
mod policy_file;
pub mod ports;
pub mod relay;
pub mod schema;
pub mod selector;
pub mod stun;
pub mod token;
pub mod trigger;

pub use accept::AcceptFrom;
pub use acl::{Acl, AclEntry, Verdict};
pub use conduct::{Conduct, FlowTimeouts, OnDeny, OnRevoke};
pub use count::Count;
pub use keys::PublicKey;
pub use labels::{LabelKey, Labels};
pub use names::{IdentityId, NetworkName, NodeName, Revision, WorkloadId, WorkloadName};
pub use policy_file::PolicyFile;
pub use ports::{PortRange, PortSpec, Protocol};
pub use selector::Selector;
pub use trigger::{Condition, Lasting};

/// The port on which the coordinator listens, QUIC over UDP and HTTPS over TCP, unless it is
/// configured otherwise.
pub const DEFAULT_PORT: u16 = 7443;
