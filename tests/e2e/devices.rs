//! Machines with a stock WireGuard, and endpoints that change their keys.

use crate::{
    support::{Echo, PATIENCE, SILENCE, Shop, Stream, allow, pings, tcp_echoes, udp_echoes},
    wireguard::Stock,
};
use meshward_lab::{Mesh, Site};
use std::{
    fs,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

const POLICY: &str = "network: shop
rules:
  - { name: web-to-db, from: { app: web }, to: { app: db }, allow: [tcp/5432, udp/5432, icmp] }
  - { name: db-to-api, from: { app: db }, to: { app: api }, allow: [tcp/7000] }
  - { name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/7000, udp/7000] }
";

/// A machine with a stock WireGuard.
pub(crate) struct Machine {
    pub site: Site,
    /// The addresses on the mesh, IPv4 first.
    pub addresses: Vec<IpAddr>,
    _stock: Stock,
}

impl Machine {
    /// Does what wg-quick does with a configuration, without its needs of the machine.
    pub(crate) fn new(mesh: &mut Mesh, text: &str) -> Self {
        let line = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
            found.unwrap_or_else(|| panic!("{text}")).to_owned()
        };
        let site = mesh.internet.site("legacy").unwrap();
        let stripped: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("Address") && !line.starts_with("MTU"))
            .collect();
        let file = mesh.folder().join("device.conf");
        fs::write(&file, stripped.join("\n")).unwrap();
        let stock = Stock::start(&site.netns, &file).unwrap();
        let addresses: Vec<IpAddr> =
            line("Address").split(", ").map(|text| text.parse().unwrap()).collect();
        site.netns
            .links(async |links| {
                links.set_mtu("stock0", line("MTU").parse().unwrap()).await?;
                for address in &addresses {
                    links
                        .add_address("stock0", *address, if address.is_ipv4() { 32 } else { 128 })
                        .await?;
                }
                links.set_up("stock0").await?;
                for prefix in line("AllowedIPs").split(", ") {
                    links.add_route("stock0", prefix.parse().unwrap(), None, None).await?;
                }
                Ok(())
            })
            .unwrap();
        Self { site, addresses, _stock: stock }
    }
}

#[test]
fn a_stock_wireguard_joins_by_a_node_and_is_policed_as_a_workload() {
    let mut shop = Shop::new(POLICY);
    let create =
        ["device", "create", "--name", "db-legacy", "--network", "shop", "--label", "app=db"];
    let ambiguous = shop.mesh.meshctl(&create).unwrap_err();
    assert!(format!("{ambiguous:#}").contains("--gateway"), "{ambiguous:#}");
    let create = [&create[..], &["--gateway", "rack"]].concat();
    let text = shop.mesh.meshctl(&create).unwrap();
    let line = |key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
        found.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert_eq!(line("Endpoint").split(':').next().unwrap(), shop.nodes[1].site.v4.to_string());
    let again = shop.mesh.meshctl(&create).unwrap_err();
    assert!(format!("{again:#}").contains("there is a device `db-legacy` already"), "{again:#}");

    let machine = Machine::new(&mut shop.mesh, &text);
    let addresses = &machine.addresses;
    let device = &machine.site.netns;
    let (_db, _api, _closed) =
        (Echo::start(device, 5432), Echo::start(&shop.api.netns, 7000), Echo::start(device, 22));
    let web = &shop.web.netns;
    for (device_at, api_at) in [(addresses[0], shop.api.v4()), (addresses[1], shop.api.v6())] {
        // The node that it joins by, and the workloads there, are as far as those elsewhere: policy
        // decides.
        assert!(
            tcp_echoes(device, api_at, 7000, 100_000, PATIENCE),
            "to a workload of its gateway"
        );
        assert!(!tcp_echoes(device, api_at, 22, 1, SILENCE));
        assert!(tcp_echoes(web, device_at, 5432, 1 << 20, PATIENCE), "from a workload elsewhere");
        assert!(udp_echoes(web, device_at, 5432, 1300, PATIENCE));
        assert!(pings(web, device_at, PATIENCE));
        assert!(!tcp_echoes(web, device_at, 22, 1, SILENCE), "it enforces nothing itself");
    }
    // It cannot speak for another address.
    device
        .links(async |links| links.add_address("stock0", "10.42.9.9".parse().unwrap(), 32).await)
        .unwrap();
    let spoofing = device.run(|| UdpSocket::bind("10.42.9.9:0")).unwrap().unwrap();
    let before = shop.nodes[1].drops("spoofed_by_workload");
    spoofing.send_to(b"x", (shop.api.v4(), 7000)).unwrap();
    shop.mesh.wait(|| shop.nodes[1].drops("spoofed_by_workload") > before).unwrap();

    let shown = shop.mesh.meshctl(&["device", "list"]).unwrap();
    assert!(shown.contains("db-legacy") && shown.contains("app=db"), "{shown}");
    let stream = Stream::start(web, addresses[0], 5432);
    assert!(stream.flows(PATIENCE));
    // Other keys of the gateway, and a restart, are nothing to it.
    shop.mesh.meshctl(&["keys", "rotate", "--keep-old", "1s"]).unwrap();
    assert!(stream.flows(PATIENCE));
    shop.nodes[1].kill();
    shop.nodes[1].start().unwrap();
    assert!(stream.flows(Duration::from_secs(15)), "it comes back by itself");
    shop.mesh.meshctl(&["quarantine", "app=db"]).unwrap();
    assert!(!stream.flows(SILENCE));
    shop.mesh.meshctl(&["release", "app=db"]).unwrap();
    shop.mesh.wait(|| tcp_echoes(web, addresses[0], 5432, 10, SILENCE)).unwrap();
    shop.mesh.meshctl(&["device", "remove", "db-legacy", "--network", "shop"]).unwrap();
    assert!(!tcp_echoes(web, addresses[0], 5432, 10, SILENCE));
    assert!(!tcp_echoes(device, shop.api.v4(), 7000, 10, SILENCE));
}

