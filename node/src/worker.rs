//! The thread that owns an endpoint: it polls the socket and the TUNs, and takes commands between packets.
//!
//! Nobody else touches the endpoint, so no packet waits for a lock; a command that changes the rules holds from the next
//! packet on.

use crate::sys::{self, Tun};
use anyhow::{Context, Result};
use meshward_datapath::{Endpoint, EndpointStats, LocalWorkload, OFFLOAD_LENGTH, Offload, Sink, Slot};
use meshward_model::{Change, IdentityId, NetworkName};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
        socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
            sockopt,
        },
        uio::writev,
    },
    unistd,
};
use std::{
    collections::HashMap,
    io::{ErrorKind, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How often an endpoint's timers run.
const TICK: Duration = Duration::from_millis(250);
/// The most packets that are read from one descriptor before the others have their turn.
const BURST: usize = 64;
/// What is asked for the socket's buffers, in bytes.
const SOCKET_BUFFER: usize = 4 << 20;

const WAKE: u64 = u64::MAX;
const SOCKET: u64 = u64::MAX - 1;

enum Command {
    Apply(Vec<Change>, oneshot::Sender<()>),
    Add(LocalWorkload, Tun, oneshot::Sender<Slot>),
    Remove(Slot, oneshot::Sender<Option<Tun>>),
    Vouch(Slot, Option<IdentityId>),
    Stats(oneshot::Sender<(EndpointStats, Offloads)>),
}

/// What the kernel does for many packets at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// TUNs give and take super-packets of TCP (TSO).
    pub tcp_segmentation: bool,
    /// TUNs give and take super-packets of UDP (USO).
    pub udp_segmentation: bool,
    /// The socket sends many datagrams in one call (`UDP_SEGMENT`).
    pub batched_sending: bool,
    /// The socket receives many datagrams in one call (`UDP_GRO`).
    pub batched_receiving: bool,
}

impl Offloads {
    /// The names of those that are on.
    pub fn names(self) -> Vec<String> {
        let all = [
            (self.tcp_segmentation, "tso"),
            (self.udp_segmentation, "uso"),
            (self.batched_sending, "udp-segment"),
            (self.batched_receiving, "udp-gro"),
        ];
        all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned()).collect()
    }
}

/// The way to a worker. The worker ends when its last handle is dropped.
#[derive(Clone)]
pub struct Worker {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
}

impl Worker {
    /// Starts a thread for an endpoint.
    ///
    /// # Errors
    /// If the kernel gives no epoll, eventfd or thread.
    pub fn start(network: &NetworkName, endpoint: Endpoint, socket: UdpSocket) -> Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET))?;
        let (commands, received) = mpsc::channel();
        let running = Running {
            endpoint,
            io: Io {
                ipv6: socket.local_addr()?.is_ipv6(),
                offloads: Offloads {
                    tcp_segmentation: true,
                    udp_segmentation: true,
                    batched_sending: true,
                    batched_receiving: setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok(),
                },
                socket,
                tuns: HashMap::new(),
            },
            epoll,
            wake: wake.clone(),
            commands: received,
            buffer: vec![0; OFFLOAD_LENGTH + usize::from(u16::MAX) + 1],
            control: nix::cmsg_space!(i32),
            next_tick: Instant::now(),
        };
        let name: String = format!("mw-{network}").chars().take(15).collect();
        thread::Builder::new()
            .name(name)
            .spawn(move || running.run())
            .context("cannot start a worker thread")?;
        Ok(Self { commands, wake })
    }

    fn command(&self, command: Command) {
        // A worker that has ended takes no commands, and the caller learns of it by the missing answer.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }

    /// Applies changes; when this returns they are enforced.
    pub async fn apply(&self, changes: Vec<Change>) {
        let (done, answer) = oneshot::channel();
        self.command(Command::Apply(changes, done));
        let _ = answer.await;
    }

    /// Adds a workload with its TUN.
    pub async fn add(&self, workload: LocalWorkload, tun: Tun) -> Option<Slot> {
        let (done, answer) = oneshot::channel();
        self.command(Command::Add(workload, tun, done));
        answer.await.ok()
    }

    /// Removes a workload and gives its TUN back.
    pub async fn remove(&self, slot: Slot) -> Option<Tun> {
        let (done, answer) = oneshot::channel();
        self.command(Command::Remove(slot, done));
        answer.await.ok().flatten()
    }

    /// Sets the identity that the node vouches for.
    pub fn vouch(&self, slot: Slot, identity: Option<IdentityId>) {
        self.command(Command::Vouch(slot, identity));
    }

    /// What the endpoint has counted, and what the kernel does for it.
    pub async fn stats(&self) -> Option<(EndpointStats, Offloads)> {
        let (done, answer) = oneshot::channel();
        self.command(Command::Stats(done));
        answer.await.ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.wake.write(1);
    }
}

