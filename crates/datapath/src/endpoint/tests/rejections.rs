//! Answers to senders of denied packets, and to the ends of connections that are cut.

use super::*;
use crate::{
    headers::{Headers, RST, SYN, build},
    tcp::ACK,
};
use meshward_types::{OnDeny, OnRevoke};

fn rejecting() -> Conduct {
    Conduct { on_deny: OnDeny::Reject, ..Conduct::default() }
}

fn pair(conduct: Conduct) -> Pair {
    let pair = Pair::new();
    (0..2).for_each(|at| pair.apply(at, &[put_network(conduct)]));
    pair
}

fn tcp(from: usize, ports: (u16, u16), flags: u8, (seq, ack): (u32, u32), data: &[u8]) -> Vec<u8> {
    let (a, b) = (format!("10.42.{from}.1"), format!("10.42.{}.1", 1 - from));
    let mut packet = build::with_tcp_flags(build::packet(&a, &b, 6, ports, data), flags);
    packet[24..28].copy_from_slice(&seq.to_be_bytes());
    packet[28..32].copy_from_slice(&ack.to_be_bytes());
    packet[32] = 5 << 4;
    packet[34..36].copy_from_slice(&60_000u16.to_be_bytes());
    packet
}

fn word(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
}

/// Returns the resets that a node's workload has got, as their sequence numbers.
fn resets(pair: &Pair, at: usize) -> Vec<u32> {
    let delivered = pair.nodes[at].wire.delivered.iter();
    delivered.filter(|packet| packet[33] & RST != 0).map(|packet| word(packet, 24)).collect()
}

fn delivered(pair: &mut Pair, at: usize) -> Vec<Vec<u8>> {
    std::mem::take(&mut pair.nodes[at].wire.delivered)
}

/// A connection in which both ends have said something; `web` has acknowledged all but the last
/// three bytes.
fn connected(pair: &mut Pair) {
    let (there, back) = ((4000, 8080), (8080, 4000));
    pair.send(0, &tcp(0, there, SYN, (100, 0), b""));
    pair.send(1, &tcp(1, back, SYN | ACK, (900, 101), b""));
    pair.send(0, &tcp(0, there, ACK, (101, 901), b"question"));
    pair.send(1, &tcp(1, back, ACK, (901, 109), b"answer"));
    pair.send(0, &tcp(0, there, ACK, (109, 907), b""));
    pair.send(1, &tcp(1, back, ACK, (907, 109), b"and"));
    (0..2).for_each(|at| drop(delivered(pair, at)));
}

fn drop_link() -> ConfigChange {
    ConfigChange::RemoveLink(WEB_TO_API)
}

#[test]
fn a_denied_packet_is_answered_to_its_sender_alone_if_the_network_says_so() {
    let mut silent = pair(Conduct::default());
    silent.send(0, &tcp(0, (4000, 22), SYN, (7, 0), b""));
    assert!(delivered(&mut silent, 0).is_empty());
    let mut pair = pair(rejecting());
    pair.send(0, &tcp(0, (4000, 22), SYN, (7, 0), b""));
    pair.send(0, &packet("10.42.0.1", "10.42.1.1", 17, (4000, 53), b"question"));
    pair.send(0, &packet("10.42.0.1", "10.42.1.99", 17, (4000, 53), b"is nobody there?"));
    let answers = delivered(&mut pair, 0);
    assert_eq!(answers.len(), 3);
    assert_eq!((answers[0][33], word(&answers[0], 28)), (RST | ACK, 8));
    assert_eq!((answers[1][20], answers[1][21], answers[2][20], answers[2][21]), (3, 13, 3, 13));
    assert_eq!(pair.drops(0, DropReason::Rejected), 3);
    assert_eq!(pair.drops(0, DropReason::Denied) + pair.drops(0, DropReason::UnknownAddress), 0);
    assert!(delivered(&mut pair, 1).is_empty());
}

#[test]
fn no_answer_is_given_to_what_is_not_the_senders_own_and_to_what_must_have_none() {
    let mut pair = pair(rejecting());
    pair.send(0, &packet("10.42.0.2", "10.42.1.1", 17, (4000, 53), b"from another address"));
    pair.send(0, &packet("10.42.0.1", "224.0.0.1", 17, (4000, 53), b"to many"));
    pair.send(0, &tcp(0, (4000, 22), RST, (7, 0), b""));
    assert_eq!(delivered(&mut pair, 0), Vec::<Vec<u8>>::new());
    for _ in 0..300 {
        pair.send(0, &packet("10.42.0.1", "10.42.1.1", 17, (4000, 53), b""));
    }
    assert_eq!(delivered(&mut pair, 0).len(), 100, "in one second");
}

