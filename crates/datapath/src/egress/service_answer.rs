//! Packets of connections through services once they may pass: what is left to be translated, and
//! what they show of instances.

use super::{
    EgressPacket,
    authorize::{Authorized, EgressInput},
    service::{Leg, RequestKind},
};
use crate::{
    drop_reason::{DropReason, Dropped},
    headers::{Fragment, Headers, Icmp},
    icmp_error::Quoted,
    index::WorkloadIndex,
    link_counters::Tally,
    offload::Offload,
    packet_batch::{FoundConnection, PacketBatch},
    reject,
    rules::Party,
    services::{
        connections::ClientKey,
        mapping::{Ends, Mapping, Socket},
        rewrite::{ErrorEnds, rewrite, rewrite_error},
        translation::{Replacement, Sign, Translation},
    },
    sink::{Sink, whole_to_workload},
    tables::local_entry::{LocalEntry, NextHop},
};
use meshward_types::Serving;
use std::sync::Arc;

/// Instances that are tried for one connect at the most.
const MAX_TRIED: usize = 3;

/// The way on of a packet of a flow that is a connection through a service.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is translated, and goes to the client.
    Deliver,
    /// The instance refuses: the client's SYN goes to another one, and nothing to the client.
    Retry(Arc<Translation>),
    /// It belongs to another connection, which has the same addresses and ports outside.
    Foreign,
}

