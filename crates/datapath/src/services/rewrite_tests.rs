//! Rewritten packets, before a strict reader and back.

use super::*;
use crate::{
    fuzzing::{cut, strict, with_checksums},
    headers::build,
    reject::{IcmpError, icmp_error},
};
use proptest::prelude::*;

fn address(is_v6: bool, number: u16) -> IpAddr {
    match is_v6 {
        true => format!("fd42::{number:x}:7").parse().unwrap(),
        false => IpAddr::from([10, 42, (number >> 8) as u8, number as u8]),
    }
}

fn any_ends(is_v6: bool) -> impl Strategy<Value = Ends> {
    let socket = move || {
        (any::<u16>(), any::<u16>())
            .prop_map(move |(number, port)| Socket { address: address(is_v6, number), port })
    };
    (socket(), socket()).prop_map(|(source, destination)| Ends { source, destination })
}

/// Returns a packet with the ends of another, and two more ends.
fn any_packet() -> impl Strategy<Value = (Vec<u8>, Ends, Ends)> {
    let data = prop::collection::vec(any::<u8>(), 0..200);
    (any::<bool>(), any::<bool>(), data).prop_flat_map(|(is_v6, is_udp, data)| {
        (any_ends(is_v6), any_ends(is_v6)).prop_map(move |(ends, others)| {
            let protocol = if is_udp { UDP } else { TCP };
            (packet_with(&ends, protocol, &data), ends, others)
        })
    })
}

fn packet_with(Ends { source, destination }: &Ends, protocol: u8, data: &[u8]) -> Vec<u8> {
    let (from, to) = (source.address.to_string(), destination.address.to_string());
    with_checksums(&build::packet(&from, &to, protocol, (source.port, destination.port), data))
}

fn ends_of(packet: &[u8]) -> Ends {
    let Headers { source, source_port, destination, destination_port, .. } =
        Headers::parse(packet).unwrap();
    Ends {
        source: Socket { address: source, port: source_port },
        destination: Socket { address: destination, port: destination_port },
    }
}

/// Returns an ICMP error about a packet, which quotes so many bytes at the most.
fn error_about(packet: &[u8], quoted: usize) -> Vec<u8> {
    let kind = IcmpError { kind_v4: [3, 3], kind_v6: [1, 4], rest: 0 };
    let headers = Headers::parse(packet).unwrap();
    let head = headers.payload + 8;
    let head = if headers.source.is_ipv4() { 28 } else { head };
    icmp_error(packet, &headers, kind, head + quoted)
}

