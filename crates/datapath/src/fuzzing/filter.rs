//! The filter beside a naive model, over any history of packets, rules, quarantines, restarts and
//! time.
//!
//! The model has no flow table, no states and no generations: it keeps a list of what has passed,
//! and reads the rules of now.

use crate::{
    drop_reason::DropReason,
    filter::{Filter, FilterInput, RESUME_WINDOW},
    headers::{FIN, Fragment, Headers, RST, SYN},
    index::WorkloadIndex,
    link_counters::Tally,
    owner::QuotaOwner,
    rules::{Party, Rules},
};
use meshward_fuzzing::Bytes;
use meshward_types::{Acl, AclEntry, IdentityId, PortRange, Protocol};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

const ACK: u8 = 16;
const PARTIES: usize = 3;
/// Less than every timeout, in seconds.
const SOON: u64 = 29;
const ERRORS_A_SECOND: usize = 10;

/// What has passed.
#[derive(Debug, Clone)]
struct Passed {
    packet: Packet,
    at: u64,
    /// How many changes of rules there had been.
    rules: usize,
    /// It passed for an answer to something that was said before a restart.
    resumed: bool,
}

/// A packet as the model sees it.
#[derive(Debug, Clone)]
struct Packet {
    from: usize,
    to: usize,
    v6: bool,
    protocol: u8,
    ports: (u16, u16),
    flags: u8,
    numbers: (u32, u32),
    fragment: Fragment,
    /// The type of ICMP, and what an error quotes.
    icmp: u8,
    quoted: Option<Box<Packet>>,
}

/// A filter, its model, and the time.
struct World {
    filter: Filter,
    rules: Rules,
    start: Instant,
    now: u64,
    links: [[Option<(Protocol, u16)>; PARTIES]; PARTIES],
    quarantined: [bool; PARTIES],
    changes: usize,
    passed: Vec<Passed>,
    resumes_until: u64,
}

/// Runs a history that bytes describe: nothing passes that the model denies, and what it asks for
/// passes.
pub(super) fn filter(data: &[u8]) {
    let mut choices = Bytes(data);
    let mut world = World::new(choices.below(2) == 1);
    while !choices.is_empty() {
        world.step(&mut choices);
    }
}

pub(super) fn samples() -> Vec<Vec<u8>> {
    (1..5)
        .map(|seed| (0..700u32).map(|at| ((at * at * 31 + at * seed * 7) >> 3) as u8).collect())
        .collect()
}

fn address(v6: bool, at: usize) -> IpAddr {
    match v6 {
        false => [10, 0, 0, at as u8 + 1].into(),
        true => [0xfd00, 0, 0, 0, 0, 0, 0, at as u16 + 1].into(),
    }
}

impl World {
    fn new(resumes: bool) -> Self {
        let start = Instant::now();
        let resume = if resumes { RESUME_WINDOW } else { Duration::ZERO };
        let mut rules = Rules::default();
        (0..PARTIES).for_each(|at| rules.set_identity(IdentityId(at as u32), Some(false)));
        Self {
            filter: Filter::new(start, resume),
            rules,
            start,
            now: 0,
            links: Default::default(),
            quarantined: [false; PARTIES],
            changes: 0,
            passed: vec![],
            resumes_until: resume.as_secs(),
        }
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs(self.now)
    }

    fn step(&mut self, choices: &mut Bytes<'_>) {
        match choices.below(24) {
            0..=2 => self.change_link(choices),
            3 => self.change_quarantine(choices),
            4 | 5 => self.now += choices.below(8) as u64,
            6 => self.now += choices.below(250) as u64,
            7 => self.filter.tick(self.instant()),
            8 if choices.below(2) == 0 => self.restart_with_flows(choices.below(2) == 0),
            8 => self.restart(),
            9..=12 => self.send_error(choices),
            _ => {
                let packet = self.packet(choices);
                self.send(packet);
            }
        }
    }

