//! The label of egress gateways, which the coordinator gives.

use meshward_types::{Labels, Selector, labels::RESERVED_PREFIX};

/// The label that says what a route leads to, where that matters, and its value for an egress
/// gateway: everything outside of the network.
pub(crate) const ROUTE: &str = "meshward/route";
pub(crate) const EGRESS: &str = "egress";

/// Returns the selector of the egress gateways among the workloads that another one selects.
#[expect(clippy::missing_panics_doc, reason = "the text is a constant")]
pub fn egress_gateways(via: &Selector) -> Selector {
    let route: Selector = format!("{ROUTE}={EGRESS}").parse().expect("it is a selector");
    let all = via.requirements().chain(route.requirements());
    all.map(|(key, wanted)| (key.clone(), wanted.clone())).collect()
}

/// Returns the labels of an egress gateway that has these labels; `None` if they are too many.
pub(crate) fn of_egress_gateway(labels: &Labels) -> Option<Labels> {
    labels.clone().with_fact(ROUTE.trim_start_matches(RESERVED_PREFIX), EGRESS).ok()
}
