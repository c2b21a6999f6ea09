//! Plans: changes that are computed on the world before anything is written.

use crate::records::Mutation;
use meshward_policy::{Policy, PolicyStep};
use meshward_types::NetworkName;
use std::{collections::BTreeMap, sync::Arc};

/// A network's new policy, parsed, and its effect on the links.
#[derive(Debug, Clone)]
pub struct PolicyUpdate {
    /// The policy; default deny if the record is deleted.
    pub policy: Arc<Policy>,
    /// The links that it opens, closes and alters; `None` if they have not been computed.
    pub step: Option<Arc<PolicyStep>>,
}

/// The new policies of the networks whose policy records a change puts or deletes.
pub type PolicyUpdates = BTreeMap<NetworkName, PolicyUpdate>;

/// A change that is not written yet.
#[derive(Debug)]
pub struct Plan<T> {
    /// The records that it writes and deletes, in this order.
    pub mutations: Vec<Mutation>,
    /// The policies among the records, parsed, so that they are not parsed again.
    pub policies: PolicyUpdates,
    /// The line of the audit log. Without mutations and action, nothing is written.
    pub action: String,
    /// The answer to the caller.
    pub outcome: T,
}

impl<T> Plan<T> {
    /// Makes a plan from a line of the audit log, changes of records and an answer.
    pub fn new(action: impl Into<String>, mutations: Vec<Mutation>, outcome: T) -> Self {
        Self { mutations, policies: PolicyUpdates::new(), action: action.into(), outcome }
    }

    /// Makes a plan that writes nothing.
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
    /// Makes a plan that writes only a line of the audit log.
    pub fn noted(action: String) -> Self {
        Self::new(action, vec![], ())
    }
}
