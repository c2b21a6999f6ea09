//! The filter by itself.

use crate::{
    packets::{API, WEB, acl, packet},
    report::{median, nanoseconds},
};
use meshward_datapath::{
    Filter, FilterInput, Headers, Link, MAX_FLOWS, Party, Quarantine, QuotaOwner, Rules, Tally,
    WorkloadIndex,
};
use meshward_types::IdentityId;
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

fn rules_with_link(count: u16) -> Rules {
    let mut rules = Rules::default();
    rules.put_identity(WEB, Quarantine::None);
    rules.put_identity(API, Quarantine::None);
    rules.put_link(Link { from: WEB, to: API }, acl(count));
    rules
}

fn party(identity: IdentityId) -> Party {
    Party {
        identity,
        quarantine: Quarantine::None,
        owner: QuotaOwner::Workload(WorkloadIndex(identity.0)),
    }
}

/// Has the filter check a packet, which may pass.
fn check(filter: &Filter, rules: &Rules, now: Instant, packet: &[u8], [from, to]: [IdentityId; 2]) {
    let headers = Headers::parse(packet).expect("a valid packet");
    let tally = Tally { packets: 1, bytes: packet.len() as u64 };
    let (source, destination) = (party(from), party(to));
    let input =
        FilterInput { packet, headers: &headers, source, destination, tally, translation: None };
    filter.check(rules, now, &input).expect("the link is open");
}

/// Returns the first packets of flows a second: headers read, the ACL of `rules` entries checked,
/// the flow begun.
pub(crate) fn new_flows(rules: u16, flows: u32) -> f64 {
    let (rules, now) = (rules_with_link(rules), Instant::now());
    let filter = Filter::new(now, Duration::ZERO);
    let mut packet = packet(17, 0, 92);
    let begun = Instant::now();
    for flow in 0..flows {
        packet[15] = (flow >> 16) as u8;
        packet[20..22].copy_from_slice(&(flow as u16).to_be_bytes());
        check(&filter, &rules, now, &packet, [WEB, API]);
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(filter.flows(), flows as usize);
    f64::from(flows) / seconds
}

/// Another workload of the node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// There is none.
    None,
    /// It has filled the flow table, and opens more flows.
    Flooding,
}

/// Returns the nanoseconds for the three packets of a connection's handshake and one of data: the
/// median of connections of which none was there before. None may be refused.
pub(crate) fn connections(count: u16, neighbour: Neighbour) -> f64 {
    const FLOODER: IdentityId = IdentityId(3);
    let (mut rules, now) = (rules_with_link(1), Instant::now());
    rules.put_identity(FLOODER, Quarantine::None);
    rules.put_link(Link { from: FLOODER, to: API }, acl(1));
    let filter = Filter::new(now, Duration::ZERO);
    let flood = |flow: u32| {
        let mut packet = packet(17, flow as u16, 92);
        packet[15] = 9;
        packet[18..20].copy_from_slice(&((flow >> 16) as u16 | 0x8000).to_be_bytes());
        check(&filter, &rules, now, &packet, [FLOODER, API]);
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if neighbour == Neighbour::Flooding {
            (0..MAX_FLOWS as u32).for_each(flood);
            scope.spawn(|| {
                let mut next = MAX_FLOWS as u32;
                while !stop.load(Relaxed) {
                    flood(next);
                    next = next.wrapping_add(1);
                }
            });
        }
        let opened = (0..count).map(|port| {
            let begun = Instant::now();
            for segment in HANDSHAKE_AND_DATA {
                check(&filter, &rules, now, &segment.packet(port), segment.ends());
            }
            begun.elapsed().as_nanos() as f64
        });
        let opened: Vec<f64> = opened.collect();
        stop.store(true, Relaxed);
        median(&opened)
    })
}

/// Returns the nanoseconds for a packet of a flow that is in the table.
pub(crate) fn known_flow(time: Duration) -> f64 {
    let (rules, now) = (rules_with_link(10_000), Instant::now());
    let (filter, packet) = (Filter::new(now, Duration::ZERO), packet(17, 4000, 92));
    nanoseconds(time, 1, || check(&filter, &rules, now, &packet, [WEB, API]))
}

/// A segment of TCP, by its flags and numbers.
struct Segment {
    flags: u8,
    sequence: u8,
    acknowledgement: u8,
}

const SYN_ACK: u8 = 0x12;
const HANDSHAKE_AND_DATA: [Segment; 4] = [
    Segment { flags: 2, sequence: 0, acknowledgement: 0 },
    Segment { flags: SYN_ACK, sequence: 0, acknowledgement: 1 },
    Segment { flags: 0x10, sequence: 1, acknowledgement: 1 },
    Segment { flags: 0x10, sequence: 1, acknowledgement: 1 },
];

impl Segment {
    /// Returns its sender and its receiver.
    fn ends(&self) -> [IdentityId; 2] {
        if self.flags == SYN_ACK { [API, WEB] } else { [WEB, API] }
    }

    /// Returns it as a packet of the connection from a port.
    fn packet(&self, port: u16) -> Vec<u8> {
        let mut packet = packet(6, port, 92);
        packet[33] = self.flags;
        packet[24..32].copy_from_slice(&[0, 0, 0, self.sequence, 0, 0, 0, self.acknowledgement]);
        if self.flags == SYN_ACK {
            let (source, destination) = packet[12..20].split_at_mut(4);
            source.swap_with_slice(destination);
            let (source, destination) = packet[20..24].split_at_mut(2);
            source.swap_with_slice(destination);
        }
        packet
    }
}
