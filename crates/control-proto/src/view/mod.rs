//! The view of a node: the resources that it is told of, and their changes.
//!
//! A view is a set of resources under keys. The coordinator derives it and the node holds a replica
//! ([`ViewReplica`]); on the wire there are only differences: a [`Change`] puts or removes a
//! resource. Every resource has a hash, so that a node that comes back after any time can say what
//! it has and gets exactly what differs. One message fits all nodes that a change concerns, since a
//! node keeps a peer as long as a known workload runs on it, and removes workloads with identities.

mod replica;
mod resources;
#[cfg(test)]
mod tests;

pub use replica::ViewReplica;
pub use resources::{
    Change, Digest, Hash128, IdentitySpec, NetworkSpec, PeerSpec, Resource, ResourceHashes,
    ResourceKey, ServiceSpec, View, WorkloadSpec,
};
