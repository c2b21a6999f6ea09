//! The coordinator of a mesh: the CA, the API, the policy compiler and the distribution.
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
mod api_latency;
pub mod ca;
pub mod config;
pub mod control;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod ids;
pub mod journal;
pub mod limits;
pub mod load_follower;
pub mod mesh;
pub mod metrics;
mod pool;
pub mod reactions;
pub mod relay_links;
mod report_batcher;
pub mod service_load;
pub mod sessions;
pub mod store;
mod submissions;
mod turns;
pub mod webhook;
