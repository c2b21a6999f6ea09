//! Egress: the way of a packet from a workload's TUN to the network, or to another workload of the
//! node. In this order:
//!
//! 1. Here: headers are read, and long ICMP errors truncated. [`service`]: what goes to a service
//!    goes to one of its instances instead.
//! 2. [`authorize`]: the source address, the next hop, and the filter. [`service_answer`]: an
//!    answer of an instance comes from its service again.
//! 3. [`packet_too_big`]: a packet that is too long for its path is answered.
//! 4. [`segment`]: a super-packet is cut into packets of the path's size.
//! 5. [`encrypt`]: each packet is sealed where it leaves from, or staged until there is a session.
//! 6. [`send_batch`]: datagrams to one peer leave in one system call.
//!
//! [`query`] gives the node the DNS queries that it answers itself. [`rejection`] answers packets
//! that are denied, and [`staged`] sends what has waited for a session.

pub(crate) mod authorize;
pub(crate) mod encrypt;
pub(crate) mod packet_too_big;
mod query;
pub(crate) mod rejection;
pub(crate) mod segment;
pub(crate) mod send_batch;
pub(crate) mod service;
pub(crate) mod service_answer;
mod service_presumed;
pub(crate) mod staged;

use crate::{
    drop_reason::{DropReason, Dropped},
    ecn::Ecn,
    headers::Headers,
    icmp_error,
    index::{PeerIndex, WorkloadIndex},
    link_counters::Tally,
    offload::Offload,
    packet_batch::PacketBatch,
    paths::mtu::PathMtu,
    resolver::DNS_PORT,
    sink::{Sink, whole_to_workload},
    tables::local_entry::{LocalEntry, NextHop},
};
use authorize::EgressInput;
use packet_too_big::TooBig;
use segment::Segments;
use service::Leg;

/// A packet whose headers are parsed.
pub(crate) struct EgressPacket<'a> {
    pub(crate) packet: &'a mut [u8],
    pub(crate) headers: &'a mut Headers,
    /// The offloads that are still to be done.
    pub(crate) offload: Offload,
}

