//! The tables of an endpoint: workloads, peers and rules, by the word of the coordinator and of its
//! own node.

pub(crate) mod local;
pub(crate) mod local_entry;
pub(crate) mod next_hop;
pub(crate) mod remote;
pub(crate) mod services;
pub(crate) mod source;
pub(crate) mod state;
pub(crate) mod vouched;

#[cfg(test)]
mod tests;
