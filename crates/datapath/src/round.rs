//! A worker's way through an endpoint: packets from workloads to peers and to other workloads, and
//! back.

use crate::seen::{Denial, FlowKind};
use crate::{
    answer,
    batch::Batch,
    coalesce::{CoalesceOptions, Coalescer, GatherList, Span},
    counters::Tally,
    drops::DropReason,
    ecn::{self, Ecn},
    endpoint::{Endpoint, Sink, WorkloadIndex, plain},
    icmp_error::{self, Quoted},
    offload::Offload,
    packet::{Headers, Icmp},
    probe::{self, Probe},
    rules::Party,
    segment::{self, Pieces},
    tables::{Local, Place, Tables},
    too_big, vouch,
    wireguard::{DATA_HEADER, MessageType, Millis, Narrow, OVERHEAD, Peer, Peers, Sending, number},
};
use meshward_types::{IdentityId, OnDeny, stun};
use parking_lot::RwLockReadGuard;
use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    slice::from_ref,
    time::Instant,
};

/// The most vouches that one round takes.
const MOST_VOUCHES: usize = 256;

/// What a worker keeps between rounds: memory that is used again.
pub struct WorkerScratch {
    batch: Batch,
    coalescer: Coalescer,
    vouches: Vec<(usize, IdentityId, IpAddr)>,
}

impl Default for WorkerScratch {
    fn default() -> Self {
        Self { batch: Batch::new(), coalescer: Coalescer::default(), vouches: Vec::new() }
    }
}

impl WorkerScratch {
    /// Sets what is merged from now on.
    pub fn set_coalesce_options(&mut self, merging: CoalesceOptions) {
        self.coalescer.set_coalesce_options(merging);
    }
}

/// Datagrams of one sender that a socket has received in one call.
#[derive(Debug, Clone)]
pub struct Received {
    /// The sender.
    pub from: SocketAddr,
    /// The ECN field of the outer header.
    pub ecn: Ecn,
    /// The range of the receive buffer that they fill.
    pub range: Range<usize>,
    /// Length of each but the last, which may be shorter, in bytes.
    pub size: usize,
}

/// Some packets' way. What the coordinator said stays as it is meanwhile.
pub struct PacketBatch<'a> {
    endpoint: &'a Endpoint,
    tables: RwLockReadGuard<'a, Tables>,
    peers: RwLockReadGuard<'a, Peers>,
    scratch: &'a mut WorkerScratch,
    now: Instant,
    millis: Millis,
    /// The peer that was sent to last.
    sending: Option<(usize, Sending)>,
}

impl<'a> PacketBatch<'a> {
    pub(crate) fn new(
        endpoint: &'a Endpoint,
        scratch: &'a mut WorkerScratch,
        now: Instant,
    ) -> Self {
        let tables = endpoint.tables.read();
        let peers = endpoint.wireguard.peers.read();
        let millis = endpoint.wireguard.millis(now);
        Self { endpoint, tables, peers, scratch, now, millis, sending: None }
    }

    /// Takes a packet that a local workload sent, with what is still to be done to it. What leaves
    /// for the network is kept until [`Self::finish`].
    pub fn egress(
        &mut self,
        slot: WorkloadIndex,
        offload: Offload,
        packet: &mut [u8],
        sink: &mut impl Sink,
    ) {
        match self.route_from_workload(slot, offload, packet, sink) {
            Err((DropReason::OrphanFragment, _)) if self.hold_of_workload(slot, packet) => {}
            Err((cause, packets)) => {
                let told = is_denial(cause) && self.refuse(slot, packet, sink);
                self.endpoint.drops.count(if told { DropReason::Rejected } else { cause }, packets);
            }
            Ok(()) if self.endpoint.filter.has_waiting_fragments() => {
                for mut later in self.waiting_for(packet) {
                    if let Err((cause, packets)) =
                        self.route_from_workload(slot, Offload::None, &mut later, sink)
                    {
                        self.endpoint.drops.count(cause, packets);
                    }
                }
            }
            Ok(()) => {}
        }
    }

