//! What a node counts for a trigger.

use crate::selector::Selector;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest time over which is counted.
pub const MAX_WITHIN: Duration = Duration::from_hours(1);

/// What has to be seen of one workload: all that is given, within the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// So many flows that it tried to begin were denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_flows: Option<u32>,
    /// To so many different ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct_ports: Option<u32>,
    /// To so many different addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct_addresses: Option<u32>,
    /// Over how long is counted, such as `10s`; at most an hour.
    pub within: Lasting,
}

impl Condition {
    /// Refuses conditions that always or never hold.
    ///
    /// # Errors
    /// A sentence that says how to mend it.
    pub fn check(&self) -> Result<(), String> {
        let counts = [self.denied_flows, self.distinct_ports, self.distinct_addresses];
        if counts.iter().all(Option::is_none) {
            return Err(
                "`when` counts nothing; give `denied_flows`, `distinct_ports` or `distinct_addresses`".into(),
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

/// A time span, written as `30s`, `10m` or `2h`.
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

/// A trigger as a node needs it: whose flows to count, and what to say. In the wire's form every
/// field is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerSpec {
    /// Whose flows are counted.
    #[serde(with = "as_text")]
    pub watch: Selector,
    /// So many flows that were denied.
    pub denied_flows: Option<u32>,
    /// To so many different ports.
    pub distinct_ports: Option<u32>,
    /// To so many different addresses.
    pub distinct_addresses: Option<u32>,
    /// Over how long is counted.
    pub within: Duration,
    /// Whether the node quarantines by itself while it has no session ...
    pub alone: bool,
    /// ... and for how many seconds (`None`: until the coordinator holds the workload).
    pub seconds: Option<u64>,
}

impl TriggerSpec {
    /// The trigger with a condition.
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

mod as_text {
    //! Selectors as their text: the wire's format does not say what comes next, as YAML and JSON
    //! do.
    use crate::selector::Selector;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(selector: &Selector, to: S) -> Result<S::Ok, S::Error> {
        let text = if selector.is_empty() { String::new() } else { selector.to_string() };
        text.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Selector, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
