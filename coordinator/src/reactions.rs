//! What happens by itself: triggers that have fired, and what has had its time.

use crate::{
    ids::new_id,
    mesh::{ChangeContext, Mesh},
};
use meshward_control_proto::Fired;
use meshward_control_state::plans::{nodes, triggers};
use meshward_types::NodeName;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tracing::{error, info, warn};

/// How often it is looked for what has had its time.
const EXPIRY: Duration = Duration::from_secs(1);
/// If there was no look for so long, this machine was asleep, or its clock was set: nodes have had
/// no chance to be seen.
const ASLEEP: Duration = Duration::from_secs(20);

/// Does what a trigger says about what a node has seen.
pub async fn fire(mesh: &Arc<Mesh>, node: &NodeName, fired: Fired) {
    let (id, now) = (new_id(), OffsetDateTime::now_utc());
    let context =
        ChangeContext::named(format!("trigger:{}", fired.trigger)).because(Some(format!(
            "node {node} saw {} denied flows to {} ports and {} addresses",
            fired.denied_flows, fired.distinct_ports, fired.distinct_addresses
        )));
    let done = match mesh
        .change_first(&context, |world| triggers::fire(world, node, &fired, &id, now))
        .await
    {
        Ok(done) => done.outcome,
        Err(refusal) => {
            error!(%node, trigger = %fired.trigger, workload = %fired.workload, "a trigger could \
                not act: {refusal}");
            return;
        }
    };
    let Some(done) = done else { return };
    info!(%node, workload = %fired.workload, trigger = %fired.trigger, "a trigger fired");
    let Some(url) = done.webhook else { return };
    let body = json!({
        "trigger": fired.trigger, "network": fired.network, "node": node, "workload": fired.workload,
        "denied_flows": fired.denied_flows, "distinct_ports": fired.distinct_ports,
        "distinct_addresses": fired.distinct_addresses,
    });
    let mesh = mesh.clone();
    tokio::spawn(async move {
        if let Err(error) = mesh.webhooks.post(&url, &body).await {
            warn!(%url, "a webhook was not delivered: {error:#}");
        }
    });
}

/// Ends quarantines and given labels whose time is over, for ever.
pub async fn expire(mesh: Arc<Mesh>) {
    let mut watched_since = OffsetDateTime::now_utc();
    let mut looked = watched_since;
    loop {
        tokio::time::sleep(EXPIRY).await;
        let now = OffsetDateTime::now_utc();
        if now - looked > ASLEEP {
            watched_since = now;
        }
        looked = now;
        forget_ephemeral(&mesh, watched_since, now).await;
        let nothing = mesh.look(|world| triggers::expire(world, now).mutations.is_empty());
        if nothing {
            continue;
        }
        let context = ChangeContext::named("user:coordinator");
        if let Err(refusal) = mesh.change(&context, |world| Ok(triggers::expire(world, now))).await
        {
            error!("what has had its time could not be ended: {refusal}");
        }
    }
}

/// Removes ephemeral nodes that have not been seen for their time, none of which counts before
/// `watched_since`.
async fn forget_ephemeral(mesh: &Mesh, watched_since: OffsetDateTime, now: OffsetDateTime) {
    let unseen = |node: &NodeName| match mesh.sessions.get(node) {
        Some(_) => 0,
        None => {
            let seen =
                mesh.sessions.last_seen(node).map_or(watched_since, |seen| seen.max(watched_since));
            u64::try_from((now - seen).whole_seconds()).unwrap_or(0)
        }
    };
    let nothing = mesh.look(|world| {
        !world
            .nodes
            .values()
            .any(|node| node.forget_after.is_some_and(|after| unseen(&node.name) >= after))
    });
    if nothing {
        return;
    }
    let context = ChangeContext::named("user:coordinator");
    match mesh.change(&context, |world| nodes::forget(world, unseen)).await {
        Ok(done) => {
            for node in &done.outcome {
                info!(%node, "removed: it is ephemeral, and was not seen any more");
                mesh.let_go(node, "this node was removed from the mesh");
            }
        }
        Err(refusal) => error!("ephemeral nodes could not be removed: {refusal}"),
    }
}
