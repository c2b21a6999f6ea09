//! The load of services: what nodes report of the flows that their workloads have with instances,
//! and what follows from it, the fan-outs of clients and the number of instances that a service
//! needs.
//!
//! It is kept in memory alone: reports say it anew.

use meshward_control_proto::{InstanceLoad, MAX_LOADS};
use meshward_types::{NetworkName, NodeName, ServiceName, WorkloadId};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    time::Duration,
};

/// The number of open flows at which an instance is at its limit.
pub const FLOW_LIMIT: u32 = 256;
/// The number of new flows a second at which an instance is at its limit.
pub const RATE_LIMIT: u32 = 512;
/// The factor by which connecting takes longer at an instance at its limit than when it was fastest.
const SLOWDOWN_LIMIT: u64 = 4;
/// The time to connect below which no instance is slow.
const FAST_CONNECT: Duration = Duration::from_millis(20);
/// The longest time to connect that counts: a client gives up after that.
const LONGEST_CONNECT: Duration = Duration::from_mins(5);
/// The largest use that slowness alone makes of an instance, in thousandths: how many more it would
/// need is unknown.
const MAX_SLOWNESS: u64 = 1500;

/// The mean use of a subset, as a part of the limit, from which on it grows.
const GROWS_AT: f64 = 0.8;
/// The factor by which its use has to exceed that of all instances: otherwise more instances would be
/// used as much, and growing would make views larger for nothing.
const GROWS_ABOVE_MEAN: f64 = 1.1;
/// The use that a subset has once it has grown, if its client is the only one.
const AIMED_AT: f64 = 0.6;
/// The mean use below which a subset shrinks, once it has it for [`SHRINKS_AFTER`].
const SHRINKS_BELOW: f64 = 0.3;
/// The time for which a subset is idle before it shrinks.
pub const SHRINKS_AFTER: Duration = Duration::from_secs(5);
/// The use of the instances of a service that has as many as it needs.
const DESIRED_USE: f64 = 0.7;

/// The load of all services. Times are those of one monotonic clock.
#[derive(Debug, Default)]
pub struct Loads {
    services: HashMap<ServiceKey, Service>,
    /// The last report of each node that has flows.
    by_node: HashMap<NodeName, Reported>,
}

/// A node's last report.
#[derive(Debug, Default)]
struct Reported {
    /// The services whose instances the node's workloads have flows with.
    services: BTreeSet<ServiceKey>,
    /// `true` if it had room for all instances.
    is_whole: bool,
}

type ServiceKey = (NetworkName, ServiceName);

/// The load of one service.
#[derive(Debug, Default)]
struct Service {
    clients: HashMap<NodeName, Client>,
    instances: HashMap<WorkloadId, Sum>,
}

/// The flows of the workloads of a node with the instances of a service.
#[derive(Debug, Default)]
struct Client {
    instances: HashMap<WorkloadId, Flows>,
    /// The time since when its subset has been idle.
    idle_since: Option<Duration>,
}

/// The flows of one node with one instance.
#[derive(Debug, Clone, Copy)]
struct Flows {
    open: u32,
    begun: u32,
    connect_time: Option<Duration>,
    /// The shortest time to connect that was reported.
    fastest: Option<Duration>,
}

/// The sum of the flows of all nodes with one instance.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    open: u64,
    begun: u64,
    /// The nodes that have reported flows.
    nodes: u32,
    /// Of those that report a time: how many there are, their times, and their slowness in
    /// thousandths.
    timed: u32,
    connect_time: Duration,
    slowness: u64,
}

/// The load of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Open flows.
    pub open: u64,
    /// New flows a second.
    pub begun: u64,
    /// The mean of the clients' smoothed times to connect.
    pub connect_time: Option<Duration>,
    /// The use, as a part of the limit: 1 at the limit.
    pub used: f64,
}

/// The fan-out that a client of a service is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanOutChange {
    /// The network.
    pub network: NetworkName,
    /// The service.
    pub service: ServiceName,
    /// The client's node.
    pub node: NodeName,
    /// The fan-out.
    pub fan_out: usize,
}

/// A client of a service whose fan-out follows its load.
#[derive(Debug, Clone)]
pub struct Subset<'a> {
    /// The client's node.
    pub node: &'a NodeName,
    /// Its fan-out.
    pub fan_out: usize,
    /// Its instances.
    pub instances: Vec<&'a WorkloadId>,
}

