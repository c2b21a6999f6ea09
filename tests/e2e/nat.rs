//! Any two nodes connect, whatever uplinks they have: directly where that is possible, otherwise
//! through the relay.

use crate::support::{Echo, PATIENCE, SILENCE, Stream, allow, mesh, tcp_echoes, udp_echoes};
use meshward_lab::{
    Internet, Mesh, NatBehavior, NatProfile, Node, Process, Uplink, Workload, output,
};
use meshward_types::relay::is_relayed;
use std::{
    fmt::Write,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// The length of the transfer for the throughput in the table, in bytes.
const SENT: usize = 2_000_000;
/// The number of pairs that are measured at a time.
const AT_ONCE: usize = 2;
/// The time after which a relayed path counts as relayed for good.
const STAYS: Duration = Duration::from_secs(4);

/// Two nodes at sites with an uplink each, and a workload on each node.
pub(crate) struct Pair {
    pub web: Workload,
    pub api: Workload,
    pub nodes: [Node; 2],
    pub echo: Echo,
    pub mesh: Mesh,
}

impl Pair {
    pub(crate) fn new(uplinks: [Uplink; 2]) -> Self {
        Self::of(mesh(), uplinks)
    }

    /// Starts a pair in an existing mesh.
    pub(crate) fn of(mesh: Mesh, uplinks: [Uplink; 2]) -> Self {
        Self::made(mesh, uplinks, |_, _, _| {})
    }

    /// Starts a pair, after a change to each site, which is given by number and name.
    pub(crate) fn made(
        mut mesh: Mesh,
        uplinks: [Uplink; 2],
        changes: impl Fn(&Internet, usize, &str),
    ) -> Self {
        let (mut nodes, mut seen) = (Vec::new(), Vec::new());
        for (at, (name, uplink)) in ["cloud", "rack"].into_iter().zip(uplinks).enumerate() {
            let (site, address) = mesh.internet.site_with_uplink(name, uplink).unwrap();
            changes(&mesh.internet, at, name);
            nodes.push(mesh.node_at(site).start().unwrap());
            seen.push(address);
        }
        let nodes: [Node; 2] = nodes.try_into().ok().unwrap();
        // With packet loss, the first update from the coordinator may be late.
        mesh.wait(|| nodes.iter().all(|node| node.endpoint().is_ok())).unwrap();
        let web = nodes[0].attach("shop", "app=web").unwrap();
        let api = nodes[1].attach("shop", "app=api").unwrap();
        // Each node has learned its outer address.
        for (node, seen) in nodes.iter().zip(&seen) {
            let seen = format!("seen_as=[{seen}:");
            let found_out =
                |printed: String| printed.contains(&seen) || printed.contains("relay reached");
            mesh.wait(|| found_out(node.printed())).unwrap();
        }
        mesh.apply(&allow("tcp/7000, udp/7000")).unwrap();
        let echo = Echo::start(&api.netns, 7000);
        Self { web, api, nodes, echo, mesh }
    }

    /// Connects, and returns the time to the first byte and to a direct path; `None` if the path
    /// stays relayed.
    pub(crate) fn meet(&self) -> (Duration, Option<Duration>) {
        self.meet_within(STAYS)
    }

    /// Connects, and waits up to `stays` for a direct path.
    fn meet_within(&self, stays: Duration) -> (Duration, Option<Duration>) {
        let begun = Instant::now();
        assert!(
            tcp_echoes(&self.web.netns, self.api.v4(), 7000, 1, PATIENCE),
            "the nodes do not meet"
        );
        let first = begun.elapsed();
        while begun.elapsed() < stays {
            if self.is_direct() {
                return (first, Some(begun.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        (first, None)
    }

    /// Returns whether both nodes send to each other without the relay.
    fn is_direct(&self) -> bool {
        self.nodes.iter().all(|node| {
            let address = node.peer().ok().and_then(|peer| peer.address);
            address.is_some_and(|address| !is_relayed(&address))
        })
    }
}

/// Returns whether two nodes can have a direct path. A NAT with address- and port-dependent mapping
/// sends from a port that the peer cannot know, so a peer that filters by port drops its packets.
fn can_be_direct([a, b]: [Uplink; 2]) -> bool {
    let port = NatBehavior::AddressAndPortDependent;
    let maps_by_port = |uplink: Uplink| uplink.nats().iter().any(|nat| nat.mapping == port);
    let filters_by_port = |uplink: Uplink| {
        uplink == Uplink::Firewall || uplink.nats().iter().any(|nat| nat.filtering == port)
    };
    let never = |uplink| matches!(uplink, Uplink::TcpOnly | Uplink::OneWay);
    let blocked = |one, other| never(one) || maps_by_port(one) && filters_by_port(other);
    !blocked(a, b) && !blocked(b, a)
}

/// Measures a pair, and returns its line of the table.
fn line([a, b]: [Uplink; 2]) -> String {
    let pair = Pair::new([a, b]);
    // A lost probe is repeated after a while.
    let stays = if [a, b].contains(&Uplink::Lossy) { 3 * STAYS } else { STAYS };
    let (first, direct) = pair.meet_within(stays);
    assert_eq!(direct.is_some(), can_be_direct([a, b]), "{a} and {b}");
    let begun = Instant::now();
    let patience = 4 * PATIENCE;
    assert!(tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, SENT, patience), "{a} and {b}");
    let rate = 8.0 * SENT as f64 / begun.elapsed().as_secs_f64() / 1e6;
    let path = if direct.is_some() { "direct" } else { "relay" };
    let after = direct.map_or("-".to_owned(), |direct| format!("{} ms", direct.as_millis()));
    format!("| {a}, {b} | {path} | {} ms | {after} | {rate:.0} Mbit/s |", first.as_millis())
}

/// With `WRITE_CONNECTIVITY`, writes the table of docs/connectivity.md.
#[test]
fn nodes_meet_across_every_pair_of_uplinks() {
    let pairs: Vec<[Uplink; 2]> = Uplink::ALL
        .into_iter()
        .enumerate()
        .flat_map(|(at, a)| Uplink::ALL.into_iter().skip(at).map(move |b| [a, b]))
        .collect();
    let next = AtomicUsize::new(0);
    let mut lines: Vec<(usize, String)> = std::thread::scope(|scope| {
        let work = || {
            let mut lines = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(pair) = pairs.get(at) else { return lines };
                lines.push((at, line(*pair)));
            }
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    lines.sort_unstable();
    let mut table = String::from(
        "| uplinks | path | first byte | direct after | throughput |\n|---|---|---|---|---|\n",
    );
    for (_, line) in &lines {
        writeln!(table, "{line}").unwrap();
    }
    println!("{table}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/connectivity.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once("<!-- table -->\n").unwrap();
    let (old, after) = rest.split_once("<!-- end -->").unwrap();
    if std::env::var_os("WRITE_CONNECTIVITY").is_some() {
        let whole = format!("{before}<!-- table -->\n{table}<!-- end -->{after}");
        return std::fs::write(&page, whole).unwrap();
    }
    let paths = |table: &str| -> Vec<String> {
        table.lines().map(|line| line.split('|').take(3).collect::<Vec<_>>().join("|")).collect()
    };
    assert_eq!(
        paths(old)[2..],
        paths(&table)[2..],
        "write the table again with WRITE_CONNECTIVITY=1"
    );
}

#[test]
fn a_router_that_maps_ports_makes_nodes_behind_it_reachable() {
    let mut mesh = mesh();
    let (mut nodes, mut router) = (Vec::new(), None);
    for name in ["cloud", "rack"] {
        let (site, seen) =
            mesh.internet.site_with_uplink(name, Uplink::Nat(NatProfile::APDM_APDF)).unwrap();
        if name == "rack" {
            router = Some(map_ports(&mesh, seen));
        }
        nodes.push(mesh.node_at(site).start().unwrap());
    }
    let web = nodes[0].attach("shop", "app=web").unwrap();
    let api = nodes[1].attach("shop", "app=api").unwrap();
    mesh.wait(|| nodes[1].printed().contains("the router has mapped a port")).unwrap();
    mesh.apply(&allow("tcp/7000, udp/7000")).unwrap();
    let echo = Echo::start(&api.netns, 7000);
    let nodes: [Node; 2] = nodes.try_into().ok().unwrap();
    let pair = Pair { web, api, nodes, echo, mesh };
    let (first, direct) = pair.meet();
    println!("first byte after {first:?}, direct after {direct:?}");
    assert!(direct.is_some(), "the router of one of two NATs maps a port");
    drop(router);
}

/// Starts a server of PCP and NAT-PMP on the newest gateway.
fn map_ports(mesh: &Mesh, seen: Ipv4Addr) -> Process {
    let gateway = mesh.internet.gateways().last().unwrap();
    let tables = "table inet filter {
chain miniupnpd {}
chain forward { type filter hook forward priority 0; jump miniupnpd; }
chain prerouting_miniupnpd {}
chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
chain postrouting_miniupnpd {}
chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; }
}
";
    let nft = |rules: &str| output(gateway, Command::new("nft").arg(rules)).unwrap();
    nft(tables);
    // It maps ports of public addresses only: within these namespaces, this one is the router's.
    mesh.internet.also_at(gateway, seen, Ipv4Addr::new(45, 0, 0, 2)).unwrap();
    let file = mesh.folder().join("miniupnpd.conf");
    let settings = "ext_ifname=eth0
listening_ip=inside
enable_natpmp=yes
enable_upnp=no
secure_mode=yes
ext_ip=45.0.0.2
allow 1-65535 0.0.0.0/0 1-65535
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
uuid=6d657368-7761-7264-0000-000000000000
";
    std::fs::write(&file, settings).unwrap();
    let mut daemon = Command::new("miniupnpd");
    daemon.arg("-d").arg("-f").arg(&file).arg("-P").arg(mesh.folder().join("miniupnpd.pid"));
    let log = mesh.folder().join("miniupnpd.log");
    Process::start(gateway, &mut daemon, &log).unwrap()
}

#[test]
fn what_is_relayed_is_all_that_was_sent() {
    let pair = Pair::new([Uplink::Nat(NatProfile::APDM_APDF); 2]);
    assert!(tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, 3_000_000, PATIENCE));
    assert!(
        udp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1380, PATIENCE),
        "a packet of the full MTU"
    );
    let shown = pair.nodes[0].meshctl(&["--context", "/dev/null", "status"]).unwrap();
    assert!(shown.contains("by relay 1"), "{shown}");
}

#[test]
fn where_only_tcp_passes_nodes_join_and_meet() {
    let pair = Pair::new([Uplink::TcpOnly; 2]);
    assert!(tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, 3_000_000, PATIENCE));
    assert!(
        udp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1380, PATIENCE),
        "a packet of the full MTU"
    );
    let shown = pair.nodes[0].meshctl(&["--context", "/dev/null", "status"]).unwrap();
    assert!(shown.contains("by relay 1"), "{shown}");
    // Updates from the coordinator arrive, too.
    let stream = Stream::start(&pair.web.netns, pair.api.v4(), 7000);
    assert!(stream.flows(PATIENCE));
    pair.mesh.meshctl(&["quarantine", "app=api"]).unwrap();
    assert!(!stream.flows(SILENCE));
}

#[test]
fn what_a_nat_knows_is_kept_while_nobody_speaks() {
    let pair = Pair::new([Uplink::Nat(NatProfile::EIM_APDF); 2]);
    pair.meet();
    std::thread::sleep(Duration::from_secs(25));
    let begun = Instant::now();
    assert!(tcp_echoes(&pair.web.netns, pair.api.v4(), 7000, 1000, PATIENCE));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(pair.is_direct());
}

#[test]
fn where_long_packets_and_all_fragments_are_lost_transfers_do_not_stall() {
    let mut mesh = mesh();
    let nodes = [mesh.node("cloud").start().unwrap(), mesh.node("rack").start().unwrap()];
    let web = nodes[0].attach("shop", "app=web").unwrap();
    let api = nodes[1].attach("shop", "app=api").unwrap();
    mesh.internet.narrow_silently(&nodes[1].site, 1280).unwrap();
    mesh.apply(&allow("tcp/7000, udp/7000")).unwrap();
    let _echo = Echo::start(&api.netns, 7000);
    for to in [api.v4(), api.v6()] {
        let begun = Instant::now();
        assert!(tcp_echoes(&web.netns, to, 7000, 4 << 20, PATIENCE), "TCP to {to}");
        println!("4 MB there and back took {:?}", begun.elapsed());
    }
    let path_mtu = || nodes[0].peer().ok().and_then(|peer| peer.path_mtu);
    mesh.wait(|| path_mtu().is_some()).unwrap();
    let found = path_mtu().unwrap();
    assert!((1180..=1220).contains(&found), "{found}");
    // A datagram that does not fit is lost, but its sender is told: the next ones fit.
    let told = |size| udp_echoes(&web.netns, api.v4(), 7000, size, Duration::from_secs(1));
    assert!(!told(1300));
    assert!(told(1300) || told(1300), "in fragments of its own, and so does the answer");
}

#[test]
fn a_way_that_is_open_in_one_direction_is_not_used() {
    for blocked in [0, 1] {
        let pair = Pair::new([Uplink::Open; 2]);
        let sites = [&pair.nodes[blocked].site, &pair.nodes[1 - blocked].site];
        let rules = format!(
            "ip saddr {} ip daddr {} udp dport 51820-51900 drop\n\
             ip6 saddr {} ip6 daddr {} udp dport 51820-51900 drop",
            sites[0].v4, sites[1].v4, sites[0].v6, sites[1].v6
        );
        pair.mesh.internet.impair(&rules).unwrap();
        let (first, direct) = pair.meet();
        assert!(first < Duration::from_secs(1) && direct.is_none(), "{first:?} {direct:?}");
        let stream = Stream::start(&pair.web.netns, pair.api.v4(), 7000);
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            assert!(
                stream.flows(Duration::from_millis(600)),
                "no stall while other ways are tried"
            );
        }
        // The way opens in the other direction too, and is found.
        pair.mesh.internet.impair("").unwrap();
        pair.mesh.wait(|| pair.is_direct()).unwrap();
        // And it is lost again in one direction, under way.
        pair.mesh.internet.impair(&rules).unwrap();
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(50));
        assert!(stream.flows(PATIENCE));
        println!("direction {blocked} lost: the stall was {:?}", begun.elapsed());
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(200));
            assert!(stream.flows(Duration::from_secs(1)));
        }
    }
}

#[test]
fn a_running_transfer_goes_on_when_an_address_changes() {
    let pair = Pair::new([Uplink::Open; 2]);
    pair.meet();
    let stream = Stream::start(&pair.web.netns, pair.api.v4(), 7000);
    assert!(stream.flows(PATIENCE));
    for (node, last) in pair.nodes.iter().zip([77, 78]) {
        let site = &node.site;
        let [a, b, c, _] = site.v4.octets();
        let (new, router) = (Ipv4Addr::new(a, b, c, last), Ipv4Addr::new(a, b, c, 1));
        site.netns
            .links(async |links| {
                links.remove_address("eth0", site.v6.into()).await?;
                links.remove_address("eth0", site.v4.into()).await?;
                links.add_address("eth0", new.into(), 24).await?;
                links
                    .add_route("eth0", "0.0.0.0/0".parse().unwrap(), Some(router.into()), None)
                    .await
            })
            .unwrap();
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(5));
        assert!(stream.flows(PATIENCE), "{}", site.name);
        println!("{}: the stall was {:?}", site.name, begun.elapsed());
        assert!(stream.flows(PATIENCE));
    }
}
