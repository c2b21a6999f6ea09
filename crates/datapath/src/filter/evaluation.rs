//! The check of one packet by its flow, or by the rules.

use super::state::{FilterInput, FilterState, Passed};
use crate::{
    config::Link,
    drop_reason::DropReason,
    flow::{
        key::{FlowEnd, FlowKey},
        state::{Flow, FlowPacket, Ruling},
        table::FlowEntry,
    },
    flow_log::FlowKind,
    fragment::FirstVerdict,
    headers::{Fragment, Headers, Icmp, RST},
    icmp_error::Quoted,
    learnt_names::NameAge,
    link_counters::Counters,
    rules::{Destination, Party, Rules},
    services::translation::Translation,
    tcp::{Segment, State},
};
use meshward_types::{Protocol, Verdict};
use std::{net::IpAddr, sync::Arc};

/// The time of a check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    /// Seconds since the filter's start.
    pub(super) seconds: u32,
    /// `true` if connections are resumed by packets of the responding side.
    pub(super) resumes: bool,
}

/// The check of one packet.
#[derive(Clone, Copy)]
pub(super) struct Evaluation<'a> {
    pub(super) state: &'a FilterState,
    pub(super) rules: &'a Rules,
    pub(super) time: Time,
    pub(super) input: &'a FilterInput<'a>,
}

/// A direction of a flow: its sender, its receiver, and the destination port.
#[derive(Clone, Copy)]
struct Direction {
    from: Party,
    to: Party,
    /// The destination's address.
    address: IpAddr,
    port: u16,
}

/// A packet's direction of a flow, and the other one.
struct FlowDirections {
    /// The end that the packet is from.
    from: FlowEnd,
    there: Direction,
    back: Direction,
    /// `true` if that end sends the packet now, `false` if an ICMP error quotes it.
    is_sent: bool,
}

