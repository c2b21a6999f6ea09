//! The state of the control plane, and how it changes: the records, the world that follows from
//! them, the plans of changes, and the deltas that nodes and relays get. Pure: no I/O, no
//! thread, no clock, no random number; time and randomness are parameters.
#![forbid(unsafe_code)]

pub mod budget;
pub mod change_log;
pub mod ipam;
pub mod loads;
pub mod plan;
pub mod plans;
pub mod records;
pub mod refusal;
pub mod subsets;
pub mod timestamp;
pub mod world;

pub use plan::Plan;
pub use refusal::Refusal;
pub use timestamp::timestamp;
