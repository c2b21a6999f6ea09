//! The load of services: what nodes report, and the fan-outs that follow from it.

use meshward_control_proto::InstanceLoad;
use meshward_control_state::{
    loads::{FanOutChange, FanOuts, Load, Loads, Subset, desired},
    world::{Leaving, NetworkState, NodeIndex, World},
};
use meshward_types::{NetworkName, NodeName, ServiceName, WorkloadId};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

/// The time for which an instance that has left a subset stays known to the client's node, at
/// least, and the age of that node's session: longer than a node takes to report a flow that it
/// begins.
pub(crate) const STAYS_FOR: Duration = Duration::from_secs(5);

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
    pub(crate) fn decide(&self, world: &World) -> Vec<FanOutChange> {
        let (mut heard, now) = (self.heard.lock(), self.began.elapsed());
        let loads = &mut heard.loads;
        let mut changes = Vec::new();
        for (name, network) in &world.networks {
            for (service, narrowed) in network.narrowing.services() {
                let instances = narrowed.subsets.serving_count();
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
    pub(crate) fn is_idle(&self, world: &World, leaving: &Leaving) -> bool {
        let Leaving { network, service, linked } = leaving;
        let Some(node) = world.nodes.name(NodeIndex(linked.client)) else { return true };
        let heard = self.heard.lock();
        let is_heard = heard.sessions.get(node).is_some_and(|began| began.elapsed() >= STAYS_FOR);
        is_heard && !heard.loads.may_have_flows((network, service), node, &linked.instance)
    }
}

/// Returns the services of the policies, with their networks.
pub(crate) fn services(world: &World) -> impl Iterator<Item = (&NetworkState, &ServiceName)> {
    world.networks.values().flat_map(|network| {
        let services = &network.links.policy().services;
        services.iter().map(move |service| (network, &service.name))
    })
}
