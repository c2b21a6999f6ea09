//! Threads that carry packets: the workers, and one thread for handshakes and timers. tokio has no part
//! in it.
//!
//! Every worker has an epoll of its own. An endpoint has as many sockets as there are workers, all
//! on one port: the kernel spreads the peers over them (`SO_REUSEPORT`). Each socket and each
//! workload's TUN is read by one worker; which one, is changed with the load (`balance.rs`). All
//! workers share the endpoint.

mod balance;
mod handshakes;
mod outlet;
mod socket;
mod sources;
mod worker;

pub use socket::bind;

use crate::{
    clock,
    offloads::Offloads,
    relayed,
    sys::{self, Tun},
};
use anyhow::{Context, Result};
use handshakes::Queue;
use meshward_datapath::{
    CoalesceOptions, Ecn, Endpoint, LocalWorkload, Received, SentPing, UnknownPeer, WorkerScratch,
    WorkloadIndex,
};
use meshward_types::{NetworkName, NodeName, relay::RelayNetwork};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
};
use parking_lot::{Mutex, RwLock};
use std::{
    net::{SocketAddr, UdpSocket},
    num::NonZeroUsize,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering::Relaxed},
    },
    thread,
};

/// What a worker reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Socket(usize),
    Interface(WorkloadIndex),
}

/// What an epoll's event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    /// The number of the endpoint.
    endpoint: u32,
    source: Source,
}

impl Token {
    /// The token of the descriptor that wakes a worker.
    const WAKE: u64 = u64::MAX;
    /// Set for an interface.
    const INTERFACE: u64 = 1 << 31;

    fn encode(self) -> u64 {
        let source = match self.source {
            Source::Socket(number) => number as u64,
            Source::Interface(index) => u64::from(index.0) | Self::INTERFACE,
        };
        u64::from(self.endpoint) << 32 | source
    }

    fn decode(data: u64) -> Self {
        let number = (data & (Self::INTERFACE - 1)) as usize;
        let interface = data & Self::INTERFACE != 0;
        let source = if interface {
            Source::Interface(WorkloadIndex::of_position(number))
        } else {
            Source::Socket(number)
        };
        Self { endpoint: (data >> 32) as u32, source }
    }
}

/// The threads of a node, and the endpoints that they serve.
pub struct Workers {
    shared: Arc<Shared>,
    queue: Queue,
    wanted: Offloads,
    relay: relayed::Sender,
}

struct Shared {
    workers: Vec<Poll>,
    endpoints: RwLock<Vec<Option<Arc<ServedEndpoint>>>>,
    /// Over how many workers sockets and interfaces are spread. Held while one is added, removed or
    /// moved.
    active: Mutex<NonZeroUsize>,
    ended: AtomicBool,
}

/// What a worker waits with.
struct Poll {
    epoll: Epoll,
    wake: EventFd,
    /// The worker's thread id.
    thread: AtomicI32,
}

/// An endpoint that is served.
pub struct ServedEndpoint {
    /// The endpoint.
    pub endpoint: Endpoint,
    number: u32,
    /// Whether its sockets are of IPv6, and reach IPv4 by mapped addresses.
    ipv6: bool,
    /// From which of this host's addresses peers are answered.
    sources: sources::Sources,
    /// As many as there are workers.
    sockets: Vec<UdpSocket>,
    /// The workloads' interfaces by index.
    interfaces: RwLock<Vec<Option<Tun>>>,
    offloads: Flags,
    queue: Queue,
    relay: relayed::Sender,
    /// How the network is called there.
    relayed_as: RelayNetwork,
}

/// What the kernel does for many packets at once, as far as it has been found out.
#[derive(Debug)]
struct Flags {
    tcp_segmentation: AtomicBool,
    udp_segmentation: AtomicBool,
    batched_sending: AtomicBool,
    batched_receiving: bool,
}

impl ServedEndpoint {
    /// Says something to every peer: this node has another address.
    pub fn announce_address(&self) {
        // An address of before may not lead there any more.
        self.sources.forget();
        self.endpoint.announce_address(clock::now(), &mut outlet::Outlet::new(self, 0));
    }

    /// Sends a ping to a peer, on the path that packets to it take. `None`: there is no session.
    ///
    /// # Errors
    /// If there is no such peer.
    pub fn ping(&self, node: &NodeName) -> Result<Option<SentPing>, UnknownPeer> {
        self.endpoint.ping(clock::now(), node, &mut outlet::Outlet::new(self, 0))
    }

    /// Has the handshakes begun that were asked for.
    pub fn request_handshakes(&self) {
        self.queue.wanted(self.number);
    }

    /// Has the ends of connections told that were cut, if they are to be.
    pub fn apply_flow_changes(&self) {
        if self.endpoint.has_flow_changes() {
            self.queue.wanted(self.number);
        }
    }
}