    /// Tells a workload that a packet of it was denied, if that is to be told; `false`: it is not.
    #[cold]
    fn refuse(&mut self, slot: WorkloadIndex, packet: &[u8], sink: &mut impl Sink) -> bool {
        let Some(source) = self.tables.local(slot).and_then(Local::party) else { return false };
        let Some((answer, headers)) = self.refusal(source, packet) else { return false };
        self.hand_to(slot, answer, &headers, sink)
    }

    /// What the sender of a denied packet is told, if anything.
    fn refusal(&self, source: Party, packet: &[u8]) -> Option<(Vec<u8>, Headers)> {
        let Self { endpoint, tables, now, .. } = self;
        let headers = Headers::parse(packet).ok()?;
        let destination = tables.find(*now, headers.destination).ok().map(|(_, party)| party);
        let ports = (headers.source_port, headers.destination_port);
        let told = tables.rules.on_deny(source, destination, headers.protocol(), ports);
        let rejects = told == OnDeny::Reject;
        if !rejects && !endpoint.filter.is_reset(*now, &headers) {
            return None;
        }
        let answer = answer::refusal(&packet[..headers.length.min(packet.len())], &headers)?;
        let headers = Headers::parse(&answer).ok()?;
        endpoint.answers.allow(*now, source.owner).then_some((answer, headers))
    }

    /// Hands a packet of the endpoint's own to a workload of this node.
    fn hand_to(
        &mut self,
        slot: WorkloadIndex,
        mut packet: Vec<u8>,
        headers: &Headers,
        sink: &mut impl Sink,
    ) -> bool {
        match self.device_of(slot) {
            Some(_) => self.send_to_device(slot, &mut packet, headers, Offload::None, sink).is_ok(),
            None => {
                let all = 0..packet.len();
                sink.to_workload(slot, Offload::None, GatherList::new(&packet, from_ref(&all)))
            }
        }
    }

    /// Hands a segment to the end of a connection that is cut, if it is on this node: the other
    /// end's node does the same for it.
    pub(crate) fn reset(&mut self, to: IpAddr, packet: Vec<u8>, sink: &mut impl Sink) {
        let slot = self.tables.local_at(to).map(|(slot, _)| slot);
        if let (Some(slot), Ok(headers)) = (slot, Headers::parse(&packet)) {
            self.hand_to(slot, packet, &headers, sink);
        }
    }

    /// Has a later fragment of a workload wait for the first.
    fn hold_of_workload(&self, slot: WorkloadIndex, packet: &[u8]) -> bool {
        let party = self.tables.local(slot).and_then(Local::party);
        let (Some(party), Ok(headers)) = (party, Headers::parse(packet)) else { return false };
        self.endpoint.filter.hold_fragment(self.now, &headers, party, &packet[..headers.length])
    }

    /// The fragments that have waited for a packet which has passed.
    fn waiting_for(&self, packet: &[u8]) -> Vec<Vec<u8>> {
        Headers::parse(packet)
            .map_or(vec![], |headers| self.endpoint.filter.take_fragments(&headers))
    }

