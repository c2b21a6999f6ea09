//! Ingress: the way of datagrams from the network to a workload's TUN. In this order:
//!
//! 1. Here: what a datagram is. Handshake messages pass the load gate, and are queued.
//! 2. [`decrypt`]: data messages are opened in place, and in-band control is handled.
//! 3. [`coalesce`]: packets of one flow become one super-packet.
//! 4. [`deliver`]: the peer's prefixes, this node's own filter, and the workload's TUN.

pub(crate) mod coalesce;
pub(crate) mod decrypt;
pub(crate) mod deliver;

use crate::{
    drop_reason::DropReason,
    ecn::Ecn,
    packet_batch::PacketBatch,
    sink::{Sink, send_plain},
};
use meshward_types::stun;
use meshward_wireguard::{load_gate::Incoming, message::MessageType};
use std::{net::SocketAddr, ops::Range};

/// Datagrams of one sender that a socket has received in one call.
#[derive(Debug, Clone)]
pub struct Received {
    /// The sender.
    pub from: SocketAddr,
    /// The ECN field of the outer header.
    pub ecn: Ecn,
    /// The range of the receive buffer that they fill.
    pub range: Range<usize>,
    /// Length of each but the last, which may be shorter, in bytes.
    pub size: usize,
}

impl Received {
    /// Returns the range of the first datagram.
    #[inline]
    pub(crate) fn first(&self) -> Range<usize> {
        self.range.start..self.range.end.min(self.range.start + self.size)
    }
}

impl PacketBatch<'_> {
    /// Processes received datagrams in `buffer`. Data messages are opened in place, and their
    /// packets kept until [`Self::deliver`].
    pub fn ingress(&mut self, received: Received, buffer: &mut [u8], sink: &mut impl Sink) {
        let mut rest = Received { size: received.size.max(1), ..received };
        while !rest.range.is_empty() {
            let first = rest.first();
            let datagram = &buffer[first.clone()];
            match MessageType::of(datagram) {
                Some(MessageType::Data) => {
                    rest.range.start = self.decrypt_run(&rest, buffer, sink);
                    continue;
                }
                Some(_) => self.queue_handshake(rest.from, datagram, sink),
                None if stun::is_response(datagram) => {
                    self.queue_handshake(rest.from, datagram, sink);
                }
                None => self.state.drops.count(DropReason::UnknownPeer, 1),
            }
            rest.range.start = first.end;
        }
    }

    /// Queues a message for the thread for handshakes and timers, if it passes the load gate.
    fn queue_handshake(&self, from: SocketAddr, message: &[u8], sink: &mut impl Sink) {
        let incoming = Incoming { from, message };
        let passed = self.state.transport.pass_load_gate(
            &self.peers,
            self.millis,
            incoming,
            &mut send_plain(sink),
        );
        let queued = passed.and_then(|()| {
            let queued = sink.queue_handshake(from, message);
            queued.then_some(()).ok_or(DropReason::HandshakeQueueFull)
        });
        if let Err(reason) = queued {
            self.state.drops.count(reason, 1);
        }
    }
}