impl Workers {
    /// Starts the threads. `wanted`: which offloads are used where the kernel has them.
    ///
    /// # Errors
    /// If the kernel gives no epoll, eventfd or thread.
    pub fn start(workers: NonZeroUsize, wanted: Offloads, relay: relayed::Sender) -> Result<Self> {
        let polls = (0..workers.get()).map(|_| Poll::new()).collect::<nix::Result<_>>()?;
        let shared = Arc::new(Shared {
            workers: polls,
            endpoints: RwLock::default(),
            active: Mutex::new(NonZeroUsize::MIN),
            ended: AtomicBool::new(false),
        });
        let (queue, tasks) = handshakes::queue();
        for number in 0..workers.get() {
            let worker = worker::Worker::new(shared.clone(), number);
            let name = format!("worker-{number}");
            thread::Builder::new()
                .name(name)
                .spawn(move || worker.run())
                .context("cannot start a worker thread")?;
        }
        let slow = handshakes::Handshakes::new(shared.clone(), queue.clone(), tasks);
        thread::Builder::new()
            .name("handshakes".into())
            .spawn(move || slow.run())
            .context("cannot start the thread for handshakes")?;
        Ok(Self { shared, queue, wanted, relay })
    }

    /// How many workers there are at the most.
    pub fn workers(&self) -> NonZeroUsize {
        self.shared.all()
    }

    /// How many of them carry packets now.
    pub fn active(&self) -> NonZeroUsize {
        *self.shared.active.lock()
    }

    /// Serves an endpoint on sockets that are bound to one port, one for each worker.
    ///
    /// # Errors
    /// If a socket cannot be polled.
    pub fn serve(
        &self,
        network: &NetworkName,
        endpoint: Endpoint,
        sockets: Vec<UdpSocket>,
    ) -> Result<Arc<ServedEndpoint>> {
        sockets.iter().for_each(sys::receive_marks);
        sockets.iter().for_each(sys::receive_destinations);
        let gathers =
            |socket: &UdpSocket| self.wanted.batched_receiving && sys::gather(socket).is_ok();
        let gathering = sockets.iter().filter(|socket| gathers(socket)).count();
        let offloads = Flags {
            tcp_segmentation: AtomicBool::new(self.wanted.tcp_segmentation),
            udp_segmentation: AtomicBool::new(self.wanted.udp_segmentation),
            batched_sending: AtomicBool::new(self.wanted.batched_sending),
            batched_receiving: gathering == sockets.len(),
        };
        let active = self.shared.active.lock();
        let mut endpoints = self.shared.endpoints.write();
        let free = endpoints.iter().position(Option::is_none);
        let number = free.unwrap_or(endpoints.len()) as u32;
        for (at, socket) in sockets.iter().enumerate() {
            let token = Token { endpoint: number, source: Source::Socket(at) };
            let watched = self.shared.poll(at, *active).watch(socket, token);
            watched.with_context(|| format!("the socket of network {network} cannot be polled"))?;
        }
        let served = Arc::new(ServedEndpoint {
            endpoint,
            number,
            ipv6: sockets
                .iter()
                .all(|socket| socket.local_addr().is_ok_and(|address| address.is_ipv6())),
            sources: sources::Sources::default(),
            sockets,
            interfaces: RwLock::default(),
            offloads,
            queue: self.queue.clone(),
            relay: self.relay.clone(),
            relayed_as: RelayNetwork::of(network),
        });
        match endpoints.get_mut(number as usize) {
            Some(place) => *place = Some(served.clone()),
            None => endpoints.push(Some(served.clone())),
        }
        Ok(served)
    }

    /// The way in for packets that do not come by a socket of ours.
    pub fn injector(&self) -> Injector {
        Injector { shared: self.shared.clone(), scratch: WorkerScratch::default() }
    }

    /// Stops serving an endpoint. Its workloads are to be gone already.
    pub fn stop(&self, served: &ServedEndpoint) {
        let active = self.shared.active.lock();
        self.shared.endpoints.write()[served.number as usize] = None;
        for (at, socket) in served.sockets.iter().enumerate() {
            let _ = self.shared.poll(at, *active).epoll.delete(socket);
        }
    }

    /// Adds a workload with its interface to an endpoint.
    pub fn attach(
        &self,
        served: &ServedEndpoint,
        workload: LocalWorkload,
        tun: Tun,
    ) -> WorkloadIndex {
        let offloads = &served.offloads;
        offloads.tcp_segmentation.fetch_and(tun.tcp_offload, Relaxed);
        offloads.udp_segmentation.fetch_and(tun.udp_offload, Relaxed);
        let active = self.shared.active.lock();
        let index = served.endpoint.add_workload(workload);
        let mut interfaces = served.interfaces.write();
        if interfaces.len() <= index.position() {
            interfaces.resize_with(index.position() + 1, || None);
        }
        let token = Token { endpoint: served.number, source: Source::Interface(index) };
        if let Err(error) = self.shared.poll(index.position(), *active).watch(&tun.fd, token) {
            tracing::error!("a workload's interface cannot be polled: {error}");
        }
        interfaces[index.position()] = Some(tun);
        index
    }