    fn route_from_workload(
        &mut self,
        slot: WorkloadIndex,
        offload: Offload,
        packet: &mut [u8],
        sink: &mut impl Sink,
    ) -> Result<(), (DropReason, u64)> {
        let mut headers = Headers::parse(packet).map_err(|error| (error.into(), 1))?;
        let offload = if icmp_error::cut(packet, &mut headers) { Offload::None } else { offload };
        let packets = segment::count(&headers, offload);
        let packet = &mut packet[..headers.length];
        let tally = Tally { packets, bytes: headers.length as u64 };
        let place = self.admit(slot, packet, &headers, tally).map_err(|cause| (cause, packets))?;
        match place {
            Place::Local(to) if self.device_of(to).is_none() => {
                let taken = sink.to_workload(
                    to,
                    offload,
                    GatherList::new(packet, from_ref(&(0..packet.len()))),
                );
                if taken { Ok(()) } else { Err((DropReason::NotTaken, packets)) }
            }
            Place::Local(to) => self.send_to_device(to, packet, &headers, offload, sink),
            Place::Peer(peer) => {
                let (ecn, narrow, mtu) =
                    (Ecn::of_packet(packet), self.narrows(peer), self.tables.mtu);
                // A device finds out by itself.
                let told = (self.device_of(slot).is_none()).then_some(slot);
                if too_big::is_too_big(packet, &headers, segment::length(&headers, offload), mtu) {
                    tell_too_big(told, packet, &headers, mtu, sink);
                    return Err((DropReason::TooBig, packets));
                }
                let pieces = Pieces::new(packet, &headers, offload, narrow.map(|n| n.longest))
                    .map_err(|cause| (cause, packets))?;
                if let Some(Narrow { longest, is_known: true }) = narrow
                    && too_big::is_too_big(pieces.first(), &headers, pieces.length(0), longest)
                {
                    // It goes all the same, in fragments if they pass, so that nothing is lost
                    // where they do.
                    tell_too_big(told, pieces.first(), &headers, longest, sink);
                }
                self.send(peer, &pieces, ecn, sink);
                Ok(())
            }
        }
    }

    /// The place of a device among the peers.
    fn device_of(&self, slot: WorkloadIndex) -> Option<usize> {
        self.tables.local(slot)?.device
    }

    /// Seals a packet that may pass for a device.
    fn send_to_device(
        &mut self,
        slot: WorkloadIndex,
        packet: &mut [u8],
        headers: &Headers,
        offload: Offload,
        sink: &mut impl Sink,
    ) -> Result<(), (DropReason, u64)> {
        let packets = segment::count(headers, offload);
        let place = self.device_of(slot).ok_or((DropReason::NotTaken, packets))?;
        let ecn = Ecn::of_packet(packet);
        let pieces =
            Pieces::new(packet, headers, offload, None).map_err(|cause| (cause, packets))?;
        self.send(place, &pieces, ecn, sink);
        Ok(())
    }

    /// Whether a workload may send a packet, and where it then goes.
    fn admit(
        &self,
        slot: WorkloadIndex,
        packet: &[u8],
        headers: &Headers,
        tally: Tally,
    ) -> Result<Place, DropReason> {
        if !is_unicast(headers.destination) {
            return Err(DropReason::NotUnicast);
        }
        let Self { endpoint, tables, now, .. } = self;
        let local = tables.local(slot).ok_or(DropReason::NotAdmitted)?;
        if headers.icmp == Icmp::Error {
            return self.admit_error(slot, local, packet, headers, tally);
        }
        if !tables.is_source_of(slot, local, headers.source) {
            return Err(DropReason::SpoofedByWorkload);
        }
        let source = local.party().ok_or(DropReason::NotAdmitted)?;
        let judged = tables.find(*now, headers.destination).and_then(|(place, destination)| {
            let (filter, rules) = (&endpoint.filter, &tables.rules);
            filter.judge(rules, *now, packet, headers, source, destination, tally).map(|()| place)
        });
        // Denied, to nobody, or to what was refused: what it tries and does not get.
        if matches!(
            judged,
            Err(DropReason::Denied | DropReason::UnknownAddress | DropReason::NotAdmitted)
        ) {
            let FlowKind { protocol, port, .. } = headers.kind(false);
            let (destination, source_port) = (headers.destination, headers.source_port);
            endpoint.denials.note(Denial {
                workload: slot,
                destination,
                protocol,
                port,
                source_port,
            });
        }
        judged
    }

