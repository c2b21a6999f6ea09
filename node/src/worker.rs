//! The thread that owns an endpoint: it polls the socket and the TUNs, and takes commands between packets.
//!
//! Nobody else touches the endpoint, so no packet waits for a lock; a command that changes the rules holds from the next
//! packet on.

use anyhow::{Context, Result};
use meshward_datapath::{Endpoint, EndpointStats, LocalWorkload, Sink, Slot};
use meshward_model::{Change, IdentityId, NetworkName};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
        socket::{setsockopt, sockopt},
    },
    unistd,
};
use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
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
    Add(LocalWorkload, OwnedFd, oneshot::Sender<Slot>),
    Remove(Slot, oneshot::Sender<Option<OwnedFd>>),
    Vouch(Slot, Option<IdentityId>),
    Stats(oneshot::Sender<EndpointStats>),
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
            io: Io { ipv6: socket.local_addr()?.is_ipv6(), socket, tuns: HashMap::new() },
            epoll,
            wake: wake.clone(),
            commands: received,
            buffer: vec![0; usize::from(u16::MAX) + 1],
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
    pub async fn add(&self, workload: LocalWorkload, tun: OwnedFd) -> Option<Slot> {
        let (done, answer) = oneshot::channel();
        self.command(Command::Add(workload, tun, done));
        answer.await.ok()
    }

    /// Removes a workload and gives its TUN back.
    pub async fn remove(&self, slot: Slot) -> Option<OwnedFd> {
        let (done, answer) = oneshot::channel();
        self.command(Command::Remove(slot, done));
        answer.await.ok().flatten()
    }

    /// Sets the identity that the node vouches for.
    pub fn vouch(&self, slot: Slot, identity: Option<IdentityId>) {
        self.command(Command::Vouch(slot, identity));
    }

    /// What the endpoint has counted.
    pub async fn stats(&self) -> Option<EndpointStats> {
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
    next_tick: Instant,
}

struct Io {
    socket: UdpSocket,
    ipv6: bool,
    tuns: HashMap<Slot, OwnedFd>,
}

impl Sink for Io {
    fn to_workload(&mut self, slot: Slot, packet: &[u8]) -> bool {
        self.tuns.get(&slot).is_some_and(|tun| unistd::write(tun, packet).is_ok())
    }

    fn to_network(&mut self, to: SocketAddr, datagram: &[u8]) -> bool {
        let to = match to.ip() {
            IpAddr::V4(ip) if self.ipv6 => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        self.socket.send_to(datagram, to).is_ok()
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
            if !self.take_commands() {
                return;
            }
        }
    }

    fn read_socket(&mut self, now: Instant) {
        for _ in 0..BURST {
            match self.io.socket.recv_from(&mut self.buffer) {
                Ok((length, from)) => {
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    self.endpoint.from_network(now, from, &self.buffer[..length], &mut self.io);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // An ICMP error about something that was sent; the next read goes on.
                Err(_) => {}
            }
        }
    }

    fn read_tun(&mut self, now: Instant, slot: Slot) {
        for _ in 0..BURST {
            let Some(tun) = self.io.tuns.get(&slot) else { return };
            match unistd::read(tun, &mut self.buffer) {
                Ok(length) => self.endpoint.from_workload(now, slot, &self.buffer[..length], &mut self.io),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // The namespace is gone, and with it the interface: polling it on would never rest.
                    let _ = self.epoll.delete(tun);
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
                let watched = self.epoll.add(&tun, EpollEvent::new(EpollFlags::EPOLLIN, slot.0 as u64));
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
                    let _ = self.epoll.delete(tun);
                }
                let _ = done.send(tun);
            }
            Command::Vouch(slot, identity) => self.endpoint.vouch(slot, identity),
            Command::Stats(done) => {
                let _ = done.send(self.endpoint.stats());
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
