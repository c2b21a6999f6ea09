//! Delivering packets of peers to workloads, as this node's own filter allows. Packets of one flow
//! are checked together.

use crate::{
    drop_reason::{DropReason, Dropped},
    egress::EgressPacket,
    filter::FilterInput,
    gather::GatherList,
    headers::{Headers, Icmp},
    icmp_error::Quoted,
    index::PeerIndex,
    link_counters::Tally,
    offload::Offload,
    packet_batch::PacketBatch,
    rules::Party,
    sink::Sink,
    tables::{local_entry::NextHop, next_hop::Route},
};
use std::slice::from_ref;

/// A packet that a peer has sent.
struct PeerPacket<'a> {
    peer: PeerIndex,
    headers: &'a Headers,
    offload: Offload,
    packet: GatherList<'a>,
}

/// A packet for a device, which is sealed once the receive buffer is free.
struct ForDevice {
    device: PeerIndex,
    offload: Offload,
    packet: Vec<u8>,
}

/// A rejection of a packet, for its sender at a peer.
struct Rejection {
    peer: PeerIndex,
    packet: Vec<u8>,
}

/// The packets that are sent after everything is delivered.
#[derive(Default)]
struct Deferred {
    for_devices: Vec<ForDevice>,
    rejections: Vec<Rejection>,
}

impl PacketBatch<'_> {
    /// Delivers the packets of peers to the workloads.
    pub fn deliver(&mut self, buffer: &mut [u8], sink: &mut impl Sink) {
        let mut deferred = Deferred::default();
        for number in 0..self.scratch.coalescer.count() {
            let (run, offload) = self.scratch.coalescer.finish(number, buffer);
            let packet = GatherList::new(buffer, &run.parts);
            let from_peer = PeerPacket { peer: run.peer, headers: &run.headers, offload, packet };
            if let Err(reason) = self.deliver_packet(&from_peer, &mut deferred, sink) {
                let packets = run.parts.len() as u64;
                self.drop_from_peer(&from_peer, Dropped { reason, packets }, &mut deferred);
                continue;
            }
            if self.state.filter.has_waiting_fragments() {
                for later in self.state.filter.take_fragments(&run.headers) {
                    let delivered = self.deliver_fragment(run.peer, &later, &mut deferred, sink);
                    if let Err(reason) = delivered {
                        self.state.drops.count(reason, 1);
                    }
                }
            }
        }
        self.scratch.coalescer.clear();
        for Rejection { peer, packet } in deferred.rejections {
            self.send_control(peer, &packet, sink);
        }
        for packet in deferred.for_devices {
            self.deliver_to_device(packet, sink);
        }
    }

    /// Delivers a packet to its workload, if it may pass.
    fn deliver_packet(
        &self,
        PeerPacket { peer, headers, offload, packet }: &PeerPacket<'_>,
        deferred: &mut Deferred,
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        match self.check(*peer, headers, packet.first())? {
            NextHop::Workload(workload) => {
                let accepted = sink.to_workload(workload, *offload, *packet);
                accepted.then_some(()).ok_or(DropReason::SendFailed)
            }
            NextHop::Device(device) => {
                let (offload, packet) = (*offload, packet.to_vec());
                deferred.for_devices.push(ForDevice { device, offload, packet });
                Ok(())
            }
            NextHop::Peer(_) => Err(DropReason::UnknownAddress),
        }
    }

    /// Decides whether a packet of a peer may pass. Returns the next hop on this node.
    fn check(
        &self,
        peer: PeerIndex,
        headers: &Headers,
        packet: &[u8],
    ) -> Result<NextHop, DropReason> {
        let Self { state, tables, now, .. } = self;
        let error = match headers.icmp {
            Icmp::Error => Some(self.icmp_error_of(peer, packet, headers)?),
            _ => None,
        };
        let source = match &error {
            Some(error) => error.sender,
            None => tables.sender(*now, peer, headers.source)?,
        };
        let Route { next_hop, party: destination } = tables.local_route(headers.destination)?;
        let input = FilterInput { packet, headers, source, destination, tally: Tally::default() };
        match &error {
            Some(error) => {
                state.filter.check_icmp_error(&tables.rules, *now, &error.quoted, &input)?;
            }
            None => state.filter.check(&tables.rules, *now, &input)?,
        }
        Ok(next_hop)
    }

    /// Reads an ICMP error of a peer. Its sender is the destination of the quoted packet, at that
    /// peer.
    #[cold]
    fn icmp_error_of(
        &self,
        peer: PeerIndex,
        packet: &[u8],
        headers: &Headers,
    ) -> Result<PeerIcmpError, DropReason> {
        let Self { tables, now, .. } = self;
        let found = Quoted::read(packet, headers).and_then(|quoted| {
            let sender = tables.sender(*now, peer, quoted.headers.destination).ok()?;
            Some(PeerIcmpError { quoted, sender })
        });
        let Some(error) = found else {
            tables.sender(*now, peer, headers.source)?;
            return Err(DropReason::StrayIcmpError);
        };
        let quoted = error.quoted.headers.destination;
        match tables.is_source_of_error(*now, error.sender, headers.source, quoted) {
            true => Ok(error),
            false => Err(DropReason::SpoofedByPeer),
        }
    }

    /// Drops a packet of a peer, or queues it until the first fragment of its packet has passed.
    #[cold]
    fn drop_from_peer(
        &self,
        PeerPacket { peer, headers, packet, .. }: &PeerPacket<'_>,
        Dropped { reason, packets }: Dropped,
        deferred: &mut Deferred,
    ) {
        let sender = self.tables.sender(self.now, *peer, headers.source).ok();
        if reason == DropReason::OrphanFragment {
            let is_queued = sender.is_some_and(|party| {
                self.state.filter.queue_fragment(self.now, headers, party, packet.first())
            });
            if is_queued {
                return;
            }
        }
        // That node's own filter has let the packet pass, and lets the rejection pass as one of its
        // flow.
        let is_denied = matches!(reason, DropReason::Denied | DropReason::Quarantined);
        let rejection = sender.filter(|_| is_denied);
        let rejection = rejection.and_then(|source| self.rejection_of(source, packet.first()));
        let is_rejected = rejection.is_some();
        deferred.rejections.extend(rejection.map(|packet| Rejection { peer: *peer, packet }));
        self.state.drops.count(if is_rejected { DropReason::Rejected } else { reason }, packets);
    }

    /// Delivers a fragment that has waited for the first one of its packet.
    #[cold]
    fn deliver_fragment(
        &self,
        peer: PeerIndex,
        packet: &[u8],
        deferred: &mut Deferred,
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let headers = Headers::parse(packet)?;
        let whole = 0..packet.len();
        let packet = GatherList::new(packet, from_ref(&whole));
        let from_peer = PeerPacket { peer, headers: &headers, offload: Offload::None, packet };
        self.deliver_packet(&from_peer, deferred, sink)
    }

    #[cold]
    fn deliver_to_device(&mut self, for_device: ForDevice, sink: &mut impl Sink) {
        let ForDevice { device, offload, mut packet } = for_device;
        let headers = Headers::parse(&packet).map_err(|error| Dropped::one(error.into()));
        let sent = headers.and_then(|headers| {
            let egress = EgressPacket { packet: &mut packet, headers: &headers, offload };
            self.send_to_device(device, egress, sink)
        });
        if let Err(Dropped { reason, packets }) = sent {
            self.state.drops.count(reason, packets);
        }
    }
}

/// An ICMP error of a peer.
struct PeerIcmpError {
    quoted: Quoted,
    sender: Party,
}