impl Evaluation<'_> {
    #[inline]
    pub(super) fn check(&self) -> Result<Passed, DropReason> {
        let FilterInput { packet, headers, .. } = *self.input;
        if let Fragment::Later(_) = headers.fragment {
            return self.check_later_fragment();
        }
        match headers.icmp {
            Icmp::None | Icmp::Request | Icmp::Reply => self.check_flow(),
            Icmp::Error => {
                let quoted = Quoted::read(packet, headers);
                let quoted = quoted.filter(|quoted| quoted.headers.destination == headers.source);
                self.check_quoted(quoted.as_ref())
            }
            Icmp::Other => self.check_alone().map(|()| Passed::default()),
        }
    }

    /// Checks a later fragment: its first one was checked by the same rules.
    fn check_later_fragment(&self) -> Result<Passed, DropReason> {
        if self.refusal() == DropReason::Quarantined {
            return Err(DropReason::Quarantined);
        }
        let (headers, generation) = (self.input.headers, self.rules.generation());
        let first = self.state.fragments.pass_later(self.time.seconds, headers, generation)?;
        first.link.add(self.input.tally, false);
        Ok(Passed { translation: first.translation })
    }

    /// Counts a packet that is refused.
    #[cold]
    pub(super) fn note_refused(&self, reason: DropReason) {
        if reason == DropReason::OrphanFragment {
            // It may pass yet, with its first.
            return;
        }
        let FilterInput { headers, source, destination, tally, .. } = *self.input;
        let counters = self.link(source, destination);
        counters.add_denied();
        if tally.packets > 0 && reason == DropReason::Denied {
            counters.kinds.note(self.time.seconds, FlowKind::of(headers, false));
        }
    }

    fn link(&self, from: Party, to: Party) -> Arc<Counters> {
        self.state.links.of(Link { from: from.identity, to: to.identity })
    }

    /// Lets the packet pass, and counts it.
    #[inline]
    fn pass(&self, link: &Arc<Counters>, is_observed: bool) -> Result<(), DropReason> {
        self.pass_of(link, is_observed, self.input.translation)
    }

    /// Lets the packet pass, and counts it. `translation`: the connection through a service that
    /// its flow is.
    #[inline]
    fn pass_of(
        &self,
        link: &Arc<Counters>,
        is_observed: bool,
        translation: Option<&Arc<Translation>>,
    ) -> Result<(), DropReason> {
        let FilterInput { headers, source, tally, .. } = *self.input;
        if let Fragment::First(_) = headers.fragment {
            let (owner, generation) = (source.owner, self.rules.generation());
            let verdict = FirstVerdict { owner, generation, link, translation };
            self.state.fragments.pass_first(self.time.seconds, headers, verdict)?;
        }
        link.add(tally, is_observed);
        Ok(())
    }

    /// Returns the reason for which a packet is dropped that nothing lets pass.
    fn refusal(&self) -> DropReason {
        let FilterInput { source, destination, .. } = *self.input;
        match self.rules.is_quarantined(source) || self.rules.is_quarantined(destination) {
            true => DropReason::Quarantined,
            false => DropReason::Denied,
        }
    }

    /// Returns the verdict of the rules on a packet that would begin a flow.
    fn verdict(&self) -> Verdict {
        let FilterInput { headers, source, destination, .. } = *self.input;
        let (protocol, port) = (headers.protocol(), headers.destination_port);
        let names = NameAge::Fresh;
        let wanted = Destination { address: headers.destination, protocol, port, names };
        self.rules.verdict(source, destination, wanted)
    }

    /// Checks a packet that belongs to no flow and begins none.
    fn check_alone(&self) -> Result<(), DropReason> {
        match self.verdict() {
            Verdict::Denied => Err(self.refusal()),
            verdict => {
                let link = self.link(self.input.source, self.input.destination);
                self.pass(&link, verdict == Verdict::Observed)
            }
        }
    }

    /// Checks an ICMP error. It belongs to the flow whose packet it quotes: that packet went the
    /// other way, and was on it a moment ago (RFC 5927). Whoever is quarantined sends none.
    pub(super) fn check_quoted(&self, quoted: Option<&Quoted>) -> Result<Passed, DropReason> {
        let Self { rules, time, .. } = *self;
        let FilterInput { headers, source, destination, tally, .. } = *self.input;
        if rules.is_quarantined(source) {
            return Err(DropReason::Quarantined);
        }
        let quoted = quoted.filter(|quoted| {
            headers.fragment == Fragment::Whole && quoted.headers.source == headers.destination
        });
        let quoted = quoted.ok_or(DropReason::StrayIcmpError)?;
        let (key, from) = FlowKey::of(&quoted.headers);
        let mut entry = self.state.flows.entry(key);
        let flow = entry.get(time.seconds).ok_or_else(|| self.refusal())?;
        if !flow.is_of(rules.generation()) {
            // The quoted packet went from `destination` to `source`.
            let Headers { source: origin, destination: address, .. } = quoted.headers;
            let port = quoted.headers.destination_port;
            let there = Direction { from: destination, to: source, address, port };
            let port = quoted.headers.source_port;
            let back = Direction { from: source, to: destination, address: origin, port };
            let protocol = quoted.headers.protocol();
            let directions = FlowDirections { from, there, back, is_sent: false };
            let ruling = self.ruling_of(flow, protocol, &directions);
            flow.apply_ruling(rules.generation(), ruling);
        }
        let checked = if flow.is_denied() {
            Err(self.refusal())
        } else if !flow.accepts_icmp_error(time.seconds, from, quoted.sequence) {
            Err(DropReason::StrayIcmpError)
        } else {
            flow.link.add(tally, flow.is_observed());
            Ok(self.passed(flow))
        };
        entry.reclassify();
        checked
    }

    #[inline]
    fn check_flow(&self) -> Result<Passed, DropReason> {
        let Self { rules, time, .. } = *self;
        let FilterInput { packet, headers, .. } = *self.input;
        let (key, from) = FlowKey::of(headers);
        let segment = (headers.ip_protocol == 6).then(|| Segment::read(packet, headers));
        let begins = segment.is_some_and(|segment| segment.begins());
        let packet = FlowPacket { headers, from, segment };
        let mut entry = self.state.flows.entry(key);
        if let Some(flow) = entry.get(time.seconds)
            && flow.is_of(rules.generation())
            && !flow.is_denied()
            && (!begins || flow.right() == from)
        {
            flow.note_packet(time.seconds, rules.timeouts(), packet);
            flow.join(self.input.translation, begins);
            let passed = self
                .pass_of(&flow.link, flow.is_observed(), flow.any_translation())
                .map(|()| self.passed(flow));
            entry.reclassify();
            return passed;
        }
        let checked = self.check_anew(&mut entry, packet);
        let passed = checked.map(|()| match entry.get(time.seconds) {
            Some(flow) => {
                flow.join(self.input.translation, begins);
                self.passed(flow)
            }
            None => Passed::default(),
        });
        entry.reclassify();
        passed
    }

    /// Returns what is to be done yet with a packet of a flow, which passes.
    #[inline]
    fn passed(&self, flow: &Flow) -> Passed {
        match self.input.translation {
            None => Passed { translation: flow.any_translation().cloned() },
            Some(_) => Passed::default(),
        }
    }

    /// Checks the first packet of a flow, the first after the rules have changed, one that the
    /// rules deny, or one that begins a connection.
    #[inline(never)]
    fn check_anew(&self, entry: &mut FlowEntry, packet: FlowPacket<'_>) -> Result<(), DropReason> {
        let Self { rules, time, .. } = *self;
        let FilterInput { source, destination, .. } = *self.input;
        let FlowPacket { headers, from, segment } = packet;
        let Some(flow) = entry.get(time.seconds) else {
            return self.check_first(entry, packet);
        };
        let generation = rules.generation();
        if !flow.is_of(generation) || flow.is_denied() && from != flow.initiator() {
            let (address, port) = (headers.destination, headers.destination_port);
            let there = Direction { from: source, to: destination, address, port };
            let (address, port) = (headers.source, headers.source_port);
            let back = Direction { from: destination, to: source, address, port };
            let directions = FlowDirections { from, there, back, is_sent: true };
            let ruling = self.ruling_of(flow, headers.protocol(), &directions);
            flow.apply_ruling(generation, ruling);
        }
        if segment.is_some_and(|segment| segment.begins()) && flow.right() != from {
            // The side that did not begin the flow begins one: that is checked as such, and the
            // flow stays what it is until the other side answers.
            let verdict = self.verdict();
            if verdict == Verdict::Denied {
                return Err(self.refusal());
            }
            let link = self.link(source, destination);
            self.note_begun(&link);
            flow.note_packet(time.seconds, rules.timeouts(), packet);
            return self.pass(&link, verdict == Verdict::Observed);
        }
        if !flow.is_denied() {
            flow.note_packet(time.seconds, rules.timeouts(), packet);
            return self.pass_of(&flow.link, flow.is_observed(), flow.any_translation());
        }
        // An end still believes in it.
        flow.extend(time.seconds, rules.timeouts(), headers.protocol());
        if headers.icmp == Icmp::Reply { self.check_alone() } else { Err(self.refusal()) }
    }

    /// Returns the ruling of the rules of now on a flow: allowed if its initiator may begin it, or
    /// if the other side may begin such a flow itself. That counts once the other side has sent.
    fn ruling_of(
        &self,
        flow: &Flow,
        protocol: Protocol,
        directions: &FlowDirections,
    ) -> Option<Ruling> {
        let FlowDirections { from, there, back, is_sent } = *directions;
        let by_right_of = |right: FlowEnd| {
            let Direction { from, to, address, port } = if right == from { there } else { back };
            let wanted = Destination { address, protocol, port, names: NameAge::Any };
            let verdict = self.rules.verdict(from, to, wanted);
            let observed = verdict == Verdict::Observed;
            let link = || self.link(from, to);
            (verdict != Verdict::Denied).then(|| Ruling { right, link: link(), observed })
        };
        let initiator = flow.initiator();
        let responder_sends = flow.responder_has_sent() || is_sent && from != initiator;
        by_right_of(initiator).or_else(|| {
            let may_begin = responder_sends && protocol != Protocol::Icmp;
            may_begin.then(|| by_right_of(initiator.other())).flatten()
        })
    }

    /// Checks a packet that belongs to no flow.
    fn check_first(&self, entry: &mut FlowEntry, packet: FlowPacket<'_>) -> Result<(), DropReason> {
        let rules = self.rules;
        let FilterInput { source, destination, .. } = *self.input;
        let FlowPacket { headers, from, segment } = packet;
        let resets = segment.is_some() && headers.tcp_flags & RST != 0;
        if headers.icmp == Icmp::Reply || resets {
            return self.check_alone();
        }
        let verdict = self.verdict();
        if verdict != Verdict::Denied {
            let link = self.link(source, destination);
            self.note_begun(&link);
            let ruling = Ruling { right: from, link, observed: verdict == Verdict::Observed };
            let flow = Flow::new(from, rules.generation(), ruling, State::Opening);
            return self.begin_flow(entry, packet, flow);
        }
        if self.time.resumes && segment.is_some_and(|segment| segment.goes_on()) {
            let wanted = Destination {
                address: headers.source,
                protocol: Protocol::Tcp,
                port: headers.source_port,
                names: NameAge::Any,
            };
            let back = rules.verdict(destination, source, wanted);
            if back != Verdict::Denied {
                let (right, link) = (from.other(), self.link(destination, source));
                let ruling = Ruling { right, link, observed: back == Verdict::Observed };
                let flow = Flow::new(right, rules.generation(), ruling, State::Answered);
                return self.begin_flow(entry, packet, flow);
            }
        }
        Err(self.refusal())
    }

    fn note_begun(&self, link: &Counters) {
        if self.input.tally.packets > 0 {
            link.kinds.note(self.time.seconds, FlowKind::of(self.input.headers, true));
        }
    }

    /// Begins a flow with this packet, whose sender is charged for it.
    fn begin_flow(
        &self,
        entry: &mut FlowEntry,
        packet: FlowPacket<'_>,
        mut flow: Flow,
    ) -> Result<(), DropReason> {
        let timeouts = self.rules.timeouts();
        flow.note_packet(self.time.seconds, timeouts, packet);
        flow.extend(self.time.seconds, timeouts, packet.headers.protocol());
        self.pass(&flow.link, flow.is_observed())?;
        entry.insert(self.input.source.owner, flow);
        Ok(())
    }
}
