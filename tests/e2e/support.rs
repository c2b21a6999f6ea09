//! Meshes and traffic for tests.

use anyhow::{Context, Result};
use meshward_lab::{Binaries, Mesh, Node, Site, Workload};
use meshward_netns::Netns;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv,
    sendto, setsockopt, socket, sockopt,
};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The limit of the wait for something that should come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// The wait for something that should not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(700);

/// Random numbers (xorshift64*, Vigna, 2016). `TEST_SEED` has them come again.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Self {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed =
            std::env::var("TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock);
        println!("TEST_SEED={seed}");
        Self(seed | 1)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// Any byte.
    pub(crate) fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    /// Any of some things.
    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// A coordinator with the network `shop`.
pub(crate) fn mesh() -> Mesh {
    mesh_with(&[])
}

/// Starts a coordinator with these flags, with the network `shop`.
pub(crate) fn mesh_with(flags: &[&str]) -> Mesh {
    let mesh = Mesh::builder(Binaries::beside_this_test().unwrap()).flags(flags).start().unwrap();
    mesh.meshctl(&["network", "create", "shop", "--cidr", "10.42.0.0/16", "--cidr", "fd42::/48"])
        .unwrap();
    mesh
}

/// Two nodes, `web` on the first and `api` on the second.
pub(crate) struct Shop {
    pub web: Workload,
    pub api: Workload,
    pub nodes: [Node; 2],
    pub mesh: Mesh,
}

impl Shop {
    pub(crate) fn new(policy: &str) -> Self {
        Self::with(&[], policy)
    }

    /// Starts the coordinator with these flags.
    pub(crate) fn with(flags: &[&str], policy: &str) -> Self {
        let mut mesh = mesh_with(flags);
        let nodes = [mesh.node("cloud").start().unwrap(), mesh.node("rack").start().unwrap()];
        let web = nodes[0].attach("shop", "app=web").unwrap();
        let api = nodes[1].attach("shop", "app=api").unwrap();
        mesh.apply(policy).unwrap();
        Self { web, api, nodes, mesh }
    }
}

/// A machine that has joined and whose daemon does not run, and the first address of its block.
pub(crate) fn member(mesh: &mut Mesh, name: &str) -> (Site, PathBuf, Ipv4Addr) {
    let token = mesh.token(&[]).unwrap();
    let site = mesh.internet.site(name).unwrap();
    mesh.join(&site, &token).unwrap();
    let node = mesh.node_named(name).unwrap();
    let v4 = node.blocks[0].prefixes.iter().find_map(|prefix| match prefix.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    let v4 = v4.unwrap();
    let data = mesh.folder().join(name).join("data");
    (site, data, v4)
}

/// A configuration of the coordinator, and the folder that it goes with.
pub(crate) fn limited(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("coordinator.toml");
    std::fs::write(&file, text).unwrap();
    let file = file.to_string_lossy().into_owned();
    (folder, file)
}

/// The resident memory of a process, in MiB.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// A policy that lets `web` use these ports of `api`.
pub(crate) fn allow(ports: &str) -> String {
    format!(
        "network: shop
rules: [{{ name: web-to-api, from: {{ app: web }}, to: {{ app: api }}, allow: [{ports}] }}]
"
    )
}

/// Echoes everything on a TCP and a UDP port of a namespace, in both address families, until it is
/// dropped.
pub(crate) struct Echo {
    ended: Arc<AtomicBool>,
}

impl Echo {
    pub(crate) fn start(netns: &Netns, port: u16) -> Self {
        let bind = || -> std::io::Result<_> {
            let tcp = TcpListener::bind(("::", port))?;
            Ok((tcp, UdpSocket::bind(("::", port))?))
        };
        let (tcp, udp) = netns.run(bind).unwrap().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { return };
                thread::spawn(move || {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let until = ended.clone();
        udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while !until.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&buffer[..length], from);
                }
            }
        });
        Self { ended }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Opens a TCP connection from a namespace.
pub(crate) fn connect(
    from: &Netns,
    to: IpAddr,
    port: u16,
    patience: Duration,
) -> Result<TcpStream> {
    let stream =
        from.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, port), patience))??;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// Sends a payload to an echo over TCP and checks what comes back.
