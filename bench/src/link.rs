//! `bench link`: one link between two nodes, beside the other userspace WireGuards, pair by pair.

use crate::{
    contender::{Contender, OTHERS, Tools},
    measure::{Load, Outcome, aead_floor},
    report::{Row, median},
};
use anyhow::Result;
use meshward_lab::{Site, back_to_back, output};
use std::{path::Path, process::Command, time::Duration};

/// How the cable between the nodes behaves.
const SETTINGS: [(&str, &[&str]); 2] = [
    // Near to a cloud's network card: the sender's kernel cuts, the receiver's merges.
    ("real", &["tx-udp-segmentation", "off", "gro", "on"]),
    ("virtual", &["tx-udp-segmentation", "on", "gro", "on"]),
];

const LOADS: [(&str, Load); 4] =
    [("tcp1", Load::Tcp(1)), ("tcp4", Load::Tcp(4)), ("udp1380", Load::Udp(1380)), ("udp64", Load::Udp(64))];

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Pairs of runs, ours and theirs.
    pub pairs: usize,
    /// How long each load is sent.
    pub time: Duration,
}

/// One contender's figures in one run.
struct Run {
    outcomes: Vec<Outcome>,
    round_trip: f64,
}

/// Measures. `quick` takes one short pair, to see that it works.
///
/// # Errors
/// If somebody's tunnel does not come up.
pub fn link(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    let extent = if quick {
        Extent { pairs: 1, time: Duration::from_secs(1) }
    } else {
        Extent { pairs: 5, time: Duration::from_secs(3) }
    };
    let mut rows = Vec::new();
    for (setting, features) in SETTINGS {
        rows.extend(in_setting(tools, folder, extent, setting, features)?);
    }
    Ok(rows)
}

fn in_setting(
    tools: &Tools,
    folder: &Path,
    extent: Extent,
    setting: &str,
    features: &[&str],
) -> Result<Vec<Row>> {
    let (mut ours, mut theirs): (Vec<Run>, Vec<Vec<Run>>) = (Vec::new(), OTHERS.map(|_| Vec::new()).into());
    let mut floors = Vec::new();
    for pair in 0..extent.pairs {
        eprintln!("{setting}: pair {} of {}", pair + 1, extent.pairs);
        floors.push(aead_floor()?);
        ours.push(run(Contender::Meshward, tools, folder, extent, features)?);
        for (runs, other) in theirs.iter_mut().zip(OTHERS) {
            runs.push(run(other, tools, folder, extent, features)?);
        }
    }
    Ok(compare(setting, &ours, &theirs, &floors))
}

fn run(contender: Contender, tools: &Tools, folder: &Path, extent: Extent, features: &[&str]) -> Result<Run> {
    eprintln!("  {}", contender.name());
    let sites = back_to_back(["left", "right"])?;
    for Site { netns, .. } in &sites {
        output(netns, Command::new("ethtool").args(["-K", "eth0"]).args(features))?;
    }
    let tunnel = contender.start(tools, &sites, folder)?;
    // The handshake, and a first look at whether anything passes.
    tunnel.round_trip(10)?;
    let outcomes =
        LOADS.iter().map(|(_, load)| tunnel.run(*load, extent.time, folder)).collect::<Result<_>>()?;
    Ok(Run { outcomes, round_trip: tunnel.round_trip(200)? })
}

/// What is aimed at against whom, as a least ratio: TCP, UDP 1380, UDP 64.
fn target(load: usize, other: &str) -> (&'static str, f64) {
    match (load, other) {
        (0 | 1, "gotatun-cli") => (">= 3.7", 3.7),
        (0 | 1, _) => (">= 6", 6.0),
        (2, _) => (">= 2.3", 2.3),
        _ => (">= 1.5", 1.5),
    }
}

fn compare(setting: &str, ours: &[Run], theirs: &[Vec<Run>], floors: &[f64]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (load, (name, _)) in LOADS.iter().enumerate() {
        let (metric, unit) = if load == 3 { ("packets received", "kpps") } else { ("received", "Gbit/s") };
        let value =
            |run: &Run| if load == 3 { run.outcomes[load].kilopackets } else { run.outcomes[load].gigabits };
        for (other, runs) in OTHERS.iter().zip(theirs) {
            let (text, least) = target(load, other.name());
            let figures =
                Figures { ours: each(ours, value), theirs: each(runs, value), against: other.name() };
            rows.push(figures.row(format!("{name}/{setting}"), metric, unit, text, |ratio| ratio >= least));
        }
    }
    let cpu = each(ours, |run| run.outcomes[0].cpu_per_gigabyte);
    let figures = Figures { ours: cpu, theirs: floors.to_vec(), against: "AEAD floor" };
    rows.push(figures.row(format!("tcp1/{setting}"), "daemons' CPU", "s/GB", "<= 2.9", |ratio| ratio <= 2.9));
    for (other, runs) in OTHERS.iter().zip(theirs) {
        let trip = |run: &Run| run.round_trip;
        let figures = Figures { ours: each(ours, trip), theirs: each(runs, trip), against: other.name() };
        rows.push(figures.row(format!("rtt/{setting}"), "round trip", "us", "<= 1", |ratio| ratio <= 1.0));
    }
    rows
}

fn each(runs: &[Run], value: impl Fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().map(value).collect()
}

/// One quantity, ours and theirs, run by run.
struct Figures {
    ours: Vec<f64>,
    theirs: Vec<f64>,
    against: &'static str,
}

impl Figures {
    fn row(
        &self,
        case: String,
        metric: &'static str,
        unit: &'static str,
        target: &'static str,
        met: impl Fn(f64) -> bool,
    ) -> Row {
        let ratios: Vec<f64> =
            self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs).collect();
        let ratio = median(&ratios);
        let least = self.ours.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.ours.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Row {
            bench: "link",
            case,
            metric,
            unit,
            value: median(&self.ours),
            spread: [least, most],
            against: Some(self.against.to_owned()),
            against_value: Some(median(&self.theirs)),
            ratio: Some(ratio),
            target: Some(target),
            met: Some(met(ratio)),
        }
    }
}
