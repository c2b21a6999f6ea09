//! The attacks of strangers on a coordinator: first packets of QUIC from forged addresses, and
//! connections on which nothing is sent.

use anyhow::{Context, Result};
use meshward_netns::Netns;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use quinn::crypto::rustls::QuicClientConfig;
use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Different first packets that are sent over and over.
const DIFFERENT: usize = 64;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// First packets of QUIC handshakes, sent from addresses of others until this is dropped. Whoever
/// receives them cannot tell them from real ones: they are.
#[derive(Debug)]
pub struct HandshakeFlood {
    ends: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl HandshakeFlood {
    /// Sends from a namespace to `to`, `per_second` packets a second, which ask for the protocol
    /// `alpn`. Sources are random ones of 11.0.0.0/8, in which no mesh is.
    ///
    /// # Errors
    /// Fails if there is no raw socket, or no QUIC.
    pub fn start(netns: &Netns, to: SocketAddrV4, per_second: u32, alpn: &[u8]) -> Result<Self> {
        let payloads = first_packets(alpn)?;
        let raw =
            || socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw);
        let socket = netns.run(raw)?.context("no raw socket")?;
        let (ends, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (ends.clone(), sent.clone());
        let thread = thread::spawn(move || {
            let mut packets: Vec<Vec<u8>> =
                payloads.iter().map(|payload| datagram(to, payload)).collect();
            let target = SockaddrIn::from(to);
            let begun = Instant::now();
            // xorshift32: sources need not be good random numbers.
            let mut random = 0x2545_f491u32;
            for at in 0u64.. {
                if until.load(Relaxed) {
                    return;
                }
                random ^= random << 13;
                random ^= random >> 17;
                random ^= random << 5;
                let packet = &mut packets[at as usize % DIFFERENT];
                packet[12..16].copy_from_slice(&(0x0b00_0000 | random >> 8).to_be_bytes());
                packet[IP_HEADER..][..2].copy_from_slice(&(1024 | random as u16).to_be_bytes());
                if sendto(socket.as_raw_fd(), packet, &target, MsgFlags::empty()).is_ok() {
                    count.fetch_add(1, Relaxed);
                }
                if at % 64 == 0 {
                    let due = begun + Duration::from_secs_f64(at as f64 / f64::from(per_second));
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }
        });
        Ok(Self { ends, sent, thread: Some(thread) })
    }

    /// Returns the number of packets sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for HandshakeFlood {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An IPv4 packet with a UDP datagram. The kernel fills in the header's checksum; UDP may do
/// without one (RFC 768).
fn datagram(to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; IP_HEADER + UDP_HEADER];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 17;
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..26].copy_from_slice(&((UDP_HEADER + payload.len()) as u16).to_be_bytes());
    packet.extend_from_slice(payload);
    let length = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet
}

/// First packets of real clients, caught on loopback.
fn first_packets(alpn: &[u8]) -> Result<Vec<Vec<u8>>> {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    let address: SocketAddr = server.local_addr()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _guard = runtime.enter();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut all = Vec::new();
    let mut buffer = [0; 2048];
    for _ in 0..DIFFERENT {
        let client = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
        let connecting =
            client.connect_with(config.clone(), address, "coordinator.meshward.internal")?;
        let (length, _) = server.recv_from(&mut buffer)?;
        all.push(buffer[..length].to_vec());
        drop(connecting);
    }
    Ok(all)
}

/// Opens TCP connections from a namespace, on which nothing is sent. They close when they are
/// dropped; the other side may close them before.
///
/// # Errors
/// Fails if there are not enough descriptors.
pub fn idle_connections(netns: &Netns, to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    netns.run(|| {
        let open =
            |_| TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("no connection");
        (0..count).map(open).collect()
    })?
}
