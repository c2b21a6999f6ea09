//! The links of a network: every ordered pair of identities that the policy lets talk.
//!
//! They are updated incrementally: a new identity costs the pairs that its rules make with others,
//! a changed rule costs the pairs that it selects. Nothing costs the square of the identities,
//! unless a rule selects it.

mod acl_cache;
mod inputs;
mod narrowed;
mod rules;
mod step;
mod table;
#[cfg(test)]
mod tests;

pub use inputs::LinkInputs;
pub use step::{Bounds, LinkChange, PolicyStep, TooMuch};
pub use table::Links;
