//! Downloads whose server alone speaks, while what is allowed changes.

use crate::{
    devices::Machine,
    gateways::{Behind, behind},
    support::{Dice, PATIENCE, connect, mesh},
};
use meshward_lab::{Mesh, Node, Uplink, Workload};
use meshward_netns::Netns;
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// The number of times that the connection is denied and allowed again.
const CHANGES: usize = 100;
/// The longest that something is denied or allowed, in milliseconds.
const LONGEST: u64 = 500;
/// The bytes of one write of the server, which pauses for `PAUSE` in between.
const PIECE: usize = 2000;
const PAUSE: Duration = Duration::from_millis(10);
/// The longest time until a client with a stock WireGuard notices that its gateway has restarted:
/// fifteen seconds, and TCP's own pause.
const RECONNECTS: Duration = Duration::from_secs(40);
/// The time in which data that is already received may still come in after its sender was denied.
const UNDER_WAY: Duration = Duration::from_millis(100);

/// Returns the bytes of the stream from an offset on.
fn bytes_at(at: u64) -> impl Iterator<Item = u8> {
    (at..).map(|at| (at % 251) as u8)
}

/// A download, with its progress and the errors that ended it.
#[derive(Clone, Default)]
struct Download {
    received: Arc<AtomicU64>,
    /// The errors that ended the client's side and the server's.
    ends: Arc<Mutex<[Option<ErrorKind>; 2]>>,
}

impl Download {
    fn start(from: &Netns, to: IpAddr, listener: &TcpListener) -> Self {
        let client = connect(from, to, listener.local_addr().unwrap().port(), RECONNECTS).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_read_timeout(None).unwrap();
        let own = Self::default();
        let (sending, receiving) = (own.clone(), own.clone());
        thread::spawn(move || sending.note(1, &Self::send(server)));
        thread::spawn(move || receiving.note(0, &receiving.receive(client)));
        own
    }

    fn note(&self, end: usize, error: &std::io::Error) {
        self.ends.lock().unwrap()[end] = Some(error.kind());
    }

    fn send(mut server: TcpStream) -> std::io::Error {
        let mut sent = 0;
        loop {
            let piece: Vec<u8> = bytes_at(sent).take(PIECE).collect();
            if let Err(error) = server.write_all(&piece) {
                return error;
            }
            sent += PIECE as u64;
            thread::sleep(PAUSE);
        }
    }

