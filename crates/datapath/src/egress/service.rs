//! Packets to services, which are translated before anything judges them, and the choice of an
//! instance for those that begin a connection.

use crate::{
    drop_reason::DropReason,
    headers::{Fragment, Headers, Icmp, RST, SYN},
    icmp_error::Quoted,
    index::WorkloadIndex,
    learnt_names::NameAge,
    offload::Offload,
    packet_batch::{FoundConnection, PacketBatch},
    rules::{Destination, Party},
    services::{
        choice::{Choice, Instance, mix},
        connections::ClientKey,
        directory::{Service, hash_of_address},
        load::Micros,
        mapping::{Ends, Mapping, Socket},
        rewrite::{ErrorEnds, rewrite, rewrite_error},
        state::{ClientOf, LastInstance, QUIC_LIFETIME},
        translation::{Replacement, Target, Translation},
    },
    tcp::ACK,
};
use meshward_types::{Affinity, ServicePort, Serving, Verdict};
use std::{net::IpAddr, sync::Arc};

/// Ports that are tried if a client's own is taken, and the first of them that may be.
const PORTS_TRIED: u64 = 64;
const FIRST_PORT: u64 = 1024;

/// The part that a packet of a workload has in a connection through a service.
#[derive(Debug)]
pub(super) enum Leg {
    /// None, as far as is known before the filter has found its flow.
    Direct,
    /// The client has sent it: it goes to the instance now. The connection is the batch's last one.
    Request(RequestKind),
    /// An instance that is its own client answers itself.
    LoopedAnswer(Arc<Translation>),
    /// A later fragment of what an instance that is its own client sends itself by this service.
    LoopedFragment { service: IpAddr },
    /// It is translated, and nothing is left to be done: a later fragment, or an ICMP error.
    Done,
}

/// The part of a client's packet in its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// It begins a connection, which is noted once it passes.
    First,
    /// It belongs to a connection that is there.
    Later,
}

/// A connection that needs an instance.
pub(super) struct Opening<'a> {
    pub(super) service: &'a Service,
    pub(super) port: ServicePort,
    /// The client.
    pub(super) source: Party,
    pub(super) headers: &'a Headers,
    pub(super) packet: &'a [u8],
    pub(super) now: Micros,
    /// Instances that have failed it.
    pub(super) tried: Vec<IpAddr>,
}

