//! Services: a virtual address in front of the workloads that a selector picks, its *instances*.
//!
//! The sender's node translates: a client's packet to a service goes to one of the instances, and
//! the answers come from the service again, as far as the client sees. So no address of a service
//! crosses the wire, and both nodes judge the real identities and ports.
//!
//! - [`directory`]: which services there are, and their instances.
//! - [`choice`]: the instance of a new connection, from [`load`]: what is known of each.
//! - [`mapping`]: the addresses and ports on both sides of the translation, and [`rewrite`], which
//!   puts them into packets.
//! - [`translation`]: one connection through a service; its flow holds it, too, and it lives as long
//!   as that. [`connections`] finds it by what the client sends.
//!
//! Nothing here knows of packet batches: `egress/service.rs` calls it.

pub(crate) mod choice;
pub(crate) mod connections;
pub(crate) mod counters;
pub(crate) mod directory;
pub(crate) mod expiring;
pub(crate) mod load;
pub(crate) mod mapping;
pub(crate) mod rewrite;
pub(crate) mod state;
pub(crate) mod translation;
