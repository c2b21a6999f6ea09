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
