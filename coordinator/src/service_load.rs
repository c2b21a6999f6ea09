//! The load of services: what nodes report, and the subsets that follow from it.

use crate::mesh::Mesh;
use meshward_control_proto::InstanceLoad;
use meshward_control_state::{
    loads::{FanOutChange, FanOuts, Load, Loads, Subset, desired},
    world::{Leaving, NetworkState, NodeIndex, World},
};
use meshward_policy::Reaction;
use meshward_types::{NetworkName, NodeName, ServiceName, WorkloadId};
use parking_lot::Mutex;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// The time between two looks at the load.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The time for which an instance that has left a subset stays known to the client's node, at least,
/// and the age of that node's session: longer than a node takes to report a flow that it begins.
const STAYS_FOR: Duration = Duration::from_secs(5);

/// The load of services, in memory alone.
pub struct ServiceLoads {
    heard: Mutex<Heard>,
    began: Instant,
}

/// What nodes with a session report.
#[derive(Default)]
struct Heard {
    loads: Loads,
    /// The time at which each node's session began.
    sessions: HashMap<NodeName, Instant>,
}

impl Default for ServiceLoads {
    fn default() -> Self {
        Self { heard: Mutex::default(), began: Instant::now() }
    }
}

/// The load of one service.
#[derive(Debug, Default)]
pub struct ServiceLoad {
    /// The load of the instances that have any.
    pub instances: BTreeMap<WorkloadId, Load>,
    /// The number of instances that the service would need.
    pub desired: usize,
}

impl ServiceLoad {
    /// Returns the number of open flows.
    pub fn open(&self) -> u64 {
        self.instances.values().map(|load| load.open).sum()
    }

    /// Returns the number of new flows a second.
    pub fn begun(&self) -> u64 {
        self.instances.values().map(|load| load.begun).sum()
    }
}

impl ServiceLoads {
    /// Replaces what a node has reported. Instances that the node cannot have flows with do not
    /// count.
    pub(crate) fn report(&self, world: &World, node: &NodeName, mut loads: Vec<InstanceLoad>) {
        loads.retain(|load| world.may_report(node, load));
        self.heard.lock().loads.report(node, loads);
    }

    /// Notes that a node's session begins.
    pub(crate) fn begin(&self, node: &NodeName) {
        let mut heard = self.heard.lock();
        heard.loads.forget(node);
        heard.sessions.insert(node.clone(), Instant::now());
    }

    /// Forgets a node, whose session has ended.
    pub(crate) fn forget(&self, node: &NodeName) {
        let mut heard = self.heard.lock();
        heard.loads.forget(node);
        heard.sessions.remove(node);
    }

    /// Returns the load of a service.
    pub fn of(&self, network: &NetworkName, service: &ServiceName) -> ServiceLoad {
        let instances = self.heard.lock().loads.of(network, service);
        ServiceLoad { desired: desired(&instances), instances }
    }

    /// Returns the fan-outs that clients are to have, where they are others than now.
    fn decide(&self, world: &World) -> Vec<FanOutChange> {
        let (mut heard, now) = (self.heard.lock(), self.began.elapsed());
        let loads = &mut heard.loads;
        let mut changes = Vec::new();
        for (name, network) in &world.networks {
            for (service, narrowed) in network.narrowing.services() {
                let instances = narrowed.subsets.instance_count();
                let Some(bounds) = narrowed.fan_out.bounds() else { continue };
                let (least, most) = (*bounds.start() as usize, *bounds.end() as usize);
                if instances <= least {
                    continue;
                }
                let mut clients: BTreeSet<NodeIndex> = narrowed.grown().collect();
                let loaded = loads.clients_of(name, service);
                clients.extend(loaded.iter().filter_map(|node| world.nodes.index(node)));
                let subset = |client: NodeIndex| {
                    let node = world.nodes.name(client)?;
                    let instances = narrowed.subsets.of(client.0).collect();
                    Some(Subset { node, fan_out: narrowed.fan_out_of(client), instances })
                };
                let subsets: Vec<Subset> = clients
                    .into_iter()
                    .filter(|client| narrowed.subsets.has_client(client.0))
                    .filter_map(subset)
                    .collect();
                let bounds = FanOuts { least, most: most.min(instances), instances };
                changes.extend(loads.decide((name, service), subsets.into_iter(), bounds, now));
            }
        }
        changes
    }

    /// Returns `true` if a node reports no flows with an instance that has left its subset. A node
    /// that has no session, or not had it for long, may have some.
    fn is_idle(&self, world: &World, leaving: &Leaving) -> bool {
        let Leaving { network, service, linked } = leaving;
        let Some(node) = world.nodes.name(NodeIndex(linked.client)) else { return true };
        let heard = self.heard.lock();
        let is_heard = heard.sessions.get(node).is_some_and(|began| began.elapsed() >= STAYS_FOR);
        is_heard && !heard.loads.may_have_flows((network, service), node, &linked.instance)
    }
}

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

/// Returns the services of the policies, with their networks.
pub(crate) fn services(world: &World) -> impl Iterator<Item = (&NetworkState, &ServiceName)> {
    world.networks.values().flat_map(|network| {
        let services = &network.links.policy().services;
        services.iter().map(move |service| (network, &service.name))
    })
}
