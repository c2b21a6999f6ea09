//! A container with root and `CAP_NET_RAW`: whatever it makes by hand, nothing arrives that its
//! links do not let pass.

use super::raw::{ACK, ICMP, ICMPV6, Ip, MARK, SYN, Sender, Sniffer, TCP, UDP, icmp, tcp, udp};
use crate::support::{Dice, Echo, PATIENCE, SILENCE, Shop, Stream, allow, tcp_echoes};
use std::{net::IpAddr, time::Duration};

/// The number of packets that are crafted.
const PACKETS: usize = 4000;

/// Some packet from one to another. `flows`: what neighbours have open, by both ends and ports.
fn packet(dice: &mut Dice, from: IpAddr, to: IpAddr, flows: &[(IpAddr, IpAddr)]) -> Vec<u8> {
    let ports = (dice.of(&[8080, 40_000, 7000]), dice.of(&[8080, 7000, 22, 53]));
    let mut payload = MARK.to_vec();
    payload.extend((0..dice.below(600)).map(|_| 7));
    let (protocol, message) = match dice.below(8) {
        0 => (UDP, udp(from, to, ports, &payload)),
        1 => (TCP, tcp(from, to, ports, dice.of(&[SYN, ACK, SYN | ACK, 1, 4, 0, 63]), &payload)),
        2 | 3 => {
            // An error that quotes what a neighbour has open, in either direction.
            let (mut a, mut b) = dice.of(flows);
            if dice.below(2) == 0 {
                (a, b) = (b, a);
            }
            let quoted = Ip::new(a, b, TCP).packet(&tcp(a, b, ports, ACK, &payload));
            let kind = if from.is_ipv4() {
                dice.of(&[3, 4, 5, 11, 12])
            } else {
                dice.of(&[1, 2, 3, 4, 137])
            };
            icmp(from, to, kind, dice.byte() % 16, &quoted)
        }
        4 => icmp(from, to, dice.byte(), dice.byte() % 16, &payload),
        5 => (dice.of(&[47, 50, 132, 4, 41, 255, 0]), payload),
        6 if from.is_ipv6() => {
            // Routing, fragment, hop-by-hop and destination headers (RFC 8200 §4).
            let next = dice.of(&[43, 44, 0, 60]);
            let header = [UDP, 0, dice.byte() % 5, dice.byte(), 0, 0, 0, 0];
            (next, [&header[..], &udp(from, to, ports, &payload)].concat())
        }
        _ => (dice.of(&[UDP, TCP, ICMP, ICMPV6]), payload),
    };
    let options: &[u8] = if dice.below(4) == 0 { &[131, 7, 4, 10, 42, 0, 1, 0] } else { &[] };
    let fragment = dice.of(&[0, 0, 0, 0x2000, 0x2001, 1, 64]);
    Ip { options, fragment, ..Ip::new(from, to, protocol) }.packet(&message)
}

#[test]
fn nothing_that_a_quarantined_container_makes_by_hand_arrives_anywhere() {
    let shop = Shop::new(&allow("any"));
    let bad = shop.nodes[0].attach("shop", "app=web").unwrap();
    let beside = shop.nodes[0].attach("shop", "app=api").unwrap();
    let targets = [&shop.web, &shop.api, &beside];
    let sniffers = targets.map(|target| Sniffer::start(&target.netns));
    let _echo = Echo::start(&shop.api.netns, 8080);
    let stream = Stream::start(&shop.web.netns, shop.api.v4(), 8080);
    let sender = Sender::new(&bad.netns);

    // What its link lets pass arrives: the sniffers see.
    let (from, to) = (bad.v4(), shop.api.v4());
    let fine = Ip::new(from, to, UDP).packet(&udp(from, to, (40_000, 7000), MARK));
    assert!(sniffers[1].sees_more(PATIENCE, || sender.send(shop.api.v4(), &fine)));
    shop.mesh.meshctl(&["quarantine", &bad.id]).unwrap();
    std::thread::sleep(Duration::from_millis(100));

    let before = sniffers.each_ref().map(Sniffer::seen);
    let (mut dice, mut sent) = (Dice::new(), 0);
    for _ in 0..PACKETS {
        let (target, six) = (dice.of(&targets), dice.below(2) == 1);
        let address = |of: &meshward_lab::Workload| if six { of.v6() } else { of.v4() };
        let flows = [(address(&shop.web), address(&shop.api)), (address(&bad), address(&shop.api))];
        // Sometimes in a neighbour's name.
        let from = if dice.below(4) == 0 { address(&shop.web) } else { address(&bad) };
        let made = packet(&mut dice, from, address(target), &flows);
        sent += usize::from(sender.send(address(target), &made));
    }
    assert!(sent > PACKETS / 2, "the kernel took {sent} of them");
    std::thread::sleep(SILENCE);
    assert_eq!(sniffers.each_ref().map(Sniffer::seen), before, "something arrived");
    assert!(stream.flows(PATIENCE), "its neighbour's connection goes on");
}