    /// What a workload's interface is called, wherever it is.
    pub fn interface_name(&self, served: &ServedEndpoint, index: WorkloadIndex) -> Option<String> {
        let interfaces = served.interfaces.read();
        sys::tun_name(interfaces.get(index.position())?.as_ref()?).ok()
    }

    /// Removes a workload from an endpoint, and gives its interface back.
    pub fn detach(&self, served: &ServedEndpoint, index: WorkloadIndex) -> Option<Tun> {
        let active = self.shared.active.lock();
        let tun = served.interfaces.write().get_mut(index.position()).and_then(Option::take);
        if let Some(tun) = &tun {
            let _ = self.shared.poll(index.position(), *active).epoll.delete(&tun.fd);
        }
        served.endpoint.remove_workload(index);
        tun
    }
}

/// A way in for packets that do not come by a socket of ours.
pub struct Injector {
    shared: Arc<Shared>,
    scratch: WorkerScratch,
}

impl Injector {
    /// Takes messages, each of `size` bytes but for the last, as if they had come from an address.
    pub fn inject(
        &mut self,
        network: RelayNetwork,
        from: SocketAddr,
        messages: &mut [u8],
        size: usize,
    ) {
        let endpoints = self.shared.endpoints.read();
        let Some(served) = endpoints.iter().flatten().find(|served| served.relayed_as == network)
        else {
            return;
        };
        self.scratch.set_coalesce_options(served.merging());
        let mut outlet = outlet::Outlet::new(served, 0);
        let mut batch = served.endpoint.begin_batch(&mut self.scratch, clock::now());
        let all = 0..messages.len();
        batch.ingress(
            Received { from, ecn: Ecn::NotCapable, range: all, size },
            messages,
            &mut outlet,
        );
        batch.deliver(messages, &mut outlet);
        batch.finish(&mut outlet);
    }
}

impl Shared {
    /// How many workers there are.
    fn all(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.workers.len()).unwrap_or(NonZeroUsize::MIN)
    }

    /// Where the socket or the interface with a number is read while so many workers are active.
    fn poll(&self, number: usize, active: NonZeroUsize) -> &Poll {
        &self.workers[number % active]
    }

    /// Spreads everything over so many workers. Packets that two workers then read at the same
    /// moment may change places.
    fn spread(&self, next: NonZeroUsize) {
        let mut active = self.active.lock();
        if *active == next {
            return;
        }
        let before = std::mem::replace(&mut *active, next);
        for served in self.endpoints.read().iter().flatten() {
            let (number, interfaces) = (served.number, served.interfaces.read());
            let sockets = served.sockets.iter().enumerate();
            let sockets = sockets.map(|(at, socket)| (at, socket.as_fd(), Source::Socket(at)));
            let interfaces =
                interfaces.iter().enumerate().filter_map(|(at, tun)| Some((at, tun.as_ref()?)));
            let interfaces = interfaces.map(|(at, tun)| {
                (at, tun.fd.as_fd(), Source::Interface(WorkloadIndex::of_position(at)))
            });
            for (at, descriptor, source) in sockets.chain(interfaces) {
                if at % before == at % next {
                    continue;
                }
                // Taken up before it is let go, so that it is always read by somebody.
                let token = Token { endpoint: number, source };
                if let Err(error) = self.poll(at, next).watch(&descriptor, token) {
                    tracing::error!("a socket or an interface cannot be polled: {error}");
                    continue;
                }
                let _ = self.poll(at, before).epoll.delete(descriptor);
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        for poll in &self.shared.workers {
            let _ = poll.wake.write(1);
        }
        self.queue.wake();
    }
}

impl Poll {
    fn new() -> nix::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, Token::WAKE))?;
        Ok(Self { epoll, wake, thread: AtomicI32::new(0) })
    }

    fn watch(&self, descriptor: &impl AsFd, token: Token) -> Result<(), Errno> {
        self.epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, token.encode()))
    }
}

impl ServedEndpoint {
    /// What its workloads' interfaces take merged.
    fn merging(&self) -> CoalesceOptions {
        let Flags { tcp_segmentation, udp_segmentation, .. } = &self.offloads;
        CoalesceOptions { tcp: tcp_segmentation.load(Relaxed), udp: udp_segmentation.load(Relaxed) }
    }

    /// What the kernel does for it.
    pub fn offloads(&self) -> Offloads {
        let Flags { tcp_segmentation, udp_segmentation, batched_sending, batched_receiving } =
            &self.offloads;
        Offloads {
            tcp_segmentation: tcp_segmentation.load(Relaxed),
            udp_segmentation: udp_segmentation.load(Relaxed),
            batched_sending: batched_sending.load(Relaxed),
            batched_receiving: *batched_receiving,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_their_number() {
        for source in [
            Source::Socket(0),
            Source::Socket(63),
            Source::Interface(WorkloadIndex(0)),
            Source::Interface(WorkloadIndex(70_000)),
        ] {
            let token = Token { endpoint: 3, source };
            assert_eq!(Token::decode(token.encode()), token);
            assert_ne!(token.encode(), Token::WAKE);
        }
    }
}
