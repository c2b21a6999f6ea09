//! The world: the mesh as it is at one revision, that is the records and what follows from them.
//!
//! Nothing here writes: plans read the world and name mutations, the store commits them, and
//! [`World::apply`] applies them and returns what each node is to be told, so that a change costs
//! what it concerns.

mod addresses;
mod deltas;
mod images;
mod keys;
mod network;
mod nodes;
mod quarantines;
mod resources;
mod state;
mod view;

pub use addresses::is_one_hosts;
pub use deltas::{Delta, Deltas, RelayDelta};
pub use keys::KeyOwner;
pub use network::{NetworkState, Shared, Subject, workload_resource};
pub use quarantines::Hold;
pub use state::World;
pub use view::ViewParts;
