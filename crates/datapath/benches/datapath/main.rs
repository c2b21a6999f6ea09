//! The packet path by itself, on one core: `cargo bench -p meshward-datapath`. Prints figures as
//! JSON, in the form of `cargo xtask bench`.

mod endpoints;
mod engines;
mod filter;
mod packets;
mod report;
mod services;

use filter::Neighbour;
use packets::To;
use report::{Comparison, row};
use serde_json::Value;
use std::time::Duration;

/// The amount of measuring.
struct Effort {
    /// Runs of each measurement, of which the median counts.
    runs: usize,
    /// The duration of a run of what is repeated.
    time: Duration,
    /// Flows of a run that begins flows.
    flows: u32,
    /// Connections of a run that opens connections.
    connections: u16,
}

const FULL: Effort =
    Effort { runs: 7, time: Duration::from_millis(400), flows: 600_000, connections: 60_000 };
const QUICK: Effort =
    Effort { runs: 1, time: Duration::from_millis(50), flows: 20_000, connections: 6_000 };

fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let effort = if is_quick { QUICK } else { FULL };
    let mut rows = filter_rows(&effort);
    for (case, size) in [("packet/1420 B", 1420), ("packet/92 B", 92)] {
        rows.extend(packet_rows(&effort, case, size));
    }
    rows.extend(service_rows(&effort));
    println!("{}", Value::Array(rows));
}

fn filter_rows(effort: &Effort) -> Vec<Value> {
    let mut rows = Vec::new();
    for (rules, at_least) in [(1, None), (10_000, Some(500_000))] {
        let case = format!("filter/{rules} rules");
        let runs = (0..effort.runs).map(|_| filter::new_flows(rules, effort.flows));
        let values: Vec<f64> = runs.collect();
        let mut row = row(&case, "new flows on one core", "1/s", &values);
        if let Some(least) = at_least {
            let target = format!(">= {least}");
            report::aim(&mut row, &target, "value", |value| value >= f64::from(least));
        }
        rows.push(row);
    }
    let values: Vec<f64> = (0..effort.runs).map(|_| filter::known_flow(effort.time)).collect();
    rows.push(row("filter/10000 rules", "packet of a known flow", "ns", &values));
    rows.push(neighbour_row(effort));
    rows
}

fn neighbour_row(effort: &Effort) -> Value {
    let (mut alone, mut flooded) = (Vec::new(), Vec::new());
    // By turns, so that both meet the same moments of the machine.
    for _ in 0..effort.runs {
        alone.push(filter::connections(effort.connections, Neighbour::None));
        flooded.push(filter::connections(effort.connections, Neighbour::Flooding));
    }
    let mut row = Comparison {
        case: "filter/neighbour",
        metric: "a new connection while a neighbour opens flows as fast as it can",
        ours: &flooded,
        against: "alone",
        theirs: &alone,
    }
    .row();
    report::aim(&mut row, "<= 1.2", "ratio", |ratio| ratio <= 1.2);
    row
}

/// Returns rows of new flows to a service, and of known ones beside those to an instance itself.
fn service_rows(effort: &Effort) -> Vec<Value> {
    let new_flows: Vec<f64> =
        (0..effort.runs).map(|_| services::new_flows(To::Service, effort.flows)).collect();
    let direct: Vec<f64> =
        (0..effort.runs).map(|_| services::new_flows(To::Instance, effort.flows)).collect();
    let (case, metric) = ("services/20 instances", "new flows on one core");
    let (ours, against, theirs) = (&new_flows[..], "to an instance itself", &direct[..]);
    let mut new_row = Comparison { case, metric, ours, against, theirs }.row();
    new_row["unit"] = "1/s".into();
    report::aim(&mut new_row, ">= 1000000", "value", |value| value >= 1e6);
    let mut rows = vec![new_row];
    for size in [1420, 92] {
        let case = format!("services/{size} B");
        rows.push(known_row(effort, &case, |to| endpoints::whole_path(to, size, effort.time)));
    }
    let mut bare = known_row(effort, "services/92 B, on one node", |to| {
        services::known_flow(to, 92, effort.time)
    });
    (bare["target"], bare["met"]) = (Value::Null, Value::Null);
    rows.push(bare);
    rows
}

/// Returns a row of packets of a known flow to the service, beside one to an instance itself.
fn known_row(effort: &Effort, case: &str, measure: impl Fn(To) -> f64) -> Value {
    let (mut service, mut direct) = (Vec::new(), Vec::new());
    // By turns, so that both meet the same moments of the machine.
    for _ in 0..effort.runs {
        service.push(1e9 / measure(To::Service));
        direct.push(1e9 / measure(To::Instance));
    }
    let metric = "packets of a known flow on one core";
    let (ours, against, theirs) = (&service[..], "to an instance itself", &direct[..]);
    let mut row = Comparison { case, metric, ours, against, theirs }.row();
    row["unit"] = "1/s".into();
    report::aim(&mut row, ">= 0.98", "ratio", |ratio| ratio >= 0.98);
    row
}

fn packet_rows(effort: &Effort, case: &str, size: usize) -> [Value; 2] {
    let (mut ours, mut boringtun, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    // By turns, so that all three meet the same moments of the machine.
    for _ in 0..effort.runs {
        ours.push(endpoints::whole_path(To::Instance, size, effort.time));
        boringtun.push(engines::boringtun(size, effort.time));
        floor.push(engines::aead(size, effort.time));
    }
    [("boringtun's engine alone", &boringtun), ("AEAD floor", &floor)].map(|(against, theirs)| {
        let metric = "sent and received, on one core";
        Comparison { case, metric, ours: &ours, against, theirs }.row()
    })
}
