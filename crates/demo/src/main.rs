//! The main job, shown: join, connect, enforce, balance, quarantine, on real traffic.
//!
//! `cargo xtask demo` builds it, with the programs that it runs.
#![forbid(unsafe_code)]

mod services;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use meshward_lab::{Binaries, Mesh, NatProfile, Node, Rights, Uplink, Workload, become_root};
use meshward_netns::Netns;
use meshward_policy::{NewFlow, Policy};
use meshward_types::{Labels, Protocol, Verdict, relay::is_relayed};
use nix::unistd::geteuid;
use std::{
    io::{IsTerminal, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Three sites, a shop, its policy on the wire, a service, and a quarantine, in namespaces that end
/// with this program.
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Options {
    /// Leave everything running at the end, and say how to look around
    #[arg(long)]
    keep: bool,
    /// The folder of the binaries [default: that of this program]
    #[arg(long, value_name = "FOLDER")]
    binaries: Option<PathBuf>,
}

/// The example's policy.
const POLICY: &str = include_str!("../../../examples/shop/policy.yaml");

/// A part of the shop: its name, labels, port, and the site that it runs at.
const PARTS: [(&str, &str, u16, usize); 6] = [
    ("web", "app=web,env=prod", 8080, 0),
    ("admin", "app=admin,env=prod", 8443, 0),
    ("api", "app=api,env=prod", 8080, 1),
    ("cache", "app=cache,env=prod", 6379, 1),
    ("db", "app=db,env=prod", 5432, 2),
    ("worker", "app=worker,env=dev", 9000, 2),
];
/// The sites, and their uplinks.
const SITES: [(&str, Uplink); 3] = [
    ("public-cloud", Uplink::Open),
    ("private-cloud", Uplink::Nat(NatProfile::EIM_APDF)),
    ("rack", Uplink::DoubleNat),
];
/// The time for which a connection is tried before it counts as cut.
const PATIENCE: Duration = Duration::from_millis(800);
const MEASURE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    let own = || Some(std::env::current_exe().ok()?.parent()?.to_owned());
    let folder = options.binaries.clone().or_else(own).context("name a folder with --binaries")?;
    let rights = match become_root() {
        Ok(rights) => rights,
        Err(error) => return with_sudo(&folder, options, &error),
    };
    match rights {
        Rights::Root => println!("Running as root; everything happens in namespaces of its own."),
        Rights::UserNamespace => println!("Running in a user namespace: no root is needed."),
    }
    let begun = Instant::now();
    show(Binaries::in_folder(&folder)?, options, rights)?;
    println!("\nDone in {:.1} s; everything is taken down.", begun.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

/// Runs the demo again with sudo: some systems do not let ordinary users create user namespaces.
fn with_sudo(folder: &Path, options: &Options, error: &anyhow::Error) -> Result<ExitCode> {
    ensure!(!geteuid().is_root(), "{error:#}");
    println!("{error:#}; going on with sudo.");
    let mut sudo = Command::new("sudo");
    sudo.arg(std::env::current_exe()?).arg("--binaries").arg(folder);
    if options.keep {
        sudo.arg("--keep");
    }
    Err(anyhow::Error::from(sudo.exec()).context("cannot run sudo; run this command as root"))
}

/// Runs a step, and prints what it does and how long it took.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("  {what} ... ");
    std::io::stdout().flush()?;
    let begun = Instant::now();
    let done = work().with_context(|| format!("this step failed: {what}"))?;
    println!("{} ms", begun.elapsed().as_millis());
    Ok(done)
}

fn show(binaries: Binaries, options: &Options, rights: Rights) -> Result<()> {
    println!("\nA small internet: three sites, a coordinator, a shop");
    let policy = Policy::parse(POLICY)?;
    let shop_binary = binaries.path("shop");
    let mut mesh = step("coordinator starts and makes its CA", || Mesh::start(binaries))?;
    step("network shop, 10.42.0.0/16 and fd42::/48", || {
        mesh.meshctl(&[
            "network",
            "create",
            "shop",
            "--cidr",
            "10.42.0.0/16",
            "--cidr",
            "fd42::/48",
        ])
    })?;
    let mut nodes = Vec::new();
    for (site, uplink) in SITES {
        let behind = match uplink {
            Uplink::Open => "",
            Uplink::DoubleNat => ", behind two NATs",
            _ => ", behind a NAT",
        };
        nodes.push(step(&format!("node {site} joins with a token{behind}"), || {
            let (site, _) = mesh.internet.site_with_uplink(site, uplink)?;
            mesh.node_at(site).start()
        })?);
    }
    let mut workloads = Vec::new();
    for (name, labels, port, site) in PARTS {
        let what = format!("{name} starts at {} ({labels})", SITES[site].0);
        workloads.push(step(&what, || start_part(&nodes[site], &shop_binary, name, labels, port))?);
    }
    step("policy examples/shop/policy.yaml is checked, applied and enforced by all nodes", || {
        mesh.apply(POLICY)
    })?;

    let agree = matrix(&policy, &workloads)?;
    paths(&mesh, &nodes)?;
    throughput(&workloads)?;
    services::show(&mut mesh, &nodes, &shop_binary, part(&workloads, "web").0)?;
    quarantine(&mesh, &workloads)?;
    ensure!(agree, "the wire and the policy disagree");
    if options.keep {
        keep(&mesh, &mut nodes, rights)?;
    }
    println!();
    step("taking everything down", || {
        drop((workloads, nodes, mesh));
        Ok(())
    })
}

fn start_part(node: &Node, shop: &Path, name: &str, labels: &str, port: u16) -> Result<Workload> {
    let shop = shop.to_string_lossy();
    let workload =
        node.run("shop", name, labels, &[&shop, "--name", name, "--port", &port.to_string()])?;
    let here = SocketAddr::new("::1".parse()?, port);
    let deadline = Instant::now() + Duration::from_secs(5);
    while workload.netns.run(|| TcpStream::connect(here).is_err())? {
        ensure!(Instant::now() < deadline, "{name} does not serve on port {port}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(workload)
}

/// Fetches the page of a part of the shop; `None` if nothing comes.
fn fetch(from: &Netns, to: IpAddr, port: u16) -> Result<Option<String>> {
    from.run(|| get(SocketAddr::new(to, port), "/", PATIENCE)).map_err(Into::into)
}

/// Fetches a page; `None` if nothing comes.
fn get(from: SocketAddr, path: &str, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&from, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: shop\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.rsplit_once("\r\n\r\n")?.1.to_owned())
}

/// Tries HTTP from each workload (row) to each other (column): whether it was answered.
fn try_all(workloads: &[Workload]) -> Result<Vec<Vec<Option<bool>>>> {
    thread::scope(|scope| {
        let rows: Vec<Vec<_>> = workloads
            .iter()
            .enumerate()
            .map(|(a, from)| {
                let pair =
                    |(b, to)| (a != b).then(|| scope.spawn(move || talk(from, to, PARTS[b])));
                workloads.iter().enumerate().map(pair).collect()
            })
            .collect();
        let join = |pair: thread::ScopedJoinHandle<Result<bool>>| {
            pair.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        rows.into_iter()
            .map(|row| row.into_iter().map(|pair| pair.map(join).transpose()).collect())
            .collect()
    })
}

/// Prints what policy expects of each pair beside what the wire shows; whether they agree.
fn matrix(policy: &Policy, workloads: &[Workload]) -> Result<bool> {
    println!("\nExpected by policy / seen on the wire (HTTP from row to column, IPv4 and IPv6)\n");
    let seen = try_all(workloads)?;
    print!("  {:8}", "");
    for (name, ..) in PARTS {
        print!("{name:>16}");
    }
    println!();
    let mut agree = true;
    for (a, row) in seen.iter().enumerate() {
        print!("  {:8}", PARTS[a].0);
        for (b, seen) in row.iter().enumerate() {
            let Some(seen) = seen else {
                print!("{:>16}", "-");
                continue;
            };
            let (from, to): (Labels, Labels) = (PARTS[a].1.parse()?, PARTS[b].1.parse()?);
            let flow = NewFlow {
                from: &from,
                to: &to,
                outside: None,
                accepts: &[],
                protocol: Protocol::Tcp,
                port: PARTS[b].2,
            };
            let expected = policy.decide(&flow).verdict == Verdict::Allowed;
            agree &= expected == *seen;
            let word = |allowed| if allowed { "open" } else { "shut" };
            let text = format!(
                "{} / {}{}",
                word(expected),
                word(*seen),
                if expected == *seen { "" } else { " !" }
            );
            print!("{text:>16}");
        }
        println!();
    }
    println!(
        "\n  {}",
        if agree {
            "The wire does what the policy says, on all 60 connections."
        } else {
            "They disagree where there is a `!`."
        }
    );
    Ok(agree)
}

/// Shows how the nodes reach each other: directly, though NATs stand between them.
fn paths(mesh: &Mesh, nodes: &[Node]) -> Result<()> {
    let all = || -> Result<Vec<(String, String, SocketAddr)>> {
        let mut all = Vec::new();
        for node in nodes {
            for peer in node.endpoint().map_or(vec![], |endpoint| endpoint.peers) {
                all.extend(
                    peer.address.map(|at| (node.site.name.clone(), peer.node.to_string(), at)),
                );
            }
        }
        Ok(all)
    };
    let direct =
        |paths: &[(String, String, SocketAddr)]| paths.iter().all(|(_, _, at)| !is_relayed(at));
    mesh.wait(|| all().is_ok_and(|paths| direct(&paths)))?;
    println!("\nHow the sites reach each other");
    for (from, to, at) in all()? {
        println!("  {from:14} -> {to:14} directly, at {at}");
    }
    Ok(())
}

fn talk(
    from: &Workload,
    to: &Workload,
    (name, _, port, _): (&str, &str, u16, usize),
) -> Result<bool> {
    let v4 = fetch(&from.netns, to.v4(), port)?;
    let v6 = fetch(&from.netns, to.v6(), port)?;
    ensure!(v4 == v6, "IPv4 and IPv6 differ on the way to {name}: {v4:?}, {v6:?}");
    ensure!(v4.as_deref().is_none_or(|page| page == name), "{name} answered with {v4:?}");
    Ok(v4.is_some())
}

/// A download that goes on until it is cut: how many bytes came, and when the last did.
struct Download {
    bytes: Arc<AtomicU64>,
    /// Nanoseconds from `begun`.
    last: Arc<AtomicU64>,
    begun: Instant,
}

impl Download {
    fn start(from: &Workload, to: &Workload, port: u16) -> Result<Self> {
        let target = SocketAddr::new(to.v4(), port);
        let mut stream =
            from.netns.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(2)))??;
        stream.write_all(
            format!("GET /bytes/{} HTTP/1.0\r\nhost: shop\r\n\r\n", 1u64 << 40).as_bytes(),
        )?;
        let download = Self { bytes: Arc::default(), last: Arc::default(), begun: Instant::now() };
        let (bytes, last, begun) = (download.bytes.clone(), download.last.clone(), download.begun);
        thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                bytes.fetch_add(length as u64, Ordering::Relaxed);
                last.store(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
            }
        });
        Ok(download)
    }

    fn last(&self) -> Duration {
        Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

fn part<'a>(workloads: &'a [Workload], name: &str) -> (&'a Workload, u16) {
    let at = PARTS.iter().position(|(own, ..)| *own == name).expect("the shop has this part");
    (&workloads[at], PARTS[at].2)
}

fn throughput(workloads: &[Workload]) -> Result<()> {
    let ((web, _), (api, port)) = (part(workloads, "web"), part(workloads, "api"));
    let download = Download::start(web, api, port)?;
    thread::sleep(MEASURE);
    let gigabits = download.bytes.load(Ordering::Relaxed) as f64 * 8.0
        / download.begun.elapsed().as_secs_f64()
        / 1e9;
    println!(
        "\nThroughput of the link web -> api, across two sites, one TCP stream: {gigabits:.2} \
         Gbit/s"
    );
    Ok(())
}

fn quarantine(mesh: &Mesh, workloads: &[Workload]) -> Result<()> {
    println!("\nQuarantine of api, in the middle of a download by web");
    let ((web, _), (api, port)) = (part(workloads, "web"), part(workloads, "api"));
    let download = Download::start(web, api, port)?;
    thread::sleep(Duration::from_millis(500));
    let asked = download.begun.elapsed();
    let said = mesh.meshctl(&["quarantine", "app=api"])?;
    let returned = download.begun.elapsed();
    thread::sleep(Duration::from_millis(1500));
    let last = download.last();
    println!("  meshctl: {}", said.trim());
    println!("  the command took {} ms", returned.saturating_sub(asked).as_millis());
    ensure!(last < returned + Duration::from_millis(500), "the download goes on");
    println!("  the last packet passed {:.1} ms after the command was given", millis(last, asked));
    if last > returned {
        println!("  ({:.1} ms after it returned)", millis(last, returned));
    } else {
        println!(
            "  ({:.1} ms before it returned: when it returns, it is enforced)",
            millis(returned, last)
        );
    }
    ensure!(
        fetch(&web.netns, api.v4(), port)?.is_none(),
        "a new connection to the quarantined workload passed"
    );
    mesh.meshctl(&["release", "app=api"])?;
    ensure!(
        fetch(&web.netns, api.v4(), port)?.is_some(),
        "the released workload cannot be reached"
    );
    println!("  released: it answers again");
    Ok(())
}

fn millis(later: Duration, earlier: Duration) -> f64 {
    later.saturating_sub(earlier).as_secs_f64() * 1e3
}

fn keep(mesh: &Mesh, nodes: &mut [Node], rights: Rights) -> Result<()> {
    let enter = match rights {
        Rights::Root => "nsenter --net",
        Rights::UserNamespace => "nsenter --preserve-credentials --user --net",
    };
    let meshctl = mesh.binaries.path("meshctl");
    println!("\nEverything keeps running. Look around from another terminal:\n");
    let context = format!("{} --context {}", meshctl.display(), mesh.context().display());
    for verb in [
        "status",
        "nodes",
        "workloads",
        "links",
        "explain --from app=web --to app=db --port tcp/5432",
    ] {
        println!("  {enter} --target {} {context} {verb}", mesh.coordinator.pid());
    }
    for node in nodes {
        let (socket, pid) = (node.socket(), node.process().pid());
        println!(
            "  {enter} --target {pid} {} --socket {} status",
            meshctl.display(),
            socket.display()
        );
    }
    println!("\nPress Enter to take it down.");
    if std::io::stdin().is_terminal() {
        std::io::stdin().read_line(&mut String::new())?;
    } else {
        thread::sleep(Duration::from_mins(10));
    }
    Ok(())
}
