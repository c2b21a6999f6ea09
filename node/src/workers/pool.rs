//! The threads of a node, and the endpoints that they serve.

use super::{
    handshakes::HandshakeThread,
    injector::Injector,
    poll::{Poll, Source, Token},
    served::{OffloadFlags, ServedEndpoint},
    shared::Shared,
    source_addresses::SourceAddresses,
    tasks::{self, TaskQueue},
    worker::Worker,
};
use crate::{
    names::resolver::{NetworkResolver, Tasks as NameTasks},
    offloads::Offloads,
    relay_queue,
    sys::{self, Tun},
};
use anyhow::{Context, Result};
use meshward_datapath::{Endpoint, LocalWorkload, WorkerScratch, WorkloadIndex};
use meshward_types::{NetworkName, relay::RelayNetwork};
use parking_lot::{Mutex, RwLock};
use std::{
    net::UdpSocket,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

/// The threads of a node, and the endpoints that they serve.
pub struct Workers {
    shared: Arc<Shared>,
    queue: TaskQueue,
    wanted: Offloads,
    relay: relay_queue::Sender,
}

impl Workers {
    /// Starts the threads. `wanted` are the offloads to use where the kernel has them.
    ///
    /// # Errors
    /// Fails if the kernel gives no epoll, eventfd or thread.
    pub fn start(
        workers: NonZeroUsize,
        wanted: Offloads,
        relay: relay_queue::Sender,
    ) -> Result<Self> {
        let polls = (0..workers.get()).map(|_| Poll::new()).collect::<nix::Result<_>>()?;
        let shared = Arc::new(Shared {
            workers: polls,
            endpoints: RwLock::default(),
            active: Mutex::new(NonZeroUsize::MIN),
            ended: AtomicBool::new(false),
        });
        let (queue, tasks) = tasks::queue();
        for number in 0..workers.get() {
            let worker = Worker::new(shared.clone(), number);
            let name = format!("worker-{number}");
            thread::Builder::new()
                .name(name)
                .spawn(move || worker.run())
                .context("cannot start a worker thread")?;
        }
        let slow = HandshakeThread::new(shared.clone(), queue.clone(), tasks);
        thread::Builder::new()
            .name("handshakes".into())
            .spawn(move || slow.run())
            .context("cannot start the thread for handshakes")?;
        Ok(Self { shared, queue, wanted, relay })
    }

    /// Returns the number of worker threads.
    pub fn workers(&self) -> NonZeroUsize {
        self.shared.all()
    }

    /// Returns the number of workers that carry packets now.
    pub fn active(&self) -> NonZeroUsize {
        *self.shared.active.lock()
    }

    /// Serves an endpoint on sockets that are bound to one port, one for each worker. `names` is
    /// the queue of the thread of names.
    ///
    /// # Errors
    /// Fails if a socket cannot be polled.
    pub(crate) fn serve(
        &self,
        network: &NetworkName,
        endpoint: Endpoint,
        sockets: Vec<UdpSocket>,
        names: NameTasks,
    ) -> Result<Arc<ServedEndpoint>> {
        sockets.iter().for_each(sys::receive_marks);
        sockets.iter().for_each(sys::receive_destinations);
        let gathers =
            |socket: &UdpSocket| self.wanted.batched_receiving && sys::gather(socket).is_ok();
        let gathering = sockets.iter().filter(|socket| gathers(socket)).count();
        let offloads = OffloadFlags {
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
            resolver: NetworkResolver::new(network.clone(), names),
            number,
            ipv6: sockets
                .iter()
                .all(|socket| socket.local_addr().is_ok_and(|address| address.is_ipv6())),
            sources: SourceAddresses::default(),
            sockets,
            interfaces: RwLock::default(),
            offloads,
            queue: self.queue.clone(),
            relay: self.relay.clone(),
            relayed_as: RelayNetwork::of(network),
        });
        match endpoints.get_mut(number as usize) {
            Some(free) => *free = Some(served.clone()),
            None => endpoints.push(Some(served.clone())),
        }
        Ok(served)
    }

    /// Returns an injector for packets that come by relays.
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
    pub(crate) fn attach(
        &self,
        served: &ServedEndpoint,
        workload: LocalWorkload,
        tun: Tun,
    ) -> WorkloadIndex {
        let offloads = &served.offloads;
        offloads.tcp_segmentation.fetch_and(tun.offloads.tcp, Relaxed);
        offloads.udp_segmentation.fetch_and(tun.offloads.udp, Relaxed);
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

    /// Removes a workload from an endpoint, and gives its interface back.
    pub(crate) fn detach(&self, served: &ServedEndpoint, index: WorkloadIndex) -> Option<Tun> {
        let active = self.shared.active.lock();
        let tun = served.interfaces.write().get_mut(index.position()).and_then(Option::take);
        if let Some(tun) = &tun {
            let _ = self.shared.poll(index.position(), *active).epoll.delete(&tun.fd);
        }
        served.endpoint.remove_workload(index);
        tun
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