    /// Whether a workload may send an ICMP error, and where it then goes: only about a packet that
    /// was going to it, or to what is behind it. Routes of this host have its errors by any of
    /// their interfaces: the kernel chooses by where they go.
    fn admit_error(
        &self,
        slot: WorkloadIndex,
        local: &Local,
        packet: &[u8],
        headers: &Headers,
        tally: Tally,
    ) -> Result<Place, DropReason> {
        let Self { endpoint, tables, now, .. } = self;
        let quoted = Quoted::read(packet, headers);
        let quoted = quoted.and_then(|quoted| {
            let of = tables.answers_for(slot, local, quoted.headers.destination)?;
            Some((quoted, of))
        });
        let Some((quoted, of)) = quoted else {
            let is_own = tables.is_source_of(slot, local, headers.source);
            return Err(if is_own {
                DropReason::StrayIcmpError
            } else {
                DropReason::SpoofedByWorkload
            });
        };
        let source = of.party().ok_or(DropReason::NotAdmitted)?;
        if !tables.is_source_of_error(*now, source, headers.source, quoted.headers.destination) {
            return Err(DropReason::SpoofedByWorkload);
        }
        let (place, destination) = tables.find(*now, headers.destination)?;
        let (filter, rules) = (&endpoint.filter, &tables.rules);
        filter
            .judge_error(rules, *now, &quoted, headers, source, destination, tally)
            .map(|()| place)
    }

    /// How long a packet to a peer may be, in bytes, if its way takes only shorter ones than the
    /// network.
    fn narrows(&self, place: usize) -> Option<Narrow> {
        self.peers.get(place)?.narrows(self.tables.mtu)
    }

    /// Seals packets for a peer, or keeps them until there is a session.
    fn send(&mut self, place: usize, pieces: &Pieces<'_>, ecn: Ecn, sink: &mut impl Sink) {
        let Some(peer) = self.peers.get(place) else {
            return self.endpoint.drops.count(DropReason::NoSession, pieces.count() as u64);
        };
        if self.sending.as_ref().is_none_or(|(own, _)| *own != place) {
            self.sending = peer.sending(self.millis).map(|sending| (place, sending));
        }
        let count = pieces.count();
        let ready = self.sending.as_ref().map(|(_, sending)| sending);
        let ready =
            ready.and_then(|sending| Some((sending, sending.session.reserve(count as u64)?)));
        let Some((Sending { session, address }, first)) = ready else {
            return self.stage(peer, pieces, sink);
        };
        let (mut bytes, longest) =
            (0, peer.narrows(self.tables.mtu).map_or(self.tables.mtu, |n| n.longest));
        for number in 0..count {
            let length = pieces.length(number);
            let padded = padded(length, longest);
            let datagram = self.scratch.batch.push(*address, ecn, padded + OVERHEAD, sink);
            let (text, padding) = datagram[DATA_HEADER..DATA_HEADER + padded].split_at_mut(length);
            pieces.write(number, text);
            padding.fill(0);
            session.seal(first + number as u64, datagram);
            bytes += length as u64;
        }
        if peer.note_sent(self.millis, session, bytes) {
            self.want_handshake(peer, sink);
        }
    }

    fn stage(&self, peer: &Peer, pieces: &Pieces<'_>, sink: &mut impl Sink) {
        let mut lost = 0;
        for number in 0..pieces.count() {
            let mut packet = vec![0; pieces.length(number)];
            pieces.write(number, &mut packet);
            lost += peer.stage(packet, &self.endpoint.wireguard.staged);
        }
        self.endpoint.drops.count(DropReason::NoSession, lost);
        self.want_handshake(peer, sink);
    }

    fn want_handshake(&self, peer: &Peer, sink: &mut impl Sink) {
        if self.endpoint.wireguard.want(peer) {
            sink.request_handshakes();
        }
    }

