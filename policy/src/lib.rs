//! The policy language: reading it, deciding by it, and compiling it to the ACLs of links.
//!
//! Default deny. The order of rules has no meaning: a guardrail's deny decides before a guardrail's allow, that
//! before a rule's deny, that before a rule's allow, and where none speaks the default denies.
#![forbid(unsafe_code)]

mod cases;
mod compile;
mod decide;
mod document;
mod links;
mod selecting;

pub use cases::{TestFailure, run_tests};
pub use compile::compile;
pub use decide::{Decision, Reason, Tier};
pub use document::{Action, BadPolicy, Expect, MAX_SOURCE, Policy, Rule, TestCase};
pub use links::{LinkChange, Links, PolicyStep};
