//! Sending packets that have waited for a session. The rules may have changed meanwhile, so each is
//! authorized again; it was counted when it was staged.

use super::{EgressPacket, authorize::EgressInput, segment::Segments};
use crate::{
    drop_reason::{DropReason, Dropped},
    ecn::Ecn,
    filter::FilterInput,
    headers::{Headers, Icmp},
    icmp_error::Quoted,
    in_band,
    index::{PeerIndex, WorkloadIndex},
    link_counters::Tally,
    offload::Offload,
    packet_batch::PacketBatch,
    sink::Sink,
    tables::local_entry::NextHop,
};
use std::net::IpAddr;

impl PacketBatch<'_> {
    /// Sends a packet that has waited for a session with a peer, if it is still allowed.
    pub(crate) fn send_staged(
        &mut self,
        peer: PeerIndex,
        mut packet: Vec<u8>,
        sink: &mut impl Sink,
    ) {
        let of_workload = Headers::parse(&packet).ok().filter(|_| in_band::read(&packet).is_none());
        let Some(mut headers) = of_workload else { return self.send_control(peer, &packet, sink) };
        let sent = match self.tables.device_at(peer) {
            Some(device) => {
                self.send_staged_to_device((device, peer), &mut packet, &mut headers, sink)
            }
            None => self.send_staged_to_peer(&mut packet, &headers, sink).map_err(Dropped::one),
        };
        if let Err(Dropped { reason, packets }) = sent {
            self.state.drops.count(reason, packets);
        }
    }

    fn send_staged_to_peer(
        &mut self,
        packet: &mut [u8],
        headers: &Headers,
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let sender = self.tables.local_at(sender_of(packet, headers));
        let (from, _) = sender.ok_or(DropReason::NotAdmitted)?;
        // It was translated before it was staged.
        let input = EgressInput { packet, headers, tally: Tally::default(), translation: None };
        let NextHop::Peer(peer) = self.authorize(from, &input)?.next_hop else {
            // The address has come to this node meanwhile.
            return Err(DropReason::NoSession);
        };
        let ecn = Ecn::of_packet(packet);
        let limit = self.path_mtu(peer).map(|path_mtu| path_mtu.bytes);
        if let Ok(segments) = Segments::new(packet, headers, Offload::None, limit) {
            self.encrypt(peer, &segments, ecn, sink);
        }
        Ok(())
    }

    /// Sends a packet to a device, whoever has sent it.
    fn send_staged_to_device(
        &mut self,
        (device, peer): (WorkloadIndex, PeerIndex),
        packet: &mut [u8],
        headers: &mut Headers,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        self.check_for_device(device, packet, headers).map_err(Dropped::one)?;
        let egress = EgressPacket { packet, headers, offload: Offload::None };
        self.send_to_device(peer, egress, sink)
    }

    fn check_for_device(
        &self,
        device: WorkloadIndex,
        packet: &[u8],
        headers: &Headers,
    ) -> Result<(), DropReason> {
        let Self { state, tables, now, .. } = self;
        let source = tables.route(*now, &sender_of(packet, headers))?.party;
        let local = tables.local(device).ok_or(DropReason::NotAdmitted)?;
        let destination = local.party().ok_or(DropReason::NotAdmitted)?;
        let tally = Tally::default();
        let input = FilterInput { packet, headers, source, destination, tally, translation: None };
        match Quoted::read(packet, headers).filter(|_| headers.icmp == Icmp::Error) {
            Some(quoted) => state.filter.check_icmp_error(&tables.rules, *now, &quoted, &input)?,
            None => state.filter.check(&tables.rules, *now, &input)?,
        };
        Ok(())
    }
}

/// An address of the sender of a packet: an ICMP error may have another source address.
fn sender_of(packet: &[u8], headers: &Headers) -> IpAddr {
    let quoted = Quoted::read(packet, headers).filter(|_| headers.icmp == Icmp::Error);
    quoted.map_or(headers.source, |quoted| quoted.headers.destination)
}
