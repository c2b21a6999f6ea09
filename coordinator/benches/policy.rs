//! The coordinator's plans without I/O, with a million workloads: `cargo xtask bench policy`.
//! Prints figures as JSON.

mod shape;

use meshward_bench::{Figures, Row, Target};
use meshward_control_state::{
    Plan,
    plans::{
        policies::{self, Submission},
        workloads::{self, Report},
    },
    world::{Deltas, World},
};
use meshward_types::{PolicyFile, Revision, WorkloadId};
use shape::{APPS, NODES, Shape};
use std::{collections::BTreeSet, time::Instant};

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let shape = if quick { Shape { tenants: 20 } } else { Shape::FULL };
    let mut rows = Vec::new();
    let small = if quick { Shape { tenants: 2 } } else { Shape { tenants: 10 } };
    eprintln!("a tenth ...");
    let (mut tenth, _) = compile(small, 1);
    eprintln!("the whole ...");
    let (mut world, seconds) = compile(shape, if quick { 1 } else { 5 });
    let case = format!(
        "{} workloads, {} identities, {} rules, {} nodes",
        world.workloads().count(),
        world.networks[&shape::network()].links.identities().count(),
        shape.tenants * shape::RULES,
        shape.nodes()
    );
    let row = |metric, unit, ours: &[f64], target| {
        Figures { bench: "policy", case: case.clone(), metric, unit, ours }.absolute(target)
    };
    rows.push(row("full compile", "s", &seconds, Target::AtMost(5.0)));
    let repetitions = if quick { 20 } else { 300 };
    let mut ours = Changes::default();
    let mut theirs = Changes::default();
    for at in 0..repetitions {
        eprint!("\rchanges {at}/{repetitions} ");
        // In turns, so that both meet the same moments of the machine.
        ours.measure(&mut world, shape, at);
        theirs.measure(&mut tenth, small, at);
    }
    eprintln!();
    for (metric, values) in [
        ("workload started", &ours.start),
        ("workload stopped", &ours.stop),
        ("workload relabelled", &ours.relabel),
    ] {
        rows.push(row(metric, "ms", values, Target::AtMost(2.0)));
    }
    rows.push(row("one rule changed", "ms", &ours.rule, Target::AtMost(100.0)));
    rows.push(row("nodes told of a start", "nodes", &ours.nodes, Target::None));
    for (metric, values, tenth) in [
        ("workload started, against a tenth of the mesh", &ours.start, &theirs.start),
        ("workload stopped, against a tenth of the mesh", &ours.stop, &theirs.stop),
        ("workload relabelled, against a tenth of the mesh", &ours.relabel, &theirs.relabel),
    ] {
        let figures =
            Figures { bench: "policy", case: case.clone(), metric, unit: "ms", ours: values };
        rows.push(figures.against("a tenth", tenth, Target::AtMost(1.5)));
    }
    rows.extend(lock_rows(&tenth, small, if quick { 5 } else { 30 }));
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

/// Returns the rows about reads under the mesh's lock.
fn lock_rows(world: &World, shape: Shape, repetitions: usize) -> Vec<Row> {
    eprintln!("what is looked at under the mesh's lock ...");
    let locks = Locks::measure(world, shape, repetitions);
    let case = format!("{} workloads, {} nodes", world.workloads().count(), shape.nodes());
    let row = |metric, values: &[f64], target| {
        let figures =
            Figures { bench: "policy", case: case.clone(), metric, unit: "ms", ours: values };
        figures.absolute(target)
    };
    vec![
        row("lock: the view of a node that knows all", &locks.view, Target::AtMost(10.0)),
        row("lock: its digest", &locks.digest, Target::AtMost(10.0)),
        row("lock: other admission, nobody moves", &locks.stays, Target::AtMost(10.0)),
        row("lock: other admission, one application moves", &locks.some, Target::AtMost(10.0)),
        row("lock: other admission, all are refused", &locks.all, Target::None),
        row("lock: judging beside the world, the longest look", &locks.looks, Target::AtMost(10.0)),
    ]
}

/// Milliseconds for which the mesh's lock is held to read.
#[derive(Default)]
struct Locks {
    view: Vec<f64>,
    digest: Vec<f64>,
    stays: Vec<f64>,
    some: Vec<f64>,
    all: Vec<f64>,
    looks: Vec<f64>,
}

impl Locks {
    fn measure(world: &World, shape: Shape, repetitions: usize) -> Self {
        let mut locks = Self::default();
        // This node runs the service that everybody uses.
        let node = shape::node(0);
        let one = "tenant: t0, app: a1";
        for _ in 0..repetitions {
            locks.view.push(timed_read(|| world.view_parts(&node)).0);
            locks.digest.push(timed_read(|| world.digest_of(&node)).0);
        }
        // After the others: what plans of all workloads leave behind, the allocator puts in order
        // in whatever asks it next.
        for _ in 0..repetitions {
            for (into, rule) in [
                (&mut locks.stays, "images: ['registry.example/*'], for: { app: none }".to_owned()),
                (&mut locks.some, format!("images: ['registry.example/*'], for: {{ {one} }}")),
                (&mut locks.all, "images: ['registry.example/*']".to_owned()),
            ] {
                let reads = AdmissionReads::measure(world, shape, &rule);
                into.push(reads.plan);
                locks.looks.push(reads.longest);
            }
        }
        locks
    }
}