struct Running {
    endpoint: Endpoint,
    io: Io,
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: mpsc::Receiver<Command>,
    buffer: Vec<u8>,
    /// For control messages of the socket.
    control: Vec<u8>,
    next_tick: Instant,
}

struct Io {
    socket: UdpSocket,
    ipv6: bool,
    offloads: Offloads,
    tuns: HashMap<Slot, Tun>,
}

impl Sink for Io {
    fn to_workload(&mut self, slot: Slot, offload: Offload, packet: &[u8]) -> bool {
        let header = offload.encode();
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        self.tuns.get(&slot).is_some_and(|tun| writev(&tun.fd, &parts).is_ok())
    }

    fn to_network(&mut self, to: SocketAddr, datagrams: &[u8], size: usize) -> bool {
        let to = match to.ip() {
            IpAddr::V4(ip) if self.ipv6 => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        if datagrams.len() <= size {
            return self.socket.send_to(datagrams, to).is_ok();
        }
        if self.offloads.batched_sending {
            match self.send_batch(to, datagrams, size) {
                Ok(()) => return true,
                // The kernel or the device below cannot: from now on one by one.
                Err(Errno::EIO | Errno::ENOPROTOOPT) => self.offloads.batched_sending = false,
                // The path takes only smaller packets: one by one they are fragmented.
                Err(Errno::EINVAL | Errno::EMSGSIZE) => {}
                Err(_) => return false,
            }
        }
        // All are tried, whatever becomes of the first.
        datagrams.chunks(size).filter(|datagram| self.socket.send_to(datagram, to).is_err()).count() == 0
    }
}

impl Io {
    fn send_batch(&self, to: SocketAddr, datagrams: &[u8], size: usize) -> nix::Result<()> {
        let size = u16::try_from(size).map_err(|_| Errno::EMSGSIZE)?;
        let (parts, to) = ([IoSlice::new(datagrams)], SockaddrStorage::from(to));
        let control = [ControlMessage::UdpGsoSegments(&size)];
        sendmsg(self.socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&to)).map(drop)
    }
}