    fn receive(&self, mut client: TcpStream) -> std::io::Error {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match client.read(&mut buffer) {
                Err(error) => return error,
                Ok(0) => return ErrorKind::UnexpectedEof.into(),
                Ok(length) => {
                    let received = self.received.load(Relaxed);
                    if !bytes_at(received)
                        .zip(&buffer[..length])
                        .all(|(right, heard)| right == *heard)
                    {
                        return ErrorKind::InvalidData.into();
                    }
                    self.received.store(received + length as u64, Relaxed);
                }
            }
        }
    }

    /// Returns `true` if both ends got a reset.
    fn is_reset(&self) -> bool {
        let told = |end: &Option<ErrorKind>| {
            matches!(end, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
        };
        self.ends.lock().unwrap().iter().all(told)
    }

    /// Waits until more has come, or both ends are told that nothing will. `denied`: for how long
    /// its server has said in vain what it says again, each time after twice as long (RFC 6298
    /// §5.5).
    fn goes_on_or_is_reset(&self, denied: Duration, what: &str) {
        let (before, until) =
            (self.received.load(Relaxed), Instant::now() + 2 * denied + 2 * PATIENCE);
        while self.received.load(Relaxed) == before && !self.is_reset() {
            let ends = *self.ends.lock().unwrap();
            assert!(
                Instant::now() < until,
                "{what}: denied for {denied:?}, hangs at {before} bytes: {ends:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The change after which nothing is allowed any more.
#[derive(Debug, Clone, Copy)]
enum Denial {
    /// The rule allows another port.
    Tightened,
    /// The policy has no rule.
    Emptied,
    /// A guardrail forbids the link.
    Guarded,
    /// The clients are quarantined.
    ClientsQuarantined,
    /// The server is quarantined.
    ServerQuarantined,
}

const DENIALS: [Denial; 5] = [
    Denial::Tightened,
    Denial::Emptied,
    Denial::Guarded,
    Denial::ClientsQuarantined,
    Denial::ServerQuarantined,
];

/// The policy that approves the route; without it machines behind the gateway are not reachable.
const ROUTES: &str = "network: shop\nroutes: [{ name: dc, within: [10.8.0.0/16, fd08::/32] }]\n";

fn policy(port: u16, more: &str) -> String {
    format!(
        "{ROUTES}rules: [{{ name: r, from: {{ app: web }}, to: {{ app: api }}, allow: [tcp/{port}] \
         }}]\n{more}\n"
    )
}

fn deny(mesh: &Mesh, denial: Denial, reset: bool) {
    let guard = "guardrails: [{ name: g, from: { app: web }, to: { app: api }, deny: [any] }]";
    let text = match denial {
        Denial::Tightened => policy(22, ""),
        Denial::Emptied => ROUTES.into(),
        Denial::Guarded => policy(7000, guard),
        Denial::ClientsQuarantined => return quarantine(mesh, "app=web", reset),
        Denial::ServerQuarantined => return quarantine(mesh, "app=api", reset),
    };
    let file = mesh.folder().join("denied.yaml");
    std::fs::write(&file, text).unwrap();
    let reset = if reset { &["--reset"][..] } else { &[] };
    mesh.meshctl(&[&["policy", "apply", &file.to_string_lossy()], reset].concat()).unwrap();
}

fn quarantine(mesh: &Mesh, whom: &str, reset: bool) {
    let reset = if reset { &["--reset"][..] } else { &[] };
    mesh.meshctl(&[&["quarantine", whom], reset].concat()).unwrap();
}

fn allow(mesh: &Mesh, denial: Denial, more: &str) {
    match denial {
        Denial::ClientsQuarantined => drop(mesh.meshctl(&["release", "app=web"]).unwrap()),
        Denial::ServerQuarantined => drop(mesh.meshctl(&["release", "app=api"]).unwrap()),
        _ => drop(mesh.apply(&policy(7000, more)).unwrap()),
    }
}

/// A server, and clients on its node, on another, on one that reaches it by the relay alone, on a
/// device, and behind a gateway.
struct Stand {
    mesh: Mesh,
    nodes: Vec<Node>,
    api: Workload,
    clients: Vec<Netns>,
    _parts: (Machine, Behind, Vec<Workload>),
}

impl Stand {
    fn new() -> Self {
        let mut mesh = mesh();
        let uplinks =
            [("rack", Uplink::Open), ("cloud", Uplink::Open), ("office", Uplink::TcpOnly)];
        let nodes: Vec<Node> = uplinks
            .iter()
            .map(|(name, uplink)| {
                let (site, _) = mesh.internet.site_with_uplink(name, *uplink).unwrap();
                mesh.node_at(site).start().unwrap()
            })
            .collect();
        let api = nodes[0].attach("shop", "app=api").unwrap();
        let webs: Vec<Workload> =
            nodes.iter().map(|node| node.attach("shop", "app=web").unwrap()).collect();
        let create =
            ["device", "create", "--name", "laptop", "--network", "shop", "--label", "app=web"];
        let text = mesh.meshctl(&[&create[..], &["--gateway", "cloud"]].concat()).unwrap();
        let device = Machine::new(&mut mesh, &text);
        mesh.apply(&policy(7000, "")).unwrap();
        let behind = behind(&mesh, &nodes[1], [1500, 1280]);
        behind.speak_from_advertised();
        nodes[1].advertise("shop", &["10.8.0.0/24", "fd08::/64"], "app=web").unwrap();
        let others = [device.site.netns.clone(), behind.far.clone()];
        let clients = webs.iter().map(|own| own.netns.clone()).chain(others).collect();
        Self { mesh, nodes, api, clients, _parts: (device, behind, webs) }
    }
}

#[test]
fn a_download_goes_on_or_both_ends_are_told_whatever_policy_does() {
    let mut stand = Stand::new();
    let listener = stand.api.netns.run(|| TcpListener::bind(("::", 7000))).unwrap().unwrap();
    let ways: Vec<(Netns, IpAddr)> = stand
        .clients
        .iter()
        .flat_map(|client| [stand.api.v4(), stand.api.v6()].map(|to| (client.clone(), to)))
        .collect();
    let start = |(from, to): &(Netns, IpAddr)| Download::start(from, *to, &listener);
    let mut downloads: Vec<Download> = ways.iter().map(start).collect();
    let (mut dice, mut resets) = (Dice::new(), 0);
    for change in 0..CHANGES {
        let denial = dice.of(&DENIALS);
        let (reset, restart) = (dice.below(8) == 0, dice.below(25) == 0);
        let (node, how) = (dice.below(stand.nodes.len() as u64) as usize, dice.below(2));
        let restarted = ["stopped", "killed"][how as usize];
        let restarted = restart.then(|| format!("{} was {restarted}", stand.nodes[node].site.name));
        let what = format!("change {change}: {denial:?}, reset {reset}, {restarted:?}");
        deny(&stand.mesh, denial, reset);
        let since = Instant::now();
        if restart {
            if how == 0 {
                stand.nodes[node].process().stop();
            } else {
                stand.nodes[node].kill();
            }
            stand.nodes[node].start().unwrap();
        }
        thread::sleep(UNDER_WAY.saturating_sub(since.elapsed()));
        let held: Vec<u64> = downloads.iter().map(|own| own.received.load(Relaxed)).collect();
        thread::sleep(Duration::from_millis(dice.below(LONGEST)));
        for (own, held) in downloads.iter().zip(held) {
            assert_eq!(own.received.load(Relaxed), held, "{what}: something was denied and came");
        }
        let denied = since.elapsed();
        allow(&stand.mesh, denial, if dice.below(2) == 0 { "on_deny: reject" } else { "" });
        for ((own, way), number) in downloads.iter_mut().zip(&ways).zip(0..) {
            own.goes_on_or_is_reset(denied, &format!("{what}: download {number}"));
            if own.is_reset() {
                resets += 1;
                *own = start(way);
                own.goes_on_or_is_reset(
                    Duration::ZERO,
                    &format!("{what}: download {number}, anew"),
                );
            }
        }
        thread::sleep(Duration::from_millis(dice.below(LONGEST / 2)));
    }
    let last = |own: &Download| own.received.load(Relaxed);
    println!(
        "{resets} of {} were reset; received at the end: {:?}",
        CHANGES * ways.len(),
        downloads.iter().map(last).collect::<Vec<_>>()
    );
    assert!(downloads.iter().all(|own| own.ends.lock().unwrap().iter().all(Option::is_none)));
}
