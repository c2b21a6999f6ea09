//! The filter beside a naive model, over any history of packets, rules, quarantines, restarts and
//! time.
//!
//! The model has no flow table, no states and no generations: it keeps a list of what has passed,
//! and reads the rules of now.

mod model;
mod packet;
#[cfg(test)]
mod tests;

use crate::{
    config::{Link, Quarantine},
    drop_reason::DropReason,
    filter::{Filter, FilterInput, RESUME_WINDOW},
    flow::table::Restoration,
    headers::{FIN, Fragment, Headers, RST, SYN},
    index::WorkloadIndex,
    link_counters::Tally,
    owner::QuotaOwner,
    rules::{Party, Rules},
};
use meshward_fuzzing::Bytes;
use meshward_types::{Acl, AclEntry, IdentityId, PortRange, Protocol};
use model::{ACK, Allowed, Model, PARTIES};
use packet::{Direction, Packet, PartyNumber, party_at};
use std::time::{Duration, Instant};

/// A filter and its model.
struct World {
    filter: Filter,
    rules: Rules,
    start: Instant,
    model: Model,
}

/// Runs a history that bytes describe: nothing passes that the model denies, and what it asks for
/// passes.
pub(super) fn filter(data: &[u8]) {
    let mut choices = Bytes(data);
    let resume = if choices.below(2) == 1 { RESUME_WINDOW } else { Duration::ZERO };
    let mut world = World::new(resume);
    while !choices.is_empty() {
        world.step(&mut choices);
    }
}

pub(super) fn samples() -> Vec<Vec<u8>> {
    (1..5)
        .map(|seed| (0..700u32).map(|at| ((at * at * 31 + at * seed * 7) >> 3) as u8).collect())
        .collect()
}

impl World {
    fn new(resume: Duration) -> Self {
        let start = Instant::now();
        let mut rules = Rules::default();
        (0..PARTIES).for_each(|at| rules.put_identity(IdentityId(at as u32), Quarantine::None));
        let filter = Filter::new(start, resume);
        Self { filter, rules, start, model: Model::new(resume.as_secs()) }
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs(self.model.now)
    }

    fn step(&mut self, choices: &mut Bytes<'_>) {
        match choices.below(24) {
            0..=2 => self.change_link(choices),
            3 => self.change_quarantine(choices),
            4 | 5 => self.model.now += choices.below(8) as u64,
            6 => self.model.now += choices.below(250) as u64,
            7 => self.filter.tick(self.instant()),
            8 if choices.below(2) == 0 => self.restart_with_flows(choices.below(2) == 0),
            8 => self.restart(),
            9..=12 => self.send_error(choices),
            _ => self.send(any_packet(choices)),
        }
    }

