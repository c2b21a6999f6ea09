//! Links, and explanations of verdicts.

use crate::Paged;
use meshward_types::{
    Acl, Labels, NetworkName, NodeName, OnDeny, OutsideTarget, PortSpec, Revision, Selector,
    ServiceName,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A link: what policy allows between two identities, with counters.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// The network.
    pub network: NetworkName,
    /// The client.
    pub from: Labels,
    /// The server.
    pub to: Labels,
    /// The ACL; empty if packets were only denied.
    pub acl: Acl,
    /// Packets that passed, in both directions.
    pub packets: u64,
    /// Bytes that passed, including IP headers.
    pub bytes: u64,
    /// Packets that were denied.
    pub denied: u64,
    /// Packets that passed only because of observe mode.
    pub observed: u64,
}

/// The links of the mesh.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Links {
    /// The links.
    pub items: Vec<Link>,
    /// The value of `cursor` for the next page; null on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The revision of this list, from which a watch can continue.
    pub revision: Revision,
    /// Nodes whose counters are included.
    pub nodes_answered: usize,
    /// The nodes that did not answer in time or have no session.
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

/// A query for a verdict.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// The network. It may be omitted if there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// The client: every identity with these labels, or, if there is none, exactly these labels.
    pub from: Selector,
    /// The server; with `service`, left out; with `outside`, the egress gateways, of which all are
    /// meant by default.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub to: Selector,
    /// The service whose instances are the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The address, prefix or domain name outside of the mesh that the flow is to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<OutsideTarget>,
    /// The port, such as `tcp/5432`: of the service, if there is one.
    pub port: PortSpec,
    /// The revision of the policies and quarantines to decide by, among the current workloads
    /// (default: now).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
}

/// The verdict on one pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The client, which begins the flow.
    pub from: Labels,
    /// The server.
    pub to: Labels,
    /// The part of the port that the verdict applies to.
    pub port: PortSpec,
    /// `true` if the flow is allowed.
    pub allowed: bool,
    /// `true` if it passes only because of observe mode.
    #[serde(default)]
    pub observed: bool,
    /// The answer to the sender, if the flow is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_deny: Option<OnDeny>,
    /// The reason: the rule, guardrail or quarantine that decides, or the default.
    pub because: String,
    /// `true` if both identities have a workload now; if not, the labels of the query were used.
    pub live: bool,
}
