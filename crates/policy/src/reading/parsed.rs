//! Parsed policies, with the positions of their parts.

use super::problems::SourceSpan;
use crate::document::Policy;
use meshward_types::{NetworkName, ServiceName};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A policy with the positions of its parts.
#[derive(Debug, Clone)]
pub struct ParsedPolicy {
    /// The policy.
    pub policy: Policy,
    /// The positions of rules, guardrails and triggers by name.
    pub named: HashMap<String, SourceSpan>,
    /// The positions of services by name.
    pub services: BTreeMap<ServiceName, SourceSpan>,
    /// The positions of the tests, in their order.
    pub tests: Vec<SourceSpan>,
    /// The position where the network's name stands first.
    pub begin: SourceSpan,
    /// The position of the timeouts, if there are any.
    pub timeouts: Option<SourceSpan>,
    /// The files that have a part of it.
    pub files: BTreeSet<String>,
}

/// The policy of one network, read from the files that have a part of it. They may have parts of
/// other networks' policies, whose other parts are not here.
#[derive(Debug, Clone)]
pub struct NetworkPolicy {
    /// The policy; `None` if no document is about the network.
    pub parsed: Option<ParsedPolicy>,
    /// The positions where other networks are named.
    pub others: Vec<(SourceSpan, NetworkName)>,
}