    fn change_link(&mut self, choices: &mut Bytes<'_>) {
        let (from, to) = (choices.below(PARTIES), choices.below(PARTIES));
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp][choices.below(3)];
        let port = [80, 5000][choices.below(2)];
        let allowed = (choices.below(4) != 0).then_some(Allowed { protocol, port });
        self.model.set_link(from, to, allowed);
        let link = Link { from: IdentityId(from as u32), to: IdentityId(to as u32) };
        match allowed {
            None => self.rules.remove_link(link),
            Some(Allowed { protocol, port }) => {
                let ports = PortRange { first: port, last: port };
                let ports = if protocol.has_ports() { ports } else { PortRange::ALL };
                self.rules.put_link(link, Acl::new(vec![AclEntry { protocol, ports }]));
            }
        }
    }

    fn change_quarantine(&mut self, choices: &mut Bytes<'_>) {
        let (party, is_quarantined) = (choices.below(PARTIES), choices.below(2) == 1);
        self.model.set_quarantined(party, is_quarantined);
        let quarantine = if is_quarantined { Quarantine::Silent } else { Quarantine::None };
        self.rules.put_identity(IdentityId(party as u32), quarantine);
    }

    fn restart(&mut self) {
        self.filter = Filter::new(self.instant(), RESUME_WINDOW);
        self.model.resumes_until = self.model.now + RESUME_WINDOW.as_secs();
        self.model.forget();
    }

    /// Restarts the filter with its flows. `is_last`: nothing can have passed after these were
    /// exported.
    fn restart_with_flows(&mut self, is_last: bool) {
        let unix = Duration::from_secs(1_700_000_000 + self.model.now);
        let kept = self.filter.export(self.instant(), unix, is_last);
        self.filter = Filter::new(self.instant(), RESUME_WINDOW);
        let imported = self.filter.import(self.instant(), unix, &kept, |flow| Restoration {
            owner: owner_of(party_at(flow.initiator_address())),
            translation: None,
        });
        imported.expect("it was written a moment ago");
        let resumes_until = self.model.now + RESUME_WINDOW.as_secs();
        self.model.resumes_until = if is_last { 0 } else { resumes_until };
        self.model.forget_all_but_flows();
    }

    /// Sends an ICMP error of any type about something that has passed, or might have, from anybody
    /// to anybody.
    fn send_error(&mut self, choices: &mut Bytes<'_>) {
        let about = match choices.below(4) {
            0 => any_packet(choices),
            _ => {
                let mut newest = self.model.newest();
                if newest.len() == 0 {
                    return;
                }
                let number = choices.below(newest.len());
                newest.nth(number).expect("there are more than so many").clone()
            }
        };
        let (from, to) = if choices.below(4) == 0 {
            (choices.below(PARTIES), choices.below(PARTIES))
        } else {
            (about.direction.to, about.direction.from)
        };
        let is_v6 = about.is_v6;
        let icmp = if is_v6 {
            choices.below(128) as u8
        } else {
            [3, 4, 11, 12, 1, 2, 31, 40, 200][choices.below(9)]
        };
        let fragment = if choices.below(8) == 0 { Fragment::First(1) } else { Fragment::Whole };
        let error = Packet {
            direction: Direction { from, to, source_port: 0, destination_port: 0 },
            is_v6,
            protocol: if is_v6 { 58 } else { 1 },
            flags: 0,
            sequence: 0,
            acknowledgement: 0,
            fragment,
            icmp,
            quoted: Some(Box::new(about)),
        };
        for _ in 0..=choices.below(14) {
            self.send(error.clone());
        }
    }

    fn send(&mut self, packet: Packet) {
        let Direction { from, to, .. } = packet.direction;
        if from == to {
            return;
        }
        let bytes = packet.bytes();
        let Ok(headers) = Headers::parse(&bytes) else { return };
        let input = FilterInput {
            packet: &bytes,
            headers: &headers,
            source: party(from),
            destination: party(to),
            tally: Tally { packets: 1, bytes: bytes.len() as u64 },
            translation: None,
        };
        let checked = self.filter.check(&self.rules, self.instant(), &input).map(drop);
        let Self { model, .. } = self;
        let (may, must) = (model.may_pass(&packet), model.must_pass(&packet));
        assert!(checked.is_err() || may, "{packet:?} passed: {model:#?}");
        assert!(checked.is_ok() || !must, "{packet:?} was {checked:?}: {model:#?}");
        assert!(checked != Err(DropReason::Quarantined) || model.is_quarantined(&packet));
        if checked.is_ok() {
            model.note(packet);
        }
    }
}

fn owner_of(party: PartyNumber) -> QuotaOwner {
    QuotaOwner::Workload(WorkloadIndex::of_position(party))
}

fn party(number: PartyNumber) -> Party {
    Party {
        identity: IdentityId(number as u32),
        quarantine: Quarantine::None,
        owner: owner_of(number),
    }
}

/// Returns some packet, often one of a conversation that is there already.
fn any_packet(choices: &mut Bytes<'_>) -> Packet {
    let (from, to) = (choices.below(PARTIES), choices.below(PARTIES));
    let port = |choices: &mut Bytes<'_>| [80, 5000][choices.below(2)];
    let (protocol, icmp) = [(6, 0), (17, 0), (1, 8), (1, 0), (1, 13), (6, 0)][choices.below(6)];
    let (source_port, destination_port) = (port(choices), port(choices));
    let flags = [SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, 0][choices.below(8)];
    let sequence = choices.below(4) as u32 * 700;
    let acknowledgement = choices.below(4) as u32 * 700;
    let fragment = match choices.below(8) {
        0 => Fragment::First(choices.below(2) as u32),
        1 => Fragment::Later(choices.below(2) as u32),
        _ => Fragment::Whole,
    };
    let is_v6 = choices.below(4) == 0;
    let protocol = if is_v6 && protocol == 1 { 58 } else { protocol };
    let icmp = match (is_v6, icmp) {
        (true, 8) => 128,
        (true, 0) => 129,
        (true, _) => 200,
        (false, kind) => kind,
    };
    let is_icmp = matches!(protocol, 1 | 58);
    let destination_port = if is_icmp { source_port } else { destination_port };
    Packet {
        direction: Direction { from, to, source_port, destination_port },
        is_v6,
        protocol,
        flags,
        sequence,
        acknowledgement,
        fragment,
        icmp,
        quoted: None,
    }
}
