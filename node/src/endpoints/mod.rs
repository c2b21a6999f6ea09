//! The endpoints' lives: starting and stopping them, their keys, the limits of their timestamps,
//! and the flows that outlive the daemon.

mod flows;
mod keys;
mod lifecycle;
mod timestamps;

pub(crate) use keys::PREVIOUS_KEY_LIFETIME;
pub(crate) use lifecycle::Endpoints;