    fn change_link(&mut self, choices: &mut Bytes<'_>) {
        let (a, b) = (choices.below(PARTIES), choices.below(PARTIES));
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp][choices.below(3)];
        let port = [80, 5000][choices.below(2)];
        let link = (choices.below(4) != 0).then_some((protocol, port));
        self.links[a][b] = link;
        self.changes += 1;
        let acl = link.map(|(protocol, port)| {
            let ports = PortRange { first: port, last: port };
            let ports = if protocol.has_ports() { ports } else { PortRange::ALL };
            Acl::new(vec![AclEntry { protocol, ports }])
        });
        self.rules.set_link(IdentityId(a as u32), IdentityId(b as u32), acl);
    }

    fn change_quarantine(&mut self, choices: &mut Bytes<'_>) {
        let (who, on) = (choices.below(PARTIES), choices.below(2) == 1);
        self.quarantined[who] = on;
        self.changes += 1;
        self.rules.set_identity(IdentityId(who as u32), Some(on));
    }

    fn restart(&mut self) {
        self.filter = Filter::new(self.instant(), RESUME_WINDOW);
        self.resumes_until = self.now + RESUME_WINDOW.as_secs();
        self.passed.clear();
    }

    /// Returns what was kept is all that there was, or there may have been more.
    fn restart_with_flows(&mut self, is_last: bool) {
        let unix = Duration::from_secs(1_700_000_000 + self.now);
        let kept = self.filter.export(self.instant(), unix, is_last);
        self.filter = Filter::new(self.instant(), RESUME_WINDOW);
        let owner = |address: IpAddr| match address {
            IpAddr::V4(address) => {
                QuotaOwner::Workload(WorkloadIndex(u32::from(address.octets()[3]) - 1))
            }
            IpAddr::V6(address) => {
                QuotaOwner::Workload(WorkloadIndex(u32::from(address.octets()[15]) - 1))
            }
        };
        let taken_up = self.filter.import(self.instant(), unix, &kept, owner);
        taken_up.expect("it was written a moment ago");
        self.resumes_until = if is_last { 0 } else { self.now + RESUME_WINDOW.as_secs() };
        // Fragments are not kept, nor what is in flight.
        self.changes += 1;
        self.passed.retain(|passed| passed.packet.quoted.is_none());
    }

    /// Some packet, often one of a conversation that is there already.
    fn packet(&self, choices: &mut Bytes<'_>) -> Packet {
        let (from, to) = (choices.below(PARTIES), choices.below(PARTIES));
        let port = |choices: &mut Bytes<'_>| [80, 5000][choices.below(2)];
        let (protocol, icmp) = [(6, 0), (17, 0), (1, 8), (1, 0), (1, 13), (6, 0)][choices.below(6)];
        let ports = (port(choices), port(choices));
        let flags = [SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, 0][choices.below(8)];
        let numbers = (choices.below(4) as u32 * 700, choices.below(4) as u32 * 700);
        let fragment = match choices.below(8) {
            0 => Fragment::First(choices.below(2) as u32),
            1 => Fragment::Later(choices.below(2) as u32),
            _ => Fragment::Whole,
        };
        let v6 = choices.below(4) == 0;
        let protocol = if v6 && protocol == 1 { 58 } else { protocol };
        let icmp = match (v6, icmp) {
            (true, 8) => 128,
            (true, 0) => 129,
            (true, _) => 200,
            (false, kind) => kind,
        };
        let ports = if matches!(protocol, 1 | 58) { (ports.0, ports.0) } else { ports };
        Packet { from, to, v6, protocol, ports, flags, numbers, fragment, icmp, quoted: None }
    }

    /// An ICMP error of any type about something that has passed, or might have, from anybody to
    /// anybody.
    fn send_error(&mut self, choices: &mut Bytes<'_>) {
        let about = match choices.below(4) {
            0 => self.packet(choices),
            _ if self.passed.is_empty() => return,
            _ => self.passed[self.passed.len() - 1 - choices.below(self.passed.len().min(8))]
                .packet
                .clone(),
        };
        let (from, to) = if choices.below(4) == 0 {
            (choices.below(PARTIES), choices.below(PARTIES))
        } else {
            (about.to, about.from)
        };
        let v6 = about.v6;
        let icmp = if v6 {
            choices.below(128) as u8
        } else {
            [3, 4, 11, 12, 1, 2, 31, 40, 200][choices.below(9)]
        };
        let fragment = if choices.below(8) == 0 { Fragment::First(1) } else { Fragment::Whole };
        let error = Packet {
            from,
            to,
            v6,
            protocol: if v6 { 58 } else { 1 },
            ports: (0, 0),
            flags: 0,
            numbers: (0, 0),
            fragment,
            icmp,
            quoted: Some(Box::new(about)),
        };
        for _ in 0..=choices.below(14) {
            self.send(error.clone());
        }
    }

    fn send(&mut self, packet: Packet) {
        if packet.from == packet.to {
            return;
        }
        let bytes = packet.bytes();
        let Ok(headers) = Headers::parse(&bytes) else { return };
        let party = |at: usize| Party {
            identity: IdentityId(at as u32),
            quarantined: false,
            reset: false,
            owner: QuotaOwner::Workload(WorkloadIndex(at as u32)),
        };
        let tally = Tally { packets: 1, bytes: bytes.len() as u64 };
        let (from, to) = (party(packet.from), party(packet.to));
        let input =
            FilterInput { packet: &bytes, headers: &headers, source: from, destination: to, tally };
        let checked = self.filter.check(&self.rules, self.instant(), &input);
        let (may, must) = (self.may_pass(&packet), self.must_pass(&packet));
        assert!(checked.is_err() || may, "{packet:?} passed at {} s: {:#?}", self.now, self.passed);
        assert!(
            checked.is_ok() || !must,
            "{packet:?} was {checked:?} at {} s: {:#?}",
            self.now,
            self.passed
        );
        let held = self.quarantined[packet.from] || self.quarantined[packet.to];
        assert!(checked != Err(DropReason::Quarantined) || held);
        if checked.is_ok() {
            let resumed = !self.own(&packet) && !self.answers(&packet, |_| true);
            self.passed.push(Passed { packet, at: self.now, rules: self.changes, resumed });
        }
    }

    /// Returns whether the rules of now let `from` begin something with `to`.
    fn open(&self, from: usize, to: usize, protocol: u8, port: u16) -> bool {
        let protocol = Protocol::from_ip(protocol);
        let held = self.quarantined[from] || self.quarantined[to];
        !held
            && self.links[from][to]
                .is_some_and(|(p, own)| p == protocol && (!p.has_ports() || own == port))
    }

    fn own(&self, packet: &Packet) -> bool {
        let Packet { from, to, protocol, ports, .. } = *packet;
        self.open(from, to, protocol, ports.1)
    }

    /// Returns whether the other side may begin this conversation, and has said something in it, or
    /// had before a restart.
    fn answers(&self, packet: &Packet, also: impl Fn(&Passed) -> bool) -> bool {
        let Packet { from, to, protocol, ports, flags, icmp, .. } = *packet;
        let begins = protocol == 6 && flags & (SYN | ACK | RST) == SYN;
        let echo = matches!(protocol, 1 | 58);
        if begins || echo && !matches!(icmp, 0 | 129) || !self.open(to, from, protocol, ports.0) {
            return false;
        }
        self.passed.iter().any(|passed| {
            let asked = !echo || matches!(passed.packet.icmp, 8 | 128);
            let there = passed.packet.is_of(to, from, packet, (ports.1, ports.0));
            let resumed = passed.resumed && passed.packet.is_of(from, to, packet, ports);
            (there && asked || resumed) && also(passed)
        })
    }

    /// Returns whether it may pass at all.
    fn may_pass(&self, packet: &Packet) -> bool {
        let Packet { from, to, protocol, ports, flags, .. } = *packet;
        if let Some(quoted) = &packet.quoted {
            return self.error_may_pass(packet, quoted);
        }
        if let Fragment::Later(_) = packet.fragment {
            return self.firsts(packet).next().is_some();
        }
        let resumes = self.now < self.resumes_until
            && protocol == 6
            && flags & (SYN | RST) == 0
            && self.open(to, from, protocol, ports.0);
        self.own(packet) || self.answers(packet, |_| true) || resumes
    }

    /// Returns the first fragments that a later one belongs to.
    fn firsts<'a>(&'a self, packet: &'a Packet) -> impl Iterator<Item = &'a Passed> {
        let Fragment::Later(id) = packet.fragment else { unreachable!("it is a later fragment") };
        self.passed.iter().filter(move |passed| {
            let first = &passed.packet;
            (first.from, first.to, first.v6, first.fragment)
                == (packet.from, packet.to, packet.v6, Fragment::First(id))
                && (packet.v6 || first.protocol == packet.protocol)
                && passed.rules == self.changes
        })
    }

    fn error_may_pass(&self, error: &Packet, quoted: &Packet) -> bool {
        let Packet { from, to, protocol, ports, .. } = *quoted;
        let echo = matches!(protocol, 1 | 58);
        let asks = !echo || matches!(quoted.icmp, 8 | 128);
        let (there, back) =
            (self.open(from, to, protocol, ports.1), self.open(to, from, protocol, ports.0));
        let allowed = match echo {
            false => there || back,
            true => {
                if asks {
                    there
                } else {
                    back
                }
            }
        };
        let sent = self.passed.iter().any(|passed| {
            let same =
                passed.packet.is_of(from, to, quoted, ports) && passed.packet.icmp == quoted.icmp;
            // A segment that was sent, or one of those before it.
            same && (protocol != 6 || quoted.numbers.0 <= passed.packet.numbers.0 + 70_000)
        });
        let errors = self.passed.iter().filter(|passed| {
            passed.at == self.now
                && passed.packet.quoted.as_ref().is_some_and(|other| {
                    other.is_of(from, to, quoted, ports)
                        || other.is_of(to, from, quoted, (ports.1, ports.0))
                })
        });
        let later = matches!(quoted.fragment, Fragment::Later(_));
        error.fragment == Fragment::Whole
            && (error.from, error.to) == (to, from)
            && (!echo || matches!(quoted.icmp, 0 | 8 | 128 | 129))
            && !later
            && allowed
            && (sent || echo && !asks)
            && errors.count() < if echo { 2 * ERRORS_A_SECOND } else { ERRORS_A_SECOND }
    }

    /// Returns whether it has to pass.
    fn must_pass(&self, packet: &Packet) -> bool {
        let recent = |passed: &Passed| passed.at + SOON >= self.now;
        if let Some(quoted) = &packet.quoted {
            return self.error_must_pass(packet, quoted);
        }
        if let Fragment::Later(_) = packet.fragment {
            return self.firsts(packet).any(recent);
        }
        // A reset by itself begins nothing.
        let begun = |passed: &Passed| passed.packet.protocol != 6 || passed.packet.flags & RST == 0;
        self.own(packet) || self.answers(packet, |passed| recent(passed) && begun(passed))
    }

    /// An error about a datagram that was on its way a moment ago.
    fn error_must_pass(&self, error: &Packet, quoted: &Packet) -> bool {
        let Packet { from, to, protocol, ports, .. } = *quoted;
        let recent = self.passed.iter().any(|passed| {
            passed.at + SOON >= self.now
                && passed.packet.is_of(from, to, quoted, ports)
                && !matches!(passed.packet.fragment, Fragment::Later(_))
        });
        let right = self.open(from, to, protocol, ports.1);
        // Whether an error is one of too many counts those that were refused, too.
        let first = !self
            .passed
            .iter()
            .any(|passed| passed.at == self.now && passed.packet.quoted.is_some());
        protocol == 17 && recent && right && first && self.error_may_pass(error, quoted)
    }
}

