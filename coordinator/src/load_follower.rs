//! Lets subsets follow the load of services, and tells webhooks what services would need.

use crate::{mesh::Mesh, service_load::STAYS_FOR};
use meshward_control_state::{loads::FanOutChange, world::Leaving};
use meshward_policy::Reaction;
use meshward_types::NetworkName;
use serde_json::json;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// The time between two looks at the load.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A trigger about what a service would need, and its last webhook.
#[derive(Debug, Clone, Copy)]
struct Announced {
    desired: usize,
    at: Instant,
}

/// The last webhooks by network and trigger.
type Announcements = HashMap<(NetworkName, String), Announced>;

/// Lets subsets follow their load, and tells webhooks what services would need, forever.
pub async fn follow(mesh: Arc<Mesh>) {
    let mut since: HashMap<Leaving, Instant> = HashMap::new();
    let mut announced = Announcements::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        announce(&mesh, &mut announced);
        let changes = mesh.look(|world| mesh.loads.decide(world));
        for FanOutChange { network, service, node, fan_out } in &changes {
            info!(%network, %service, %node, fan_out, "a subset follows its load");
        }
        if !changes.is_empty() {
            mesh.adjust(|world| world.set_fan_outs(&changes));
        }
        let now = Instant::now();
        let leaving: Vec<Leaving> = mesh.look(|world| world.leaving().collect());
        since = leaving
            .into_iter()
            .map(|pair| {
                let at = since.get(&pair).copied().unwrap_or(now);
                (pair, at)
            })
            .collect();
        let idle: Vec<Leaving> = mesh.look(|world| {
            let old = since.iter().filter(|(_, at)| now.duration_since(**at) >= STAYS_FOR);
            let idle = old.filter(|(pair, _)| mesh.loads.is_idle(world, pair));
            idle.map(|(pair, _)| pair.clone()).collect()
        });
        if !idle.is_empty() {
            mesh.adjust(|world| world.release(&idle));
        }
    }
}

/// Calls the webhooks of triggers whose service would need another number of instances than they
/// were told, each at most once within its time.
fn announce(mesh: &Arc<Mesh>, announced: &mut Announcements) {
    let now = Instant::now();
    let mut before = std::mem::take(announced);
    let mut calls = Vec::new();
    mesh.look(|world| {
        for (name, network) in &world.networks {
            for trigger in &network.links.policy().triggers {
                let (Some(service), Reaction::Webhook(url)) =
                    (&trigger.when.desired, &trigger.then)
                else {
                    continue;
                };
                let load = mesh.loads.of(name, service);
                let key = (name.clone(), trigger.name.clone());
                // What a restarted coordinator has heard of load is not all of it yet.
                let last = before.remove(&key).unwrap_or(Announced { desired: 0, at: now });
                let is_due = now.duration_since(last.at) >= trigger.when.within.0;
                if load.desired == last.desired || !is_due {
                    announced.insert(key, last);
                    continue;
                }
                announced.insert(key, Announced { desired: load.desired, at: now });
                let instances = network.links.policy().service(service).map_or(0, |own| {
                    let selected = network.links.select(&own.instances).into_iter();
                    selected.map(|id| network.workloads_of(id).count()).sum()
                });
                let body = json!({
                    "trigger": trigger.name, "network": name, "service": service,
                    "desired": load.desired, "instances": instances, "open": load.open(),
                    "connects_per_second": load.begun(),
                });
                calls.push((url.clone(), body));
            }
        }
    });
    for (url, body) in calls {
        let mesh = mesh.clone();
        tokio::spawn(async move {
            if let Err(error) = mesh.webhooks.post(&url, &body).await {
                warn!(%url, "a webhook was not delivered: {error:#}");
            }
        });
    }
}
