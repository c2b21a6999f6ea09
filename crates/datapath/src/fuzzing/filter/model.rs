//! The naive model of the filter: a list of what has passed, and the rules of now.

use super::packet::{Direction, Packet, PartyNumber};
use crate::headers::{Fragment, RST, SYN};
use meshward_types::Protocol;

pub(super) const PARTIES: usize = 3;
pub(super) const ACK: u8 = 16;
/// Less than every timeout, in seconds.
const SOON: u64 = 29;
const ERRORS_A_SECOND: usize = 10;

/// A packet that has passed.
#[derive(Debug, Clone)]
struct Passed {
    packet: Packet,
    /// The second in which it passed.
    at: u64,
    /// The number of changes of rules before it.
    changes: usize,
    /// It passed as the answer to a packet from before a restart.
    resumed: bool,
}

/// The protocol and port that a link allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// The model.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The time, in seconds.
    pub(super) now: u64,
    links: [[Option<Allowed>; PARTIES]; PARTIES],
    quarantined: [bool; PARTIES],
    /// The number of changes of rules so far.
    changes: usize,
    passed: Vec<Passed>,
    /// The second until which connections from before a restart are resumed.
    pub(super) resumes_until: u64,
}

impl Model {
    pub(super) fn new(resumes_until: u64) -> Self {
        Self { resumes_until, ..Self::default() }
    }

    pub(super) fn set_link(
        &mut self,
        from: PartyNumber,
        to: PartyNumber,
        allowed: Option<Allowed>,
    ) {
        self.links[from][to] = allowed;
        self.changes += 1;
    }

    pub(super) fn set_quarantined(&mut self, party: PartyNumber, is_quarantined: bool) {
        self.quarantined[party] = is_quarantined;
        self.changes += 1;
    }

    /// Forgets all that has passed.
    pub(super) fn forget(&mut self) {
        self.passed.clear();
    }

    /// Forgets what a restart with flows forgets: fragments, and packets in flight.
    pub(super) fn forget_all_but_flows(&mut self) {
        self.changes += 1;
        self.passed.retain(|passed| passed.packet.quoted.is_none());
    }

    /// Notes that a packet has passed.
    pub(super) fn note(&mut self, packet: Packet) {
        let resumed = !self.is_allowed(&packet) && !self.is_answer(&packet, |_| true);
        self.passed.push(Passed { packet, at: self.now, changes: self.changes, resumed });
    }

    /// Returns the last eight packets at most, the newest first.
    pub(super) fn newest(&self) -> impl ExactSizeIterator<Item = &Packet> {
        self.passed.iter().rev().take(8).map(|passed| &passed.packet)
    }

    /// Returns whether an end of a packet is quarantined.
    pub(super) fn is_quarantined(&self, packet: &Packet) -> bool {
        let Direction { from, to, .. } = packet.direction;
        self.quarantined[from] || self.quarantined[to]
    }

    /// Returns whether the rules of now let something begin in this direction.
    fn is_open(&self, direction: Direction, protocol: u8) -> bool {
        let Direction { from, to, destination_port, .. } = direction;
        let protocol = Protocol::from_ip(protocol);
        let is_quarantined = self.quarantined[from] || self.quarantined[to];
        !is_quarantined
            && self.links[from][to].is_some_and(|allowed| {
                allowed.protocol == protocol
                    && (!protocol.has_ports() || allowed.port == destination_port)
            })
    }

    /// Returns whether the rules of now let a packet begin something.
    fn is_allowed(&self, packet: &Packet) -> bool {
        self.is_open(packet.direction, packet.protocol)
    }

    /// Returns whether the other side may begin this conversation, and has said something in it for
    /// which `also` holds, or had before a restart.
    fn is_answer(&self, packet: &Packet, also: impl Fn(&Passed) -> bool) -> bool {
        let (direction, back) = (packet.direction, packet.direction.reversed());
        let begins = packet.protocol == 6 && packet.flags & (SYN | ACK | RST) == SYN;
        let is_echo = packet.is_icmp();
        if begins || is_echo && !packet.is_echo_reply() || !self.is_open(back, packet.protocol) {
            return false;
        }
        self.passed.iter().any(|passed| {
            let asked = !is_echo || passed.packet.is_echo_request();
            let there = passed.packet.is_of(back, packet);
            let resumed = passed.resumed && passed.packet.is_of(direction, packet);
            (there && asked || resumed) && also(passed)
        })
    }

