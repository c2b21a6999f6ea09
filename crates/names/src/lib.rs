//! The names of a network: answers to DNS queries of workloads, by what each may reach.
//!
//! No I/O, no thread, no clock: a query's bytes come in, and an answer's bytes go out, or the query
//! is for an upstream resolver. [`Names`] is one network's table of names, which the node changes
//! with its view. A name exists for a workload only if a link lets the workload reach what has the
//! name; every other name of the zone does not exist for it, and no query for it leaves the node.
#![forbid(unsafe_code)]

mod address;
mod answer;
mod entry;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod query;
mod reach;
mod response;
mod table;
mod zone;

pub use answer::{MAX_ADDRESSES, Outcome, Request, Resolution, TTL};
pub use entry::{Asker, NameChange, NamedService, NamedWorkload, NetworkNames};
pub use query::{Query, QueryKind, Transport};
pub use response::UpstreamAnswer;
pub use table::Names;
pub use zone::ZoneName;