    /// Sends a packet that waited for a session, if the rules of now still allow it. It has been
    /// counted.
    pub(crate) fn release(&mut self, place: usize, mut packet: Vec<u8>, sink: &mut impl Sink) {
        let from_workload =
            Headers::parse(&packet).ok().filter(|_| vouch::decode(&packet).is_none());
        let Some(headers) = from_workload else { return self.send_vouch(place, &packet, sink) };
        if let Some(slot) = self.tables.device_at(place) {
            return self.release_to_device(slot, &mut packet, &headers, sink);
        }
        let admitted = self
            .tables
            .local_at(sent_by(&packet, &headers))
            .ok_or(DropReason::NotAdmitted)
            .and_then(|(slot, _)| self.admit(slot, &packet, &headers, Tally::default()));
        match admitted {
            Ok(Place::Peer(place)) => {
                let ecn = Ecn::of_packet(&packet);
                let narrow = self.narrows(place).map(|narrow| narrow.longest);
                if let Ok(pieces) = Pieces::new(&mut packet, &headers, Offload::None, narrow) {
                    self.send(place, &pieces, ecn, sink);
                }
            }
            // The address has come to this node meanwhile.
            Ok(Place::Local(_)) => self.endpoint.drops.count(DropReason::NoSession, 1),
            Err(cause) => self.endpoint.drops.count(cause, 1),
        }
    }

    /// The same for a device, whoever has sent the packet.
    fn release_to_device(
        &mut self,
        slot: WorkloadIndex,
        packet: &mut [u8],
        headers: &Headers,
        sink: &mut impl Sink,
    ) {
        let judge = || {
            let (_, source) = self.tables.find(self.now, sent_by(packet, headers))?;
            let local = self.tables.local(slot).ok_or(DropReason::NotAdmitted)?;
            let destination = local.party().ok_or(DropReason::NotAdmitted)?;
            let (filter, rules, tally) =
                (&self.endpoint.filter, &self.tables.rules, Tally::default());
            match Quoted::read(packet, headers).filter(|_| headers.icmp == Icmp::Error) {
                Some(quoted) => filter.judge_error(
                    rules,
                    self.now,
                    &quoted,
                    headers,
                    source,
                    destination,
                    tally,
                ),
                None => filter.judge(rules, self.now, packet, headers, source, destination, tally),
            }
        };
        let sent = judge().map_err(|cause| (cause, 1));
        let sent =
            sent.and_then(|()| self.send_to_device(slot, packet, headers, Offload::None, sink));
        if let Err((cause, packets)) = sent {
            self.endpoint.drops.count(cause, packets);
        }
    }

    /// Sends a packet of the endpoint's own.
    pub(crate) fn send_vouch(&mut self, place: usize, packet: &[u8], sink: &mut impl Sink) {
        self.send(place, &Pieces::Whole(packet), Ecn::NotCapable, sink);
    }

    /// Takes received datagrams, which stand in `buffer`. Data messages are opened in place, and their
    /// packets kept until [`Self::deliver`].
    pub fn ingress(&mut self, received: Received, buffer: &mut [u8], sink: &mut impl Sink) {
        let Received { from, ecn: mark, range: mut rest, size } = received;
        let size = size.max(1);
        while !rest.is_empty() {
            let datagram = rest.start..rest.end.min(rest.start + size);
            match MessageType::of(&buffer[datagram.clone()]) {
                Some(MessageType::Data) => {
                    rest.start = self.open_run(from, mark, buffer, rest.clone(), size, sink);
                    continue;
                }
                Some(_) => self.queue_handshake(from, &buffer[datagram.clone()], sink),
                None if stun::is_response(&buffer[datagram.clone()]) => {
                    self.queue_handshake(from, &buffer[datagram.clone()], sink);
                }
                None => self.endpoint.drops.count(DropReason::UnknownPeer, 1),
            }
            rest.start = datagram.end;
        }
    }

    /// Hands a message on to the thread for handshakes, if that is to be asked for it.
    fn queue_handshake(&self, from: SocketAddr, message: &[u8], sink: &mut impl Sink) {
        let wireguard = &self.endpoint.wireguard;
        let admitted = wireguard.admit(&self.peers, self.millis, from, message, &mut plain(sink));
        let taken = admitted.and_then(|()| {
            sink.queue_handshake(from, message).then_some(()).ok_or(DropReason::HandshakeQueueFull)
        });
        if let Err(cause) = taken {
            self.endpoint.drops.count(cause, 1);
        }
    }