impl Running {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let now = Instant::now();
            if now >= self.next_tick {
                self.next_tick = now + TICK;
                self.endpoint.tick(now, &mut self.io);
            }
            let wait = self.next_tick.saturating_duration_since(now).as_millis() as u16 + 1;
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => {
                    tracing::error!("a worker cannot poll: {error}");
                    return;
                }
            };
            let now = Instant::now();
            for event in &events[..ready] {
                match event.data() {
                    WAKE => {
                        let _ = self.wake.read();
                    }
                    SOCKET => self.read_socket(now),
                    slot => self.read_tun(now, Slot(slot as usize)),
                }
            }
            self.endpoint.flush(now, &mut self.io);
            if !self.take_commands() {
                return;
            }
        }
    }

    fn read_socket(&mut self, now: Instant) {
        for _ in 0..BURST {
            match self.receive() {
                Ok((length, from, size)) => {
                    for datagram in self.buffer[..length].chunks(size.max(1)) {
                        self.endpoint.from_network(now, from, datagram, &mut self.io);
                    }
                }
                Err(Errno::EAGAIN) => return,
                // An ICMP error about something that was sent; the next read goes on.
                Err(_) => {}
            }
        }
    }

    /// Receives datagrams of one sender: how many bytes, from where, and the size of each but the last.
    fn receive(&mut self) -> nix::Result<(usize, SocketAddr, usize)> {
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let (socket, control) = (self.io.socket.as_raw_fd(), &mut self.control);
        let received = recvmsg::<SockaddrStorage>(socket, &mut parts, Some(control), MsgFlags::MSG_DONTWAIT)?;
        let from = received.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from(std::net::SocketAddrV4::from(*a)));
            v4.or_else(|| {
                address.as_sockaddr_in6().map(|a| SocketAddr::from(std::net::SocketAddrV6::from(*a)))
            })
        });
        let from = from.ok_or(Errno::EAFNOSUPPORT)?;
        let size = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        Ok((received.bytes, from, size.unwrap_or(received.bytes)))
    }

    fn read_tun(&mut self, now: Instant, slot: Slot) {
        for _ in 0..BURST {
            let Some(tun) = self.io.tuns.get(&slot) else { return };
            match unistd::read(&tun.fd, &mut self.buffer) {
                Ok(length) => {
                    let Some((header, packet)) = self.buffer[..length].split_first_chunk_mut() else {
                        continue;
                    };
                    let Some(offload) = Offload::decode(header) else { continue };
                    self.endpoint.from_workload(now, slot, offload, packet, &mut self.io);
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // The namespace is gone, and with it the interface: polling it on would never rest.
                    let _ = self.epoll.delete(&tun.fd);
                    return;
                }
            }
        }
    }

    /// Takes what has been asked; `false` once nobody can ask any more.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.take(command),
                Err(mpsc::TryRecvError::Empty) => return true,
                Err(mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Apply(changes, done) => {
                self.endpoint.apply(&changes);
                let _ = done.send(());
            }
            Command::Add(workload, tun, done) => {
                let slot = self.endpoint.add_local(workload);
                let Offloads { tcp_segmentation, udp_segmentation, .. } = &mut self.io.offloads;
                *tcp_segmentation &= tun.tcp_offload;
                *udp_segmentation &= tun.udp_offload;
                if !tun.udp_offload {
                    self.endpoint.keep_udp_apart();
                }
                let watched = self.epoll.add(&tun.fd, EpollEvent::new(EpollFlags::EPOLLIN, slot.0 as u64));
                if let Err(error) = watched {
                    tracing::error!("a workload's interface cannot be polled: {error}");
                }
                self.io.tuns.insert(slot, tun);
                let _ = done.send(slot);
            }
            Command::Remove(slot, done) => {
                self.endpoint.remove_local(slot);
                let tun = self.io.tuns.remove(&slot);
                if let Some(tun) = &tun {
                    let _ = self.epoll.delete(&tun.fd);
                }
                let _ = done.send(tun);
            }
            Command::Vouch(slot, identity) => self.endpoint.vouch(slot, identity),
            Command::Stats(done) => {
                let _ = done.send((self.endpoint.stats(), self.io.offloads));
            }
        }
    }
}

/// Binds an endpoint's socket for both address families, to `kept` if it is given, else to the first free port.
///
/// # Errors
/// If no port can be had.
pub fn bind(kept: Option<u16>, first: u16) -> Result<UdpSocket> {
    let bound = match kept {
        Some(port) => bind_port(port).with_context(|| {
            format!("UDP port {port}, which the other nodes know, is taken; end what uses it")
        })?,
        None => {
            let free = (first..=u16::MAX).find_map(|port| match bind_port(port) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => None,
                other => Some(other),
            });
            free.context("no UDP port is free")?.context("cannot open a UDP socket")?
        }
    };
    bound.set_nonblocking(true)?;
    sys::allow_fragments(&bound).context("cannot let the kernel fragment datagrams")?;
    // Without the right to go over the limit, the limit is what there is.
    if setsockopt(&bound, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(&bound, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
    let _ = setsockopt(&bound, sockopt::SndBuf, &SOCKET_BUFFER);
    Ok(bound)
}

fn bind_port(port: u16) -> std::io::Result<UdpSocket> {
    match UdpSocket::bind(("::", port)) {
        Err(error) if error.kind() != ErrorKind::AddrInUse => UdpSocket::bind(("0.0.0.0", port)),
        other => other,
    }
}