fn has_valid_icmp_checksum(packet: &[u8]) -> bool {
    let headers = Headers::parse(packet).unwrap();
    let message = &packet[headers.payload..];
    let pseudo = match headers.source {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => {
            Sum::default().add_pseudo(headers.source, headers.destination, 58, message.len())
        }
    };
    let is_header_valid = headers.source.is_ipv6() || Sum::default().add(&packet[..20]).is_valid();
    is_header_valid && pseudo.add(message).is_valid()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_rewritten_packet_is_valid_and_the_way_back_gives_the_original(
        (packet, ends, others) in any_packet(),
    ) {
        let mut headers = strict(&packet);
        let mut there = packet.clone();
        rewrite(&mut there, &mut headers, Offload::None, &others).unwrap();
        prop_assert_eq!(strict(&there), headers);
        prop_assert_eq!(ends_of(&there), others);
        rewrite(&mut there, &mut headers, Offload::Verified, &ends).unwrap();
        prop_assert_eq!(there, packet);
    }

    #[test]
    fn a_partial_checksum_is_completed_to_the_right_one(
        (mut packet, _, others) in any_packet(),
        is_cut in any::<bool>(),
        size in 20u16..90,
    ) {
        let mut headers = strict(&packet);
        let (start, is_udp) = (headers.payload, headers.ip_protocol == UDP);
        let at = start + checksum_offset(headers.ip_protocol);
        let length = packet.len() - start;
        let pseudo = |headers: &Headers| {
            Sum::default().add_pseudo(headers.source, headers.destination, headers.ip_protocol, length)
        };
        packet[at..at + 2].copy_from_slice(&pseudo(&headers).fold());
        let kind = match (is_udp, headers.source) {
            (true, _) => SegmentKind::Udp,
            (false, IpAddr::V4(_)) => SegmentKind::TcpV4,
            (false, IpAddr::V6(_)) => SegmentKind::TcpV6,
        };
        let head = (start + if is_udp { 8 } else { 20 }) as u16;
        let offload = match is_cut {
            true => Offload::Segment { kind, size, headers: head, start: start as u16 },
            false => Offload::Checksum { start: start as u16, offset: (at - start) as u16 },
        };
        rewrite(&mut packet, &mut headers, offload, &others).unwrap();
        prop_assert_eq!(&packet[at..at + 2], &pseudo(&headers).fold()[..]);
        for segment in cut(&mut packet, offload).unwrap() {
            strict(&segment);
            prop_assert_eq!(ends_of(&segment), others);
        }
    }

    #[test]
    fn a_rewritten_error_is_valid_and_quotes_the_rewritten_packet(
        (packet, ends, others) in any_packet(),
        quoted in 48usize..300,
    ) {
        let original = error_about(&packet, quoted);
        let mut error = original.clone();
        let mut headers = Headers::parse(&error).unwrap();
        let about = Quoted::read(&error, &headers).unwrap();
        let back = ErrorEnds { source: headers.source, destination: headers.destination, quoted: ends };
        let to = ErrorEnds {
            source: others.destination.address,
            destination: others.source.address,
            quoted: others,
        };
        rewrite_error(&mut error, &mut headers, &about, &to).unwrap();
        prop_assert!(has_valid_icmp_checksum(&error));
        prop_assert_eq!((headers.source, headers.destination), (to.source, to.destination));
        let about = Quoted::read(&error, &headers).unwrap();
        prop_assert_eq!(about.headers.source, others.source.address);
        prop_assert_eq!(about.headers.destination_port, others.destination.port);
        let inner = &error[headers.payload + HEADER..];
        if inner.len() == packet.len() {
            prop_assert_eq!(ends_of(inner), others);
            strict(inner);
        }
        rewrite_error(&mut error, &mut headers, &about, &back).unwrap();
        prop_assert_eq!(error, original);
    }

    #[test]
    fn nothing_that_is_read_makes_it_panic(
        mut packet in prop::collection::vec(any::<u8>(), 20..120),
        is_v6 in any::<bool>(),
        protocol in prop_oneof![Just(6u8), Just(17), Just(1), Just(58), any::<u8>()],
        header in prop::collection::vec(any::<u8>(), 10),
        ends in any::<bool>().prop_flat_map(any_ends),
    ) {
        let length = packet.len();
        packet[0] = if is_v6 { 0x60 } else { 0x45 };
        if is_v6 && length >= 40 {
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            packet[6] = protocol;
        } else if !is_v6 {
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[9] = protocol;
        }
        let header: [u8; 10] = header.try_into().unwrap();
        let Ok(headers) = Headers::parse(&packet) else { return Ok(()) };
        for offload in [Some(Offload::None), Offload::decode(&header)].into_iter().flatten() {
            let (mut packet, mut headers) = (packet.clone(), headers);
            if rewrite(&mut packet, &mut headers, offload, &ends).is_ok() {
                prop_assert_eq!(Headers::parse(&packet).unwrap(), headers);
            }
        }
        if let Some(quoted) = Quoted::read(&packet, &headers) {
            let (source, destination) = (ends.source.address, ends.destination.address);
            let to = ErrorEnds { source, destination, quoted: ends };
            _ = rewrite_error(&mut packet, &mut headers.clone(), &quoted, &to);
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_keeps_none() {
    let ends = |last: u8, port| Socket { address: [10, 42, 0, last].into(), port };
    let before = Ends { source: ends(1, 4000), destination: ends(2, 53) };
    let mut packet = packet_with(&before, UDP, b"data");
    packet[26..28].fill(0);
    let mut headers = Headers::parse(&packet).unwrap();
    let after = Ends { source: ends(1, 4000), destination: ends(3, 53) };
    rewrite(&mut packet, &mut headers, Offload::None, &after).unwrap();
    assert_eq!(packet[26..28], [0, 0]);
}