    /// Opens the first datagrams that belong to one session, and gives where the next one begins.
    fn open_run(
        &mut self,
        from: SocketAddr,
        mark: Ecn,
        buffer: &mut [u8],
        place: Range<usize>,
        size: usize,
        sink: &mut impl Sink,
    ) -> usize {
        let Range { start: mut at, end } = place;
        let index = number(&buffer[at..], 4);
        let session = self
            .peers
            .by_index(index)
            .and_then(|peer| Some((peer, peer.receiving(self.millis, index)?)));
        let Some((peer, session)) = session else {
            self.endpoint.drops.count(DropReason::UnknownPeer, 1);
            return end.min(at + size);
        };
        let peer = peer.clone();
        let (mut window, mut opened, mut bytes) = (session.received(), false, None);
        while at < end {
            let datagram = at..end.min(at + size);
            let message = &mut buffer[datagram.clone()];
            if MessageType::of(message) != Some(MessageType::Data) || number(message, 4) != index {
                break;
            }
            at = datagram.end;
            let Ok(text) = session.open(&mut window, message) else {
                self.endpoint.drops.count(DropReason::BadCrypto, 1);
                continue;
            };
            opened = true;
            let text = datagram.start + text.start..datagram.start + text.end;
            if let Some(probe) = Probe::decode(&buffer[text.clone()]) {
                self.take_probe(&peer, from, probe, sink);
                continue;
            }
            let bytes = bytes.get_or_insert(0);
            if text.is_empty() {
                continue;
            }
            if let Some(slot) = self.tables.device_at(peer.slot as usize) {
                // What a device sends is judged as what comes from any workload here.
                *bytes += text.len() as u64;
                self.egress(slot, Offload::None, &mut buffer[text], sink);
                continue;
            }
            match self.take(peer.slot as usize, mark, buffer, text) {
                Ok(length) => *bytes += length as u64,
                Err(cause) => self.endpoint.drops.count(cause, 1),
            }
        }
        drop(window);
        if opened {
            sink.authenticated(from);
            let heard = peer.note_received(self.millis, &session, from, bytes);
            if heard.handshake_is_due {
                self.want_handshake(&peer, sink);
            }
            if heard.session_is_new {
                self.sending = None;
                for packet in peer.take_staged(&self.endpoint.wireguard.staged) {
                    self.release(peer.slot as usize, packet, sink);
                }
            }
        }
        at
    }

    /// Answers a probe by the way that it took, or notes what an answer proves.
    fn take_probe(&mut self, peer: &Peer, from: SocketAddr, probe: Probe, sink: &mut impl Sink) {
        match probe {
            Probe::Question(number) => {
                let answer = Probe::Answer(number);
                let answer = self.endpoint.wireguard.ask(self.millis, peer, answer, probe::LENGTH);
                let Some(answer) = answer else { return };
                sink.to_network(from, Ecn::NotCapable, &answer, answer.len());
            }
            Probe::Answer(number) => {
                let proof = {
                    let mut handshake = peer.handshake.lock();
                    handshake.ways.note_pong(self.now, number);
                    handshake.answered(number)
                };
                if let Some(proof) = proof {
                    peer.prove(self.millis, proof);
                    self.sending = None;
                }
            }
        }
    }

    /// Takes a packet that a peer has sealed: how long it is.
    fn take(
        &mut self,
        peer: usize,
        mark: Ecn,
        buffer: &mut [u8],
        text: Span,
    ) -> Result<usize, DropReason> {
        let packet = &mut buffer[text.clone()];
        if let Some((identity, address)) = vouch::decode(packet) {
            if !self.tables.may_vouch(peer, identity, address) {
                return Err(DropReason::SpoofedByPeer);
            }
            if self.scratch.vouches.len() < MOST_VOUCHES {
                self.scratch.vouches.push((peer, identity, address));
            }
            return Ok(packet.len());
        }
        let mut headers = Headers::parse(packet)?;
        icmp_error::cut(packet, &mut headers);
        if !ecn::arrive(mark, &mut packet[..headers.length]) {
            return Err(DropReason::Congestion);
        }
        let place = text.start..text.start + headers.length;
        self.scratch.coalescer.push(buffer, peer, place, &headers);
        Ok(headers.length)
    }

