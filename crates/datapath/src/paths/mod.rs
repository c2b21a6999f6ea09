//! Paths to a peer: which addresses it may have, which of them is used, and how long a packet on it
//! may be. A path is direct, or leads through a relay, whose address lies in `100::/64`.
//!
//! WireGuard has a single endpoint address for a peer, and follows its last authentic message. This
//! is what replaces that.

pub(crate) mod budget;
pub(crate) mod candidates;
pub(crate) mod mtu;
pub(crate) mod prober;
pub(crate) mod selection;

#[cfg(test)]
mod prober_tests;
