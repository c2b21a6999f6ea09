//! The bodies of the coordinator's HTTP API, version 1. Times are RFC 3339 text in UTC.

#![forbid(unsafe_code)]

pub mod diagnosis;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod local;
pub mod operations;
mod page;
mod reach;

pub use page::*;
pub use reach::*;

use ipnet::IpNet;
use meshward_types::{
    Acl, DEFAULT_PORT, IdentityId, Labels, NetworkName, NodeName, OnDeny, PolicyFile, PortSpec,
    Revision, Selector, WorkloadId, WorkloadName,
    measurement::{Measurement, SharingContainer},
    schema::{Address, Cidr, CredentialName, SocketAddress, Time},
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use utoipa::ToSchema;

/// The coordinator in short.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The coordinator's version.
    pub version: String,
    /// The mesh's id.
    pub mesh: String,
    /// SHA-256 of the CA's certificate, hexadecimal.
    pub ca_fingerprint: String,
    /// The revision that is distributed now.
    pub revision: Revision,
    /// Nodes that have joined.
    pub nodes: usize,
    /// Nodes with a session now.
    pub nodes_connected: usize,
    /// Networks.
    pub networks: usize,
    /// Workloads.
    pub workloads: usize,
    /// Workloads under quarantine.
    pub workloads_quarantined: usize,
}

/// A join token to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// How many nodes may join with it.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 100_000)]
    pub uses: u32,
    /// For how many seconds it is good.
    #[serde(default = "one_day")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub ttl_seconds: u64,
    /// The site of the nodes that join with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The networks that those nodes may serve; all, if it is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// Whether relays join with it, and no nodes.
    #[serde(default)]
    pub relay: bool,
    /// Whether nodes that join with it serve no network before they are approved by name.
    #[serde(default)]
    pub needs_approval: bool,
    /// Nodes that join with it are ephemeral: they are removed once they were not seen for so many
    /// seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 31_536_000)]
    pub forget_after_seconds: Option<u64>,
}

fn one() -> u32 {
    1
}

fn one_day() -> u64 {
    86_400
}

/// A join token, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id, which is no secret.
    pub id: String,
    /// How many nodes may still join with it.
    pub uses_left: u32,
    /// When it expires.
    #[schema(value_type = Time)]
    pub expires: String,
    /// The site of the nodes that join with it.
    pub site: Option<String>,
    /// The networks that those nodes may serve; empty: all.
    pub networks: Vec<NetworkName>,
    /// Whether relays join with it, and no nodes.
    pub relay: bool,
    /// Whether nodes that join with it serve no network before they are approved by name.
    pub needs_approval: bool,
    /// After how many seconds without being seen nodes that join with it are removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget_after_seconds: Option<u64>,
}

/// A join token that was made just now; the only time that its text is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// What `meshward-node join` takes.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub kept: Token,
}

/// A network to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name.
    pub name: NetworkName,
    /// Its prefixes: at most one of each address family.
    #[schema(value_type = Vec<Cidr>, min_items = 1, max_items = 2)]
    pub prefixes: Vec<IpNet>,
    /// The length of the block that each node gets of the IPv4 prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 30)]
    pub block_v4: Option<u8>,
    /// The length of the block that each node gets of the IPv6 prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 124)]
    pub block_v6: Option<u8>,
    /// MTU of the workloads' interfaces, in bytes (1280 to 9000).
    #[serde(default = "default_mtu")]
    #[schema(minimum = 1280, maximum = 9000)]
    pub mtu: u16,
}

fn default_mtu() -> u16 {
    1420
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// Its prefixes.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
    /// The length of a node's IPv4 block.
    pub block_v4: u8,
    /// The length of a node's IPv6 block.
    pub block_v6: u8,
    /// MTU of the workloads' interfaces, in bytes.
    pub mtu: u16,
}

/// A node's block of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Block {
    /// The network.
    pub network: NetworkName,
    /// The prefixes that the node's workloads get addresses from.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
}

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// How far it has come.
    pub state: NodeState,
    /// Its site.
    pub site: Option<String>,
    /// Its labels: those that it joined with, and over them those that it was given.
    pub labels: Labels,
    /// The labels that it was given when it was approved by name; nothing if it was not.
    pub given_labels: Option<Labels>,
    /// Whether it has a session now.
    pub connected: bool,
    /// What keeps it from writing down what it has to, as on a full disk; nothing if all is well.
    /// It enforces all the same.
    #[serde(default)]
    pub degraded: Option<String>,
    /// The revision that it enforces, as far as is known.
    pub enforced: Option<Revision>,
    /// Where its session comes from.
    #[schema(value_type = Option<SocketAddress>)]
    pub address: Option<SocketAddr>,
    /// Its software's version.
    pub version: Option<String>,
    /// Its blocks.
    pub blocks: Vec<Block>,
    /// The networks that it should serve but has no block of, and why.
    pub problems: Vec<String>,
    /// How many workloads it runs.
    pub workloads: usize,
    /// After how many seconds without being seen it is removed, if it is ephemeral.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget_after_seconds: Option<u64>,
    /// When it was heard last, if it has no session now; nothing if that was before the
    /// coordinator's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub seen: Option<String>,
}