    /// Hands what has come from peers to the workloads: packets of one flow are judged together.
    pub fn deliver(&mut self, buffer: &mut [u8], sink: &mut impl Sink) {
        let (mut for_devices, mut answers) = (Vec::new(), Vec::new());
        for number in 0..self.scratch.coalescer.count() {
            let (run, offload) = self.scratch.coalescer.finish(number, buffer);
            let packet = GatherList::new(buffer, &run.parts);
            match self.route_to_workload(run.peer, &run.headers, offload, packet, sink) {
                Ok(device) => {
                    for_devices.extend(device.map(|device| (device, offload, packet.to_vec())))
                }
                Err(DropReason::OrphanFragment)
                    if self.hold_of_peer(run.peer, &run.headers, packet) =>
                {
                    continue;
                }
                Err(cause) => {
                    let denied = matches!(cause, DropReason::Denied | DropReason::Quarantined);
                    let answer =
                        denied.then(|| self.refusal_to(run.peer, &run.headers, packet.first()));
                    let cause = if let Some(Some(answer)) = answer {
                        answers.push((run.peer, answer));
                        DropReason::Rejected
                    } else {
                        cause
                    };
                    self.endpoint.drops.count(cause, run.parts.len() as u64);
                    continue;
                }
            }
            if self.endpoint.filter.has_waiting_fragments() {
                for later in self.endpoint.filter.take_fragments(&run.headers) {
                    match self.route_later(run.peer, &later, sink) {
                        Ok(device) => {
                            for_devices.extend(device.map(|device| (device, Offload::None, later)));
                        }
                        Err(cause) => self.endpoint.drops.count(cause, 1),
                    }
                }
            }
        }
        self.scratch.coalescer.clear();
        for (peer, answer) in answers {
            self.send(peer, &Pieces::Whole(&answer), Ecn::NotCapable, sink);
        }
        for (slot, offload, mut packet) in for_devices {
            let sent =
                Headers::parse(&packet).map_err(|error| (error.into(), 1)).and_then(|headers| {
                    self.send_to_device(slot, &mut packet, &headers, offload, sink)
                });
            if let Err((cause, packets)) = sent {
                self.endpoint.drops.count(cause, packets);
            }
        }
    }

    /// What the sender of a peer's packet is told that was denied, if anything. That node's own
    /// filter has let it pass, and lets the answer pass as one of its flow.
    #[cold]
    fn refusal_to(&self, peer: usize, headers: &Headers, packet: &[u8]) -> Option<Vec<u8>> {
        let source = self.tables.sender(self.now, peer, headers.source).ok()?;
        Some(self.refusal(source, packet)?.0)
    }

    /// Has a later fragment of a peer wait for the first.
    fn hold_of_peer(&self, peer: usize, headers: &Headers, packet: GatherList<'_>) -> bool {
        let sender = self.tables.sender(self.now, peer, headers.source);
        sender.is_ok_and(|party| {
            self.endpoint.filter.hold_fragment(self.now, headers, party, packet.first())
        })
    }

