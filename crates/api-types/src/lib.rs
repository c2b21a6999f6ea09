//! The bodies of the coordinator's HTTP API, version 1. Times are RFC 3339 text in UTC.

#![forbid(unsafe_code)]

mod audit;
mod credentials;
pub mod diagnosis;
mod external_metrics;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod links;
pub mod local;
mod networks;
mod nodes;
pub mod operations;
mod page;
mod policies;
mod quarantines;
mod reach;
mod services;
mod status;
mod tokens;
mod workloads;

pub use audit::*;
pub use credentials::*;
pub use external_metrics::*;
pub use links::*;
pub use networks::*;
pub use nodes::*;
pub use page::*;
pub use policies::*;
pub use quarantines::*;
pub use reach::*;
pub use services::*;
pub use status::*;
pub use tokens::*;
pub use workloads::*;
