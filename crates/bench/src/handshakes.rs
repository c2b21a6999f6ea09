//! A running TCP connection through a node while strangers flood it with handshakes: initiations
//! whose first MAC holds, as anybody can make who knows the node's public key, from forged
//! addresses.

use crate::{
    compare::{Figures, Target},
    contender::Tools,
    measure::{Load, Tunnel},
    report::Row,
};
use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{Mac, consts::U16},
};
use meshward_lab::{Mesh, Site, Workload};
use meshward_netns::Netns;
use nix::{
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
    },
    unistd::gettid,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// Initiations a second.
const RATE: u64 = 100_000;
/// Bytes of an initiation, and where its MACs stand (WireGuard paper §5.4.2).
const INITIATION: usize = 148;
const MAC1: usize = 116;
const MAC2: usize = 132;
/// Lets the load through.
const POLICY: &str = "network: bench
rules:
  - { name: load, from: { app: client }, to: { app: server }, allow: [tcp/5201-5203] }
";
/// Headers of IPv4 and UDP.
const HEADERS: usize = 28;

/// Measures throughput with and without the flood, in turns; the handshake thread's time; and how
/// soon a new node's workload gets through. `quick` measures one short pair.
///
/// # Errors
/// Fails if a daemon does not start, or a connection does not come up.
pub fn handshakes(tools: &Tools, folder: &Path, quick: bool) -> Result<Vec<Row>> {
    let mut mesh = Mesh::start(tools.ours.clone())?;
    mesh.meshctl(&["network", "create", "bench", "--cidr", "10.42.0.0/16"])?;
    let (near, mut far) = (mesh.node("near").start()?, mesh.node("far").start()?);
    let stranger = mesh.node("stranger").start()?;
    let client = near.attach("bench", "app=client")?;
    let server = far.attach("bench", "app=server")?;
    mesh.apply(POLICY)?;
    let endpoint = far.endpoint()?;
    let key = BASE64_STANDARD.decode(endpoint.public_key)?;
    let pid = far.process().pid();
    let target = Victim { site: &far.site, port: endpoint.port, key: &key };
    let tunnel = Tunnel {
        client: client.netns.clone(),
        server: server.netns.clone(),
        address: server.v4(),
        daemons: vec![],
        _keep: vec![],
    };
    let (pairs, time) =
        if quick { (1, Duration::from_secs(2)) } else { (5, Duration::from_secs(5)) };
    let (mut calm, mut flooded, mut busy, mut rate) = (vec![], vec![], vec![], vec![]);
    for _ in 0..pairs {
        calm.push(tunnel.run(Load::Tcp(1), time, folder)?.gigabits);
        let flood = Flood::start(&stranger.site.netns, &target)?;
        // Until there is load, as in a flood that lasts.
        thread::sleep(Duration::from_millis(500));
        let (begun, before, sent) =
            (Instant::now(), handshake_time(pid)?, flood.sent.load(Relaxed));
        flooded.push(tunnel.run(Load::Tcp(1), time, folder)?.gigabits);
        let passed = begun.elapsed().as_secs_f64();
        busy.push((handshake_time(pid)? - before) / passed);
        rate.push((flood.sent.load(Relaxed) - sent) as f64 / passed / 1000.0);
    }
    let lost = far.drops("no_session") + near.drops("no_session");
    let came_in = {
        let _flood = Flood::start(&stranger.site.netns, &target)?;
        thread::sleep(Duration::from_millis(500));
        newcomer(&mut mesh, &server)?
    };
    let case = "tcp1, 100,000 initiations/s wanted".to_owned();
    let figures = |metric, unit, ours| Figures {
        bench: "handshakes",
        case: case.clone(),
        metric,
        unit,
        ours,
    };
    Ok(vec![
        figures("throughput", "Gbit/s", &flooded).against(
            "undisturbed",
            &calm,
            Target::AtLeast(0.8),
        ),
        figures("initiations sent", "thousand/s", &rate).absolute(Target::None),
        figures("handshake thread", "cores", &busy).absolute(Target::AtMost(0.25)),
        figures("packets without a session", "", &[lost as f64]).absolute(Target::AtMost(0.0)),
        figures("a new peer gets in", "s", &[came_in]).absolute(Target::AtMost(10.0)),
    ])
}

