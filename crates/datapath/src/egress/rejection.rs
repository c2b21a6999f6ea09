//! Rejections: answers to the senders of denied packets, and to both ends of a connection that was
//! cut.

use super::EgressPacket;
use crate::{
    headers::Headers,
    index::WorkloadIndex,
    offload::Offload,
    packet_batch::PacketBatch,
    reject,
    rules::{Party, Ports},
    sink::{Sink, whole_to_workload},
    tables::local_entry::{LocalEntry, NextHop},
};
use meshward_types::OnDeny;
use std::net::IpAddr;

impl PacketBatch<'_> {
    /// Sends a workload a rejection of a packet of it that was denied, if the rules say so. Returns
    /// `true` if it was sent.
    #[cold]
    pub(crate) fn reject_to_workload(
        &mut self,
        sender: WorkloadIndex,
        packet: &[u8],
        sink: &mut impl Sink,
    ) -> bool {
        let source = self.tables.local(sender).and_then(LocalEntry::party);
        let rejection = source.and_then(|source| self.rejection_of(source, packet));
        rejection.is_some_and(|rejection| self.hand_to_workload(sender, rejection, sink))
    }

    /// Returns the rejection of a denied packet, if the rules say so.
    pub(crate) fn rejection_of(&self, source: Party, packet: &[u8]) -> Option<Vec<u8>> {
        let Self { state, tables, now, .. } = self;
        let headers = Headers::parse(packet).ok()?;
        let destination = tables.route(*now, &headers.destination).ok().map(|route| route.party);
        let ports = Ports { source: headers.source_port, destination: headers.destination_port };
        let on_deny = tables.rules.on_deny(source, destination, headers.protocol(), ports);
        if on_deny != OnDeny::Reject && !state.filter.is_reset(*now, &headers) {
            return None;
        }
        let rejection = reject::rejection(&packet[..headers.length.min(packet.len())], &headers)?;
        state.rejection_limits.allow(*now, source.owner).then_some(rejection)
    }

    /// Hands a packet of the endpoint's own to a workload of this node. Returns `false` if it was
    /// dropped.
    pub(super) fn hand_to_workload(
        &mut self,
        to: WorkloadIndex,
        mut packet: Vec<u8>,
        sink: &mut impl Sink,
    ) -> bool {
        match self.tables.next_hop_of(to) {
            Some(NextHop::Device(device)) => {
                let Ok(mut headers) = Headers::parse(&packet) else { return false };
                let (packet, headers) = (&mut packet[..], &mut headers);
                let egress = EgressPacket { packet, headers, offload: Offload::None };
                self.send_to_device(device, egress, sink).is_ok()
            }
            _ => whole_to_workload(sink, to, Offload::None, &packet),
        }
    }

    /// Hands a segment to the end of a connection that is cut, if it is on this node: the other
    /// end's node does the same for it.
    pub(crate) fn reset(&mut self, to: IpAddr, mut segment: Vec<u8>, sink: &mut impl Sink) {
        let workload = self.tables.local_at(to).map(|(workload, _)| workload);
        if let Some(workload) = workload {
            self.translate_own(&mut segment);
            self.hand_to_workload(workload, segment, sink);
        }
    }
}
