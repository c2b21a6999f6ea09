//! The coordinator's share of services without I/O: `cargo xtask bench services`. Prints figures as
//! JSON.

mod fleet;

use meshward_bench::{Figures, Row, Target};
use meshward_control_proto::{InstanceLoad, encoded_size};
use meshward_control_state::{
    loads::{FLOW_LIMIT, FanOuts, Loads, Subset},
    subsets::{Client, Instance, Moves, Subsets},
};
use meshward_types::{Nearness, NetworkName, NodeName, ServiceName, Serving, Weight, WorkloadId};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Clients, instances, and the fan-out of each client.
const CLIENTS: u32 = 1000;
const INSTANCES: u32 = 100;
const FAN_OUT: usize = 20;
/// The time between two looks of the coordinator at the load.
const LOOKS_EVERY: Duration = Duration::from_millis(500);

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let mut rows = subset_rows(if quick { 10 } else { INSTANCES });
    rows.extend(large_rows(if quick { 1000 } else { 10_000 }));
    rows.extend(view_rows(if quick { 1000 } else { 10_000 })?);
    rows.push(growth_row());
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

fn node(at: u32) -> NodeName {
    format!("node-{at}").parse().expect("a name")
}

fn instance(at: u32) -> WorkloadId {
    format!("api-{at}").parse().expect("an id")
}

/// The change of the subsets when one instance or client comes or goes.
#[derive(Default)]
struct Changes {
    /// Pairs that moved, in percent of all.
    percent: Vec<f64>,
    milliseconds: Vec<f64>,
}

impl Changes {
    /// Settles, and counts the pairs of others that were lost.
    fn settle(&mut self, subsets: &mut Subsets, is_other: impl Fn(&WorkloadId) -> bool) {
        let begun = Instant::now();
        let Moves { lost, .. } = subsets.settle();
        self.milliseconds.push(begun.elapsed().as_secs_f64() * 1e3);
        let moved = lost.iter().filter(|linked| is_other(&linked.instance)).count();
        self.percent.push(moved as f64 * 100.0 / (CLIENTS as usize * FAN_OUT) as f64);
    }
}

/// The subsets of a fleet, whose nodes and instances are on so many sites.
struct Fleet {
    subsets: Subsets,
    sites: Vec<String>,
    /// The weights of instances, which take turns.
    weights: &'static [u16],
}

impl Fleet {
    /// Makes the subsets of so many clients and instances. Returns them, and the milliseconds that
    /// it took.
    fn new((clients, instances): (u32, u32), sites: u32, weights: &'static [u16]) -> (Self, f64) {
        let sites = (0..sites).map(|site| format!("site-{site}")).collect();
        let mut fleet = Self { subsets: Subsets::default(), sites, weights };
        if !fleet.sites.is_empty() {
            fleet.subsets.set_prefer(&[Nearness::Node, Nearness::Site]);
        }
        (0..instances).for_each(|at| fleet.put_instance(at));
        (0..clients).for_each(|at| fleet.put_client(at, at));
        let begun = Instant::now();
        fleet.subsets.settle();
        (fleet, begun.elapsed().as_secs_f64() * 1e3)
    }

    fn site(&self, at: u32) -> Option<&String> {
        self.sites.get(at as usize % self.sites.len().max(1))
    }

    fn weight(&self, at: u32) -> u16 {
        // Neither the same on a site, nor in the same order on all of them.
        self.weights[(at / 7 + at) as usize % self.weights.len()]
    }

    fn put_instance(&mut self, at: u32) {
        let (id, site) = (instance(at), self.site(at).cloned());
        self.subsets.put_instance(Instance {
            id: &id,
            node: at,
            site: site.as_deref(),
            weight: Weight::new(self.weight(at)).unwrap_or_default(),
            serving: Serving::Ready,
        });
    }

    fn put_client(&mut self, index: u32, at: u32) {
        let (name, site) = (node(at), self.site(at).cloned());
        let client = Client { index, name: &name, site: site.as_deref(), fan_out: FAN_OUT };
        self.subsets.put_client(client);
    }

