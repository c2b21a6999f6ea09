//! The node: its parts, wired together.

mod node;
mod ping;
mod status;

pub use node::{Enforced, Node};

#[cfg(test)]
pub(crate) mod restore_tests;