impl PacketBatch<'_> {
    /// Processes a packet that a local workload has sent, with the offloads that are still to be
    /// done. Datagrams for the network are kept until [`Self::finish`].
    pub fn egress(
        &mut self,
        from: WorkloadIndex,
        offload: Offload,
        packet: &mut [u8],
        sink: &mut impl Sink,
    ) {
        let waited_for = self.headers_if_fragments_wait(packet);
        match self.forward(from, offload, packet, sink) {
            Err(Dropped { reason: DropReason::OrphanFragment, .. })
                if self.queue_fragment(from, packet) => {}
            Err(dropped) => self.drop_from_workload(from, packet, dropped, sink),
            Ok(()) => {
                if let Some(first) = waited_for {
                    self.forward_fragments_after(from, &first, sink);
                }
            }
        }
    }

    /// Returns the headers of a packet as they are before it is translated, if fragments wait for
    /// any.
    #[inline]
    fn headers_if_fragments_wait(&self, packet: &[u8]) -> Option<Headers> {
        if !self.state.filter.has_waiting_fragments() {
            return None;
        }
        Headers::parse(packet).ok()
    }

    /// Sends the fragments that have waited for a packet which has passed.
    #[cold]
    fn forward_fragments_after(
        &mut self,
        from: WorkloadIndex,
        first: &Headers,
        sink: &mut impl Sink,
    ) {
        for mut later in self.state.filter.take_fragments(first) {
            if let Err(dropped) = self.forward(from, Offload::None, &mut later, sink) {
                self.state.drops.count(dropped.reason, dropped.packets);
            }
        }
    }

    #[cold]
    fn drop_from_workload(
        &mut self,
        from: WorkloadIndex,
        packet: &[u8],
        Dropped { reason, packets }: Dropped,
        sink: &mut impl Sink,
    ) {
        let is_rejected = match reason {
            DropReason::NoInstance => self.refuse_to_workload(from, packet, sink),
            _ => reason.is_denial() && self.reject_to_workload(from, packet, sink),
        };
        self.state.drops.count(if is_rejected { DropReason::Rejected } else { reason }, packets);
    }

    fn forward(
        &mut self,
        from: WorkloadIndex,
        offload: Offload,
        packet: &mut [u8],
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let mut headers = Headers::parse(packet).map_err(|error| Dropped::one(error.into()))?;
        let was_truncated = icmp_error::truncate(packet, &mut headers);
        let offload = if was_truncated { Offload::None } else { offload };
        let packets = segment::count(&headers, offload);
        let packet = &mut packet[..headers.length];
        if headers.destination_port == DNS_PORT || headers.source_port == DNS_PORT {
            let egress = EgressPacket { packet, headers: &mut headers, offload };
            if let Some(done) = self.egress_dns(from, egress, sink) {
                return done;
            }
        }
        let tally = Tally { packets, bytes: headers.length as u64 };
        let dropped = |reason| Dropped { reason, packets };
        let leg = match self.tables.services.are_at(&headers.destination) {
            true => self.translate(from, packet, &mut headers, offload).map_err(dropped)?,
            false => Leg::Direct,
        };
        let presumed = match leg {
            Leg::Direct => {
                let sender = || Some(self.tables.local(from)?.party()?.identity);
                self.presume(sender, &headers).map_err(dropped)?
            }
            _ => None,
        };
        let translation = self.connection_of(&leg).or(presumed.as_ref());
        let input = EgressInput { packet, headers: &headers, tally, translation };
        let mut authorized = self.authorize(from, &input);
        if let (Some(presumed), Ok(authorized)) = (presumed, &mut authorized) {
            self.note_presumed(presumed, &mut authorized.passed);
        }
        let mut egress = EgressPacket { packet, headers: &mut headers, offload };
        let authorized = match (authorized, &leg) {
            (Err(reason), Leg::Request(kind)) => {
                let dropped = dropped(reason);
                return self.refuse_request((from, *kind), &mut egress, dropped, sink);
            }
            (authorized, _) => authorized.map_err(dropped)?,
        };
        let next_hop = match (&leg, &authorized.passed.translation) {
            (Leg::Direct, None) => authorized.next_hop,
            _ => {
                let after = self.after_filter((from, &leg), authorized, &mut egress, sink);
                let Some(next_hop) = after.map_err(dropped)? else { return Ok(()) };
                next_hop
            }
        };
        match next_hop {
            NextHop::Workload(to) => {
                let accepted = whole_to_workload(sink, to, offload, egress.packet);
                accepted.then_some(()).ok_or(Dropped { reason: DropReason::SendFailed, packets })
            }
            NextHop::Device(device) => self.send_to_device(device, egress, sink),
            NextHop::Peer(peer) => self.send_to_peer(peer, from, egress, sink),
        }
    }

    /// Sends a packet that may pass to a workload of a peer.
    fn send_to_peer(
        &mut self,
        peer: PeerIndex,
        from: WorkloadIndex,
        EgressPacket { packet, headers, offload }: EgressPacket<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let packets = segment::count(headers, offload);
        let dropped = |reason| Dropped { reason, packets };
        let (ecn, path_mtu, mtu) = (Ecn::of_packet(packet), self.path_mtu(peer), self.tables.mtu);
        if packet_too_big::is_too_big(packet, headers, segment::length(headers, offload), mtu) {
            self.answer_too_big(from, TooBig { packet, headers, mtu }, sink);
            return Err(dropped(DropReason::PacketTooBig));
        }
        let limit = path_mtu.map(|path_mtu| path_mtu.bytes);
        let segments = Segments::new(packet, headers, offload, limit).map_err(dropped)?;
        if let Some(PathMtu { bytes, is_known: true }) = path_mtu
            && packet_too_big::is_too_big(segments.first(), headers, segments.length(0), bytes)
        {
            // It is sent all the same, and fragmented on its way: where fragments pass, nothing is
            // lost.
            let too_big = TooBig { packet: segments.first(), headers, mtu: bytes };
            self.answer_too_big(from, too_big, sink);
        }
        self.encrypt(peer, &segments, ecn, sink);
        Ok(())
    }

    /// Returns the limit of the path to a peer, if it is below the network's MTU.
    fn path_mtu(&self, peer: PeerIndex) -> Option<PathMtu> {
        self.peers.get(peer)?.path_mtu_below(self.tables.mtu)
    }

    /// Sends a workload the ICMP error that a packet of it is too long for its path. A device finds
    /// the path MTU by itself.
    #[cold]
    fn answer_too_big(&self, sender: WorkloadIndex, too_big: TooBig<'_>, sink: &mut impl Sink) {
        if let Some(NextHop::Workload(sender)) = self.tables.next_hop_of(sender) {
            self.hand_error(sender, too_big.answer(), sink);
        }
    }

    /// Queues a later fragment of a workload until the first has passed. Returns `false` if there
    /// is no room.
    #[cold]
    fn queue_fragment(&self, from: WorkloadIndex, packet: &[u8]) -> bool {
        let party = self.tables.local(from).and_then(LocalEntry::party);
        let (Some(party), Ok(headers)) = (party, Headers::parse(packet)) else { return false };
        self.state.filter.queue_fragment(self.now, &headers, party, &packet[..headers.length])
    }
}
