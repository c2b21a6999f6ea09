//! The resource `meshward_node`.

use super::state::{body, keep_unset, keyed, text};
use crate::{
    checks,
    mesh::{Mesh, Overwrite, told},
};
use meshward_api_types::{ApproveNode, Node, NodeState, operations};
use meshward_terraform::{
    Answer, Attribute, Block, Diagnostics, Resource, Schema, Type, Value, timeouts, within,
};
use meshward_types::NodeName;
use std::sync::Arc;

pub(crate) struct NodeResource(pub Arc<Mesh>);

/// The default timeouts of waiting for a node to join.
const CREATE: (&str, &str) = ("create", "10m");
const UPDATE: (&str, &str) = ("update", "10m");

impl NodeResource {
    async fn approve(&self, planned: &Value) -> Result<Node, Diagnostics> {
        let wanted: ApproveNode = body(planned, &["labels"])?;
        let name = text(planned, "name")?;
        self.0.write(&operations::APPROVE_NODE, &[&name], &wanted).await.map_err(told)
    }

    /// Waits until the node has joined and is connected, if `wait_for_join` is set.
    async fn joined(
        &self,
        planned: &Value,
        node: Node,
        operation: (&str, &str),
    ) -> Result<Node, Diagnostics> {
        if *planned.get("wait_for_join") != Value::Bool(true) || node.connected {
            return Ok(node);
        }
        let limit = within(planned, operation)?;
        let what = format!("Node {} is approved, and has not joined", node.name);
        let look = || async {
            let all = self.0.list_now(&operations::NODES, &[]).await?;
            Ok(all.items.into_iter().find(|other| other.name == node.name && other.connected))
        };
        self.0.until(limit, &what, look).await
    }

    async fn make(&self, planned: Value) -> Result<Value, Diagnostics> {
        let node = self.approve(&planned).await?;
        let name = node.name.clone();
        match self.joined(&planned, node, CREATE).await {
            Ok(node) => described(&planned, &node),
            Err(mut said) => {
                said.extend(self.take_back(&name).await.err().into_iter().flatten());
                Err(said)
            }
        }
    }

    /// Removes the approval of a node that has not joined: a failed creation leaves nothing behind
    /// that is not in Terraform's state. A node that has joined stays.
    async fn take_back(&self, name: &NodeName) -> Result<(), Diagnostics> {
        let all = self.0.list_now(&operations::NODES, &[]).await?;
        if all.items.iter().any(|node| node.name == *name && node.state == NodeState::Expected) {
            self.0.remove(&operations::REMOVE_NODE, &[name]).await.map_err(told)
        } else {
            Ok(())
        }
    }

    async fn change(&self, prior: Value, planned: Value) -> Result<Value, Diagnostics> {
        let wanted: ApproveNode = body(&planned, &["labels"])?;
        let name = text(&planned, "name")?;
        let as_seen =
            |node: &Node| Ok(described(&prior, node)?.get("labels") == prior.get("labels"));
        let what =
            Overwrite { read: &operations::NODE, write: &operations::APPROVE_NODE, key: &name };
        let node = self.0.overwrite(what, &wanted, as_seen).await?;
        let node = self.joined(&planned, node, UPDATE).await?;
        described(&planned, &node)
    }

    async fn look(&self, state: Value) -> Result<Option<Value>, Diagnostics> {
        let name = text(&state, "name")?;
        let all = self.0.list(&operations::NODES).await?;
        // A node that waits for approval counts as missing, so that Terraform approves it.
        let found =
            all.iter().find(|node| node.name.as_str() == name && node.state != NodeState::Waiting);
        found.map(|node| described(&state, node)).transpose()
    }
}

fn described(state: &Value, node: &Node) -> Result<Value, Diagnostics> {
    let mut now = Value::default();
    now.set("id", node.name.as_str());
    now.set("name", node.name.as_str());
    now.set("labels", Value::of(&node.given_labels.clone().unwrap_or_default())?);
    now.set("all_labels", Value::of(&node.labels)?);
    now.set("site", Value::of(&node.site)?);
    now.set("blocks", Value::of(&node.blocks)?);
    let unset = Value::Bool(false);
    let waits = state.get("wait_for_join");
    now.set("wait_for_join", if waits.is_null() { unset } else { waits.clone() });
    now.set("timeouts", state.get("timeouts").clone());
    keep_unset(state, &mut now, &["labels"]);
    Ok(now)
}

impl Resource for NodeResource {
    fn schema(&self) -> Schema {
        let blocks = Type::objects(&[("network", Type::String), ("prefixes", Type::strings())]);
        Schema::new(
            "The approval of a node by name, before or after it joins, and its labels. A node that \
             has joined with a token with `needs_approval` serves no network until it is \
             approved.\n\nDeleting this resource **removes the node from the mesh**: its session \
             ends, its certificate is revoked, and its workloads are closed.",
            Block::of(vec![
                Attribute::id("The name."),
                Attribute::required(
                    "name",
                    Type::String,
                    "The name, as given to `meshward-node join --name`; without that flag, the \
                     host's name.",
                )
                .replaces()
                .checked(checks::node),
                Attribute::optional(
                    "labels",
                    Type::map(),
                    "Labels of the node. They override those that the node joins with.",
                ),
                Attribute::optional(
                    "wait_for_join",
                    Type::Bool,
                    "Whether to wait until the node has joined.",
                )
                .or(false),
                Attribute::computed("all_labels", Type::map(), "All labels of the node.").follows(),
                Attribute::computed(
                    "site",
                    Type::String,
                    "The site, from the join token; none before the node has joined.",
                ),
                Attribute::computed(
                    "blocks",
                    blocks,
                    "The node's blocks of the networks that it serves.",
                ),
            ])
            .with(timeouts(&[CREATE, UPDATE])),
        )
    }

    fn validate(&self, config: &Value) -> Diagnostics {
        checks::labels(config, "labels")
    }

    fn read(&self, state: Value) -> Answer<'_, Option<Value>> {
        Box::pin(self.look(state))
    }

    fn create(&self, planned: Value) -> Answer<'_, Value> {
        Box::pin(self.make(planned))
    }

    fn update(&self, prior: Value, planned: Value) -> Answer<'_, Value> {
        Box::pin(self.change(prior, planned))
    }

    fn delete(&self, state: Value) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.remove(&operations::REMOVE_NODE, &[&text(&state, "name")?]).await.map_err(told)
        })
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        Ok(keyed(&[("name", id)]))
    }

    fn import_form(&self) -> &'static str {
        "NODE"
    }
}