impl PacketBatch<'_> {
    /// Translates a packet that may pass and belongs to a connection through a service, but was not
    /// sent to that service: an answer of the instance.
    ///
    /// # Errors
    /// The reason to drop it.
    #[inline(never)]
    pub(crate) fn translate_answer(
        &self,
        translation: &Arc<Translation>,
        packet: &mut [u8],
        headers: &mut Headers,
        offload: Offload,
    ) -> Result<Answer, DropReason> {
        let mapping = &translation.mapping;
        let outer = mapping.outer_answer();
        if headers.icmp == Icmp::Error {
            return self.translate_error_about(translation, packet, headers);
        }
        let ports = (headers.source_port, headers.destination_port);
        let is_later = matches!(headers.fragment, Fragment::Later(_));
        let is_answer = headers.source == outer.source.address
            && headers.destination == outer.destination.address
            && (is_later || ports == (outer.source.port, outer.destination.port));
        if !is_answer {
            return Ok(Answer::Foreign);
        }
        if translation.is_moved() {
            return Err(DropReason::Moved);
        }
        if !is_later {
            let now = self.micros;
            let sign = translation.note_answer(packet, headers, now);
            if sign == Sign::Refused && self.may_retry(translation) {
                return Ok(Answer::Retry(translation.clone()));
            }
        }
        rewrite(packet, headers, offload, &mapping.answer())?;
        Ok(Answer::Deliver)
    }

    /// Returns whether another instance may take a connection that is refused.
    fn may_retry(&self, translation: &Translation) -> bool {
        let mapping = &translation.mapping;
        let service = self.tables.services.at(mapping.service.address);
        let tried =
            |address| translation.tried.contains(&address) || mapping.instance.address == address;
        translation.tried.len() + 1 < MAX_TRIED
            && service.is_some_and(|service| {
                let instances = service.instances_like(mapping.service.address);
                let mut others = instances.iter().filter(|instance| !tried(instance.address));
                others.any(|other| other.is_open && other.serving == Serving::Ready)
            })
    }

    /// Translates an ICMP error about a packet that the client has sent: it had sent it to the
    /// service.
    fn translate_error_about(
        &self,
        translation: &Translation,
        packet: &mut [u8],
        headers: &mut Headers,
    ) -> Result<Answer, DropReason> {
        let mapping = &translation.mapping;
        let quoted = Quoted::read(packet, headers).ok_or(DropReason::StrayIcmpError)?;
        let quoted_ends = ends_of(&quoted.headers);
        if quoted_ends != mapping.outer_request() {
            if mapping.is_hairpin() && quoted_ends == mapping.outer_answer() {
                let (source, destination) = (mapping.service.address, mapping.instance.address);
                let ends = ErrorEnds { source, destination, quoted: mapping.looped_answer() };
                rewrite_error(packet, headers, &quoted, &ends)?;
            }
            return Ok(Answer::Foreign);
        }
        if translation.is_moved() {
            return Err(DropReason::Moved);
        }
        if !translation.is_answered() && is_unreachable(packet, headers) {
            translation.note_refused(self.micros);
        }
        let source = match headers.source == mapping.instance.address {
            true => mapping.service.address,
            false => headers.source,
        };
        let ends =
            ErrorEnds { source, destination: mapping.client.address, quoted: mapping.request() };
        rewrite_error(packet, headers, &quoted, &ends)?;
        Ok(Answer::Deliver)
    }

    /// Translates a packet that this node has made in the name of a workload, if that is an instance
    /// to which the receiver talks through a service: a reset, or an ICMP error about what the
    /// receiver has sent.
    #[cold]
    pub(crate) fn translate_own(&self, packet: &mut [u8]) {
        let Ok(mut headers) = Headers::parse(packet) else { return };
        let about = match headers.icmp {
            Icmp::Error => Quoted::read(packet, &headers).map(|quoted| quoted.headers),
            _ => Some(headers),
        };
        let found = about.and_then(|about| self.state.filter.translation_of(self.now, &about));
        if let Some(translation) = found {
            self.translate_for(&translation, packet, &mut headers);
        }
    }

    /// Translates a packet for the client of a connection, which tells nothing of the instance.
    fn translate_for(&self, translation: &Translation, packet: &mut [u8], headers: &mut Headers) {
        let mapping = &translation.mapping;
        if headers.icmp == Icmp::Error {
            _ = self.translate_error_about(translation, packet, headers);
        } else if ends_of(headers) == mapping.outer_answer() {
            _ = rewrite(packet, headers, Offload::None, &mapping.answer());
        }
    }

    /// Does what is left with a packet that may pass, by its part in a connection through a service.
    /// Returns its next hop; `None`: it goes no further.
    ///
    /// # Errors
    /// The reason to drop it.
    pub(super) fn after_filter(
        &mut self,
        (from, leg): (WorkloadIndex, &Leg),
        Authorized { next_hop, passed }: Authorized,
        egress: &mut EgressPacket<'_>,
        sink: &mut impl Sink,
    ) -> Result<Option<NextHop>, DropReason> {
        let EgressPacket { packet, headers, offload } = egress;
        match leg {
            Leg::Direct => {
                let Some(translation) = passed.translation else { return Ok(Some(next_hop)) };
                match self.translate_answer(&translation, packet, headers, *offload)? {
                    Answer::Deliver => Ok(Some(next_hop)),
                    Answer::Retry(translation) => {
                        self.retry(&translation, sink);
                        Ok(None)
                    }
                    Answer::Foreign => self.separate(from, next_hop, egress).map(Some),
                }
            }
            Leg::Request(kind) => {
                let Some(last) = &self.last_connection else { return Ok(Some(next_hop)) };
                let mapping = &last.translation.mapping;
                if *kind == RequestKind::First {
                    self.note_connection(from, &last.translation);
                    self.note_instance(from, packet, headers, mapping);
                }
                if mapping.is_hairpin() {
                    rewrite(packet, headers, *offload, &mapping.looped_request())?;
                }
                Ok(Some(next_hop))
            }
            Leg::LoopedAnswer(translation) => {
                rewrite(packet, headers, *offload, &translation.mapping.answer())?;
                Ok(Some(next_hop))
            }
            Leg::LoopedFragment { service } => {
                let Ends { source, destination } = ends_of(headers);
                let source = Socket { address: *service, ..source };
                rewrite(packet, headers, *offload, &Ends { source, destination })?;
                Ok(Some(next_hop))
            }
            Leg::Done => {
                if let (Some(translation), Icmp::Error) = (passed.translation, headers.icmp) {
                    // An instance's error about what it sent to itself.
                    self.translate_error_about(&translation, packet, headers)?;
                }
                Ok(Some(next_hop))
            }
        }
    }

    /// Gives a connection without a service another port outside, since the client uses its own for
    /// a connection through a service to the same port of the same workload.
    #[cold]
    fn separate(
        &mut self,
        from: WorkloadIndex,
        next_hop: NextHop,
        egress: &mut EgressPacket<'_>,
    ) -> Result<NextHop, DropReason> {
        let EgressPacket { packet, headers, offload } = egress;
        let is_later = matches!(headers.fragment, Fragment::Later(_));
        if is_later || headers.icmp != Icmp::None || !matches!(headers.ip_protocol, 6 | 17) {
            return Ok(next_hop);
        }
        let key = ClientKey::of_packet(headers);
        let found = self.state.services.connections.get(&key);
        let translation = match found {
            Some(found) => found,
            None => {
                let Ends { source, destination } = ends_of(headers);
                let mapping = self.with_free_port(Mapping {
                    client: source,
                    service: destination,
                    instance: destination,
                    source_port: source.port,
                    ip_protocol: headers.ip_protocol,
                })?;
                let now = self.micros;
                let translation = Arc::new(Translation::new(mapping, None, now));
                self.note_connection(from, &translation);
                translation
            }
        };
        rewrite(packet, headers, *offload, &translation.mapping.outer_request())?;
        let translation = Some(&translation);
        let input = EgressInput { packet, headers, tally: Tally::default(), translation };
        Ok(self.authorize(from, &input)?.next_hop)
    }

    /// Sends the SYN of a connection that was refused again: it goes to another instance.
    pub(crate) fn retry(&mut self, translation: &Translation, sink: &mut impl Sink) {
        let client = self.tables.local_at(translation.mapping.client.address);
        let client = client.map(|(workload, _)| workload);
        if let (Some(client), Some(syn)) = (client, translation.take_syn()) {
            let mut packet = syn.packet;
            self.egress(client, syn.offload, &mut packet, sink);
        }
    }

    /// Deals with a packet of a client that may not go to its instance. If that is gone, what can
    /// begin anew goes to another one, and the client of another connection is told.
    ///
    /// # Errors
    /// The packet is dropped, and its sender has had no answer.
    #[cold]
    pub(super) fn refuse_request(
        &mut self,
        (from, kind): (WorkloadIndex, RequestKind),
        egress: &mut EgressPacket<'_>,
        dropped: Dropped,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let EgressPacket { packet, headers, offload } = egress;
        let Some(FoundConnection { key, translation }) = self.last_connection.take() else {
            return Err(dropped);
        };
        let mapping = &translation.mapping;
        let is_gone =
            matches!(dropped.reason, DropReason::UnknownAddress | DropReason::NotAdmitted);
        if is_gone && kind == RequestKind::Later {
            self.state.services.connections.remove(&key);
            translation.note_replaced(Replacement::Elsewhere);
            if headers.ip_protocol == 17 {
                let fail = |reason| Dropped { reason, ..dropped };
                rewrite(packet, headers, *offload, &mapping.request()).map_err(fail)?;
                self.egress(from, *offload, packet, sink);
                return Ok(());
            }
        }
        if is_gone && translation.keeps_syn() && self.may_retry(&translation) {
            // The client is not told: somebody else may take its connection.
            self.note_connection(from, &translation);
            translation.note_refused(self.micros);
            self.retry(&translation, sink);
            return Ok(());
        }
        let source = self.tables.local(from).and_then(LocalEntry::party);
        let answer = match is_gone {
            true => source.and_then(|source| self.refusal_of(source, packet)),
            false => source.and_then(|source| self.rejection_of(source, packet)),
        };
        let Some(mut answer) = answer.filter(|_| dropped.reason.is_denial()) else {
            return Err(dropped);
        };
        if let Ok(mut headers) = Headers::parse(&answer) {
            // It says what the client knows, moved or not.
            translate_to_client(mapping, &mut answer, &mut headers);
        }
        if !self.hand_to_workload(from, answer, sink) {
            return Err(dropped);
        }
        self.state.drops.count(DropReason::Rejected, dropped.packets);
        Ok(())
    }

    /// Returns the answer to a packet to where nothing is, within the limits of such answers.
    pub(super) fn refusal_of(&self, source: Party, packet: &[u8]) -> Option<Vec<u8>> {
        let headers = Headers::parse(packet).ok()?;
        let refusal = reject::refusal(&packet[..headers.length.min(packet.len())], &headers)?;
        self.state.rejection_limits.allow(self.now, source.owner).then_some(refusal)
    }

    /// Refuses a packet to a service without an instance for it. Returns `true` if its sender was
    /// answered.
    #[cold]
    pub(super) fn refuse_to_workload(
        &mut self,
        from: WorkloadIndex,
        packet: &[u8],
        sink: &mut impl Sink,
    ) -> bool {
        let source = self.tables.local(from).and_then(LocalEntry::party);
        let refusal = source.and_then(|source| self.refusal_of(source, packet));
        refusal.is_some_and(|refusal| self.hand_to_workload(from, refusal, sink))
    }

    /// Gives a workload an ICMP error of this node about a packet of it.
    pub(super) fn hand_error(&self, to: WorkloadIndex, mut error: Vec<u8>, sink: &mut impl Sink) {
        self.translate_own(&mut error);
        whole_to_workload(sink, to, Offload::None, &error);
    }
}

/// Translates what this node answers a client in the name of its instance.
fn translate_to_client(mapping: &Mapping, packet: &mut [u8], headers: &mut Headers) {
    match Quoted::read(packet, headers).filter(|_| headers.icmp == Icmp::Error) {
        Some(quoted) => {
            let ends = ErrorEnds {
                source: mapping.service.address,
                destination: mapping.client.address,
                quoted: mapping.request(),
            };
            _ = rewrite_error(packet, headers, &quoted, &ends);
        }
        None => _ = rewrite(packet, headers, Offload::None, &mapping.answer()),
    }
}

fn ends_of(headers: &Headers) -> Ends {
    Ends {
        source: Socket { address: headers.source, port: headers.source_port },
        destination: Socket { address: headers.destination, port: headers.destination_port },
    }
}

/// Returns whether an ICMP error says that nothing receives there: not one about a packet's length.
fn is_unreachable(packet: &[u8], headers: &Headers) -> bool {
    let message = packet.get(headers.payload..headers.payload + 2);
    match (message, headers.ip_protocol) {
        (Some(&[3, code]), 1) => code != 4,
        (Some(&[1, _]), 58) => true,
        _ => false,
    }
}
