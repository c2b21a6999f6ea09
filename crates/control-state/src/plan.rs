//! Plans: changes that are worked out on the world before anything is written.

use crate::records::Mutation;
use meshward_policy::{Policy, PolicyStep};
use meshward_types::NetworkName;
use std::{collections::BTreeMap, sync::Arc};

/// A network's policy, parsed, and what it changes in the links.
#[derive(Debug, Clone)]
pub struct PolicyUpdate {
    /// The policy; default deny where the record is deleted.
    pub policy: Arc<Policy>,
    /// The links that it opens, closes and alters. `None`: not worked out yet.
    pub step: Option<Arc<PolicyStep>>,
}

/// The updates of the networks whose policy records a change puts or deletes.
pub type PolicyUpdates = BTreeMap<NetworkName, PolicyUpdate>;

/// A change that was worked out and not yet written.
#[derive(Debug)]
pub struct Plan<T> {
    /// The records that it writes and deletes, in this order.
    pub mutations: Vec<Mutation>,
    /// What was worked out of the policies among the records, so that it is not worked out again.
    pub policies: PolicyUpdates,
    /// Line of the audit log. Without mutations and action, nothing is written.
    pub action: String,
    /// What the caller wants to know.
    pub outcome: T,
}

impl<T> Plan<T> {
    /// Makes a plan of a line of the audit log, and the changes of records.
    pub fn new(action: impl Into<String>, mutations: Vec<Mutation>, outcome: T) -> Self {
        Self { mutations, policies: PolicyUpdates::new(), action: action.into(), outcome }
    }

    /// A plan that changes nothing and leaves no trace.
    pub fn nothing(outcome: T) -> Self {
        Self::new("", vec![], outcome)
    }

    /// Replaces the outcome.
    pub fn with_outcome<U>(self, outcome: U) -> Plan<U> {
        let Self { mutations, policies, action, .. } = self;
        Plan { mutations, policies, action, outcome }
    }
}

impl Plan<()> {
    /// A plan that changes nothing but puts a line into the audit log.
    pub fn noted(action: String) -> Self {
        Self::new(action, vec![], ())
    }
}