/// How far a node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It is approved by name, and has not joined.
    Expected,
    /// It has joined, and serves no network before it is approved.
    Waiting,
    /// It is a node as others.
    Member,
}

/// The approval of a node by name, before or after it joins.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveNode {
    /// Labels that it is given; they stand over those that it joins with.
    #[serde(default)]
    pub labels: Labels,
}

/// A workload.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Workload {
    /// Its id.
    pub id: WorkloadId,
    /// What people call it.
    pub name: WorkloadName,
    /// Its network.
    pub network: NetworkName,
    /// Its node.
    pub node: NodeName,
    /// Its addresses.
    #[schema(value_type = Vec<Address>)]
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, if it is a gateway's route.
    #[schema(value_type = Vec<Cidr>)]
    pub prefixes: Vec<IpNet>,
    /// Its labels, verified ones included.
    pub labels: Labels,
    /// The number of its identity; none if it is not let in.
    pub identity: Option<IdentityId>,
    /// Whether it is quarantined.
    pub quarantined: bool,
    /// Why it is not let in; it is, if there is nothing.
    pub refused: Vec<String>,
    /// What its node has measured; nothing for a process that no container runtime runs.
    pub measurement: Option<Measured>,
}

/// What a node has measured of a workload.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Measured {
    /// Who was asked, such as `docker`.
    pub runtime: String,
    /// The images of its containers, as `REPOSITORY@DIGEST`, or a digest alone.
    pub images: Vec<String>,
    /// The digest of how it was set up.
    pub config: String,
    /// What it may do that a container usually may not.
    pub privileges: Vec<String>,
    /// The containers that share its network namespace, and speak on the mesh as it does.
    #[serde(default)]
    pub sharing: Vec<Sharing>,
}

/// A container that shares the network namespace of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sharing {
    /// What it is called.
    pub name: String,
    /// Its image; nothing if it is not known yet.
    pub image: Option<String>,
    /// The digest of how it was set up.
    pub config: String,
    /// What it may do that a container usually may not.
    pub privileges: Vec<String>,
}

impl From<&SharingContainer> for Sharing {
    fn from(other: &SharingContainer) -> Self {
        Self {
            name: other.name.clone(),
            image: other.image.as_ref().map(ToString::to_string),
            config: other.config.to_string(),
            privileges: other.privileges.clone(),
        }
    }
}

impl From<&Measurement> for Measured {
    fn from(measured: &Measurement) -> Self {
        Self {
            runtime: measured.runtime.clone(),
            images: measured.images.iter().map(ToString::to_string).collect(),
            config: measured.config.to_string(),
            privileges: measured.privileges.clone(),
            sharing: measured.sharing.iter().map(Sharing::from).collect(),
        }
    }
}

/// Policy to be checked or applied: all documents of a network together are its policy from then
/// on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitPolicy {
    /// The files; none removes the part that `scope` names.
    pub files: Vec<PolicyFile>,
    /// Whether the policies of networks that no file names are removed.
    #[serde(default)]
    pub prune: bool,
    /// Which files of one network are replaced; the others stay. Everything of the networks that
    /// are named, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<PolicyScope>,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether to ask the nodes how many live flows it would cut. Only with `dry_run`.
    #[serde(default)]
    pub count_cuts: bool,
    /// Whether both ends of every TCP connection that the policy does not allow any more get a
    /// reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

/// A part of the policy of one network. What it selects and nobody sends any more is removed.
/// Either `only` or `except`, or neither: then it is all files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyScope {
    /// The network.
    pub network: NetworkName,
    /// The files with these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub only: Vec<String>,
    /// All files but those with these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub except: Vec<String>,
    /// Whether it is refused if one of them is there already: somebody has written it.
    #[serde(default)]
    pub only_new: bool,
}

impl PolicyScope {
    /// Whether a file is among what is replaced.
    pub fn has(&self, file: &str) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == file);
        if self.only.is_empty() { !named(&self.except) } else { named(&self.only) }
    }
}