impl Flows {
    /// Returns how much longer connecting takes than when it was fastest, in thousandths of the
    /// limit.
    fn slowness(&self) -> u64 {
        match (self.connect_time, self.fastest) {
            (Some(time), Some(fastest)) if time >= FAST_CONNECT => {
                let times = time.as_micros() / fastest.as_micros().max(1);
                (times as u64 * 1000 / SLOWDOWN_LIMIT).min(MAX_SLOWNESS)
            }
            _ => 0,
        }
    }
}

impl Sum {
    fn add(&mut self, flows: &Flows) {
        self.nodes += 1;
        self.open += u64::from(flows.open);
        self.begun += u64::from(flows.begun);
        if let Some(time) = flows.connect_time {
            self.timed += 1;
            self.connect_time += time;
            self.slowness += flows.slowness();
        }
    }

    fn remove(&mut self, flows: &Flows) {
        self.nodes -= 1;
        self.open -= u64::from(flows.open);
        self.begun -= u64::from(flows.begun);
        if let Some(time) = flows.connect_time {
            self.timed -= 1;
            self.connect_time -= time;
            self.slowness -= flows.slowness();
        }
    }

    fn load(&self) -> Load {
        let slowness = self.slowness as f64 / f64::from(self.timed.max(1)) / 1000.0;
        let by_flows = self.open as f64 / f64::from(FLOW_LIMIT);
        let by_rate = self.begun as f64 / f64::from(RATE_LIMIT);
        Load {
            open: self.open,
            begun: self.begun,
            connect_time: (self.timed > 0).then(|| self.connect_time / self.timed),
            used: by_flows.max(by_rate).max(slowness),
        }
    }
}

impl Service {
    /// Removes the flows of a node. Returns them.
    fn remove(&mut self, node: &NodeName) -> Option<Client> {
        let client = self.clients.remove(node)?;
        for (id, flows) in &client.instances {
            let Some(sum) = self.instances.get_mut(id) else { continue };
            sum.remove(flows);
            if sum.nodes == 0 {
                self.instances.remove(id);
            }
        }
        Some(client)
    }

    /// Adds flows of a node with an instance. Those that it has reported before are the last ones.
    fn add(&mut self, node: &NodeName, before: Option<&Client>, load: InstanceLoad) {
        let client = self.clients.entry(node.clone()).or_insert_with(|| Client {
            idle_since: before.and_then(|before| before.idle_since),
            ..Client::default()
        });
        let known = before.and_then(|before| before.instances.get(&load.instance));
        let fastest = known.and_then(|known| known.fastest);
        let connect_time = load.connect_time.map(|time| time.min(LONGEST_CONNECT));
        let flows = Flows {
            open: load.open,
            begun: load.begun,
            connect_time,
            fastest: fastest.into_iter().chain(connect_time).min(),
        };
        // A node reports an instance once.
        if let Entry::Vacant(vacant) = client.instances.entry(load.instance) {
            self.instances.entry(vacant.key().clone()).or_default().add(&flows);
            vacant.insert(flows);
        }
    }

    fn used(&self, instance: &WorkloadId) -> f64 {
        self.instances.get(instance).map_or(0.0, |sum| sum.load().used)
    }

    /// Returns the mean use of all instances.
    fn mean_used(&self, instances: usize) -> f64 {
        let used: f64 = self.instances.values().map(|sum| sum.load().used).sum();
        used / instances.max(1) as f64
    }

    /// Returns the fan-out that a client is to have, if it is another one. `of_all`: the mean use of
    /// all instances.
    fn fan_out(
        &mut self,
        subset: &Subset,
        bounds: FanOuts,
        of_all: f64,
        now: Duration,
    ) -> Option<usize> {
        let size = subset.instances.len();
        let used: f64 = subset.instances.iter().map(|id| self.used(id)).sum();
        let mean = used / size.max(1) as f64;
        let Some(client) = self.clients.get_mut(subset.node) else {
            return (subset.fan_out > bounds.least).then_some(bounds.least);
        };
        if mean >= GROWS_AT && mean >= of_all * GROWS_ABOVE_MEAN && size < bounds.most {
            client.idle_since = None;
            let wanted = (size as f64 * (mean / AIMED_AT).min(2.0)).ceil() as usize;
            return Some(wanted.clamp(size + 1, bounds.most));
        }
        if mean >= SHRINKS_BELOW || subset.fan_out <= bounds.least {
            client.idle_since = None;
            return None;
        }
        let since = *client.idle_since.get_or_insert(now);
        if now.saturating_sub(since) < SHRINKS_AFTER {
            return None;
        }
        client.idle_since = None;
        // As many instances as would be half used, and no fewer than half of those that it has.
        let wanted = (used / 0.5).ceil() as usize;
        Some(wanted.max(size / 2).max(bounds.least))
    }
}

