//! A link between two nodes, beside other overlay networks in userspace.

use crate::{
    compare::{Figures, Target, best},
    contender::{Contender, OTHERS, Tools},
    measure::{Load, Outcome, aead_floor},
    report::Row,
};
use anyhow::Result;
use meshward_lab::{Site, back_to_back, output};
use std::{path::Path, process::Command, thread, time::Duration};

/// The settings of the cable between the nodes (ethtool's names).
const SETTINGS: [(&str, &[&str]); 3] = [
    // The sender's kernel cuts. The receiver's does not merge: a veth hands only packets of a
    // device without TSO to GRO.
    ("real", &["tx-udp-segmentation", "off", "gro", "on"]),
    // The sender's kernel cuts and the receiver's merges, as with a cloud's network card.
    ("merging", &["tso", "off", "tx-udp-segmentation", "off", "gro", "on"]),
    // Nothing is cut.
    ("virtual", &["tx-udp-segmentation", "on", "gro", "on"]),
];

const LOADS: [(&str, Load); 4] = [
    ("tcp1", Load::Tcp(1)),
    ("tcp4", Load::Tcp(4)),
    ("udp1380", Load::Udp(1380)),
    ("udp64", Load::Udp(64)),
];

/// The extent of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// `true` if loads are sent, `false` if only round trips are measured.
    pub loads: bool,
    /// Pairs of runs, ours and theirs.
    pub pairs: usize,
    /// The time for which each load is sent.
    pub time: Duration,
}

/// One contender's figures in one run.
struct Run {
    outcomes: Vec<Outcome>,
    round_trip: f64,
}

/// Measures throughput and round trips. `quick` measures one short pair, to see that it works.
///
/// # Errors
/// Fails if somebody's tunnel does not come up.
pub fn link(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    in_all_settings(tools, folder, quick, true)
}

/// Measures round trips alone.
///
/// # Errors
/// Fails if somebody's tunnel does not come up.
pub fn round_trips(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    in_all_settings(tools, folder, quick, false)
}

fn in_all_settings(tools: &Tools, folder: &Path, quick: bool, loads: bool) -> Result<Vec<Row>> {
    let extent = extent(quick, loads);
    let mut rows = Vec::new();
    for (setting, features) in SETTINGS {
        rows.extend(in_setting(tools, folder, extent, setting, features)?);
    }
    Ok(rows)
}

fn extent(quick: bool, loads: bool) -> Extent {
    if quick {
        Extent { loads, pairs: 1, time: Duration::from_secs(1) }
    } else {
        Extent { loads, pairs: 5, time: Duration::from_secs(3) }
    }
}

fn in_setting(
    tools: &Tools,
    folder: &Path,
    extent: Extent,
    setting: &str,
    features: &[&str],
) -> Result<Vec<Row>> {
    let (mut ours, mut theirs, mut floors) = (Vec::new(), OTHERS.map(|_| Vec::new()), Vec::new());
    for pair in 0..extent.pairs {
        eprintln!("{setting}: pair {} of {}", pair + 1, extent.pairs);
        floors.push(aead_floor()?);
        // Ours in the middle, so that a slow hour of the machine meets all of them alike.
        for (number, (runs, other)) in theirs.iter_mut().zip(OTHERS).enumerate() {
            if number == OTHERS.len() / 2 {
                ours.push(run(Contender::Meshward, tools, folder, extent, features)?);
            }
            runs.push(run(other, tools, folder, extent, features)?);
        }
    }
    let mut rows =
        if extent.loads { compare(setting, &ours, &theirs, &floors) } else { Vec::new() };
    rows.extend(compare_round_trips(setting, &ours, &theirs));
    Ok(rows)
}

/// Measures the binaries of an earlier commit and ours, alternating, and checks that nothing has
/// become worse.
///
/// # Errors
/// Fails if a tunnel does not come up.
pub fn link_before(tools: &Tools, before: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    let extent = extent(quick, true);
    let mut rows = Vec::new();
    for (setting, features) in SETTINGS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..extent.pairs {
            eprintln!("{setting}: pair {} of {}, with the commit before", pair + 1, extent.pairs);
            let mut turns = [(tools, &mut ours), (before, &mut theirs)];
            // Who begins changes, so that neither always meets the machine as the other has left
            // it.
            if pair % 2 == 1 {
                turns.reverse();
            }
            for (tools, runs) in turns {
                runs.push(run(Contender::Meshward, tools, folder, extent, features)?);
            }
        }
        rows.extend(compare_with_before(setting, &ours, &theirs));
    }
    Ok(rows)
}

/// The least that is asked of a figure beside the commit before: two in a hundred are noise.
const NO_WORSE: f64 = 0.98;

/// Reads one figure of a run.
type Quantity<'a> = &'a dyn Fn(&Run) -> f64;