pub(crate) fn tcp_echoes(
    from: &Netns,
    to: IpAddr,
    port: u16,
    size: usize,
    patience: Duration,
) -> bool {
    let exchange = || -> Result<bool> {
        let mut stream = connect(from, to, port, patience)?;
        echo_once(&mut stream, size)
    };
    exchange().unwrap_or(false)
}

/// Sends `size` bytes over a connection to an echo and checks what comes back.
pub(crate) fn echo_once(stream: &mut TcpStream, size: usize) -> Result<bool> {
    let sent: Vec<u8> = (0..size).map(|at| (at * 7 + at / 251) as u8).collect();
    let mut writer = stream.try_clone()?;
    let copy = sent.clone();
    let writing = thread::spawn(move || writer.write_all(&copy));
    let mut back = vec![0; size];
    stream.read_exact(&mut back)?;
    writing.join().unwrap()?;
    Ok(back == sent)
}

/// Sends a datagram to an echo and checks what comes back.
pub(crate) fn udp_echoes(
    from: &Netns,
    to: IpAddr,
    port: u16,
    size: usize,
    patience: Duration,
) -> bool {
    let exchange = || -> Result<bool> {
        let socket = from.run(|| UdpSocket::bind(("::", 0)))??;
        socket.set_read_timeout(Some(patience))?;
        let to = match to {
            IpAddr::V4(to) => to.to_ipv6_mapped(),
            IpAddr::V6(to) => to,
        };
        let sent: Vec<u8> = (0..size).map(|at| (at * 7 + at / 251) as u8).collect();
        socket.send_to(&sent, (to, port))?;
        let mut back = vec![0; 64 << 10];
        let (length, _) = socket.recv_from(&mut back)?;
        Ok(back[..length] == sent)
    };
    exchange().unwrap_or(false)
}

/// Pings.
pub(crate) fn pings(from: &Netns, to: IpAddr, patience: Duration) -> bool {
    from.run(|| ping(to, patience)).unwrap().unwrap_or(false)
}

fn ping(to: IpAddr, patience: Duration) -> Result<bool> {
    let id: u16 = 0x4d57;
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket = socket(family, SockType::Raw, SockFlag::empty(), protocol)?;
    let step = nix::sys::time::TimeVal::new(0, 50_000);
    setsockopt(&socket, sockopt::ReceiveTimeout, &step)?;
    let mut packet = vec![request, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(b"meshward");
    // The kernel fills in ICMPv6's checksum itself (RFC 3542 §3.1), but not ICMP's.
    if to.is_ipv4() {
        let sum = packet
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum::<u32>();
        let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    match to {
        IpAddr::V4(to) => sendto(
            socket.as_raw_fd(),
            &packet,
            &SockaddrIn::from(std::net::SocketAddrV4::new(to, 0)),
            MsgFlags::empty(),
        ),
        IpAddr::V6(to) => {
            let to = SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0));
            sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())
        }
    }?;
    let deadline = Instant::now() + patience;
    let mut back = [0; 256];
    while Instant::now() < deadline {
        let Ok(length) = recv(socket.as_raw_fd(), &mut back, MsgFlags::empty()) else { continue };
        let header = if to.is_ipv4() { 20 } else { 0 };
        let message = back[..length].get(header..).context("a short packet came")?;
        if message.len() >= 6 && message[0] == reply && message[4..6] == id.to_be_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A TCP connection over which an echo is asked for without pause, and what of it came back so far.
pub(crate) struct Stream {
    echoed: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Stream {
    pub(crate) fn start(from: &Netns, to: IpAddr, port: u16) -> Self {
        let mut stream = connect(from, to, port, PATIENCE).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let (echoed, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (echoed.clone(), ended.clone());
        let mut writer = stream.try_clone().unwrap();
        let until = ended.clone();
        thread::spawn(move || {
            while !until.load(Ordering::Relaxed) && writer.write_all(&[7; 512]).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => drop(count.fetch_add(length as u64, Ordering::Relaxed)),
                    Err(_) => {}
                }
            }
        });
        Self { echoed, ended }
    }

    /// Returns `true` if anything comes back from now on, within `patience`.
    pub(crate) fn flows(&self, patience: Duration) -> bool {
        let before = self.echoed.load(Ordering::Relaxed);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.echoed.load(Ordering::Relaxed) > before {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
