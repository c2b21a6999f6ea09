//! Authorization of packets that workloads send: from their own addresses, to a known destination,
//! and as the filter allows.

use crate::{
    drop_reason::DropReason,
    filter::{FilterInput, Passed},
    flow_log::{Denial, FlowKind},
    headers::{Headers, Icmp, is_unicast},
    icmp_error::Quoted,
    index::WorkloadIndex,
    link_counters::Tally,
    packet_batch::PacketBatch,
    services::translation::Translation,
    tables::{
        local_entry::{LocalEntry, NextHop},
        next_hop::Route,
    },
};
use std::sync::Arc;

/// A packet of a workload, before it is judged.
pub(super) struct EgressInput<'a> {
    pub(super) packet: &'a [u8],
    pub(super) headers: &'a Headers,
    pub(super) tally: Tally,
    /// The connection through a service that it belongs to, if it is translated already.
    pub(super) translation: Option<&'a Arc<Translation>>,
}

/// A packet that a workload may send.
pub(super) struct Authorized {
    pub(super) next_hop: NextHop,
    pub(super) passed: Passed,
}

impl PacketBatch<'_> {
    /// Decides whether a workload may send a packet.
    ///
    /// # Errors
    /// The reason for which the packet is to be dropped.
    #[inline]
    pub(super) fn authorize(
        &self,
        from: WorkloadIndex,
        input: &EgressInput<'_>,
    ) -> Result<Authorized, DropReason> {
        let EgressInput { packet, headers, tally, translation } = *input;
        if !is_unicast(&headers.destination) {
            return Err(DropReason::NotUnicast);
        }
        let local = self.tables.local(from).ok_or(DropReason::NotAdmitted)?;
        if headers.icmp == Icmp::Error {
            return self.authorize_icmp_error((from, local), input);
        }
        if !self.tables.is_source_of(from, local, &headers.source) {
            return Err(DropReason::SpoofedByWorkload);
        }
        let source = local.party().ok_or(DropReason::NotAdmitted)?;
        let allowed = self.tables.route(self.now, &headers.destination).and_then(|route| {
            let Route { next_hop, party: destination } = route;
            let input = FilterInput { packet, headers, source, destination, tally, translation };
            let passed = self.state.filter.check(&self.tables.rules, self.now, &input)?;
            Ok(Authorized { next_hop, passed })
        });
        if let Err(reason) = &allowed {
            self.note_denial(from, headers, *reason);
        }
        allowed
    }

    /// Logs a packet that was denied, or that went to no known or admitted workload.
    #[cold]
    fn note_denial(&self, from: WorkloadIndex, headers: &Headers, reason: DropReason) {
        use DropReason::{Denied, NotAdmitted, UnknownAddress};
        if matches!(reason, Denied | UnknownAddress | NotAdmitted) {
            let FlowKind { protocol, port, .. } = FlowKind::of(headers, false);
            let (destination, source_port) = (headers.destination, headers.source_port);
            let denial = Denial { workload: from, destination, protocol, port, source_port };
            self.state.denials.note(denial);
        }
    }

    /// Decides whether a workload may send an ICMP error: only about a packet that was going to it,
    /// or to an address behind it. Routes of this host have its errors by any of their interfaces:
    /// the kernel chooses by where they go.
    #[cold]
    fn authorize_icmp_error(
        &self,
        (from, local): (WorkloadIndex, &LocalEntry),
        EgressInput { packet, headers, tally, translation }: &EgressInput<'_>,
    ) -> Result<Authorized, DropReason> {
        let Self { state, tables, now, .. } = self;
        let quoted = Quoted::read(packet, headers).and_then(|quoted| {
            let sender = tables.icmp_error_sender(from, local, quoted.headers.destination)?;
            Some((quoted, sender))
        });
        let Some((quoted, sender)) = quoted else {
            return Err(match tables.is_source_of(from, local, &headers.source) {
                true => DropReason::StrayIcmpError,
                false => DropReason::SpoofedByWorkload,
            });
        };
        let source = sender.party().ok_or(DropReason::NotAdmitted)?;
        if !tables.is_source_of_error(*now, source, headers.source, quoted.headers.destination) {
            return Err(DropReason::SpoofedByWorkload);
        }
        let Route { next_hop, party: destination } = tables.route(*now, &headers.destination)?;
        let (tally, translation) = (*tally, *translation);
        let input = FilterInput { packet, headers, source, destination, tally, translation };
        let passed = state.filter.check_icmp_error(&tables.rules, *now, &quoted, &input)?;
        Ok(Authorized { next_hop, passed })
    }
}