/// What became, or would become, of policies.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SubmitResult {
    /// The revision that they are part of; `None` for a dry run.
    pub revision: Option<Revision>,
    /// Network by network.
    pub networks: Vec<PolicyResult>,
    /// What is suspicious, though not wrong. Only with `dry_run`.
    pub findings: Vec<Finding>,
    /// Connected nodes that did not say which flows would be cut.
    pub nodes_silent: Vec<NodeName>,
    /// How far it is enforced; nothing for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,
}

/// What became, or would become, of the policy of a network.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyResult {
    /// The network.
    pub network: NetworkName,
    /// How many rules and guardrails it has.
    pub rules: usize,
    /// How many of its own tests passed.
    pub tests_passed: usize,
    /// Links that open, wholly or in part.
    pub opened: Vec<LinkChange>,
    /// Links that close, wholly or in part.
    pub closed: Vec<LinkChange>,
    /// How many more open than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_opened: usize,
    /// How many more close than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_closed: usize,
    /// Workloads that admission lets in now, and did not before.
    pub admitted: Vec<String>,
    /// Workloads that admission does not let in any more, and why.
    pub refused: Vec<String>,
    /// Live flows that would be cut, by the workload that began them.
    pub cuts: Vec<Cut>,
}

/// Something suspicious in a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// `FILE:LINE:COLUMN`.
    pub place: String,
    /// What, and how to mend it.
    pub text: String,
}

/// Live flows of a workload that would be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cut {
    /// The workload that began them.
    pub workload: WorkloadId,
    /// What people call it.
    pub name: String,
    /// How many.
    pub flows: usize,
}

/// A link that a policy changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkChange {
    /// Who may begin flows.
    pub from: Labels,
    /// With whom.
    pub to: Labels,
    /// What was allowed before, as text.
    pub before: String,
    /// What is allowed after, as text.
    pub after: String,
}

/// The policy of a network.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// The network.
    pub network: NetworkName,
    /// The revision that made it what it is.
    pub revision: Option<Revision>,
    /// The files as they were applied; none: default deny and nothing else.
    pub files: Vec<PolicyFile>,
}

/// One state of a network's policy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyRevision {
    /// The revision that made it.
    pub revision: Revision,
    /// When.
    #[schema(value_type = Time)]
    pub at: String,
    /// Who: `user:NAME`.
    pub actor: String,
    /// Why, as they said.
    pub why: Option<String>,
    /// From where.
    pub origin: Option<String>,
    /// How many files it has; none: it was removed.
    pub files: usize,
}

/// The links between two states of a network's policy, among the workloads of now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyDifference {
    /// The network.
    pub network: NetworkName,
    /// Links that open.
    pub opened: Vec<LinkChange>,
    /// Links that close.
    pub closed: Vec<LinkChange>,
    /// How many more open than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_opened: usize,
    /// How many more close than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_closed: usize,
}

/// A state to go back to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The policy is to be what it was at this revision.
    pub revision: Revision,
    /// Whether both ends of every TCP connection that it does not allow get a reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What to isolate: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuarantineTarget {
    /// The network; every network if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// The workloads with these labels, those that start later included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// One workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadId>,
}

/// A quarantine to be imposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Impose {
    /// What to isolate.
    #[serde(flatten)]
    pub target: QuarantineTarget,
    /// Who may still reach it, whatever rules say, but for what guardrails deny. Unless an admin
    /// imposes it: of those whom the policy names under `forensics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Selector>,
    /// For how many seconds; until it is released if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub seconds: Option<u64>,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether it is imposed even if it selects no workload now: for those that start later.
    /// Otherwise that is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub even_if_none: bool,
    /// Whether both ends of every TCP connection that it cuts get a reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

/// A quarantine that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quarantine {
    /// Its id.
    pub id: String,
    /// What it isolates.
    #[serde(flatten)]
    pub target: QuarantineTarget,
    /// Who may still reach it, but for what guardrails deny.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Selector>,
    /// Whether an admin has imposed it: otherwise `allow_from` lets in whom the policy names under
    /// `forensics`, and nobody else.
    #[serde(default)]
    pub by_admin: bool,
    /// Whether both ends of every TCP connection that it cuts get a reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// Since when.
    #[schema(value_type = Time)]
    pub since: String,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub until: Option<String>,
    /// Who imposed it: `user:NAME` or `trigger:NAME`.
    #[serde(default)]
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a quarantine or a release did.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuarantineResult {
    /// The revision that it is part of.
    pub revision: Revision,
    /// The workloads that it changed.
    pub workloads: Vec<WorkloadId>,
    /// How far it is enforced.
    #[serde(flatten)]
    pub enforcement: Enforcement,
}

