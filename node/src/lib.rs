//! The node daemon: the endpoints and workloads of one host.

mod addresses;
pub mod api;
pub mod app;
mod attachment;
mod clock;
pub mod config;
mod coordinator_link;
pub mod docker;
mod endpoint_config;
mod endpoints;
mod enforcement;
pub mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod grpc;
pub mod health;
pub mod host_name;
pub mod leaving;
pub mod metrics;
mod names;
pub mod offloads;
mod own_addresses;
mod problem;
pub mod reachability;
mod refusal;
pub mod relay_queue;
pub mod runners;
pub mod runtimes;
pub mod service_load;
pub mod session;
mod state_files;
mod sys;
mod view_persister;
pub mod view_store;
mod workers;
mod workloads;