    /// Returns the connections of each instance in proportion to its weight, against the mean, if
    /// every client spreads as many over its subset by weight.
    fn loads(&self) -> Vec<f64> {
        let weight = |at| f64::from(self.weight(at));
        let whole: f64 = (0..INSTANCES).map(weight).sum();
        let number: HashMap<WorkloadId, u32> =
            (0..INSTANCES).map(|at| (instance(at), at)).collect();
        let mut loads = vec![0.0; INSTANCES as usize];
        for client in self.subsets.clients() {
            let subset: Vec<u32> = self.subsets.of(client).map(|id| number[id]).collect();
            let own: f64 = subset.iter().map(|at| weight(*at)).sum();
            for at in subset {
                loads[at as usize] += whole / own / f64::from(CLIENTS);
            }
        }
        loads
    }
}

/// Returns the rows about subsets: `repetitions` of the instances go and come back.
fn subset_rows(repetitions: u32) -> Vec<Row> {
    let mut rows = fleet_rows("", 0, &[100], repetitions);
    rows.extend(fleet_rows(" of weights 50 to 200 on 5 sites", 5, &[100, 50, 200], repetitions));
    rows
}

fn fleet_rows(of: &str, sites: u32, weights: &'static [u16], repetitions: u32) -> Vec<Row> {
    let (mut fleet, whole) = Fleet::new((CLIENTS, INSTANCES), sites, weights);
    let loads = fleet.loads();
    let most = loads.iter().copied().fold(0.0, f64::max);
    let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
    let (mut goes, mut comes, mut client) =
        (Changes::default(), Changes::default(), Changes::default());
    for at in 0..repetitions {
        let gone = instance(at);
        fleet.subsets.remove_instance(&gone);
        goes.settle(&mut fleet.subsets, |id| *id != gone);
        fleet.put_instance(at);
        comes.settle(&mut fleet.subsets, |_| true);
        fleet.put_client(CLIENTS, CLIENTS + at);
        client.settle(&mut fleet.subsets, |_| true);
        fleet.subsets.remove_client(CLIENTS);
        fleet.subsets.settle();
    }
    let case = format!("{CLIENTS} clients, {INSTANCES} instances{of}, subsets of {FAN_OUT}");
    let row = |metric, unit, ours: &[f64], target| {
        Figures { bench: "services", case: case.clone(), metric, unit, ours }.absolute(target)
    };
    vec![
        row("connections: the most loaded instance against the mean", "", &[most], {
            Target::AtMost(1.1)
        }),
        row("connections: the least loaded against the mean", "", &[least], Target::None),
        row("moved beyond its own when an instance goes", "%", &goes.percent, Target::AtMost(1.5)),
        row("moved when an instance comes", "%", &comes.percent, Target::AtMost(4.0)),
        row("moved when a client comes", "%", &client.percent, Target::None),
        row("all subsets computed", "ms", &[whole], Target::None),
        row("subsets after an instance goes", "ms", &goes.milliseconds, Target::None),
        row("subsets after an instance comes", "ms", &comes.milliseconds, Target::None),
        row("subsets after a client comes", "ms", &client.milliseconds, Target::None),
    ]
}

/// Returns the rows about the subsets of so many clients of as many instances, on 20 sites.
fn large_rows(members: u32) -> Vec<Row> {
    let (mut fleet, whole) = Fleet::new((members, members), 20, &[100, 50, 200]);
    let (mut goes, mut comes) = (Changes::default(), Changes::default());
    for at in 0..10 {
        fleet.subsets.remove_instance(&instance(at));
        goes.settle(&mut fleet.subsets, |_| true);
        fleet.put_instance(at);
        comes.settle(&mut fleet.subsets, |_| true);
    }
    let case = format!("{members} clients, {members} instances on 20 sites");
    let row = |metric, ours: &[f64]| {
        let figures = Figures { bench: "services", case: case.clone(), metric, unit: "ms", ours };
        figures.absolute(Target::None)
    };
    vec![
        row("all subsets computed", &[whole]),
        row("subsets after an instance goes", &goes.milliseconds),
        row("subsets after an instance comes", &comes.milliseconds),
    ]
}

