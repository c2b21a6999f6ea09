//! Policies that were parsed, with where their parts stand.

use super::problems::SourceSpan;
use crate::document::Policy;
use meshward_types::NetworkName;
use std::collections::{BTreeSet, HashMap};

/// A policy, and where its parts stand.
#[derive(Debug, Clone)]
pub struct ParsedPolicy {
    /// The policy.
    pub policy: Policy,
    /// Rules, guardrails and triggers by their names.
    pub named: HashMap<String, SourceSpan>,
    /// The tests, in their order.
    pub tests: Vec<SourceSpan>,
    /// The network's name where it stands first.
    pub begin: SourceSpan,
    /// The timeouts, if there are any.
    pub timeouts: Option<SourceSpan>,
    /// The files that have a part of it.
    pub files: BTreeSet<String>,
}

/// The policy of one network, by the files that have a part of it. They may be a part of other
/// networks' policies, too, of which other parts are not here.
#[derive(Debug, Clone)]
pub struct NetworkPolicy {
    /// The policy; none if no document is about the network.
    pub parsed: Option<ParsedPolicy>,
    /// Where other networks are named.
    pub others: Vec<(SourceSpan, NetworkName)>,
}
