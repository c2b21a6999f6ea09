//! An endpoint: one node's part in one network. It knows the workloads, the peers and the rules;
//! workers pass packets through it in [batches](crate::packet_batch), and one thread does what is
//! slow: handshakes and timers.

pub(crate) mod api;
mod apply;
pub(crate) mod names;
mod resets;
mod resolver;
pub(crate) mod stats;
mod timers;

#[cfg(test)]
mod tests;
