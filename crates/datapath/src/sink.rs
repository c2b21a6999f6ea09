//! The sink of packets and messages of an endpoint: the I/O of a node implements it.

use crate::{
    ecn::Ecn,
    gather::GatherList,
    in_band::name_message::NameMessage,
    index::{PeerIndex, WorkloadIndex},
    offload::Offload,
    resolver::DatagramQuery,
};
use std::{net::SocketAddr, slice::from_ref};

/// The output of an endpoint.
pub trait Sink {
    /// Writes a packet, which may be a super-packet, to a local workload's TUN. Returns false if it
    /// was dropped.
    fn to_workload(
        &mut self,
        workload: WorkloadIndex,
        offload: Offload,
        packet: GatherList<'_>,
    ) -> bool;
    /// Sends datagrams, each of `size` bytes but for the last, which may be shorter. Returns false
    /// if any of them was dropped.
    fn to_network(&mut self, to: SocketAddr, ecn: Ecn, datagrams: &[u8], size: usize) -> bool;
    /// Sends a datagram that must not be fragmented on its way; one that is too long for the path
    /// is lost.
    fn to_network_unfragmented(&mut self, to: SocketAddr, datagram: &[u8]);
    /// Queues a handshake message for [`Endpoint::receive_handshake`]. Returns false if too many
    /// wait.
    ///
    /// [`Endpoint::receive_handshake`]: crate::Endpoint::receive_handshake
    fn queue_handshake(&mut self, from: SocketAddr, message: &[u8]) -> bool;
    /// Has [`Endpoint::begin_handshakes`] called soon.
    ///
    /// [`Endpoint::begin_handshakes`]: crate::Endpoint::begin_handshakes
    fn request_handshakes(&mut self);
    /// Writes the answer to a DNS query into `answer`, if there is one now. Returns false if not:
    /// it comes later, by [`PacketBatch::answer`], or never.
    ///
    /// [`PacketBatch::answer`]: crate::PacketBatch::answer
    fn resolve(&mut self, _query: DatagramQuery<'_>, _answer: &mut Vec<u8>) -> bool {
        false
    }
    /// Receives a message of a peer about a name outside of the mesh.
    fn name_message(&mut self, _peer: PeerIndex, _message: NameMessage<'_>) {}
    /// Notes that what has just come from an address is authentic: answers may leave from the
    /// address that it came to.
    fn authenticated(&mut self, _from: SocketAddr) {}
}

/// Writes a packet that is in one piece to a local workload's TUN. Returns false if it was dropped.
#[inline]
pub(crate) fn whole_to_workload(
    sink: &mut impl Sink,
    workload: WorkloadIndex,
    offload: Offload,
    packet: &[u8],
) -> bool {
    let whole = 0..packet.len();
    sink.to_workload(workload, offload, GatherList::new(packet, from_ref(&whole)))
}

/// Sends messages of the protocol itself, whose outer header has no congestion mark.
pub(crate) fn send_plain(sink: &mut impl Sink) -> impl FnMut(SocketAddr, &[u8]) {
    |to, datagram| {
        sink.to_network(to, Ecn::NotCapable, datagram, datagram.len());
    }
}