/// The milliseconds for which other admission reads the world.
struct AdmissionReads {
    plan: f64,
    /// The longest read before the plan.
    longest: f64,
}

impl AdmissionReads {
    fn measure(world: &World, shape: Shape, rule: &str) -> Self {
        let text = format!("{}admission: [{{ name: own, {rule} }}]\n", shape.policy(0));
        let files = vec![PolicyFile { name: "policy.yaml".into(), text }];
        let wanted = Submission { files: files.into(), guardrails: true, ..Submission::default() };
        let basis = policies::Basis::of(world);
        let prepared = policies::prepare(&basis, &wanted, None).expect("a policy");
        let longest = std::cell::Cell::new(0_f64);
        let look = |look: &mut dyn FnMut(&World)| {
            let (ms, ()) = timed_read(|| look(world));
            longest.set(longest.get().max(ms));
        };
        let judged = prepared.judges(&basis).into_iter().map(|(name, policy)| {
            let judging = policies::preview_admission(&look, &name, &policy);
            (name, judging.precomputed)
        });
        let judged = judged.collect();
        let nothing = BTreeSet::new();
        let plan = || policies::plan(world, &prepared, &wanted, &judged, Some(&nothing));
        let (ms, plan) = timed_read(plan);
        assert!(plan.is_ok_and(|plan| !plan.mutations.is_empty()), "there is a policy to write");
        Self { plan: ms, longest: longest.get() }
    }
}

/// Measures a read under a lock, in milliseconds; the result is dropped afterwards.
fn timed_read<T>(look: impl FnOnce() -> T) -> (f64, T) {
    let begun = Instant::now();
    let found = look();
    (begun.elapsed().as_secs_f64() * 1000.0, found)
}

fn compile(shape: Shape, runs: usize) -> (World, Vec<f64>) {
    let records = shape.records("key");
    let (mut seconds, mut world) = (Vec::new(), World::default());
    for _ in 0..runs {
        // The one before is dropped first: a coordinator never has two of them.
        drop(std::mem::take(&mut world));
        let records = records.clone();
        let begun = Instant::now();
        world = World::load(Revision(1), records).expect("the records fit");
        seconds.push(begun.elapsed().as_secs_f64());
    }
    (world, seconds)
}

/// Milliseconds of each change, from the request to all its deltas.
#[derive(Default)]
struct Changes {
    start: Vec<f64>,
    stop: Vec<f64>,
    relabel: Vec<f64>,
    rule: Vec<f64>,
    nodes: Vec<f64>,
}

impl Changes {
    fn measure(&mut self, world: &mut World, shape: Shape, at: u32) {
        // Somewhere in the mesh, but not where everybody's service runs.
        let node = NODES + (at * 7919) % (shape.nodes() - NODES);
        let labels = |shift: u32| shape::labels(node / NODES, (at * 31 + shift) % APPS);
        let started = shape::report(node, "new", 200, labels(0));
        let relabelled = shape::report(node, "new", 200, labels(1));
        let id: WorkloadId = started.id.clone();
        let (ms, deltas) =
            timed(world, |world| plan_report(world, node, Report::Started(started.clone().into())));
        self.start.push(ms);
        self.nodes.push(deltas.touched().len() as f64);
        self.relabel.push(
            timed(world, |world| {
                plan_report(world, node, Report::Started(relabelled.clone().into()))
            })
            .0,
        );
        self.stop
            .push(timed(world, |world| plan_report(world, node, Report::Stopped(id.clone()))).0);
        if at.is_multiple_of(10) {
            let files = [PolicyFile { name: "policy.yaml".into(), text: shape.policy(1 + at) }];
            let wanted = Submission {
                files: files.to_vec().into(),
                guardrails: true,
                ..Submission::default()
            };
            let apply = |world: &World| {
                let plan = policies::apply(world, &wanted).expect("a policy");
                plan.with_outcome(())
            };
            let (ms, deltas) = timed(world, apply);
            assert!(!deltas.touched().is_empty(), "the rule concerns a node");
            self.rule.push(ms);
        }
    }
}

/// Plans one report of a node.
fn plan_report(world: &World, node: u32, report: Report) -> Plan<()> {
    let (node, reports) = (shape::node(node), [report]);
    let plan = workloads::plan_reports(world, &[(&node, &reports)]);
    assert!(
        plan.outcome.iter().all(|outcome| outcome.as_ref().is_ok_and(Vec::is_empty)),
        "it is admitted"
    );
    plan.with_outcome(())
}

fn timed(world: &mut World, plan: impl Fn(&World) -> Plan<()>) -> (f64, Deltas) {
    let begun = Instant::now();
    let plan = plan(world);
    let deltas = world.apply(world.revision.next(), &plan.mutations, &plan.policies);
    let milliseconds = begun.elapsed().as_secs_f64() * 1000.0;
    assert!(!deltas.all.is_empty(), "a node gets a delta");
    (milliseconds, deltas)
}
