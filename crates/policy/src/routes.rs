//! Approval of routes: the prefixes that gateways may have behind them.

use ipnet::IpNet;
use meshward_types::{Labels, Selector};
use serde::Serialize;

/// One rule that approves routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteRule {
    /// The name, unique in the policy.
    pub name: String,
    /// The labels that a route must have; all routes if it is empty.
    #[serde(rename = "for", skip_serializing_if = "Selector::is_empty")]
    pub who: Selector,
    /// The prefixes within which it must lie.
    pub within: Vec<IpNet>,
}

impl RouteRule {
    /// Returns `true` if it approves a prefix behind a route with these labels, verified ones
    /// included.
    pub fn approves(&self, labels: &Labels, prefix: &IpNet) -> bool {
        self.who.matches(labels) && self.within.iter().any(|within| within.contains(prefix))
    }
}
