//! The output of an endpoint: its workloads' TUNs, and its socket.

use super::{
    served::ServedEndpoint,
    tasks::{QueuedMessage, TaskQueue},
};
use crate::{
    relay_queue::Outgoing as RelayedMessages,
    sys::{self, Outgoing, Tun},
};
use meshward_datapath::{
    DatagramQuery, Ecn, GatherList, MAX_GATHER_PARTS, NameMessage, Offload, PeerIndex, Sink,
    WorkloadIndex,
};
use meshward_types::relay::RelayId;
use nix::{errno::Errno, sys::uio::writev};
use parking_lot::RwLockReadGuard;
use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::Ordering::Relaxed,
};

/// The addresses of a message.
#[derive(Debug, Clone, Copy)]
struct ReceivedAddresses {
    from: SocketAddr,
    /// The address of this host.
    to: IpAddr,
}

/// The output of an endpoint, for one packet batch.
pub(super) struct EndpointOutput<'a> {
    served: &'a ServedEndpoint,
    interfaces: RwLockReadGuard<'a, Vec<Option<Tun>>>,
    socket: &'a UdpSocket,
    queue: &'a TaskQueue,
    /// The source of the message that is handled now, and the address of this host that it came to.
    received: Option<ReceivedAddresses>,
}

impl<'a> EndpointOutput<'a> {
    /// The one of a worker.
    pub(super) fn new(served: &'a ServedEndpoint, worker: usize) -> Self {
        let interfaces = served.interfaces.read();
        Self {
            served,
            interfaces,
            socket: &served.sockets[worker],
            queue: &served.queue,
            received: None,
        }
    }

    /// Sets from which address a message has come that is handled now, and to which address of this
    /// host: answers leave from that.
    pub(super) fn set_received(&mut self, from: SocketAddr, to: Option<IpAddr>) {
        self.received = to.map(|to| ReceivedAddresses { from, to });
    }

    /// The address of this host that the message which is handled now has come to from `from`.
    fn received_at(&self, from: &SocketAddr) -> Option<IpAddr> {
        self.received.filter(|received| received.from == *from).map(|received| received.to)
    }

    /// A workload's interface.
    pub(super) fn interface(&self, index: WorkloadIndex) -> Option<&Tun> {
        self.interfaces.get(index.position())?.as_ref()
    }

    /// An IPv6 socket reaches IPv4 by mapped addresses.
    fn as_socket_wants(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(ip) if self.served.ipv6 => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), to.port())
            }
            _ => to,
        }
    }

    /// The address of this host that `to` has spoken to.
    fn source_for(&self, to: &SocketAddr) -> Option<IpAddr> {
        self.received_at(to).or_else(|| self.served.sources.get(to))
    }

    /// Sends from the address that the receiver has spoken to; if this host does not have it any
    /// more, from any.
    fn send(
        &self,
        datagrams: &[u8],
        class: u8,
        segment: Option<u16>,
        to: SocketAddr,
    ) -> nix::Result<()> {
        let wanted = |ip: IpAddr| self.as_socket_wants(SocketAddr::new(ip, 0)).ip();
        let source = self.source_for(&to).map(wanted);
        let outgoing = Outgoing { to: self.as_socket_wants(to), source, class, segment };
        match sys::send(self.socket, datagrams, outgoing) {
            Err(
                Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH | Errno::EHOSTUNREACH,
            ) if source.is_some() => {
                let sent = sys::send(self.socket, datagrams, Outgoing { source: None, ..outgoing });
                if sent.is_ok() {
                    self.served.sources.remove(&to);
                }
                sent
            }
            sent => sent,
        }
    }
}

impl Sink for EndpointOutput<'_> {
    fn to_workload(
        &mut self,
        index: WorkloadIndex,
        offload: Offload,
        packet: GatherList<'_>,
    ) -> bool {
        let Some(tun) = self.interface(index) else { return false };
        let header = offload.encode();
        let mut parts = [IoSlice::new(&header); MAX_GATHER_PARTS + 1];
        let mut used = 1;
        for (slot, part) in parts[1..].iter_mut().zip(packet.iter()) {
            *slot = IoSlice::new(part);
            used += 1;
        }
        writev(&tun.fd, &parts[..used]).is_ok()
    }

    fn to_network(&mut self, to: SocketAddr, ecn: Ecn, datagrams: &[u8], size: usize) -> bool {
        if let Some((id, relay)) = RelayId::at(&to) {
            let (network, messages) = (self.served.relayed_as, datagrams.to_vec());
            let outgoing = RelayedMessages { to: id, network, messages, size };
            return self.served.relay.send(relay, outgoing);
        }
        let class = ecn.class();
        if datagrams.len() <= size {
            return self.send(datagrams, class, None, to).is_ok();
        }
        let batched = &self.served.offloads.batched_sending;
        if batched.load(Relaxed)
            && let Ok(segment) = u16::try_from(size)
        {
            match self.send(datagrams, class, Some(segment), to) {
                Ok(()) => return true,
                // The kernel or the device below cannot: from now on one by one.
                Err(Errno::EIO | Errno::ENOPROTOOPT) => batched.store(false, Relaxed),
                // The path takes only smaller packets: one by one they are fragmented.
                Err(Errno::EINVAL | Errno::EMSGSIZE) => {}
                Err(_) => return false,
            }
        }
        // All are tried, whatever becomes of the first.
        datagrams
            .chunks(size)
            .filter(|datagram| self.send(datagram, class, None, to).is_err())
            .count()
            == 0
    }

    fn to_network_unfragmented(&mut self, to: SocketAddr, datagram: &[u8]) {
        // What another thread sends by the socket in these microseconds is not cut either, which it
        // seldom needs.
        if sys::forbid_fragments(self.socket).is_ok() {
            let _ = self.send(datagram, 0, None, to);
        }
        let _ = sys::allow_fragments(self.socket);
    }

    fn queue_handshake(&mut self, from: SocketAddr, message: &[u8]) -> bool {
        let to = self.received_at(&from);
        let queued = QueuedMessage::new(self.served.number, from, to, message);
        queued.is_some_and(|message| self.queue.receive(message))
    }

    fn resolve(&mut self, query: DatagramQuery<'_>, answer: &mut Vec<u8>) -> bool {
        self.served.resolver.resolve(query, answer)
    }

    fn name_message(&mut self, peer: PeerIndex, message: NameMessage<'_>) {
        self.served.resolver.receive_name_message(peer, message);
    }

    fn authenticated(&mut self, from: SocketAddr) {
        if let Some(to) = self.received_at(&from) {
            self.served.sources.note(from, to);
        }
    }

    fn request_handshakes(&mut self) {
        self.queue.request_handshakes(self.served.number);
    }
}
