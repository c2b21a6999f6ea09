//! Thousands of peers in one thread: each with a key and an endpoint of its own, at an address of
//! its own, behind one socket. What reaches their workloads is sent back.

use anyhow::{Context, Result};
use meshward_datapath::{
    ConfigChange, Ecn, Endpoint, GatherList, Headers, Incoming, LocalWorkload, Now, Offload,
    Received, SecretKey, Sink, WorkerScratch, WorkloadIndex,
};
use meshward_netns::Netns;
use meshward_types::{NodeName, PublicKey, WorkloadId};
use nix::{
    libc::in_pktinfo,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
        sockopt,
    },
};
use std::{
    collections::HashMap,
    io::{IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A peer of the daemon.
pub(crate) struct Member {
    pub name: NodeName,
    /// The address of its endpoint.
    pub underlay: Ipv4Addr,
    pub workload: WorkloadId,
    /// The address of its workload.
    pub address: Ipv4Addr,
    pub secret: SecretKey,
}

impl Member {
    /// The member with a number, below 65,536.
    ///
    /// # Errors
    /// None: a name of letters and digits is one.
    pub(crate) fn new(number: u16) -> Result<Self> {
        let [high, low] = number.to_be_bytes();
        let mut secret = [0x5a; 32];
        (secret[1], secret[2]) = (high, low);
        Ok(Self {
            name: format!("peer-{number}").parse()?,
            underlay: Ipv4Addr::new(198, 19, high, low),
            workload: format!("far-{number}").parse()?,
            address: Ipv4Addr::new(10, 100, high, low),
            secret: SecretKey::from_bytes(secret),
        })
    }

    /// Returns the key of its endpoint.
    pub(crate) fn public_key(&self) -> PublicKey {
        self.secret.public()
    }
}

/// The peers at work. They end when this is dropped.
pub(crate) struct Swarm {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Peer {
    endpoint: Endpoint,
    underlay: Ipv4Addr,
}

impl Swarm {
    /// Has the members answer on a port in a namespace, each endpoint with its configuration.
    ///
    /// # Errors
    /// Fails if the socket cannot be opened.
    pub(crate) fn start(
        netns: &Netns,
        port: u16,
        members: &[Member],
        config: impl Fn(&Member) -> Vec<ConfigChange>,
    ) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)
            .context("the kernel does not report destinations")?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))
            .context("no large buffer for the socket")?;
        let now = Instant::now();
        let peers = members.iter().map(|member| {
            let endpoint =
                Endpoint::new(member.name.clone(), member.secret.clone(), now, Duration::ZERO);
            endpoint.add_workload(LocalWorkload {
                prefixes: vec![],
                id: member.workload.clone(),
                addresses: vec![member.address.into()],
                vouched: None,
            });
            endpoint.apply(now, config(member));
            (member.underlay, Peer { endpoint, underlay: member.underlay })
        });
        let peers: HashMap<Ipv4Addr, Peer> = peers.collect();
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let thread = thread::spawn(move || answer(&socket, &peers, &until));
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(socket: &UdpSocket, peers: &HashMap<Ipv4Addr, Peer>, ended: &AtomicBool) {
    let (mut scratch, mut buffer) = (WorkerScratch::default(), vec![0; 1 << 16]);
    let mut control = nix::cmsg_space!(in_pktinfo);
    while !ended.load(Relaxed) {
        let Some((length, from, to)) = receive(socket, &mut buffer, &mut control) else { continue };
        let Some(peer) = peers.get(&to) else { continue };
        let mut sink =
            Back { socket, from: peer.underlay, echoes: Vec::new(), handshakes: Vec::new() };
        let now = now();
        let mut batch = peer.endpoint.begin_batch(&mut scratch, now.instant);
        batch.ingress(
            Received { from, ecn: Ecn::NotCapable, range: 0..length, size: length },
            &mut buffer,
            &mut sink,
        );
        batch.deliver(&mut buffer, &mut sink);
        for (workload, mut packet) in std::mem::take(&mut sink.echoes) {
            batch.egress(workload, Offload::None, &mut packet, &mut sink);
        }
        batch.finish(&mut sink);
        for message in std::mem::take(&mut sink.handshakes) {
            let incoming = Incoming { from, message: &message };
            peer.endpoint.receive_handshake(now, incoming, &mut scratch, &mut sink);
        }
    }
}

fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    control: &mut [u8],
) -> Option<(usize, SocketAddr, Ipv4Addr)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let received =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::empty())
            .ok()?;
    let from = SocketAddrV4::from(received.address?);
    let to = received.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()))
        }
        _ => None,
    });
    Some((received.bytes, from.into(), to?))
}

fn now() -> Now {
    Now {
        instant: Instant::now(),
        unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
    }
}

/// The way back out of one peer.
struct Back<'a> {
    socket: &'a UdpSocket,
    from: Ipv4Addr,
    echoes: Vec<(WorkloadIndex, Vec<u8>)>,
    handshakes: Vec<Vec<u8>>,
}

impl Sink for Back<'_> {
    fn to_workload(&mut self, workload: WorkloadIndex, _: Offload, packet: GatherList<'_>) -> bool {
        let mut packet = packet.to_vec();
        if !turn_around(&mut packet) {
            return false;
        }
        self.echoes.push((workload, packet));
        true
    }

    fn to_network(&mut self, to: SocketAddr, _: Ecn, datagrams: &[u8], size: usize) -> bool {
        let SocketAddr::V4(to) = to else { return false };
        let source = nix::libc::in_addr { s_addr: u32::from_ne_bytes(self.from.octets()) };
        let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: source };
        let send = |datagram: &[u8]| {
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            let parts = [IoSlice::new(datagram)];
            let to = SockaddrIn::from(to);
            sendmsg(self.socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to)).is_ok()
        };
        datagrams.chunks(size.max(1)).all(send)
    }

    fn to_network_unfragmented(&mut self, _: SocketAddr, _: &[u8]) {}
    fn queue_handshake(&mut self, _: SocketAddr, message: &[u8]) -> bool {
        self.handshakes.push(message.to_vec());
        true
    }

    // Peers only answer.
    fn request_handshakes(&mut self) {}
}

/// Makes a UDP packet its own answer. Addresses and ports are swapped, so all checksums stay
/// right.
fn turn_around(packet: &mut [u8]) -> bool {
    let Ok(Headers { source: IpAddr::V4(_), ip_protocol: 17, payload: at, .. }) =
        Headers::parse(packet)
    else {
        return false;
    };
    for byte in 12..16 {
        packet.swap(byte, byte + 4);
    }
    packet.swap(at, at + 2);
    packet.swap(at + 1, at + 3);
    true
}
