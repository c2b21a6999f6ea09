//! The world: the mesh at one revision, that is the records and the indices that follow from them.
//!
//! Nothing here writes: plans read the world and name mutations, the store commits them, and
//! [`World::apply`] applies them and returns the deltas of nodes, so that the cost of a change
//! depends on what it concerns, not on the size of the mesh.

mod addresses;
mod apply;
mod concerned;
mod deltas;
mod draining;
mod drains;
mod extent;
mod images;
mod keys;
mod load;
mod names;
mod narrowing;
mod narrowing_deltas;
mod narrowing_members;
mod network;
mod node_set;
mod nodes;
mod policy_deltas;
mod quarantines;
mod resources;
mod service_deltas;
mod services;
mod state;
mod view;

pub use addresses::is_globally_unique;
pub use deltas::{Delta, Deltas, RelayDelta};
pub use drains::Drains;
pub use extent::Extent;
pub use keys::KeyOwner;
pub use load::Leaving;
pub use names::{NameOwner, Names};
pub use narrowing::{NarrowedService, Narrowing};
pub use network::{NetworkState, SharedWorkload, Subject, WorkloadState, workload_resource};
pub use node_set::{NodeIndex, NodeSet};
pub use quarantines::QuarantineState;
pub use services::Services;
pub use state::{AdmittedWorkload, World};
pub use view::ViewParts;
