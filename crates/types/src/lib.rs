//! The shared vocabulary of Meshward: names, labels, keys, ports, ACLs, views, messages and API
//! bodies.
//!
//! Nothing here does I/O, starts a thread or reads a clock. Text that comes from outside is parsed
//! once, here, into types that cannot hold an illegal value; everything behind carries those types.
#![forbid(unsafe_code)]

pub mod accept;
pub mod acl;
pub mod api;
pub mod bounded;
pub mod conduct;
pub mod control;
pub mod diagnosis;
pub mod environment;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod keys;
pub mod labels;
pub mod local;
pub mod measurement;
pub mod names;
pub mod ports;
pub mod relay;
pub mod selector;
pub mod stun;
pub mod token;
pub mod trigger;
pub mod view;

pub use accept::AcceptFrom;
pub use acl::{Acl, AclEntry, Verdict};
pub use conduct::{Conduct, FlowTimeouts, OnDeny, OnRevoke};
pub use keys::PublicKey;
pub use labels::{LabelKey, Labels};
pub use names::{IdentityId, NetworkName, NodeName, Revision, WorkloadId, WorkloadName};
pub use ports::{PortRange, PortSpec, Protocol};
pub use selector::Selector;
pub use trigger::{Condition, Lasting};
pub use view::{Change, HeldView, Item, ItemKey, View};
