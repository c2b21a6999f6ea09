use super::{
    key::{FlowEnd, FlowKey},
    state::{Flow, FlowPacket, Ruling},
    table::{FlowTable, MAX_FLOWS, SHARDS, SHARDS_AT_ONCE},
};
use crate::{
    fair_table::table::FairTable,
    headers::{Headers, Icmp, build},
    index::WorkloadIndex,
    link_counters::Counters,
    owner::QuotaOwner,
    tcp::State,
    timeouts::Seconds,
};
use std::sync::Arc;

fn headers(a: (&str, u16), b: (&str, u16), protocol: u8) -> Headers {
    Headers::parse(&build::packet(a.0, b.0, protocol, (a.1, b.1), b"")).unwrap()
}

fn flow_packet(headers: &Headers, from: FlowEnd) -> FlowPacket<'_> {
    FlowPacket { headers, from, segment: None }
}

#[test]
fn both_directions_have_one_key() {
    let (there, one) = FlowKey::of(&headers(("10.0.0.1", 9), ("10.0.0.2", 80), 6));
    let (back, other) = FlowKey::of(&headers(("10.0.0.2", 80), ("10.0.0.1", 9), 6));
    assert_eq!(there, back);
    assert_eq!(one, other.other());
    let begun = there.tuple_from(one);
    assert_eq!(begun, back.tuple_from(other.other()));
    assert_eq!((begun.source.to_string().as_str(), begun.destination_port), ("10.0.0.1", 80));
    let (key, end) = FlowKey::of(&headers(("fd00::2", 9), ("fd00::1", 80), 6));
    assert_eq!(key.tuple_from(end).source.to_string(), "fd00::2");
}

#[test]
fn another_conversation_has_another_key() {
    let key = |headers: Headers| FlowKey::of(&headers).0;
    let v4 = headers(("10.0.0.1", 9), ("10.0.0.2", 80), 6);
    let v6 = headers(("::10.0.0.1", 9), ("::10.0.0.2", 80), 6);
    assert_ne!(key(v4), key(v6), "an IPv4 address and its IPv6 form");
    assert_ne!(key(v4), key(headers(("10.0.0.1", 9), ("10.0.0.2", 80), 17)));
    assert_ne!(key(v4), key(headers(("10.0.0.1", 80), ("10.0.0.2", 9), 6)));
    let (there, back) = (
        headers(("10.0.0.1", 7), ("10.0.0.2", 0), 1),
        headers(("10.0.0.2", 7), ("10.0.0.1", 0), 1),
    );
    assert_ne!(key(there), key(back), "each asks with the same identifier");
    assert_eq!(key(there), key(Headers { icmp: Icmp::Reply, ..back }));
}

#[test]
fn keys_are_read_back_and_impossible_ones_are_not() {
    for (a, b) in [("10.0.0.1", "10.0.0.2"), ("fd00::2", "fd00::1")] {
        let (key, _) = FlowKey::of(&headers((a, 9), (b, 80), 6));
        let words = key.to_words();
        assert_eq!(FlowKey::from_words(words), Some(key));
        let [a, b, c, d, rest] = words;
        assert_eq!(FlowKey::from_words([c, d, a, b, rest]), None, "not in order");
        assert_eq!(FlowKey::from_words([a, b, c, d, rest | 1 << 20]), None);
    }
    let (key, _) = FlowKey::of(&headers(("10.0.0.1", 9), ("10.0.0.2", 80), 6));
    let [a, b, c, d, rest] = key.to_words();
    assert_eq!(FlowKey::from_words([a, b, c, d | 1 << 32, rest]), None, "no IPv4 address");
}

#[test]
fn an_idle_flow_ends_and_a_busy_one_stays() {
    let (table, timeouts) = (FlowTable::new(640), Seconds::default());
    let (packet, reply) = (
        headers(("10.0.0.1", 9), ("10.0.0.2", 80), 17),
        headers(("10.0.0.2", 80), ("10.0.0.1", 9), 17),
    );
    let (key, end) = FlowKey::of(&packet);
    let ruling = Ruling { right: end, link: Arc::default(), observed: false };
    let mut flow = Flow::new(end, 1, ruling, State::Opening);
    flow.note_packet(0, &timeouts, flow_packet(&packet, end));
    table.entry(key).insert(QuotaOwner::Workload(WorkloadIndex(0)), flow);
    let expire_all = |now| (0..SHARDS / SHARDS_AT_ONCE).for_each(|_| table.expire(now));
    expire_all(timeouts.udp_opening - 1);
    let at = timeouts.udp_opening - 1;
    table.entry(key).get(at).unwrap().note_packet(at, &timeouts, flow_packet(&reply, end.other()));
    expire_all(at + timeouts.udp - 1);
    assert_eq!(table.len(), 1);
    let over = at + timeouts.udp;
    assert!(table.entry(key).get(over).is_none(), "it has expired though nothing removed it");
    expire_all(over);
    assert_eq!(table.len(), 0);
}

#[test]
fn a_flow_takes_two_lines_of_cache() {
    assert_eq!((size_of::<FlowKey>(), size_of::<Flow>()), (40, 72));
    assert_eq!(FairTable::<FlowKey, Flow>::ENTRY, 128);
}

/// Returns how many bytes of memory this process has.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Before flows had states, shares and a second chance, one of 100,000 took 124 bytes.
#[test]
fn a_hundred_thousand_flows_take_at_most_64_bytes_each_more_than_without_states() {
    const FLOWS: usize = 100_000;
    let (table, timeouts) = (FlowTable::new(MAX_FLOWS), Seconds::default());
    let (link, before) = (Arc::<Counters>::default(), resident());
    for number in 0..FLOWS {
        let (port, last) = (1024 + (number % 50_000) as u16, number / 50_000);
        let packet = headers((&format!("fd42::{last:x}"), port), ("fd42:0:0:1::1", 443), 6);
        let (key, end) = FlowKey::of(&packet);
        let ruling = Ruling { right: end, link: link.clone(), observed: false };
        let mut flow = Flow::new(end, 1, ruling, State::Opening);
        flow.note_packet(0, &timeouts, flow_packet(&packet, end));
        table.entry(key).insert(QuotaOwner::Workload(WorkloadIndex(0)), flow);
    }
    let each = (resident() - before) / FLOWS;
    println!("{each} bytes for each of {} flows", table.len());
    assert_eq!(table.len(), FLOWS);
    assert!(each <= 124 + 64, "{each} bytes for each");
}