/// How far a change is enforced, when the answer is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enforcement {
    /// Nodes that must enforce it.
    pub nodes: usize,
    /// Nodes that have said that they do.
    pub nodes_enforcing: usize,
    /// The others. They enforce it before anything else, once they are heard again.
    #[serde(default)]
    pub nodes_silent: Vec<SilentNode>,
}

/// A node that has not said that it enforces a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SilentNode {
    /// Which.
    pub node: NodeName,
    /// Whether it has a session all the same.
    pub connected: bool,
    /// When it was heard last; nothing if it has not been since the coordinator's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub since: Option<String>,
    /// Nodes whose workloads have links with its workloads.
    pub peers: usize,
    /// Those of them that enforce the change: nothing that it denies passes between them and the
    /// node, whatever the node does.
    pub peers_enforcing: usize,
}

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

/// A line of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// The revision that the change made.
    pub revision: Revision,
    /// When.
    #[schema(value_type = Time)]
    pub at: String,
    /// Who: `user:NAME` or `node:NAME`.
    pub actor: String,
    /// What.
    pub action: String,
    /// Why, as they said.
    pub why: Option<String>,
    /// From where.
    pub origin: Option<String>,
}

/// What a credential may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    Viewer,
    /// Read and quarantine.
    Operator,
    /// What an operator may, and the policy of its networks but for the guardrails.
    Owner,
    /// Everything.
    Admin,
}

/// A credential to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    /// Its name, for the audit log.
    #[schema(value_type = CredentialName)]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// In which networks; in all, if it is left out. An owner has at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// For how many seconds it is good, at most ten years; until it is revoked, if this is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub lifetime_seconds: Option<u64>,
}

/// What a credential may do from now on. Its token stays the same.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeCredential {
    /// What it may do; as before, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// In which networks; as before, if it is left out. An owner has at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(min_items = 1)]
    pub networks: Vec<NetworkName>,
    /// Whether it is good in all networks from now on. Only without `networks`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_networks: bool,
    /// For how many seconds from now on it is good, at most ten years; as before, if this is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub lifetime_seconds: Option<u64>,
    /// Whether it is good until it is revoked. Only without `lifetime_seconds`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_expiry: bool,
}

/// A credential, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Credential {
    /// Its name.
    #[schema(value_type = CredentialName)]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// In which networks; empty: in all.
    pub networks: Vec<NetworkName>,
    /// When it expires; never, if this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub expires: Option<String>,
}

/// A new credential.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedCredential {
    /// The bearer token, shown this once.
    pub token: String,
    /// What is kept.
    pub kept: Credential,
}

/// What `meshctl` needs to reach a coordinator. The coordinator writes the first one; it is a
/// secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `HOST:PORT` of the API, which is tried first.
    pub server: String,
    /// Where else the API may be reached, as `HOST:PORT`; whoever answers there has to show a
    /// certificate of the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_servers: Vec<String>,
    /// The mesh's CA, in PEM.
    pub ca: String,
    /// The bearer token.
    pub token: String,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Context {
    /// All places where the API may be reached, in the order in which they are tried.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.server).chain(&self.more_servers).map(String::as_str)
    }

    /// The same, with other places first, as `HOST` or `HOST:PORT`. One without a port has that of
    /// the first place.
    #[must_use]
    pub fn reached_by(self, places: &[String]) -> Self {
        let port = self.server.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let mut all: Vec<String> =
            places.iter().map(|place| with_port(place, port.unwrap_or(DEFAULT_PORT))).collect();
        for known in self.servers() {
            if !all.iter().any(|place| place == known) {
                all.push(known.to_owned());
            }
        }
        let more_servers = all.split_off(1);
        Self { server: all.swap_remove(0), more_servers, ..self }
    }

    /// Whether every place is on the machine that asks.
    pub fn is_local(&self) -> bool {
        self.servers().all(|place| {
            let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
            let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
            host == "localhost" || address.is_some_and(|address| address.is_loopback())
        })
    }
}

/// `HOST:PORT`, from that or from `HOST` alone.
pub fn with_port(host: &str, port: u16) -> String {
    let bare_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    let has_port =
        !bare_v6 && host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (bare_v6, has_port) {
        (true, _) => format!("[{host}]:{port}"),
        (false, true) => host.to_owned(),
        (false, false) => format!("{host}:{port}"),
    }
}