#[test]
fn the_node_that_denies_answers_through_the_senders_own() {
    let mut pair = pair(rejecting());
    pair.apply(1, &[drop_link()]);
    pair.send(0, &tcp(0, (4000, 8080), SYN, (7, 0), b""));
    let answers = delivered(&mut pair, 0);
    assert_eq!((answers.len(), pair.drops(1, DropReason::Rejected)), (1, 1));
    assert_eq!((answers[0][33], word(&answers[0], 28)), (RST | ACK, 8));
    // To the sender's node that is the end of the connection, and nothing else.
    let udp = AclEntry { protocol: Protocol::Udp, ports: PortRange::ALL };
    pair.apply(0, &[ConfigChange::PutLink(WEB_TO_API, Acl::new(vec![udp]))]);
    pair.send(0, &packet("10.42.0.1", "10.42.1.1", 17, (4000, 53), b"question"));
    let answers = delivered(&mut pair, 0);
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0][20], answers[0][21]), (3, 13));
}

#[test]
fn rules_answer_where_the_network_does_not_and_the_other_way_around() {
    let entry =
        |first| AclEntry { protocol: Protocol::Tcp, ports: PortRange { first, last: first } };
    for (conduct, answered) in [(Conduct::default(), [true, false]), (rejecting(), [true, false])] {
        let mut pair = pair(conduct);
        let acl = Acl::default().with_answers(vec![entry(22)], vec![entry(23)], None);
        let link = ConfigChange::PutLink(WEB_TO_API, acl);
        (0..2).for_each(|at| pair.apply(at, std::slice::from_ref(&link)));
        for (port, answered) in [22, 23].into_iter().zip(answered) {
            pair.send(0, &tcp(0, (4000, port), SYN, (7, 0), b""));
            assert_eq!(delivered(&mut pair, 0).len(), usize::from(answered), "{port}");
        }
    }
}

#[test]
fn a_quarantined_workload_gets_no_rejection_unless_the_network_says_so() {
    for on_quarantine in [OnDeny::Drop, OnDeny::Reject] {
        let mut pair = pair(Conduct { on_quarantine, ..rejecting() });
        let workload = pair.nodes[0].workload;
        pair.nodes[0].endpoint.quarantine_locally(workload, true);
        pair.send(0, &tcp(0, (4000, 8080), SYN, (7, 0), b""));
        pair.send(0, &packet("10.42.0.1", "10.42.1.99", 17, (4000, 53), b""));
        let answers = if on_quarantine == OnDeny::Reject { 2 } else { 0 };
        assert_eq!(delivered(&mut pair, 0).len(), answers);
    }
}

#[test]
fn both_ends_of_a_connection_that_is_cut_are_reset_where_they_are() {
    let mut pair = pair(Conduct::default());
    connected(&mut pair);
    let conduct = Conduct { resets: 9, ..Conduct::default() };
    (0..2).for_each(|at| pair.apply(at, &[put_network(conduct), drop_link()]));
    pair.wait(Duration::from_millis(500));
    // `web` has got three bytes more than it has acknowledged; `api` everything.
    assert_eq!((resets(&pair, 0), resets(&pair, 1)), (vec![907, 910], vec![109]));
    // A party that sends something all the same gets a reset at its own number.
    (0..2).for_each(|at| drop(delivered(&mut pair, at)));
    pair.send(0, &tcp(0, (4000, 8080), ACK, (109, 908), b""));
    assert_eq!(resets(&pair, 0), [908]);
    // Of others nobody says anything.
    pair.send(0, &tcp(0, (4001, 8080), SYN, (7, 0), b""));
    assert_eq!(delivered(&mut pair, 0).len(), 1);
    // Once it is allowed again, it passes.
    (0..2).for_each(|at| pair.apply(at, &[put_link()]));
    pair.send(0, &tcp(0, (4000, 8080), ACK, (109, 910), b"still here"));
    assert_eq!(delivered(&mut pair, 1).len(), 1);
}

#[test]
fn a_change_without_reset_answers_no_end_and_a_quarantine_only_its_own() {
    let mut pair = pair(Conduct::default());
    connected(&mut pair);
    (0..2).for_each(|at| pair.apply(at, &[drop_link()]));
    pair.wait(Duration::from_millis(500));
    assert!(resets(&pair, 0).is_empty() && resets(&pair, 1).is_empty());
    (0..2).for_each(|at| pair.apply(at, &[put_link()]));
    for (quarantine, answers) in [(Quarantine::Silent, 0), (Quarantine::Reset, 1)] {
        (0..2).for_each(|at| pair.apply(at, &[ConfigChange::PutIdentity(API, quarantine)]));
        pair.wait(Duration::from_millis(500));
        assert_eq!(resets(&pair, 1).len(), answers);
    }
}

