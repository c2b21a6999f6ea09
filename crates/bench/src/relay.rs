//! The throughput of a relay that has one core, beside the same link without it, and its fairness
//! between nodes.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    measure::{Load, Tunnel, pin_threads},
    report::Row,
};
use anyhow::Result;
use meshward_lab::{Mesh, Node};
use meshward_types::relay::is_relayed;
use std::{fs, path::Path, thread, time::Duration};

/// Two nodes with a workload on each.
struct Pair {
    nodes: [Node; 2],
    tunnel: Tunnel,
}

/// Measures, alternating. `quick` does so once and shortly.
///
/// # Errors
/// Fails if a daemon or iperf3 fails.
pub fn relay(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    let (runs, time) = if quick { (1, 2) } else { (5, 5) };
    let time = Duration::from_secs(time);
    let mut mesh = Mesh::start(tools.ours.clone())?;
    mesh.meshctl(&["network", "create", "shop", "--cidr", "10.42.0.0/16"])?;
    let mut relay = mesh.relay("relay")?;
    let pairs = [Pair::new(&mut mesh, ["a", "b"])?, Pair::new(&mut mesh, ["c", "d"])?];
    mesh.apply("network: shop\nrules: [{ name: all, from: {}, to: {}, allow: [any] }]\n")?;
    // With either of the two, relaying has one core.
    for pid in [relay.process.pid(), mesh.coordinator.pid()] {
        pin_threads(pid, 1)?;
    }
    let (mut direct, mut relayed) = (Vec::new(), Vec::new());
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for run in 0..runs {
        eprintln!("run {} of {runs} ...", run + 1);
        set_relayed(&mesh, &pairs[..1], false)?;
        direct.push(pairs[0].tunnel.run(Load::Tcp(1), time, folder)?.gigabits);
        near.push(pairs[0].tunnel.round_trip(100)? / 1000.0);
        set_relayed(&mesh, &pairs[..1], true)?;
        relayed.push(pairs[0].tunnel.run(Load::Tcp(1), time, folder)?.gigabits);
        far.push(pairs[0].tunnel.round_trip(100)? / 1000.0);
    }
    set_relayed(&mesh, &pairs, true)?;
    let (mut shares, mut beside) = (Vec::new(), Vec::new());
    for run in 0..runs {
        eprintln!("sharing {} of {runs} ...", run + 1);
        shares.push(share(&pairs, time, folder)?);
        beside.push(round_trip_beside(&pairs, time, folder)?);
    }
    relay.process.stop();
    let figures = |case: &str, metric, unit, ours| Figures {
        bench: "relay",
        case: case.to_owned(),
        metric,
        unit,
        ours,
    };
    let throughput = figures("tcp1, relay on one core", "throughput", "Gbit/s", &relayed);
    let trips = figures("idle", "round trip", "ms", &far);
    let shares = figures("two pairs, tcp1 each", "lesser share of the greater", "", &shares);
    let beside = figures("one pair, while another sends tcp4", "round trip", "ms", &beside);
    Ok(vec![
        throughput.against("the same link direct", &direct, Target::AtLeast(0.35)),
        trips.against("the same link direct", &near, Target::None),
        shares.absolute(Target::AtLeast(0.5)),
        beside.absolute(Target::None),
    ])
}

/// Returns the lesser throughput of two pairs that use the relay at the same time, as a part of the
/// greater.
fn share(pairs: &[Pair; 2], time: Duration, folder: &Path) -> Result<f64> {
    let folders = ["one", "other"].map(|name| folder.join(name));
    let run = |at: usize| {
        let (tunnel, folder) = (&pairs[at].tunnel, &folders[at]);
        fs::create_dir_all(folder)?;
        tunnel.run(Load::Tcp(1), time, folder)
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let one = run(0)?.gigabits;
        let other = other.join().map_err(|_| anyhow::anyhow!("a run ended"))??.gigabits;
        Ok(one.min(other) / one.max(other))
    })
}

/// Returns the round trip of a pair, in milliseconds, while another loads the relay.
fn round_trip_beside(pairs: &[Pair; 2], time: Duration, folder: &Path) -> Result<f64> {
    thread::scope(|scope| {
        let flood = scope.spawn(|| pairs[0].tunnel.run(Load::Tcp(4), time, folder));
        thread::sleep(Duration::from_millis(700));
        let trip = pairs[1].tunnel.round_trip(100);
        flood.join().map_err(|_| anyhow::anyhow!("a run ended"))??;
        Ok(trip? / 1000.0)
    })
}

impl Pair {
    fn new(mesh: &mut Mesh, names: [&str; 2]) -> Result<Self> {
        let mut nodes = [mesh.node(names[0]).start()?, mesh.node(names[1]).start()?];
        let client = nodes[0].attach("shop", "app=client")?;
        let server = nodes[1].attach("shop", "app=server")?;
        let daemons = nodes.iter_mut().map(|node| node.process().pid()).collect();
        let (address, client, server) = (server.v4(), client.netns.clone(), server.netns.clone());
        Ok(Self { nodes, tunnel: Tunnel { client, server, address, daemons, _keep: vec![] } })
    }

    /// Returns whether both nodes send by a relay; `None` before they send at all.
    fn is_relayed(&self) -> Option<bool> {
        let of = |node: &Node, other: &Node| {
            let mut peers = node.endpoint().ok()?.peers.into_iter();
            let peer = peers.find(|peer| peer.node.as_str() == other.site.name)?;
            Some(is_relayed(&peer.address?))
        };
        let both = [of(&self.nodes[0], &self.nodes[1])?, of(&self.nodes[1], &self.nodes[0])?];
        (both[0] == both[1]).then_some(both[0])
    }
}

/// Lets the nodes of pairs reach each other directly or not, and waits until they do so or go by
/// the relay.
fn set_relayed(mesh: &Mesh, pairs: &[Pair], relayed: bool) -> Result<()> {
    let of_pair = |pair: &Pair| {
        let [a, b] = [&pair.nodes[0].site, &pair.nodes[1].site];
        format!(
            "ip saddr {{ {0}, {1} }} ip daddr {{ {0}, {1} }} udp dport 51820-51900 drop
ip6 saddr {{ {2}, {3} }} ip6 daddr {{ {2}, {3} }} udp dport 51820-51900 drop
",
            a.v4, b.v4, a.v6, b.v6
        )
    };
    mesh.internet.impair(&if relayed {
        pairs.iter().map(of_pair).collect::<String>()
    } else {
        String::new()
    })?;
    mesh.wait(|| {
        pairs.iter().all(|pair| {
            let _ = pair.tunnel.round_trip(5);
            pair.is_relayed() == Some(relayed)
        })
    })
}
