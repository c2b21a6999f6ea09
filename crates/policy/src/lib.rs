//! The policy language: its reader, its decisions, and the compiler to the ACLs of links.
//!
//! Default deny. The order of rules has no meaning: a guardrail's deny decides before a guardrail's
//! allow, that before a rule's deny, that before a rule's allow. If none applies, the packet is
//! denied.
#![forbid(unsafe_code)]

/// The JSON Schema of a policy document (draft 2020-12), for editors.
pub const SCHEMA: &str = include_str!("schema.json");

mod admission;
mod admission_rules;
mod budget;
mod cases;
mod compile;
mod decide;
mod document;
mod egress_label;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod links;
mod matching;
mod reading;
mod review;
mod routes;
mod selecting;
mod services;
mod suggest;
mod target;
mod written;

pub use admission::{AdmissionDecision, Candidate};
pub use admission_rules::{AdmissionRule, ImagePattern, Keys, Shared, SigningKey};
pub use budget::{Budget, Exhausted};
pub use cases::{TestFailure, run_tests};
pub use compile::{compile, compile_for};
pub use decide::{Decision, NewFlow, Reason};
pub use document::{
    Action, Declarations, Expect, ForensicsRule, LetIn, Mode, Policy, Reaction, Rule, TestCase,
    Tier, Trigger,
};
pub use egress_label::egress_gateways;
pub use links::{Bounds, LinkChange, LinkInputs, Links, PolicyStep, TooMuch};
pub use reading::{
    BadPolicy, MAX_SOURCE, NetworkPolicy, ParsedPolicy, Problem, SourceSpan, own_documents, read,
    read_own,
};
pub use review::{review, review_live};
pub use routes::RouteRule;
pub use services::{MAX_SERVICES, NoService, Service, ServiceIndex};
pub use suggest::suggest;
pub use target::{Destination, ServiceTarget, Target};
