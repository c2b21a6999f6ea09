//! Changes that the coordinator makes by itself: reactions to triggers, and expiry.

use crate::{
    ids::new_id,
    mesh::{ChangeContext, Mesh},
};
use meshward_control_proto::Fired;
use meshward_control_state::{
    plans::{networks, nodes, triggers},
    world::World,
};
use meshward_types::NodeName;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tracing::{error, info, warn};

/// The time between two searches for what has expired.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// The time between two searches after which this machine must have been asleep, or its clock was
/// set: nodes could not be seen meanwhile.
const ASLEEP: Duration = Duration::from_secs(20);

/// Carries out the reaction of a trigger that has fired at a node.
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
            error!(%node, trigger = %fired.trigger, workload = %fired.workload, "a trigger's \
                reaction failed: {refusal}");
            return;
        }
    };
    let Some(done) = done else { return };
    info!(%node, workload = %fired.workload, trigger = %fired.trigger, "a trigger fired");
    let Some(url) = done.webhook else { return };
    let body = json!({
        "trigger": fired.trigger, "network": fired.network,
        "node": node, "workload": fired.workload,
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

/// Ends quarantines and given labels that have expired, forever.
pub async fn expire(mesh: Arc<Mesh>) {
    let mut watched_since = OffsetDateTime::now_utc();
    let mut last_search = watched_since;
    loop {
        tokio::time::sleep(EXPIRY_INTERVAL).await;
        let now = OffsetDateTime::now_utc();
        if now - last_search > ASLEEP {
            watched_since = now;
        }
        last_search = now;
        forget_ephemeral(&mesh, watched_since, now).await;
        let nothing = mesh.look(|world| triggers::expire(world, now).mutations.is_empty());
        if nothing {
            continue;
        }
        let context = ChangeContext::named("user:coordinator");
        if let Err(refusal) = mesh.change(&context, |world| Ok(triggers::expire(world, now))).await
        {
            error!("expired quarantines and labels could not be removed: {refusal}");
        }
    }
}

/// Reserves service blocks and resolver addresses for networks of earlier releases.
pub async fn reserve_blocks(mesh: &Mesh) {
    let context = ChangeContext::named("user:coordinator");
    let reserve = |world: &World| Ok(networks::reserve_blocks(world));
    if let Err(refusal) = mesh.change(&context, reserve).await {
        error!("addresses for services and name resolution could not be reserved: {refusal}");
    }
}

/// Removes ephemeral nodes that have not been seen for their time. Time before `watched_since` does
/// not count.
async fn forget_ephemeral(mesh: &Mesh, watched_since: OffsetDateTime, now: OffsetDateTime) {
    let unseen_seconds = |node: &NodeName| match mesh.sessions.get(node) {
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
            .any(|node| node.forget_after.is_some_and(|after| unseen_seconds(&node.name) >= after))
    });
    if nothing {
        return;
    }
    let context = ChangeContext::named("user:coordinator");
    match mesh.change(&context, |world| Ok(nodes::forget(world, unseen_seconds))).await {
        Ok(done) => {
            for node in &done.outcome {
                info!(%node, "removed: it is ephemeral, and was not seen for its time");
                mesh.disconnect(node, "this node was removed from the mesh");
            }
        }
        Err(refusal) => error!("ephemeral nodes could not be removed: {refusal}"),
    }
}