/// Returns the seconds until a new node's workload gets through to the server.
fn newcomer(mesh: &mut Mesh, server: &Workload) -> Result<f64> {
    let late = mesh.node("late").start()?;
    let newcomer = late.attach("bench", "app=client")?;
    let begun = Instant::now();
    let reached = reach(&newcomer.netns, &server.netns, SocketAddr::new(server.v4(), 5203));
    ensure!(reached, "a new peer does not get in");
    Ok(begun.elapsed().as_secs_f64())
}

/// Opens a connection, again and again, for as long as somebody would wait.
fn reach(from: &Netns, to: &Netns, address: SocketAddr) -> bool {
    let Ok(Ok(listener)) = to.run(|| TcpListener::bind(address)) else { return false };
    thread::spawn(move || listener.incoming().for_each(drop));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        let tried = from.run(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)));
        if matches!(tried, Ok(Ok(_))) {
            return true;
        }
    }
    false
}

/// Seconds that a process's thread for handshakes has run (`proc_pid_schedstat`: nanoseconds on the
/// CPU first).
fn handshake_time(pid: u32) -> Result<f64> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "handshakes") {
            let stat = fs::read_to_string(path.join("schedstat"))?;
            let ran = stat.split_whitespace().next().and_then(|ran| ran.parse::<f64>().ok());
            return Ok(ran.context("the kernel does not say how long a thread ran")? / 1e9);
        }
    }
    anyhow::bail!("the node has no thread for handshakes")
}

/// The endpoint that is flooded.
struct Victim<'a> {
    site: &'a Site,
    port: u16,
    key: &'a [u8],
}

/// A flood, until it is dropped.
struct Flood {
    ended: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
}

impl Flood {
    fn start(from: &Netns, target: &Victim<'_>) -> Result<Self> {
        let raw = from.run(|| {
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        })??;
        let (ended, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (ended.clone(), sent.clone());
        let mut packet = packet(target);
        let [a, b, c, d] = target.site.v4.octets();
        let to = SockaddrIn::new(a, b, c, d, 0);
        thread::Builder::new().name("flood".into()).spawn(move || {
            // Only what nobody else wants.
            let own = gettid().to_string();
            let _ = Command::new("chrt")
                .args(["--idle", "--pid", "0", &own])
                .stdout(Stdio::null())
                .status();
            let (begun, mut number) = (Instant::now(), 0u64);
            while !until.load(Relaxed) {
                let due = begun.elapsed().as_micros() as u64 * RATE / 1_000_000;
                if number >= due {
                    thread::sleep(Duration::from_micros(200));
                    continue;
                }
                // Behind by more than a tenth of a second, nothing is made up for.
                number = number.max(due.saturating_sub(RATE / 10));
                for _ in 0..(due - number).min(64) {
                    forge(&mut packet, number);
                    let _ = sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty());
                    number += 1;
                    count.fetch_add(1, Relaxed);
                }
            }
        })?;
        Ok(Self { ended, sent })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
    }
}

/// An initiation to the target that holds its first MAC, and nothing else, with its headers.
fn packet(target: &Victim<'_>) -> Vec<u8> {
    let mut message = [0x5a; INITIATION];
    message[..4].copy_from_slice(&1u32.to_le_bytes());
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(target.key).finalize();
    let mac = <Blake2sMac<U16> as blake2::digest::KeyInit>::new_from_slice(&key)
        .expect("a key of 32 bytes");
    let mac = mac.chain_update(&message[..MAC1]).finalize();
    message[MAC1..MAC2].copy_from_slice(&mac.into_bytes());
    message[MAC2..].fill(0);
    let mut packet = vec![0; HEADERS];
    let length = (HEADERS + INITIATION) as u16;
    (packet[0], packet[8], packet[9]) = (0x45, 64, 17);
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[16..20].copy_from_slice(&target.site.v4.octets());
    packet[22..24].copy_from_slice(&target.port.to_be_bytes());
    packet[24..26].copy_from_slice(&(length - 20).to_be_bytes());
    packet.extend(message);
    packet
}

/// Gives a packet another source. The kernel writes IPv4's checksum; UDP needs none.
fn forge(packet: &mut [u8], number: u64) {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    let source = Ipv4Addr::from(0x0b00_0000 | (mixed as u32 & 0x00ff_ffff));
    packet[12..16].copy_from_slice(&source.octets());
    packet[20..22].copy_from_slice(&((mixed >> 24) as u16 | 1024).to_be_bytes());
}
