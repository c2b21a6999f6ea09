//! The node daemon: the endpoints and workloads of one host.

mod addresses;
pub mod api;
mod attachment;
mod clock;
pub mod config;
pub mod daemon;
pub mod docker;
pub mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod host_name;
mod kept_view;
pub mod leaving;
pub mod metrics;
mod netcheck;
pub mod offloads;
pub mod portmap;
mod problem;
pub mod relayed;
pub mod runtimes;
pub mod session;
mod sys;
mod view_writer;
mod workers;