fn compare_with_before(setting: &str, ours: &[Run], theirs: &[Run]) -> Vec<Row> {
    let row = |case: &str, metric, unit, value: Quantity<'_>, target| {
        let each = |runs: &[Run]| -> Vec<f64> { runs.iter().map(value).collect() };
        let (case, ours) = (format!("{case}/{setting}"), each(ours));
        Figures { bench: "link", case, metric, unit, ours: &ours }.against(
            "before",
            &each(theirs),
            target,
        )
    };
    let (least, most) = (Target::AtLeast(NO_WORSE), Target::AtMost(1.0 / NO_WORSE));
    let mut rows = Vec::new();
    for (load, (name, kind)) in LOADS.iter().enumerate() {
        match kind {
            Load::Tcp(_) => {
                rows.push(row(
                    name,
                    "throughput",
                    "Gbit/s",
                    &|run| run.outcomes[load].gigabits,
                    least,
                ));
                let cpu = |run: &Run| run.outcomes[load].cpu_per_gigabyte;
                rows.push(row(name, "daemons' CPU", "s/GB", &cpu, most));
            }
            Load::Udp(_) => {
                let packets = |run: &Run| run.outcomes[load].kilopackets;
                rows.push(row(name, "packets received", "kpps", &packets, least));
            }
        }
    }
    rows.push(row("rtt", "round trip", "us", &|run| run.round_trip, most));
    rows
}

fn run(
    contender: Contender,
    tools: &Tools,
    folder: &Path,
    extent: Extent,
    features: &[&str],
) -> Result<Run> {
    eprintln!("  {}", contender.name());
    let sites = back_to_back(["left", "right"])?;
    for Site { netns, .. } in &sites {
        output(netns, Command::new("ethtool").args(["-K", "eth0"]).args(features))?;
    }
    let tunnel = contender.start(tools, &sites, folder)?;
    // The handshake, and a first look at whether anything passes.
    tunnel.round_trip(10)?;
    // Before any load, on a link that has come to rest.
    thread::sleep(Duration::from_millis(500));
    let round_trip = tunnel.round_trip(400)?;
    let loads: &[(&str, Load)] = if extent.loads { &LOADS } else { &[] };
    let outcomes = loads.iter().map(|(_, load)| tunnel.run(*load, extent.time, folder));
    Ok(Run { outcomes: outcomes.collect::<Result<_>>()?, round_trip })
}

/// Returns the ratio that our TCP throughput is to have to theirs.
fn tcp_target(other: &str) -> Target {
    match other {
        "gotatun-cli" => Target::AtLeast(3.7),
        "boringtun-cli" | "wireguard-go" => Target::AtLeast(6.0),
        _ => Target::None,
    }
}

fn compare(setting: &str, ours: &[Run], theirs: &[Vec<Run>], floors: &[f64]) -> Vec<Row> {
    let mut rows = Vec::new();
    let each = |runs: &[Run], value: &dyn Fn(&Run) -> f64| -> Vec<f64> {
        runs.iter().map(value).collect()
    };
    let all = |value: &dyn Fn(&Run) -> f64| -> Vec<(&'static str, Vec<f64>)> {
        OTHERS.iter().zip(theirs).map(|(other, runs)| (other.name(), each(runs, value))).collect()
    };
    for (load, (name, kind)) in LOADS.iter().enumerate() {
        let (case, gigabits) =
            (format!("{name}/{setting}"), |run: &Run| run.outcomes[load].gigabits);
        match kind {
            Load::Tcp(_) => {
                let ours = each(ours, &gigabits);
                let figures = Figures {
                    bench: "link",
                    case,
                    metric: "throughput",
                    unit: "Gbit/s",
                    ours: &ours,
                };
                rows.extend(
                    all(&gigabits)
                        .iter()
                        .map(|(n, theirs)| figures.against(n, theirs, tcp_target(n))),
                );
            }
            Load::Udp(size) => {
                let packets = |run: &Run| run.outcomes[load].kilopackets;
                let value: &dyn Fn(&Run) -> f64 = if *size == 64 { &packets } else { &gigabits };
                let (metric, unit, target) = match size {
                    64 => ("packets received", "kpps", Target::AtLeast(1.5)),
                    _ => ("received", "Gbit/s", Target::AtLeast(2.3)),
                };
                let (ours, theirs) = (each(ours, value), all(value));
                let figures = Figures { bench: "link", case, metric, unit, ours: &ours };
                rows.extend(
                    best(&theirs, true).map(|(name, theirs)| figures.against(name, theirs, target)),
                );
            }
        }
    }
    for (load, (name, kind)) in LOADS.iter().enumerate() {
        let Load::Tcp(_) = kind else { continue };
        let (case, cpu) =
            (format!("{name}/{setting}"), |run: &Run| run.outcomes[load].cpu_per_gigabyte);
        let ours = each(ours, &cpu);
        let figures =
            Figures { bench: "link", case, metric: "daemons' CPU", unit: "s/GB", ours: &ours };
        rows.push(figures.against("AEAD floor", floors, Target::AtMost(2.9)));
        rows.extend(
            best(&all(&cpu), false)
                .map(|(name, theirs)| figures.against(name, theirs, Target::None)),
        );
    }
    rows
}

fn compare_round_trips(setting: &str, ours: &[Run], theirs: &[Vec<Run>]) -> Option<Row> {
    let each = |runs: &[Run]| -> Vec<f64> { runs.iter().map(|run| run.round_trip).collect() };
    let all: Vec<(&'static str, Vec<f64>)> =
        OTHERS.iter().zip(theirs).map(|(other, runs)| (other.name(), each(runs))).collect();
    let (case, ours) = (format!("rtt/{setting}"), each(ours));
    let figures = Figures { bench: "link", case, metric: "round trip", unit: "us", ours: &ours };
    best(&all, false).map(|(name, theirs)| figures.against(name, theirs, Target::AtMost(1.0)))
}
