//! Plans: what each request would change, worked out on the world and on nothing else.

mod admission;
pub mod credentials;
pub mod networks;
pub mod nodes;
pub mod policies;
mod prefixes;
mod prejudging;
pub mod quarantines;
mod reclassify;
pub mod relays;
pub mod routes;
pub mod tokens;
pub mod triggers;
pub mod workloads;

#[cfg(test)]
mod tests;
