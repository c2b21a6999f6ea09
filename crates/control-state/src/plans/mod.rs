//! Plans: the effects of requests, computed on the world alone. A plan names the records to write,
//! and changes nothing.

mod admission;
mod admission_preview;
mod batch;
pub mod credentials;
pub mod drains;
pub mod endpoints;
mod name_claims;
mod names;
pub mod networks;
pub mod nodes;
pub mod policies;
mod prefixes;
pub mod quarantines;
mod reclassify;
pub mod relays;
mod report_checks;
pub mod routes;
mod services;
mod signatures;
pub mod tokens;
pub mod triggers;
pub mod workloads;

#[cfg(test)]
mod tests;