impl PacketBatch<'_> {
    /// Translates a packet of a workload to an address of a service block.
    ///
    /// # Errors
    /// The reason to drop it.
    #[inline(never)]
    pub(super) fn translate(
        &mut self,
        from: WorkloadIndex,
        packet: &mut [u8],
        headers: &mut Headers,
        offload: Offload,
    ) -> Result<Leg, DropReason> {
        if let Fragment::Later(_) = headers.fragment {
            let ends = self.state.services.ends_of_fragment(self.now, headers);
            let ends = ends.ok_or(DropReason::OrphanFragment)?;
            let service = headers.destination;
            rewrite(packet, headers, Offload::None, &ends)?;
            return Ok(match ends.source.address == ends.destination.address {
                true => Leg::LoopedFragment { service },
                false => Leg::Done,
            });
        }
        if headers.icmp == Icmp::Error {
            return self.translate_error(packet, headers).map(|()| Leg::Done);
        }
        let key = ClientKey::of_packet(headers);
        self.load_connection(&key);
        match &self.last_connection {
            Some(FoundConnection { translation: found, .. })
                if is_looped_answer(&found.mapping, headers) =>
            {
                let ends = found.mapping.outer_answer();
                self.note_fragment(from, headers, &ends)?;
                rewrite(packet, headers, offload, &ends)?;
                found.note_answer(packet, headers, self.micros);
                return Ok(Leg::LoopedAnswer(found.clone()));
            }
            Some(FoundConnection { translation: found, .. })
                if found.is_presumed() && headers.tcp_flags & RST != 0 =>
            {
                let found = found.clone();
                self.forget_presumed(&found);
                return Err(DropReason::Presumed);
            }
            Some(FoundConnection { translation: found, .. })
                if !goes_elsewhere(found, headers, self.micros) =>
            {
                self.note_fragment(from, headers, &found.outer_request)?;
                rewrite(packet, headers, offload, &found.outer_request)?;
                found.note_request(packet, headers, self.micros);
                return Ok(Leg::Request(RequestKind::Later));
            }
            // Its sender sends it again.
            None if !begins(headers) && self.state.filter.awaits_flows() => {
                return Err(DropReason::AwaitsFlows);
            }
            _ => {}
        }
        let found = self.last_connection.take().map(|found| found.translation);
        let translation = self.open(from, packet, headers, found.as_ref())?;
        if begins(headers) {
            translation.keep_syn(packet, offload);
        }
        self.note_fragment(from, headers, &translation.outer_request)?;
        rewrite(packet, headers, offload, &translation.outer_request)?;
        let kind = match found.is_some_and(|found| Arc::ptr_eq(&found, &translation)) {
            true => RequestKind::Later,
            false => RequestKind::First,
        };
        self.last_connection = Some(FoundConnection { key, translation });
        Ok(Leg::Request(kind))
    }

    /// Makes the connection that a packet of a client belongs to the last one; `None`: there is
    /// none yet.
    #[inline]
    fn load_connection(&mut self, key: &ClientKey) {
        if self.last_connection.as_ref().is_none_or(|last| last.key != *key) {
            let found = self.state.services.connections.get(key);
            let found = found.map(|translation| FoundConnection { key: *key, translation });
            self.last_connection = found;
        }
    }

    /// Returns the connection that the filter is to note with a packet's flow.
    #[inline]
    pub(super) fn connection_of<'a>(&'a self, leg: &'a Leg) -> Option<&'a Arc<Translation>> {
        match leg {
            Leg::Request(_) => self.last_connection.as_ref().map(|last| &last.translation),
            Leg::LoopedAnswer(translation) => Some(translation),
            Leg::Direct | Leg::LoopedFragment { .. } | Leg::Done => None,
        }
    }

    /// Notes the ends that a packet gets, if it is a first fragment: the others have no ports.
    #[inline]
    fn note_fragment(
        &self,
        from: WorkloadIndex,
        headers: &Headers,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        if let Fragment::First(_) = headers.fragment {
            let owner = self.tables.local(from).ok_or(DropReason::NotAdmitted)?.owner;
            self.state.services.note_fragment(self.now, headers, owner, ends);
        }
        Ok(())
    }

    /// Translates an ICMP error of a client about a packet that it had from a service.
    fn translate_error(&self, packet: &mut [u8], headers: &mut Headers) -> Result<(), DropReason> {
        let quoted = Quoted::read(packet, headers).ok_or(DropReason::StrayIcmpError)?;
        let Headers { source, source_port, destination, destination_port, .. } = quoted.headers;
        // The quoted packet went the other way.
        let request = Ends {
            source: Socket { address: destination, port: destination_port },
            destination: Socket { address: source, port: source_port },
        };
        let key = ClientKey::of(&request, quoted.headers.ip_protocol);
        let found = self.state.services.connections.get(&key).ok_or(DropReason::StrayIcmpError)?;
        let mapping = &found.mapping;
        let (destination, quoted_ends) = match request == mapping.request() {
            true => (mapping.instance.address, mapping.outer_answer()),
            false => (mapping.client.address, mapping.outer_request()),
        };
        // A router behind the client has an address of its own.
        let ends = ErrorEnds { source: headers.source, destination, quoted: quoted_ends };
        rewrite_error(packet, headers, &quoted, &ends)
    }

    /// Begins a connection. `before`: the one with the same addresses and ports that was there. If
    /// there is no other instance than that of a connection that has had no answer, that goes on.
    fn open(
        &self,
        from: WorkloadIndex,
        packet: &[u8],
        headers: &Headers,
        before: Option<&Arc<Translation>>,
    ) -> Result<Arc<Translation>, DropReason> {
        let Self { tables, micros: now, .. } = self;
        let local = tables.local(from).ok_or(DropReason::NotAdmitted)?;
        if !tables.is_source_of(from, local, &headers.source) {
            return Err(DropReason::SpoofedByWorkload);
        }
        let source = local.party().ok_or(DropReason::NotAdmitted)?;
        let service = tables.services.at(headers.destination).ok_or(DropReason::UnknownAddress)?;
        let port = service.port(headers.protocol(), headers.destination_port);
        let port = port.ok_or(DropReason::Denied)?;
        let now = *now;
        let failed = before.filter(|before| begins(headers) && has_failed(before, now));
        if let Some(failed) = failed.filter(|failed| !failed.is_refused()) {
            failed.note_unanswered(now);
        }
        let tried = failed.map_or(vec![], |failed| {
            let own = [failed.mapping.instance.address];
            failed.tried.iter().copied().chain(own).collect()
        });
        let opening = Opening { service, port, source, headers, packet, now, tried };
        let instance = self.instance_for(&opening)?;
        if let Some(failed) = failed
            && failed.mapping.instance.address == instance.address
            && !failed.is_over()
        {
            return Ok(failed.clone());
        }
        let mapping = self.mapping_to(&opening, instance)?;
        let target = Target { counters: service.counters.clone(), load: instance.load.clone() };
        // A connection that goes on without being known has been answered before a crash.
        let mut translation = match headers.ip_protocol == 6 && !begins(headers) {
            true => Translation::restored(mapping, Some(target), now),
            false => Translation::new(mapping, Some(target), now),
        };
        translation.tried = opening.tried;
        Ok(Arc::new(translation))
    }

    /// Returns the instance for a connection.
    pub(super) fn instance_for<'a>(
        &self,
        opening: &Opening<'a>,
    ) -> Result<&'a Instance, DropReason> {
        let Opening { service, port, source, headers, now, .. } = opening;
        let instances = service.instances_like(headers.destination);
        let reaches = |identity| {
            let to = Party::of_identity(identity, source.owner);
            let rules = &self.tables.rules;
            // The address of the instance is not known yet. A rule about addresses outside of the
            // mesh names none of either.
            let wanted = Destination {
                address: headers.destination,
                protocol: port.protocol,
                port: port.target,
                names: NameAge::Fresh,
            };
            rules.verdict(*source, to, wanted) != Verdict::Denied
        };
        if let Some(last) = self.last_instance(opening) {
            return Ok(last);
        }
        let usual = service.counters.usual.get();
        let hash = hash_of(headers, service.affinity());
        let ranking = service.ranking();
        let choice = Choice { hash, now: *now, usual, ranking, without: &opening.tried, reaches };
        let chosen = choice.choose(instances).or_else(|| {
            let again = Choice { without: &[], ..choice };
            again.choose(instances).or_else(|| {
                // The filter has the last word, and denies it by the real identities.
                let Choice { hash, now, usual, ranking, .. } = choice;
                let open = Choice { hash, now, usual, ranking, without: &[], reaches: |_| true };
                open.choose(instances)
            })
        });
        chosen.ok_or_else(|| {
            service.counters.note_without_instance();
            DropReason::NoInstance
        })
    }

    /// Returns the instance of the client's last connection, if this one is to go there, too.
    fn last_instance<'a>(&self, opening: &Opening<'a>) -> Option<&'a Instance> {
        let Opening { service, packet, headers, now, tried, .. } = opening;
        let client = match service.affinity() {
            Affinity::Client(_) => client_of(headers),
            Affinity::None if is_quic_short(packet, headers) => quic_client(headers),
            Affinity::None => return None,
        };
        let last = self.state.services.last_instance(self.now, &client)?;
        let instance = service.instance_at(last)?;
        let may_serve =
            instance.is_open && !tried.contains(&last) && !instance.load.is_failing(*now);
        (may_serve && instance.serving == Serving::Ready).then_some(instance)
    }

    /// Returns the mapping of a connection to an instance, with a port of the client that is free
    /// there.
    fn mapping_to(
        &self,
        opening: &Opening<'_>,
        instance: &Instance,
    ) -> Result<Mapping, DropReason> {
        let Opening { headers, port, .. } = opening;
        let mapping = Mapping {
            client: Socket { address: headers.source, port: headers.source_port },
            service: Socket { address: headers.destination, port: headers.destination_port },
            instance: Socket { address: instance.address, port: port.target },
            source_port: headers.source_port,
            ip_protocol: headers.ip_protocol,
        };
        self.with_free_port(mapping)
    }

    /// Returns a mapping with a port of the client that no other connection to the instance has:
    /// its own if possible.
    pub(super) fn with_free_port(&self, mapping: Mapping) -> Result<Mapping, DropReason> {
        if self.is_free(&mapping) {
            return Ok(mapping);
        }
        let hash = mix(hash_of_address(mapping.client.address), mapping.source_port.into());
        let mut others = (0..PORTS_TRIED).map(|number| {
            let port = FIRST_PORT + hash.wrapping_add(number * 7919) % (65_536 - FIRST_PORT);
            Mapping { source_port: port as u16, ..mapping }
        });
        others.find(|mapping| self.is_free(mapping)).ok_or(DropReason::NoInstance)
    }

    fn is_free(&self, mapping: &Mapping) -> bool {
        let outer = mapping.outer_request().headers(mapping.ip_protocol);
        let is_free = self.state.filter.is_free(self.now, &outer);
        let connections = &self.state.services.connections;
        is_free
            && (!mapping.is_hairpin()
                || connections.get(&ClientKey::of_looped_answer(mapping)).is_none())
    }

    /// Notes a connection whose first packet may pass.
    pub(super) fn note_connection(&self, from: WorkloadIndex, translation: &Arc<Translation>) {
        let Some(owner) = self.tables.local(from).map(|local| local.owner) else { return };
        let mapping = &translation.mapping;
        let before = self.state.services.put(self.now, owner, translation);
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, translation)) {
            let is_same = mapping.instance == before.mapping.instance;
            before.note_replaced(if is_same { Replacement::Same } else { Replacement::Elsewhere });
        }
        translation.begin();
    }

    /// Notes the instance of a client whose later connections are to go there, too.
    pub(super) fn note_instance(
        &self,
        from: WorkloadIndex,
        packet: &[u8],
        headers: &Headers,
        mapping: &Mapping,
    ) {
        let service = self.tables.services.at(mapping.service.address);
        let (Some(service), Some(local)) = (service, self.tables.local(from)) else { return };
        let request = Headers {
            destination: mapping.service.address,
            destination_port: mapping.service.port,
            ..*headers
        };
        let (client, kept) = match service.affinity() {
            Affinity::Client(kept) => (client_of(&request), kept),
            Affinity::None if is_quic_long(packet, headers) => {
                (quic_client(&request), QUIC_LIFETIME)
            }
            Affinity::None => return,
        };
        let last = LastInstance { client, instance: mapping.instance.address, kept };
        self.state.services.note_instance(self.now, local.owner, last);
    }
}