    /// Returns whether a packet may pass at all.
    pub(super) fn may_pass(&self, packet: &Packet) -> bool {
        if let Some(quoted) = &packet.quoted {
            return self.may_error_pass(packet, quoted);
        }
        if let Fragment::Later(_) = packet.fragment {
            return self.firsts(packet).next().is_some();
        }
        let resumes = self.now < self.resumes_until
            && packet.protocol == 6
            && packet.flags & (SYN | RST) == 0
            && self.is_open(packet.direction.reversed(), packet.protocol);
        self.is_allowed(packet) || self.is_answer(packet, |_| true) || resumes
    }

    /// Returns whether a packet has to pass.
    pub(super) fn must_pass(&self, packet: &Packet) -> bool {
        let recent = |passed: &Passed| passed.at + SOON >= self.now;
        if let Some(quoted) = &packet.quoted {
            return self.must_error_pass(packet, quoted);
        }
        if let Fragment::Later(_) = packet.fragment {
            return self.firsts(packet).any(recent);
        }
        // A reset by itself begins nothing.
        let begun = |passed: &Passed| passed.packet.protocol != 6 || passed.packet.flags & RST == 0;
        self.is_allowed(packet) || self.is_answer(packet, |passed| recent(passed) && begun(passed))
    }

    /// Returns the first fragments that a later one belongs to.
    fn firsts<'a>(&'a self, packet: &'a Packet) -> impl Iterator<Item = &'a Passed> {
        let Fragment::Later(id) = packet.fragment else { unreachable!("it is a later fragment") };
        let ends = |packet: &Packet| (packet.direction.from, packet.direction.to, packet.is_v6);
        self.passed.iter().filter(move |passed| {
            let first = &passed.packet;
            (ends(first), first.fragment) == (ends(packet), Fragment::First(id))
                && (packet.is_v6 || first.protocol == packet.protocol)
                && passed.changes == self.changes
        })
    }

    fn may_error_pass(&self, error: &Packet, quoted: &Packet) -> bool {
        let (direction, back) = (quoted.direction, quoted.direction.reversed());
        let is_echo = quoted.is_icmp();
        let asks = !is_echo || quoted.is_echo_request();
        let is_there_open = self.is_open(direction, quoted.protocol);
        let is_back_open = self.is_open(back, quoted.protocol);
        let allowed = match (is_echo, asks) {
            (false, _) => is_there_open || is_back_open,
            (true, true) => is_there_open,
            (true, false) => is_back_open,
        };
        let sent = self.passed.iter().any(|passed| {
            let same = passed.packet.is_of(direction, quoted) && passed.packet.icmp == quoted.icmp;
            // A segment that was sent, or one of those before it.
            same && (quoted.protocol != 6 || quoted.sequence <= passed.packet.sequence + 70_000)
        });
        let errors = self.passed.iter().filter(|passed| {
            passed.at == self.now
                && passed.packet.quoted.as_ref().is_some_and(|other| {
                    other.is_of(direction, quoted) || other.is_of(back, quoted)
                })
        });
        error.fragment == Fragment::Whole
            && (error.direction.from, error.direction.to) == (direction.to, direction.from)
            && (!is_echo || quoted.is_echo_request() || quoted.is_echo_reply())
            && !matches!(quoted.fragment, Fragment::Later(_))
            && allowed
            && (sent || is_echo && !asks)
            && errors.count() < if is_echo { 2 * ERRORS_A_SECOND } else { ERRORS_A_SECOND }
    }

    /// Returns whether an error has to pass: one about a datagram that was on its way a moment ago.
    fn must_error_pass(&self, error: &Packet, quoted: &Packet) -> bool {
        let recent = self.passed.iter().any(|passed| {
            passed.at + SOON >= self.now
                && passed.packet.is_of(quoted.direction, quoted)
                && !matches!(passed.packet.fragment, Fragment::Later(_))
        });
        // The limit of errors counts those that were refused, too.
        let is_first = !self
            .passed
            .iter()
            .any(|passed| passed.at == self.now && passed.packet.quoted.is_some());
        quoted.protocol == 17
            && recent
            && self.is_allowed(quoted)
            && is_first
            && self.may_error_pass(error, quoted)
    }
}