/// Returns the rows about the views of nodes, with a service of so many instances that all nodes
/// use.
fn view_rows(instances: u32) -> anyhow::Result<Vec<Row>> {
    let nodes: Vec<_> = (0..20).map(|at| fleet::node(at * 7)).collect();
    let measure = |to: &str| -> anyhow::Result<(Vec<f64>, Vec<f64>, f64)> {
        let begun = Instant::now();
        let world = fleet::world(instances, to)?;
        let seconds = begun.elapsed().as_secs_f64();
        let views: Vec<_> = nodes.iter().map(|node| world.view_of(node)).collect();
        let resources = views.iter().map(|view| view.resources.len() as f64).collect();
        let bytes = views.iter().map(|view| encoded_size(view) as f64 / 1024.0).collect();
        Ok((resources, bytes, seconds))
    };
    let (all, all_bytes, all_seconds) = measure(fleet::BY_LABELS)?;
    let (some, some_bytes, some_seconds) = measure(fleet::BY_SERVICE)?;
    let case = format!("{instances} instances on {} nodes, all of them clients", instances / 10);
    let row = |metric, unit, ours: &[f64], theirs: &[f64], target| {
        let figures = Figures { bench: "services", case: case.clone(), metric, unit, ours };
        figures.against("rules by labels", theirs, target)
    };
    Ok(vec![
        row("view of a node", "resources", &some, &all, Target::AtMost(0.05)),
        row("view of a node, encoded", "KiB", &some_bytes, &all_bytes, Target::AtMost(0.05)),
        row("world loaded", "s", &[some_seconds], &[all_seconds], Target::None),
    ])
}

/// Returns the row about load that doubles: the time until a subset has grown, in a simulation in
/// which a node reports each second and the coordinator looks each half second, both at their
/// latest.
fn growth_row() -> Row {
    let (network, service) = ("shop".parse().expect("a name"), "api".parse().expect("a name"));
    let ids: Vec<WorkloadId> = (0..FAN_OUT as u32).map(instance).collect();
    let client = node(0);
    let mut loads = Loads::default();
    let report = |loads: &mut Loads, open: u32| {
        let load = |instance: &WorkloadId| InstanceLoad {
            network: NetworkName::clone(&network),
            service: ServiceName::clone(&service),
            instance: instance.clone(),
            open,
            begun: open / 4,
            connect_time: None,
        };
        loads.report(&client, ids.iter().map(load).collect());
    };
    let bounds =
        FanOuts { least: FAN_OUT, most: INSTANCES as usize, instances: INSTANCES as usize };
    let grows = |loads: &mut Loads, at: Duration| {
        let instances = ids.iter().collect();
        let subset = Subset { node: &client, fan_out: FAN_OUT, instances };
        !loads.decide((&network, &service), std::iter::once(subset), bounds, at).is_empty()
    };
    let doubled_at = Duration::from_secs(20);
    let mut grown = f64::INFINITY;
    for half in 0..80_u32 {
        let now = Duration::from_millis(500) * half;
        if half % 2 == 0 {
            // What was measured in the second before.
            report(&mut loads, if now > doubled_at { 2 * FLOW_LIMIT / 2 } else { FLOW_LIMIT / 2 });
        }
        if grows(&mut loads, now) {
            grown = (now + LOOKS_EVERY).saturating_sub(doubled_at).as_secs_f64();
            break;
        }
    }
    let case = "load of a subset from half of its limit to all of it".to_owned();
    let metric = "time until it has grown, at the coordinator";
    let figures = Figures { bench: "services", case, metric, unit: "s", ours: &[grown] };
    figures.absolute(Target::AtMost(3.0))
}
