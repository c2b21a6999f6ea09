//! Which prefixes may be reached by which gateways.

use ipnet::IpNet;
use meshward_types::{Labels, Selector};
use serde::Serialize;

/// One rule that approves routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteRule {
    /// Its name, unique in the policy.
    pub name: String,
    /// The labels that a route must have; all routes if it is empty.
    #[serde(rename = "for", skip_serializing_if = "Selector::is_empty")]
    pub who: Selector,
    /// In which of these prefixes it must lie.
    pub within: Vec<IpNet>,
}

impl RouteRule {
    /// Whether it approves a prefix behind a route with these labels, verified ones included.
    pub fn approves(&self, labels: &Labels, prefix: &IpNet) -> bool {
        self.who.matches(labels) && self.within.iter().any(|within| within.contains(prefix))
    }
}