/// Datagrams with numbers, to an echo and back, without pause.
struct Ticker {
    sent: Arc<AtomicU64>,
    back: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

/// Counts of a [`Ticker`]'s packets.
struct Ticks {
    sent: u64,
    lost: u64,
}

impl Ticker {
    fn start(from: &meshward_netns::Netns, to: IpAddr, port: u16) -> Self {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect((to, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let ticker = Self { sent: Arc::default(), back: Arc::default(), ended: Arc::default() };
        let (sender, sent, ended) =
            (socket.try_clone().unwrap(), ticker.sent.clone(), ticker.ended.clone());
        thread::spawn(move || {
            while !ended.load(Relaxed) {
                sender.send(&sent.load(Relaxed).to_be_bytes()).unwrap();
                sent.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let (back, ended) = (ticker.back.clone(), ticker.ended.clone());
        thread::spawn(move || {
            let mut buffer = [0; 64];
            // What is on its way when the sender ends still counts.
            let mut quiet = 0;
            while !ended.load(Relaxed) || quiet < 3 {
                match socket.recv(&mut buffer) {
                    Ok(_) => {
                        quiet = 0;
                        back.fetch_add(1, Relaxed);
                    }
                    Err(_) => quiet += 1,
                }
            }
        });
        ticker
    }

    fn end(self) -> Ticks {
        self.ended.store(true, Relaxed);
        thread::sleep(Duration::from_millis(600));
        let (sent, back) = (self.sent.load(Relaxed), self.back.load(Relaxed));
        Ticks { sent, lost: sent - back }
    }
}

#[test]
fn keys_change_without_a_packet_lost() {
    let shop = Shop::new(&allow("tcp/7000, udp/7000"));
    let _echo = Echo::start(&shop.api.netns, 7000);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 7000, 10, PATIENCE));
    let keys =
        || shop.nodes.iter().map(|node| node.endpoint().unwrap().public_key).collect::<Vec<_>>();
    let mut known = vec![keys()];
    let ticker = Ticker::start(&shop.web.netns, shop.api.v4(), 7000);
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(500));
        let said = shop.mesh.meshctl(&["keys", "rotate", "--keep-old", "2s"]).unwrap();
        assert!(said.contains("2 of 2 endpoints"), "{said}");
        known.push(keys());
    }
    thread::sleep(Duration::from_secs(3));
    let Ticks { sent, lost } = ticker.end();
    println!("{sent} datagrams were sent there and back, {lost} of them lost");
    assert!(sent > 2000 && lost == 0, "{sent} sent, {lost} lost");
    for (at, pair) in known.iter().enumerate() {
        assert!(
            known[..at].iter().all(|before| before[0] != pair[0] && before[1] != pair[1]),
            "each is new"
        );
    }
    let one = shop.mesh.meshctl(&["keys", "rotate", "--node", "rack"]).unwrap();
    assert!(one.contains("1 of 1 endpoints"), "{one}");
    let none = shop.mesh.meshctl(&["keys", "rotate", "--node", "moon"]).unwrap_err();
    assert!(format!("{none:#}").contains("there is no node `moon`"), "{none:#}");
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 7000, 100_000, PATIENCE));
}

#[test]
fn keys_that_have_had_their_time_change_and_restarts_find_them() {
    let mut mesh = crate::support::mesh();
    let flags = ["--rotate-keys-seconds", "2"];
    let mut nodes = [
        mesh.node("cloud").flags(&flags).start().unwrap(),
        mesh.node("rack").flags(&flags).start().unwrap(),
    ];
    let web = nodes[0].attach("shop", "app=web").unwrap();
    let api = nodes[1].attach("shop", "app=api").unwrap();
    mesh.apply(&allow("tcp/7000, udp/7000")).unwrap();
    let _echo = Echo::start(&api.netns, 7000);
    assert!(tcp_echoes(&web.netns, api.v4(), 7000, 10, PATIENCE));
    let ticker = Ticker::start(&web.netns, api.v4(), 7000);
    let changes = |at: usize| nodes[at].printed().matches("endpoint has another key").count();
    mesh.wait(|| changes(0) >= 3 && changes(1) >= 3).unwrap();
    let Ticks { sent, lost } = ticker.end();
    assert!(lost == 0, "{sent} sent, {lost} lost");
    // A node that starts again has the key that peers know, and the one of before.
    nodes[1].kill();
    nodes[1].start().unwrap();
    assert!(tcp_echoes(&web.netns, api.v4(), 7000, 100_000, Duration::from_secs(10)));
    // Without the coordinator keys stay: nobody could be told.
    mesh.coordinator.kill();
    mesh.wait(|| nodes.iter().all(|node| !node.is_connected())).unwrap();
    let before = [0, 1].map(|at| nodes[at].printed().matches("endpoint has another key").count());
    thread::sleep(Duration::from_secs(4));
    let after = [0, 1].map(|at| nodes[at].printed().matches("endpoint has another key").count());
    assert_eq!(before, after);
    assert!(tcp_echoes(&web.netns, api.v4(), 7000, 1000, PATIENCE));
}
