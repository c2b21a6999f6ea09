//! Links, and why a flow is let through or not.

use crate::Paged;
use meshward_types::{Acl, Labels, NetworkName, NodeName, OnDeny, PortSpec, Revision, Selector};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A link: who may talk to whom, and what was seen.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// The network.
    pub network: NetworkName,
    /// Who begins flows.
    pub from: Labels,
    /// With whom.
    pub to: Labels,
    /// What may pass; empty where the pair was only ever denied.
    pub acl: Acl,
    /// Packets that passed, both directions.
    pub packets: u64,
    /// Bytes that passed, IP headers included.
    pub bytes: u64,
    /// Packets that were denied.
    pub denied: u64,
    /// Packets that passed and would have been denied, were it not for observing.
    pub observed: u64,
}

/// The links of the mesh.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Links {
    /// The links.
    pub items: Vec<Link>,
    /// Where the next page begins: the parameter `cursor`. The last page has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The revision at which it was so; a watch goes on from there.
    pub revision: Revision,
    /// Nodes whose counters are in it.
    pub nodes_answered: usize,
    /// Nodes that did not answer in time or have no session.
    pub nodes_silent: Vec<NodeName>,
}

impl Paged for Links {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn append(&mut self, next: Self) {
        self.items.extend(next.items);
        self.next = next.next;
    }
}

/// A question about a verdict.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// The network; may be left out while there is just one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// Who begins the flow: every identity with these labels, or, where there is none, exactly
    /// these labels.
    pub from: Selector,
    /// With whom.
    pub to: Selector,
    /// What.
    pub port: PortSpec,
    /// By the policies and quarantines of this revision, among the workloads of now; by those of
    /// now if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
}

/// The verdict on one pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Who begins the flow.
    pub from: Labels,
    /// With whom.
    pub to: Labels,
    /// What part of the port asked for.
    pub port: PortSpec,
    /// Whether it is allowed.
    pub allowed: bool,
    /// Whether it passes only because it is observed.
    #[serde(default)]
    pub observed: bool,
    /// What the sender is told, if it is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_deny: Option<OnDeny>,
    /// What decided: the rule, the guardrail, a quarantine, or the default.
    pub because: String,
    /// Whether both identities have a workload now; if not, the labels were taken as given.
    pub live: bool,
}
