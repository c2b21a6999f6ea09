//! The parts that relays share with the coordinator, which is relay 1 of every mesh: the forwarder,
//! the listener with the guard that admits connections to it, and the STUN server.
#![forbid(unsafe_code)]

pub mod forwarder;
pub mod guard;
pub mod limits;
pub mod listener;
pub mod metrics;
pub mod stun;
pub mod tls_listener;
