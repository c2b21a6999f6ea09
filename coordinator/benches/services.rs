//! The coordinator's share of services without I/O: `cargo xtask bench services`. Prints figures as
//! JSON.

use meshward_bench::{Figures, Row, Target};
use meshward_control_state::subsets::{Moves, Subsets};
use meshward_types::{NodeName, WorkloadId};
use std::time::Instant;

/// Clients, instances, and the fan-out of each client.
const CLIENTS: u32 = 1000;
const INSTANCES: u32 = 100;
const FAN_OUT: usize = 20;

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let rows = subset_rows(if quick { 10 } else { INSTANCES });
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
