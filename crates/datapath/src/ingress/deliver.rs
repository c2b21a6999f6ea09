//! Delivering packets of peers to workloads, as this node's own filter allows. Packets of one flow
//! are checked together.

use crate::{
    drop_reason::{DropReason, Dropped},
    egress::{EgressPacket, service_answer::Answer},
    filter::{FilterInput, Passed},
    gather::{GatherList, Span},
    headers::{Headers, Icmp},
    icmp_error::Quoted,
    index::PeerIndex,
    link_counters::Tally,
    offload::Offload,
    packet_batch::PacketBatch,
    rules::Party,
    services::translation::Translation,
    sink::Sink,
    tables::{local_entry::NextHop, next_hop::Route},
};
use std::{slice::from_ref, sync::Arc};

/// A packet that a peer has sent.
struct PeerPacket<'a> {
    peer: PeerIndex,
    headers: &'a Headers,
    offload: Offload,
    /// The packet's parts in the buffer: all headers are in the first.
    parts: &'a [Span],
}

/// A packet of a peer that may pass.
struct Checked {
    /// The next hop on this node.
    next_hop: NextHop,
    passed: Passed,
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
    /// Connections through services that an instance has refused.
    refused: Vec<Arc<Translation>>,
}

impl PacketBatch<'_> {
    /// Delivers the packets of peers to the workloads.
    pub fn deliver(&mut self, buffer: &mut [u8], sink: &mut impl Sink) {
        let mut deferred = Deferred::default();
        for number in 0..self.scratch.coalescer.count() {
            let (run, offload) = self.scratch.coalescer.finish(number, buffer);
            let (peer, headers, parts) = (run.peer, &run.headers, &run.parts[..]);
            let from_peer = PeerPacket { peer, headers, offload, parts };
            if let Err(reason) = self.deliver_packet(&from_peer, buffer, &mut deferred, sink) {
                let packets = run.parts.len() as u64;
                let packet = &buffer[run.parts[0].clone()];
                let dropped = Dropped { reason, packets };
                self.drop_from_peer(&from_peer, packet, dropped, &mut deferred);
                continue;
            }
            if self.state.filter.has_waiting_fragments() {
                for later in self.state.filter.take_fragments(&run.headers) {
                    let delivered = self.deliver_fragment(run.peer, later, &mut deferred, sink);
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
        for refused in deferred.refused {
            self.retry(&refused, sink);
        }
    }

    /// Delivers a packet to its workload, if it may pass.
    fn deliver_packet(
        &self,
        PeerPacket { peer, headers, offload, parts }: &PeerPacket<'_>,
        buffer: &mut [u8],
        deferred: &mut Deferred,
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let first = parts[0].clone();
        let Checked { next_hop, passed } = self.check(*peer, headers, &buffer[first.clone()])?;
        if let Some(translation) = &passed.translation {
            let (packet, mut headers) = (&mut buffer[first], **headers);
            let answer = self.translate_answer(translation, packet, &mut headers, *offload)?;
            if let Answer::Retry(refused) = answer {
                deferred.refused.push(refused);
                return Ok(());
            }
        }
        let packet = GatherList::new(buffer, parts);
        match next_hop {
            NextHop::Workload(workload) => {
                let accepted = sink.to_workload(workload, *offload, packet);
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

    /// Decides whether a packet of a peer may pass.
    fn check(
        &self,
        peer: PeerIndex,
        headers: &Headers,
        packet: &[u8],
    ) -> Result<Checked, DropReason> {
        let Self { state, tables, now, .. } = self;
        let error = match headers.icmp {
            Icmp::Error => Some(self.icmp_error_of(peer, packet, headers)?),
            _ => None,
        };
        let source = match &error {
            Some(error) => error.sender,
            None => tables.sender(*now, peer, &headers.source)?,
        };
        let Route { next_hop, party: destination } = tables.local_route(headers.destination)?;
        let presumed = self.presume(|| Some(source.identity), headers)?;
        let (tally, translation) = (Tally::default(), presumed.as_ref());
        let input = FilterInput { packet, headers, source, destination, tally, translation };
        let mut passed = match &error {
            Some(error) => {
                state.filter.check_icmp_error(&tables.rules, *now, &error.quoted, &input)?
            }
            None => state.filter.check(&tables.rules, *now, &input)?,
        };
        if let Some(presumed) = presumed {
            self.note_presumed(presumed, &mut passed);
        }
        Ok(Checked { next_hop, passed })
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
            let sender = tables.sender(*now, peer, &quoted.headers.destination).ok()?;
            Some(PeerIcmpError { quoted, sender })
        });
        let Some(error) = found else {
            tables.sender(*now, peer, &headers.source)?;
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
        PeerPacket { peer, headers, .. }: &PeerPacket<'_>,
        packet: &[u8],
        Dropped { reason, packets }: Dropped,
        deferred: &mut Deferred,
    ) {
        let sender = self.tables.sender(self.now, *peer, &headers.source).ok();
        if reason == DropReason::OrphanFragment {
            let is_queued = sender.is_some_and(|party| {
                self.state.filter.queue_fragment(self.now, headers, party, packet)
            });
            if is_queued {
                return;
            }
        }
        // That node's own filter has let the packet pass, and lets the rejection pass as one of its
        // flow.
        let is_denied = matches!(reason, DropReason::Denied | DropReason::Quarantined);
        let rejection = sender.filter(|_| is_denied);
        let rejection = rejection.and_then(|source| self.rejection_of(source, packet));
        let is_rejected = rejection.is_some();
        deferred.rejections.extend(rejection.map(|packet| Rejection { peer: *peer, packet }));
        self.state.drops.count(if is_rejected { DropReason::Rejected } else { reason }, packets);
    }

    /// Delivers a fragment that has waited for the first one of its packet.
    #[cold]
    fn deliver_fragment(
        &self,
        peer: PeerIndex,
        mut packet: Vec<u8>,
        deferred: &mut Deferred,
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let headers = Headers::parse(&packet)?;
        let whole = 0..packet.len();
        let (offload, parts) = (Offload::None, from_ref(&whole));
        let from_peer = PeerPacket { peer, headers: &headers, offload, parts };
        self.deliver_packet(&from_peer, &mut packet, deferred, sink)
    }

    #[cold]
    fn deliver_to_device(&mut self, for_device: ForDevice, sink: &mut impl Sink) {
        let ForDevice { device, offload, mut packet } = for_device;
        let headers = Headers::parse(&packet).map_err(|error| Dropped::one(error.into()));
        let sent = headers.and_then(|mut headers| {
            let egress = EgressPacket { packet: &mut packet, headers: &mut headers, offload };
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
