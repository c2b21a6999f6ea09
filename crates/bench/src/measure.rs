//! Measuring what goes through a tunnel.

use crate::report::median;
use anyhow::{Context, Result, bail};
use meshward_lab::{Process, output};
use meshward_netns::Netns;
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde_json::Value;
use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// A tunnel that stands.
pub(crate) struct Tunnel {
    /// The namespace of the clients.
    pub client: Netns,
    /// The namespace of the servers.
    pub server: Netns,
    /// The server's address in the tunnel.
    pub address: IpAddr,
    /// The daemons on both sides.
    pub daemons: Vec<u32>,
    /// Processes and namespaces that end with the tunnel.
    pub _keep: Vec<Box<dyn std::any::Any + Send + Sync>>,
}

/// Pins all threads of a process to one core, those of later included.
///
/// # Errors
/// Fails if the process has ended.
pub(crate) fn pin_threads(pid: u32, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    let mut pinned = HashSet::new();
    loop {
        let before = pinned.len();
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process has ended")? {
            let task: i32 = task?.file_name().to_string_lossy().parse()?;
            match sched_setaffinity(Pid::from_raw(task), &cores) {
                // It has ended since.
                Err(Errno::ESRCH) => continue,
                done => done?,
            }
            pinned.insert(task);
        }
        // A thread has the core of the one that starts it.
        if pinned.len() == before {
            return Ok(());
        }
    }
}

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// This many TCP streams.
    Tcp(u32),
    /// UDP datagrams of this many bytes, as fast as they go.
    Udp(u32),
}

impl Load {
    /// The arguments of iperf3.
    fn arguments(self) -> Vec<String> {
        match self {
            Self::Tcp(streams) => vec!["-P".into(), streams.to_string()],
            Self::Udp(size) => {
                ["-u", "-b", "0", "-l", &size.to_string()].map(str::to_owned).to_vec()
            }
        }
    }
}

/// The result of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Gbit/s that arrived.
    pub gigabits: f64,
    /// Thousands of datagrams a second that arrived; 0 for TCP.
    pub kilopackets: f64,
    /// CPU seconds of both daemons for each GB that arrived.
    pub cpu_per_gigabyte: f64,
}

impl Tunnel {
    /// Sends for `time`.
    ///
    /// # Errors
    /// Fails if iperf3 fails.
    pub(crate) fn run(&self, load: Load, time: Duration, folder: &Path) -> Result<Outcome> {
        let log = folder.join("iperf3.log");
        let mut serve = Command::new("iperf3");
        serve.args(["-s", "-1", "-J"]);
        let _ = fs::remove_file(&log);
        let mut server = Process::start(&self.server, &mut serve, &log)?;
        thread::sleep(Duration::from_millis(300));
        let before = self.cpu()?;
        let mut client = Command::new("iperf3");
        client.args(["-c", &self.address.to_string(), "-J", "-t", &time.as_secs().to_string()]);
        output(&self.client, client.args(load.arguments()))?;
        let cpu = self.cpu()? - before;
        server.wait_until_ended(Duration::from_secs(5))?;
        let report: Value =
            serde_json::from_str(&server.printed()).context("iperf3's report cannot be read")?;
        Outcome::read(&report, load, cpu)
    }

    fn cpu(&self) -> Result<f64> {
        self.daemons.iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    /// Returns the median round trip of small UDP packets, in microseconds.
    ///
    /// # Errors
    /// Fails if none comes back.
    pub(crate) fn round_trip(&self, times: usize) -> Result<f64> {
        let address = SocketAddr::new(self.address, 5202);
        let echo = self.server.run(|| UdpSocket::bind(address))??;
        echo.set_read_timeout(Some(Duration::from_millis(1200)))?;
        let socket = self.client.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.connect(address)?;
        let answering = thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length @ 1.., from)) = echo.recv_from(&mut buffer) {
                let _ = echo.send_to(&buffer[..length], from);
            }
        });
        let mut trips = Vec::new();
        for _ in 0..times {
            let begun = Instant::now();
            socket.send(b"round trip")?;
            if socket.recv(&mut [0; 64]).is_ok() {
                trips.push(begun.elapsed().as_secs_f64() * 1e6);
            }
            thread::sleep(Duration::from_millis(2));
        }
        // An empty one ends the echo; if it is lost, the echo's patience does.
        let _ = socket.send(&[]);
        let _ = answering.join();
        if trips.len() < times / 2 {
            bail!("only {} of {times} round trips came back", trips.len());
        }
        Ok(median(&trips))
    }
}

impl Outcome {
    fn read(report: &Value, load: Load, cpu: f64) -> Result<Self> {
        let sums = &report["end"];
        let number = |value: &Value| value.as_f64().context("iperf3's report lacks a figure");
        let (bytes, seconds, packets) = match load {
            Load::Tcp(_) => {
                let sum = &sums["sum_received"];
                (number(&sum["bytes"])?, number(&sum["seconds"])?, 0.0)
            }
            Load::Udp(size) => {
                let sum = &sums["sum"];
                let arrived = number(&sum["packets"])? - number(&sum["lost_packets"])?;
                (arrived * f64::from(size), number(&sum["seconds"])?, arrived)
            }
        };
        Ok(Self {
            gigabits: bytes * 8.0 / seconds / 1e9,
            kilopackets: packets / seconds / 1e3,
            cpu_per_gigabyte: cpu / (bytes / 1e9),
        })
    }
}

/// Returns the seconds of processor time of a process so far, threads that have ended included.
///
/// # Errors
/// Fails if the process has ended.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32)).context("a process has ended")?;
    Ok(Duration::from(clock_gettime(clock)?).as_secs_f64())
}

/// Returns the CPU seconds in which ring seals and opens one GB in packets of 1420 bytes: the floor
/// of every implementation.
///
/// # Errors
/// Fails if ring refuses.
pub(crate) fn aead_floor() -> Result<f64> {
    const PACKET: usize = 1420;
    let failed = |_| anyhow::anyhow!("ring refused");
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(failed)?);
    let (mut buffer, count) = (vec![0; PACKET], 200_000u64);
    let begun = Instant::now();
    for number in 0..count {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        buffer.truncate(PACKET);
        let seal = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(seal, Aad::empty(), &mut buffer).map_err(failed)?;
        key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut buffer)
            .map_err(failed)?;
    }
    Ok(begun.elapsed().as_secs_f64() / (count as f64 * PACKET as f64 / 1e9))
}
