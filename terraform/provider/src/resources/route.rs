//! The resource `meshward_route`.

use super::state::{bad_id, body, keyed};
use crate::{
    checks,
    mesh::{Mesh, gone_is_well, told},
};
use meshward_api_types::{ApproveRoute, Route, operations};
use meshward_terraform::{Answer, Attribute, Block, Diagnostics, Resource, Schema, Type, Value};
use std::sync::Arc;

pub(crate) struct RouteResource(pub Arc<Mesh>);

const FORM: &str = "NETWORK/NODE/PREFIX";

fn said(state: &Value) -> Result<ApproveRoute, Diagnostics> {
    body(state, &["network", "node", "prefix"])
}

fn described(route: &Route) -> Result<Value, Diagnostics> {
    let mut now = Value::default();
    let (network, node, prefix) =
        (route.network.as_str(), route.node.as_str(), route.prefix.to_string());
    now.set("id", format!("{network}/{node}/{prefix}"));
    now.set("network", network);
    now.set("node", node);
    now.set("prefix", prefix);
    now.set("state", Value::of(&route.state)?);
    now.set("workload", Value::of(&route.workload)?);
    now.set("labels", Value::of(&route.labels)?);
    Ok(now)
}

impl RouteResource {
    async fn look(&self, state: Value) -> Result<Option<Value>, Diagnostics> {
        let wanted = said(&state)?;
        let all = self.0.list(&operations::ROUTES).await?;
        let is_it = |route: &&Route| {
            route.approved_by_hand
                && (Some(&route.network), &route.node, &route.prefix)
                    == (wanted.network.as_ref(), &wanted.node, &wanted.prefix)
        };
        all.iter().find(is_it).map(described).transpose()
    }
}

impl Resource for RouteResource {
    fn schema(&self) -> Schema {
        Schema::new(
            "The approval of a prefix behind a node, its gateway, before or after the node \
             advertises it (`meshctl route advertise`). Workloads can then reach the machines \
             there, which are policed as workloads with the labels that the node gives them. The \
             prefixes `0.0.0.0/0` and `::/0` approve an egress gateway (`meshctl egress start`): \
             everything outside of the mesh.",
            Block::of(vec![
                Attribute::id(&format!("`{FORM}`.")),
                Attribute::required(
                    "network",
                    Type::String,
                    "The network whose workloads reach the prefix.",
                )
                .replaces()
                .checked(checks::network),
                Attribute::required(
                    "node",
                    Type::String,
                    "The gateway: a node that has joined, or is approved by a `meshward_node`.",
                )
                .replaces()
                .checked(checks::node),
                Attribute::required("prefix", Type::String, "The prefix, such as `10.8.0.0/24`.")
                    .replaces()
                    .checked(checks::prefix),
                Attribute::computed(
                    "state",
                    Type::String,
                    "The state: `open`, `waiting` or `not-advertised`.",
                ),
                Attribute::computed(
                    "workload",
                    Type::String,
                    "The workload that represents the machines there; none while no node \
                     advertises the prefix.",
                ),
                Attribute::computed("labels", Type::map(), "The labels of the machines there."),
            ]),
        )
    }

    fn read(&self, state: Value) -> Answer<'_, Option<Value>> {
        Box::pin(self.look(state))
    }

    fn create(&self, planned: Value) -> Answer<'_, Value> {
        Box::pin(async move {
            let wanted = said(&planned)?;
            described(&self.0.write(&operations::APPROVE_ROUTE, &[], &wanted).await.map_err(told)?)
        })
    }

    /// Not called: every attribute replaces.
    fn update(&self, _prior: Value, planned: Value) -> Answer<'_, Value> {
        Box::pin(async move { Ok(planned) })
    }

    fn delete(&self, state: Value) -> Answer<'_, ()> {
        Box::pin(async move {
            let done = self.0.write(&operations::DISAPPROVE_ROUTE, &[], &said(&state)?).await;
            // The approval is deleted with its node or its network.
            gone_is_well(done.map(drop)).map_err(told)
        })
    }

    fn import(&self, id: &str) -> Result<Value, Diagnostics> {
        match id.splitn(3, '/').collect::<Vec<_>>()[..] {
            [network, node, prefix] => {
                Ok(keyed(&[("network", network), ("node", node), ("prefix", prefix)]))
            }
            _ => Err(bad_id(id, FORM)),
        }
    }

    fn import_form(&self) -> &'static str {
        FORM
    }
}
