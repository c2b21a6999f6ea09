//! A link between two workloads of one node, against two namespaces on a bare bridge; and what many
//! rules cost.

use crate::{
    compare::{Figures, Target},
    contender::{Tools, start_ours},
    measure::{Load, Outcome, Tunnel},
    report::Row,
};
use anyhow::Result;
use meshward_lab::{Internet, back_to_back, host, output};
use meshward_netns::Netns;
use std::{path::Path, process::Command, time::Duration};

/// Runs of one load.
struct Series<'a> {
    load: Load,
    runs: usize,
    /// The time of each run.
    time: Duration,
    /// The folder of iperf3's files.
    folder: &'a Path,
}

impl Series<'_> {
    /// Measures two tunnels by turns. Returns the figures of both.
    fn alternate(
        &self,
        tunnels: [&Tunnel; 2],
        value: impl Fn(&Outcome) -> f64,
    ) -> Result<[Vec<f64>; 2]> {
        let mut figures = [Vec::new(), Vec::new()];
        for run in 0..self.runs {
            // The order alternates, so that neither has the better part.
            for which in [run % 2, 1 - run % 2] {
                let outcome = tunnels[which].run(self.load, self.time, self.folder)?;
                figures[which].push(value(&outcome));
            }
        }
        Ok(figures)
    }
}

/// Measures a same-node link. `quick` measures one short pair, to see that it works.
///
/// # Errors
/// Fails if the daemon or the bridge does not come up.
pub fn local(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    let (runs, time) =
        if quick { (1, Duration::from_secs(1)) } else { (7, Duration::from_secs(3)) };
    let site = Internet::new()?.site("node")?;
    let (ours, bridge) = (start_ours(tools, &[site], crate::contender::RULES)?, bare_bridge()?);
    let mut rows = Vec::new();
    for (name, load) in [("tcp1", Load::Tcp(1)), ("tcp4", Load::Tcp(4))] {
        eprintln!("{name}");
        let series = Series { load, runs, time, folder };
        let [ours, theirs] = series.alternate([&ours, &bridge], |outcome| outcome.gigabits)?;
        let figures = Figures {
            bench: "local",
            case: name.into(),
            metric: "throughput",
            unit: "Gbit/s",
            ours: &ours,
        };
        rows.push(figures.against("veth bridge", &theirs, Target::AtLeast(0.75)));
    }
    Ok(rows)
}

/// Two namespaces on a bridge, without any policy. The MTU is that of a mesh.
fn bare_bridge() -> Result<Tunnel> {
    let (host, ends) = (host()?, [host()?, host()?]);
    let ip = |netns: &Netns, arguments: &str| {
        output(netns, Command::new("ip").args(arguments.split(' ')))
    };
    ip(&host, "link add br0 type bridge")?;
    ip(&host, "link set br0 mtu 1420 up")?;
    for (at, end) in ends.iter().enumerate() {
        let port = format!("port{at}");
        host.links(async |links| {
            links.add_veth(&port, "far").await?;
            links.move_to("far", end, "eth0").await
        })?;
        ip(&host, &format!("link set {port} mtu 1420 master br0 up"))?;
        ip(end, "link set eth0 mtu 1420 up")?;
        ip(end, &format!("address add 10.99.1.{}/24 dev eth0", at + 1))?;
    }
    let [client, server] = ends;
    Ok(Tunnel {
        client,
        server,
        address: "10.99.1.2".parse()?,
        daemons: vec![],
        _keep: vec![Box::new(host)],
    })
}

/// Measures links whose daemons have 10,000 rules loaded against such with one. `quick` measures
/// one short pair.
///
/// # Errors
/// Fails if a daemon does not come up.
pub fn rules(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    let (runs, time) =
        if quick { (1, Duration::from_secs(1)) } else { (41, Duration::from_secs(1)) };
    let many = start_ours(tools, &back_to_back(["left", "right"])?, 10_000)?;
    let one = start_ours(tools, &back_to_back(["left", "right"])?, 1)?;
    let mut rows = Vec::new();
    for (name, load) in [("tcp1", Load::Tcp(1)), ("udp64", Load::Udp(64))] {
        eprintln!("{name}");
        let (metric, unit) =
            if name == "tcp1" { ("throughput", "Gbit/s") } else { ("packets received", "kpps") };
        let value = |outcome: &Outcome| {
            if name == "tcp1" { outcome.gigabits } else { outcome.kilopackets }
        };
        let series = Series { load, runs, time, folder };
        let [many, one] = series.alternate([&many, &one], value)?;
        let figures =
            Figures { bench: "rules", case: format!("{name}/10000"), metric, unit, ours: &many };
        rows.push(figures.against("1 rule", &one, Target::AtLeast(0.97)));
    }
    Ok(rows)
}
