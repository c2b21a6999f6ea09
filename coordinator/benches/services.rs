//! The coordinator's share of services without I/O: `cargo xtask bench services`. Prints figures as
//! JSON.

mod fleet;

use meshward_bench::{Figures, Row, Target};
use meshward_control_proto::{InstanceLoad, encoded_size};
use meshward_control_state::{
    loads::{FLOW_LIMIT, FanOuts, Loads, Subset},
    subsets::{Moves, Subsets},
};
use meshward_types::{NetworkName, NodeName, ServiceName, WorkloadId};
use std::time::{Duration, Instant};

/// Clients, instances, and the fan-out of each client.
const CLIENTS: u32 = 1000;
const INSTANCES: u32 = 100;
const FAN_OUT: usize = 20;
/// The time between two looks of the coordinator at the load.
const LOOKS_EVERY: Duration = Duration::from_millis(500);

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let mut rows = subset_rows(if quick { 10 } else { INSTANCES });
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

/// Returns the rows about subsets: `repetitions` of the instances go and come back.
fn subset_rows(repetitions: u32) -> Vec<Row> {
    let mut subsets = Subsets::default();
    (0..INSTANCES).for_each(|at| subsets.add_instance(&instance(at)));
    (0..CLIENTS).for_each(|at| subsets.put_client(at, &node(at), FAN_OUT));
    let begun = Instant::now();
    subsets.settle();
    let whole = begun.elapsed().as_secs_f64() * 1e3;
    let clients = |at| subsets.clients_of(&instance(at)).count() as f64;
    let clients: Vec<f64> = (0..INSTANCES).map(clients).collect();
    let mean = clients.iter().sum::<f64>() / f64::from(INSTANCES);
    let most = clients.iter().copied().fold(0.0, f64::max) / mean;
    let least = clients.iter().copied().fold(f64::INFINITY, f64::min) / mean;
    let (mut goes, mut comes, mut client) =
        (Changes::default(), Changes::default(), Changes::default());
    for at in 0..repetitions {
        let gone = instance(at);
        subsets.remove_instance(&gone);
        goes.settle(&mut subsets, |id| *id != gone);
        subsets.add_instance(&gone);
        comes.settle(&mut subsets, |_| true);
        subsets.put_client(CLIENTS, &node(CLIENTS + at), FAN_OUT);
        client.settle(&mut subsets, |_| true);
        subsets.remove_client(CLIENTS);
        subsets.settle();
    }
    let case = format!("{CLIENTS} clients, {INSTANCES} instances, subsets of {FAN_OUT}");
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
