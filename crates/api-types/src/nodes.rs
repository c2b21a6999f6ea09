//! Nodes.

use crate::Block;
use meshward_types::{
    Labels, NodeName, Revision,
    schema::{SocketAddress, Time},
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use utoipa::ToSchema;

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// The name.
    pub name: NodeName,
    /// The state.
    pub state: NodeState,
    /// The site.
    pub site: Option<String>,
    /// The labels: those that the node joined with, overridden by those assigned to it.
    pub labels: Labels,
    /// The labels assigned by its approval; null if it is not approved by name.
    pub given_labels: Option<Labels>,
    /// `true` if the node has a session now.
    pub connected: bool,
    /// The reason why the node cannot write its state, such as a full disk; null if it can. The
    /// node enforces policy all the same.
    #[serde(default)]
    pub degraded: Option<String>,
    /// The last revision that the node has acknowledged.
    pub enforced: Option<Revision>,
    /// The source address of its session.
    #[schema(value_type = Option<SocketAddress>)]
    pub address: Option<SocketAddr>,
    /// The version of the software.
    pub version: Option<String>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The networks that the node should serve but has no block of, with the reasons.
    pub problems: Vec<String>,
    /// The number of workloads.
    pub workloads: usize,
    /// The time without contact after which the coordinator removes the node, in seconds; null if
    /// it is not ephemeral.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget_after_seconds: Option<u64>,
    /// The time of the last contact, if the node has no session now; null if that was before the
    /// coordinator's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Time>)]
    pub seen: Option<String>,
}

/// The state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It is approved by name, and has not joined.
    Expected,
    /// It has joined, and serves no network before it is approved.
    Waiting,
    /// It is a member of the mesh.
    Member,
}

/// The approval of a node by name, before or after it joins.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveNode {
    /// Labels to assign. They override those that the node joins with.
    #[serde(default)]
    pub labels: Labels,
}
