//! What happens by itself: triggers that have fired, and what has had its time.

use crate::{
    mesh::{Author, Mesh},
    plans::{tokens::new_id, triggers},
};
use meshward_model::{NodeName, control::Fired};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tracing::{error, info, warn};

/// How often it is looked for what has had its time.
const EXPIRY: Duration = Duration::from_secs(1);

/// Does what a trigger says about what a node has seen.
pub async fn fire(mesh: &Arc<Mesh>, node: &NodeName, fired: Fired) {
    let (id, now) = (new_id(), OffsetDateTime::now_utc());
    let author = Author::named(format!("trigger:{}", fired.trigger)).because(Some(format!(
        "node {node} saw {} denied flows to {} ports and {} addresses",
        fired.denied_flows, fired.distinct_ports, fired.distinct_addresses
    )));
    let done = match mesh.change_first(&author, |world| triggers::fire(world, node, &fired, &id, now)).await {
        Ok(done) => done.outcome,
        Err(refusal) => {
            error!(%node, trigger = %fired.trigger, workload = %fired.workload, "a trigger could not act: {refusal}");
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
    loop {
        tokio::time::sleep(EXPIRY).await;
        let now = OffsetDateTime::now_utc();
        let nothing = mesh.look(|world| triggers::expire(world, now).mutations.is_empty());
        if nothing {
            continue;
        }
        let author = Author::named("user:coordinator");
        if let Err(refusal) = mesh.change(&author, |world| Ok(triggers::expire(world, now))).await {
            error!("what has had its time could not be ended: {refusal}");
        }
    }
}