impl Packet {
    /// Returns whether it goes from one to another between these ports, with the protocol of
    /// `like`.
    fn is_of(&self, from: usize, to: usize, like: &Self, ports: (u16, u16)) -> bool {
        (self.from, self.to, self.v6, self.protocol, self.ports)
            == (from, to, like.v6, like.protocol, ports)
            && self.quoted.is_none()
            && !matches!(self.fragment, Fragment::Later(_))
    }

    fn bytes(&self) -> Vec<u8> {
        let (source, destination) = (address(self.v6, self.from), address(self.v6, self.to));
        let mut payload = match self.protocol {
            1 | 58 => vec![self.icmp, 0, 0, 0, (self.ports.0 >> 8) as u8, self.ports.0 as u8, 0, 0],
            6 => vec![0; 20],
            _ => vec![0; 8],
        };
        if let Some(quoted) = &self.quoted {
            payload.extend(quoted.bytes());
        } else if !matches!(self.protocol, 1 | 58) {
            payload[..2].copy_from_slice(&self.ports.0.to_be_bytes());
            payload[2..4].copy_from_slice(&self.ports.1.to_be_bytes());
        }
        if self.protocol == 6 {
            payload[4..8].copy_from_slice(&self.numbers.0.to_be_bytes());
            payload[8..12].copy_from_slice(&self.numbers.1.to_be_bytes());
            (payload[12], payload[13]) = (5 << 4, self.flags);
            payload[14..16].copy_from_slice(&8192u16.to_be_bytes());
        }
        payload.resize(payload.len().max(40), 0);
        ip(source, destination, self.protocol, self.fragment, &payload)
    }
}

