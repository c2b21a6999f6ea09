//! DNS queries of workloads, which the node answers itself, and answers by TCP. They never leave
//! the node, but for those that egress gateways are asked.

use super::EgressPacket;
use crate::{
    drop_reason::{DropReason, Dropped},
    headers::{Fragment, Headers},
    in_band::name_message::NameMessage,
    index::{PeerIndex, WorkloadIndex},
    offload::Offload,
    packet_batch::PacketBatch,
    resolver::{DNS_PORT, DatagramQuery, Intercept, QueryAsker, QueryEnds, TCP, UDP, UDP_HEADER},
    sink::{Sink, whole_to_workload},
    tables::local_entry::{LocalEntry, NextHop},
};
use std::net::IpAddr;

impl PacketBatch<'_> {
    /// Handles a packet from or to the resolver of the network; `None` if it is neither.
    #[cold]
    pub(super) fn egress_dns(
        &mut self,
        from: WorkloadIndex,
        egress: EgressPacket<'_>,
        sink: &mut impl Sink,
    ) -> Option<Result<(), Dropped>> {
        let headers = *egress.headers;
        let streams = self.tables.resolver.streams;
        if streams == Some(from) {
            return Some(self.answer_stream(egress, sink).map_err(Dropped::one));
        }
        let is_query = headers.destination_port == DNS_PORT && self.is_resolver(&headers);
        if !is_query {
            return None;
        }
        let done = self.check_asker(from, &headers).and_then(|asker| match headers.ip_protocol {
            UDP => self.answer_datagrams(asker, &egress, sink),
            _ => {
                let streams = streams.ok_or(DropReason::UnknownAddress)?;
                to_workload(streams, &egress, sink)
            }
        });
        Some(done.map_err(Dropped::one))
    }

    fn is_resolver(&self, headers: &Headers) -> bool {
        let (resolver, to) = (&self.tables.resolver, headers.destination);
        let is_of_network = || self.tables.prefixes.iter().any(|prefix| prefix.contains(&to));
        matches!(headers.ip_protocol, UDP | TCP)
            && (resolver.addresses.contains(&to)
                || resolver.intercept == Intercept::Queries && !is_of_network())
    }

    /// Decides whether a workload may ask.
    fn check_asker(
        &self,
        from: WorkloadIndex,
        headers: &Headers,
    ) -> Result<QueryAsker, DropReason> {
        let local = self.tables.local(from).ok_or(DropReason::NotAdmitted)?;
        if !self.tables.is_source_of(from, local, &headers.source) {
            return Err(DropReason::SpoofedByWorkload);
        }
        self.asker_of(from, local)
    }

    /// Returns a workload as an asker.
    ///
    /// # Errors
    /// The reason not to answer it: it is not admitted, or quarantined.
    fn asker_of(
        &self,
        workload: WorkloadIndex,
        local: &LocalEntry,
    ) -> Result<QueryAsker, DropReason> {
        let party = local.party().ok_or(DropReason::NotAdmitted)?;
        match self.tables.rules.is_quarantined(party) {
            true => Err(DropReason::Quarantined),
            false => Ok(QueryAsker { workload, identity: party.identity }),
        }
    }

    /// Answers the queries of a datagram, or of a super-packet.
    fn answer_datagrams(
        &mut self,
        asker: QueryAsker,
        EgressPacket { packet, headers, offload }: &EgressPacket<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        // A query is short: no resolver of a workload's fragments it.
        if headers.fragment != Fragment::Whole {
            return Err(DropReason::Malformed);
        }
        let ends = QueryEnds::of(headers);
        let payload = &packet[headers.payload + UDP_HEADER..headers.length];
        let size = match offload {
            Offload::Segment { size, .. } => usize::from(*size).max(1),
            _ => payload.len().max(1),
        };
        let mut answer = std::mem::take(&mut self.scratch.answer);
        for message in payload.chunks(size) {
            if sink.resolve(DatagramQuery { asker, ends, message }, &mut answer) {
                self.answer(asker.workload, &ends, &answer, sink);
            }
        }
        self.scratch.answer = answer;
        Ok(())
    }

    /// Sends a workload the answer to a query of it. Returns `false` if it is gone, or does not
    /// take it.
    pub fn answer(
        &mut self,
        to: WorkloadIndex,
        ends: &QueryEnds,
        message: &[u8],
        sink: &mut impl Sink,
    ) -> bool {
        let asker = ends.asker.ip();
        let is_there =
            self.tables.local(to).is_some_and(|local| self.tables.is_source_of(to, local, &asker));
        let packet = if is_there { ends.answer_packet(message) } else { None };
        packet.is_some_and(|packet| self.hand_to_workload(to, packet, sink))
    }

    /// Sends a peer a message about a name, or stages it until there is a session. Returns `false`
    /// if it is too long.
    pub fn send_name_message(
        &mut self,
        peer: PeerIndex,
        message: &NameMessage<'_>,
        sink: &mut impl Sink,
    ) -> bool {
        let packet = message.encode();
        packet.map(|packet| self.send_control(peer, &packet, sink)).is_some()
    }

    /// Hands a packet of a connection, which comes from the resolver, to its workload.
    fn answer_stream(
        &mut self,
        egress: EgressPacket<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let headers = *egress.headers;
        if headers.ip_protocol != TCP || headers.source_port != DNS_PORT {
            return Err(DropReason::NotAdmitted);
        }
        let asker = self.asker_at(headers.destination)?;
        match self.tables.next_hop_of(asker.workload) {
            Some(NextHop::Device(device)) => {
                self.send_to_device(device, egress, sink).map_err(|dropped| dropped.reason)
            }
            _ => to_workload(asker.workload, &egress, sink),
        }
    }

    /// Finds the workload of this node that asks from an address.
    ///
    /// # Errors
    /// The reason not to answer it.
    pub(crate) fn asker_at(&self, address: IpAddr) -> Result<QueryAsker, DropReason> {
        let (workload, local) = self.tables.local_at(address).ok_or(DropReason::UnknownAddress)?;
        self.asker_of(workload, local)
    }
}

fn to_workload(
    to: WorkloadIndex,
    egress: &EgressPacket<'_>,
    sink: &mut impl Sink,
) -> Result<(), DropReason> {
    let accepted = whole_to_workload(sink, to, egress.offload, egress.packet);
    accepted.then_some(()).ok_or(DropReason::SendFailed)
}