/// The bounds of fan-outs.
#[derive(Debug, Clone, Copy)]
pub struct FanOuts {
    /// The fan-out of a client without load.
    pub least: usize,
    /// The largest fan-out.
    pub most: usize,
    /// The number of instances.
    pub instances: usize,
}

impl Loads {
    /// Replaces what a node reports.
    pub fn report(&mut self, node: &NodeName, loads: Vec<InstanceLoad>) {
        let keys = self.by_node.remove(node).unwrap_or_default().services;
        let is_whole = loads.len() < MAX_LOADS;
        let mut before = HashMap::new();
        for key in &keys {
            let client = self.services.get_mut(key).and_then(|service| service.remove(node));
            before.extend(client.map(|client| (key.clone(), client)));
        }
        let mut now = BTreeSet::new();
        for load in loads {
            let key = (load.network.clone(), load.service.clone());
            let service = self.services.entry(key.clone()).or_default();
            service.add(node, before.get(&key), load);
            now.insert(key);
        }
        for key in keys {
            if self.services.get(&key).is_some_and(|service| service.clients.is_empty()) {
                self.services.remove(&key);
            }
        }
        if !now.is_empty() {
            self.by_node.insert(node.clone(), Reported { services: now, is_whole });
        }
    }

    /// Forgets what a node has reported.
    pub fn forget(&mut self, node: &NodeName) {
        self.report(node, vec![]);
    }

    /// Returns the load of the instances of a service that have any.
    pub fn of(&self, network: &NetworkName, service: &ServiceName) -> BTreeMap<WorkloadId, Load> {
        let service = self.services.get(&(network.clone(), service.clone()));
        let instances = service.into_iter().flat_map(|service| &service.instances);
        instances.map(|(id, sum)| (id.clone(), sum.load())).collect()
    }

    /// Returns the nodes that report flows with instances of a service.
    pub fn clients_of(&self, network: &NetworkName, service: &ServiceName) -> Vec<NodeName> {
        let service = self.services.get(&(network.clone(), service.clone()));
        service.into_iter().flat_map(|service| service.clients.keys().cloned()).collect()
    }

    /// Returns `true` if a node may have flows with an instance, by what it reports.
    pub fn may_have_flows(
        &self,
        (network, service): (&NetworkName, &ServiceName),
        node: &NodeName,
        instance: &WorkloadId,
    ) -> bool {
        let Some(reported) = self.by_node.get(node) else { return false };
        let service = self.services.get(&(network.clone(), service.clone()));
        let client = service.and_then(|service| service.clients.get(node));
        let flows = client.and_then(|client| client.instances.get(instance));
        !reported.is_whole || flows.is_some_and(|flows| flows.open > 0)
    }

    /// Returns the fan-outs that clients of a service are to have, where they are others than now.
    pub fn decide<'a>(
        &mut self,
        (network, service): (&NetworkName, &ServiceName),
        subsets: impl Iterator<Item = Subset<'a>>,
        bounds: FanOuts,
        now: Duration,
    ) -> Vec<FanOutChange> {
        let mut known = self.services.get_mut(&(network.clone(), service.clone()));
        let of_all = known.as_ref().map_or(0.0, |known| known.mean_used(bounds.instances));
        let change = |subset: Subset| {
            let fan_out = match &mut known {
                Some(known) => known.fan_out(&subset, bounds, of_all, now)?,
                None => bounds.least,
            };
            (fan_out != subset.fan_out).then(|| FanOutChange {
                network: network.clone(),
                service: service.clone(),
                node: subset.node.clone(),
                fan_out,
            })
        };
        subsets.filter_map(change).collect()
    }
}

/// Returns the number of instances that a service would need for its load: such that each is used
/// to seven tenths of its limit. At least one, as nobody can connect to none.
pub fn desired(loads: &BTreeMap<WorkloadId, Load>) -> usize {
    let used: f64 = loads.values().map(|load| load.used).sum();
    ((used / DESIRED_USE).ceil() as usize).max(1)
}

#[cfg(test)]
mod tests;
