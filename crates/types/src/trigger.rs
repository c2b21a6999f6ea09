//! Conditions of triggers, which nodes count.

use crate::{
    names::ServiceName,
    selector::{self, Selector},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest time that a condition can span.
pub const MAX_WITHIN: Duration = Duration::from_hours(1);

/// A condition on one workload, of which everything that is set must be reached within a time span,
/// or on a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// The number of flows that it tried to begin and that were denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_flows: Option<u32>,
    /// The number of different destination ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct_ports: Option<u32>,
    /// The number of different destination addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct_addresses: Option<u32>,
    /// A service: the number of instances that it would need for its load has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<ServiceName>,
    /// The time span, such as `10s`; at most an hour. For a service, it fires at most once in it.
    pub within: Lasting,
}

impl Condition {
    /// Refuses conditions that always or never hold.
    ///
    /// # Errors
    /// A sentence that says how to fix it.
    pub fn check(&self) -> Result<(), String> {
        let counts = [self.denied_flows, self.distinct_ports, self.distinct_addresses];
        let counts_nothing = counts.iter().all(Option::is_none);
        if counts_nothing && self.desired.is_none() {
            return Err("`when` counts nothing; give `denied_flows`, `distinct_ports` or \
                `distinct_addresses`, or a service as `desired`"
                .into());
        }
        if !counts_nothing && self.desired.is_some() {
            return Err(
                "`when` has counts of a workload beside `desired`; make two triggers".into()
            );
        }
        if counts.iter().flatten().any(|count| !(1..=10_000).contains(count)) {
            return Err("what `when` counts must be from 1 to 10000".into());
        }
        if self.within.0 < Duration::from_secs(1) || self.within.0 > MAX_WITHIN {
            return Err("`within` must be from 1s to 1h".into());
        }
        Ok(())
    }
}

/// A duration, written as `30s`, `10m` or `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lasting(pub Duration);

impl TryFrom<String> for Lasting {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let span = humantime::parse_duration(&text);
        span.map(Self)
            .map_err(|error| format!("`{text}` is no time span: {error}; write 30s, 10m or 2h"))
    }
}

impl From<Lasting> for String {
    fn from(span: Lasting) -> String {
        humantime::format_duration(span.0).to_string()
    }
}

/// A trigger in the form that nodes get. On the wire, every field is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerSpec {
    /// The workloads whose flows are counted.
    #[serde(with = "selector::as_text")]
    pub watch: Selector,
    /// The number of denied flows.
    pub denied_flows: Option<u32>,
    /// The number of different destination ports.
    pub distinct_ports: Option<u32>,
    /// The number of different destination addresses.
    pub distinct_addresses: Option<u32>,
    /// The time span.
    pub within: Duration,
    /// `true` if the node quarantines the workload by itself while it has no session.
    pub alone: bool,
    /// The duration of such a quarantine in seconds; `None` until the coordinator decides.
    pub seconds: Option<u64>,
}

impl TriggerSpec {
    /// Creates the trigger of a condition.
    pub fn new(watch: Selector, when: &Condition, alone: bool, lasts: Option<Lasting>) -> Self {
        Self {
            watch,
            denied_flows: when.denied_flows,
            distinct_ports: when.distinct_ports,
            distinct_addresses: when.distinct_addresses,
            within: when.within.0,
            alone,
            seconds: lasts.map(|span| span.0.as_secs()),
        }
    }
}