#[test]
fn routes_in_a_packet_are_dropped_where_the_packet_alone_would_pass() {
    let shop = Shop::new(&allow("udp/7000"));
    let (sender, sniffer) = (Sender::new(&shop.web.netns), Sniffer::start(&shop.api.netns));
    let (from, to) = (shop.web.v4(), shop.api.v4());
    let plain = udp(from, to, (40_000, 7000), MARK);
    let fine = Ip::new(from, to, UDP).packet(&plain);
    assert!(sniffer.sees_more(PATIENCE, || sender.send(to, &fine)));
    // Loose and strict source routes (RFC 791 §3.1; RFC 7126 §4.3, §4.4).
    for kind in [131, 137] {
        let routed =
            Ip { options: &[kind, 7, 8, 10, 42, 0, 9, 0], ..Ip::new(from, to, UDP) }.packet(&plain);
        assert!(!sniffer.sees_more(SILENCE, || sender.send(to, &routed)), "option {kind}");
    }
    let (from, to) = (shop.web.v6(), shop.api.v6());
    let plain = udp(from, to, (40_000, 7000), MARK);
    let fine = Ip::new(from, to, UDP).packet(&plain);
    assert!(sniffer.sees_more(PATIENCE, || sender.send(to, &fine)));
    // A routing header of type 0 (RFC 5095), whether it is used up or not.
    for left in [0, 1] {
        let mut header = vec![UDP, 2, 0, left, 0, 0, 0, 0];
        header.extend([0xfd, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        let routed = Ip::new(from, to, 43).packet(&[header, plain.clone()].concat());
        assert!(!sniffer.sees_more(SILENCE, || sender.send(to, &routed)), "{left} segments left");
    }
}

#[test]
fn who_answers_begins_nothing_neither_on_a_live_flow_nor_after_a_restart() {
    let mut shop = Shop::new(&allow("tcp/8080"));
    let _echo = Echo::start(&shop.api.netns, 8080);
    assert!(tcp_echoes(&shop.web.netns, shop.api.v4(), 8080, 64, PATIENCE));
    let (sender, sniffer) = (Sender::new(&shop.api.netns), Sniffer::start(&shop.web.netns));
    let (from, to) = (shop.api.v4(), shop.web.v4());
    // A flow that web has begun, from a port of its choice.
    let asker = Sender::new(&shop.web.netns);
    let ask = Ip::new(to, from, TCP).packet(&tcp(to, from, (40_001, 8080), SYN, &[]));
    asker.send(from, &ask);
    let answer = |flags: u8, port: u16| {
        Ip::new(from, to, TCP).packet(&tcp(from, to, (8080, port), flags, MARK))
    };
    assert!(
        !sniffer.sees_more(SILENCE, || sender.send(to, &answer(SYN, 40_001))),
        "on a live flow"
    );
    for at in [0, 1] {
        shop.nodes[at].kill();
        shop.nodes[at].start().unwrap();
    }
    shop.mesh.wait(|| shop.nodes.iter().all(meshward_lab::Node::is_connected)).unwrap();
    // An answer may take the flow up again; what it begins then passes nowhere.
    sender.send(to, &answer(ACK, 40_002));
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        !sniffer.sees_more(SILENCE, || sender.send(to, &answer(SYN, 40_002))),
        "after a restart"
    );
}

#[test]
fn a_neighbour_that_opens_flows_without_end_keeps_nobody_from_opening_one() {
    let shop = Shop::new(&allow("any"));
    let greedy = shop.nodes[0].attach("shop", "app=web").unwrap();
    let _echo = Echo::start(&shop.api.netns, 8080);
    let sender = Sender::new(&greedy.netns);
    let (from, to) = (greedy.v4(), shop.api.v4());
    let stream = Stream::start(&shop.web.netns, to, 8080);
    for round in 0..6u16 {
        for at in 0..30_000u16 {
            let ports = (1024 + at, 1024 + round);
            sender.send(to, &Ip::new(from, to, UDP).packet(&udp(from, to, ports, MARK)));
            if at % 500 == 0 {
                // First fragments whose rest never comes.
                let first = Ip { fragment: 0x2000, ..Ip::new(from, to, UDP) };
                sender.send(to, &first.packet(&udp(from, to, ports, MARK)));
            }
        }
        assert!(
            tcp_echoes(&shop.web.netns, to, 8080, 64, PATIENCE),
            "after {} flows",
            30_000 * u32::from(round + 1)
        );
    }
    assert!(stream.flows(PATIENCE));
}