fn is_looped_answer(mapping: &Mapping, headers: &Headers) -> bool {
    mapping.is_hairpin()
        && (headers.source_port, headers.destination_port)
            != (mapping.client.port, mapping.service.port)
}

/// Returns whether a packet asks for a connection: a SYN that answers nothing.
fn begins(headers: &Headers) -> bool {
    headers.ip_protocol == 6 && headers.tcp_flags & (SYN | ACK | RST) == SYN
}

/// Returns whether an instance has not taken a connection for which its client asks again.
fn has_failed(translation: &Translation, now: Micros) -> bool {
    translation.is_refused() || translation.is_unanswered(now)
}

/// Returns whether a packet of a client needs another instance, or another choice.
fn goes_elsewhere(translation: &Translation, headers: &Headers, now: Micros) -> bool {
    translation.is_moved()
        || begins(headers) && (translation.is_over() || has_failed(translation, now))
}

/// Returns the hash on which the choice of an instance depends.
fn hash_of(headers: &Headers, affinity: Affinity) -> u64 {
    let (client, service) = (hash_of_address(headers.source), hash_of_address(headers.destination));
    let ports = match affinity {
        Affinity::Client(_) => 0,
        Affinity::None => {
            u64::from(headers.source_port) << 32
                | u64::from(headers.destination_port) << 16
                | u64::from(headers.ip_protocol)
        }
    };
    mix(mix(client, service), ports)
}

fn client_of(headers: &Headers) -> ClientOf {
    ClientOf::Service { client: headers.source, service: headers.destination }
}

fn quic_client(headers: &Headers) -> ClientOf {
    let service = Socket { address: headers.destination, port: headers.destination_port };
    ClientOf::Quic { client: headers.source, service }
}

/// Returns the two bits that say which header a packet of QUIC has (RFC 9000 §17).
fn quic_form(packet: &[u8], headers: &Headers) -> Option<u8> {
    let is_whole = headers.ip_protocol == 17 && headers.fragment == Fragment::Whole;
    packet.get(headers.payload + 8).filter(|_| is_whole).map(|byte| byte >> 6)
}

/// Returns whether a datagram may be one of QUIC with a long header, as connections begin.
fn is_quic_long(packet: &[u8], headers: &Headers) -> bool {
    quic_form(packet, headers) == Some(0b11)
}

/// Returns whether a datagram may be one of QUIC with a short header. As the first of a flow it
/// belongs to a connection that goes on from another port (RFC 9000 §9).
fn is_quic_short(packet: &[u8], headers: &Headers) -> bool {
    quic_form(packet, headers) == Some(0b01)
}