fn ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: Fragment,
    payload: &[u8],
) -> Vec<u8> {
    let (id, word) = match fragment {
        Fragment::Whole => (0, 0u16),
        Fragment::First(id) => (id, 1),
        Fragment::Later(id) => (id, 5 << 3),
    };
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = [0x45, 0, 0, 0, 0, id as u8, 0, 0, 64, protocol, 0, 0];
            packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&((word & 1) << 13 | word >> 3).to_be_bytes());
            [&packet[..], &source.octets(), &destination.octets(), payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = word.to_be_bytes();
            let extension = [protocol, 0, high, low, 0, 0, 0, id as u8];
            let extension = if word == 0 { &[][..] } else { &extension };
            let next = if word == 0 { protocol } else { 44 };
            let mut packet = [0x60, 0, 0, 0, 0, 0, next, 64];
            packet[4..6].copy_from_slice(&((extension.len() + payload.len()) as u16).to_be_bytes());
            [&packet[..], &source.octets(), &destination.octets(), extension, payload].concat()
        }
        _ => unreachable!("both are of one family"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{headers::Icmp, icmp_error::Quoted};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn nothing_passes_that_the_model_denies(data in prop::collection::vec(any::<u8>(), 0..1500)) {
            filter(&data);
        }
    }

    #[test]
    fn packets_are_read_as_they_were_meant() {
        for (v6, protocol) in [(false, 6), (true, 6), (false, 17), (true, 58)] {
            for fragment in [Fragment::Whole, Fragment::First(1), Fragment::Later(1)] {
                let packet = Packet {
                    from: 0,
                    to: 1,
                    v6,
                    protocol,
                    ports: (80, 5000),
                    flags: SYN,
                    numbers: (7, 8),
                    fragment,
                    icmp: 128,
                    quoted: None,
                };
                let headers = Headers::parse(&packet.bytes()).unwrap();
                assert_eq!((headers.fragment, headers.ip_protocol), (fragment, protocol));
                assert_eq!(headers.source, address(v6, 0));
                let error = Packet {
                    from: 1,
                    to: 0,
                    protocol: if v6 { 58 } else { 1 },
                    fragment: Fragment::Whole,
                    icmp: 3,
                    quoted: Some(Box::new(packet.clone())),
                    ..packet
                };
                let bytes = error.bytes();
                let headers = Headers::parse(&bytes).unwrap();
                assert_eq!(headers.icmp, Icmp::Error);
                let quoted = Quoted::read(&bytes, &headers);
                assert_eq!(quoted.is_some(), !matches!(fragment, Fragment::Later(_)));
            }
        }
    }
}