#[test]
fn an_end_whose_sequence_number_is_not_known_is_asked_for_it() {
    let mut pair = pair(Conduct::default());
    connected(&mut pair);
    let kept = pair.nodes[0].endpoint.export_flows(time(pair.now), true);
    let secret = SecretKey::from_bytes([1; 32]);
    let fresh = Endpoint::new(name(0), secret, pair.now, Duration::ZERO);
    let changes =
        [put_identity(WEB), put_identity(API), put_workload(0, WEB), put_workload(1, API)];
    fresh.apply(pair.now, [put_network(Conduct::default())]);
    fresh.apply(pair.now, changes);
    fresh.apply(pair.now, [put_link()]);
    let workload = LocalWorkload {
        prefixes: vec![],
        id: id(0),
        addresses: vec![workload_at(0)],
        vouched: None,
    };
    pair.nodes[0].workload = fresh.add_workload(workload);
    assert_eq!(fresh.import_flows(time(pair.now), &kept), Ok(1));
    pair.nodes[0].endpoint = fresh;
    let conduct = Conduct { resets: 1, ..Conduct::default() };
    pair.apply(0, &[put_network(conduct), drop_link()]);
    let now = pair.now;
    pair.nodes[0].tick(now);
    let asked = delivered(&mut pair, 0);
    assert_eq!(asked.len(), 1);
    let read = Headers::parse(&asked[0]).unwrap();
    assert_eq!((read.tcp_flags, read.source_port, read.destination_port), (ACK, 8080, 4000));
    // As any stack answers to what is not in its window.
    pair.send(0, &tcp(0, (4000, 8080), ACK, (109, 910), b""));
    assert_eq!(resets(&pair, 0), [910]);
}

#[test]
fn where_denied_packets_are_rejected_both_ends_of_a_cut_connection_get_resets_before_they_send() {
    let mut pair = pair(rejecting());
    connected(&mut pair);
    (0..2).for_each(|at| pair.apply(at, &[drop_link()]));
    pair.wait(Duration::from_millis(500));
    assert_eq!((resets(&pair, 0), resets(&pair, 1)), (vec![907, 910], vec![109]));
    // A workload without links to this node is removed, and the other end gets a reset.
    let mut pair = self::pair(rejecting());
    connected(&mut pair);
    let forgotten = |at: usize| ConfigChange::RemoveWorkload(id(1 - at));
    (0..2).for_each(|at| pair.apply(at, &[drop_link(), forgotten(at)]));
    pair.wait(Duration::from_millis(500));
    assert_eq!((resets(&pair, 0).len(), resets(&pair, 1).len()), (2, 1));
}

#[test]
fn a_restart_resets_no_connection_of_workloads_that_are_not_known_yet() {
    let mut pair = pair(rejecting());
    connected(&mut pair);
    let kept = pair.nodes[0].endpoint.export_flows(time(pair.now), true);
    let fresh = Endpoint::new(name(0), SecretKey::from_bytes([1; 32]), pair.now, Duration::ZERO);
    fresh.apply(pair.now, [put_network(Conduct { on_revoke: OnRevoke::Reset, ..rejecting() })]);
    let workload = LocalWorkload {
        prefixes: vec![],
        id: id(0),
        addresses: vec![workload_at(0)],
        vouched: None,
    };
    pair.nodes[0].workload = fresh.add_workload(workload);
    assert_eq!(fresh.import_flows(time(pair.now), &kept), Ok(1));
    pair.nodes[0].endpoint = fresh;
    let now = pair.now;
    pair.nodes[0].tick(now);
    assert!(delivered(&mut pair, 0).is_empty());
}

#[test]
fn changed_timeouts_apply_to_running_connections() {
    let timeouts = |seconds: u32| Conduct {
        timeouts: [Some(seconds), None, None, None],
        ..Conduct::default()
    };
    for (before, after, goes_on) in [(10, 1000, true), (1000, 10, false)] {
        let mut pair = pair(timeouts(before));
        connected(&mut pair);
        (0..2).for_each(|at| pair.apply(at, &[put_network(timeouts(after))]));
        pair.wait(Duration::from_secs(30));
        let _ = delivered(&mut pair, 0);
        pair.send(1, &tcp(1, (8080, 4000), ACK, (910, 109), b"late"));
        assert_eq!(
            delivered(&mut pair, 0).len(),
            usize::from(goes_on),
            "{before} s, then {after} s"
        );
    }
}