    /// Hands a fragment that has waited to its workload.
    fn route_later(
        &self,
        peer: usize,
        packet: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Option<WorkloadIndex>, DropReason> {
        let headers = Headers::parse(packet)?;
        let (whole, none) = (0..packet.len(), Offload::None);
        self.route_to_workload(
            peer,
            &headers,
            none,
            GatherList::new(packet, from_ref(&whole)),
            sink,
        )
    }

    /// Hands a packet to its workload, if it may pass; or says that it is for a device.
    fn route_to_workload(
        &self,
        peer: usize,
        headers: &Headers,
        offload: Offload,
        packet: GatherList<'_>,
        sink: &mut impl Sink,
    ) -> Result<Option<WorkloadIndex>, DropReason> {
        let Self { endpoint, tables, now, .. } = self;
        let (rules, tally) = (&tables.rules, Tally::default());
        let error = match headers.icmp {
            Icmp::Error => Some(self.error_from_peer(peer, packet.first(), headers)?),
            _ => None,
        };
        let source = match error {
            Some((_, source)) => source,
            None => tables.sender(*now, peer, headers.source)?,
        };
        let (slot, local) =
            tables.local_at(headers.destination).ok_or(DropReason::UnknownAddress)?;
        let destination = local.party().ok_or(DropReason::NotAdmitted)?;
        let filter = &endpoint.filter;
        match error {
            Some((quoted, _)) => {
                filter.judge_error(rules, *now, &quoted, headers, source, destination, tally)?;
            }
            None => {
                filter.judge(rules, *now, packet.first(), headers, source, destination, tally)?
            }
        }
        if local.device.is_some() {
            return Ok(Some(slot));
        }
        if sink.to_workload(slot, offload, packet) { Ok(None) } else { Err(DropReason::NotTaken) }
    }

    /// What an ICMP error of a peer quotes, and who sends it: whom the quoted packet was going to,
    /// at that peer.
    fn error_from_peer(
        &self,
        peer: usize,
        packet: &[u8],
        headers: &Headers,
    ) -> Result<(Quoted, Party), DropReason> {
        let Self { tables, now, .. } = self;
        let found = Quoted::read(packet, headers).and_then(|quoted| {
            let party = tables.sender(*now, peer, quoted.headers.destination).ok()?;
            Some((quoted, party))
        });
        let Some((quoted, party)) = found else {
            tables.sender(*now, peer, headers.source)?;
            return Err(DropReason::StrayIcmpError);
        };
        match tables.is_source_of_error(*now, party, headers.source, quoted.headers.destination) {
            true => Ok((quoted, party)),
            false => Err(DropReason::SpoofedByPeer),
        }
    }

    /// Sends everything that was kept to leave together, and ends the round.
    pub fn finish(self, sink: &mut impl Sink) {
        let Self { endpoint, tables, peers, scratch, now, .. } = self;
        scratch.batch.flush(sink);
        endpoint.drops.count(DropReason::NotTaken, scratch.batch.take_lost());
        drop((tables, peers));
        if !scratch.vouches.is_empty() {
            let mut tables = endpoint.tables.write();
            for (peer, identity, address) in scratch.vouches.drain(..) {
                // The rules may have changed since.
                if tables.may_vouch(peer, identity, address) {
                    tables.take_vouch(now, peer, identity, address);
                }
            }
        }
    }
}

/// Whether a packet is dropped because nothing allows it, or nothing is there that could.
fn is_denial(cause: DropReason) -> bool {
    matches!(
        cause,
        DropReason::Denied
            | DropReason::Quarantined
            | DropReason::UnknownAddress
            | DropReason::NotAdmitted
    )
}

/// An address of whoever has sent a packet: an ICMP error may have another source address.
fn sent_by(packet: &[u8], headers: &Headers) -> IpAddr {
    let quoted = Quoted::read(packet, headers).filter(|_| headers.icmp == Icmp::Error);
    quoted.map_or(headers.source, |quoted| quoted.headers.destination)
}

/// Tells a workload that a packet of it is too long for its way.
fn tell_too_big(
    told: Option<WorkloadIndex>,
    packet: &[u8],
    headers: &Headers,
    mtu: u16,
    sink: &mut impl Sink,
) {
    if let Some(slot) = told {
        let answer = too_big::answer(packet, headers, mtu);
        sink.to_workload(
            slot,
            Offload::None,
            GatherList::new(&answer, from_ref(&(0..answer.len()))),
        );
    }
}

/// A packet's length with its padding: a multiple of 16 that does not go over the MTU (paper
/// §5.4.6).
fn padded(length: usize, mtu: u16) -> usize {
    length.next_multiple_of(16).min(usize::from(mtu).max(length))
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_multicast() || a.is_broadcast() || a.is_link_local() || a.is_unspecified())
        }
        IpAddr::V6(a) => !(a.is_multicast() || a.is_unicast_link_local() || a.is_unspecified()),
    }
}
