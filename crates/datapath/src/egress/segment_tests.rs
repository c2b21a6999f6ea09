//! Segmentation and coalescing, checked against each other and against a strict reader.

use super::*;
use crate::{
    fuzzing::{self, cut_to, merge, strict},
    gather::MAX_GATHER_PARTS,
    headers::build,
};
use proptest::prelude::*;

fn addresses(v6: bool) -> (&'static str, &'static str) {
    if v6 { ("fd42::1", "fd42::2") } else { ("10.42.0.1", "10.42.0.2") }
}

/// The form of a super-packet.
#[derive(Clone, Copy)]
struct Form {
    v6: bool,
    kind: SegmentKind,
    /// Bytes of TCP options.
    options: usize,
    /// Bytes of payload in each segment but the last.
    size: u16,
    /// TCP flags.
    flags: u8,
}

impl Form {
    const TCP: Self =
        Self { v6: false, kind: SegmentKind::TcpV4, options: 0, size: 100, flags: 0x10 };
}

/// Returns a super-packet as the kernel makes it, with a partial checksum.
fn super_packet(form: Form, data: &[u8]) -> (Vec<u8>, Offload) {
    let Form { v6, kind, options, size, flags } = form;
    let (a, b) = addresses(v6);
    let protocol = if kind == SegmentKind::Udp { 17 } else { 6 };
    let body = [&vec![1; options], data].concat();
    let mut packet = build::packet(a, b, protocol, (4000, 80), &body);
    let headers = Headers::parse(&packet).unwrap();
    let at = headers.payload;
    let transport = if kind == SegmentKind::Udp { 8 } else { 20 + options };
    if kind == SegmentKind::Udp {
        let length = (packet.len() - at) as u16;
        packet[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
    } else {
        packet[at + 4..at + 8].copy_from_slice(&0xffff_fff0u32.to_be_bytes());
        packet[at + 12] = ((transport / 4) << 4) as u8;
        packet[at + 13] = flags;
    }
    let offload =
        Offload::Segment { kind, size, headers: (at + transport) as u16, start: at as u16 };
    (packet, offload)
}

fn cut(packet: &mut [u8], offload: Offload) -> Vec<Vec<u8>> {
    let headers = Headers::parse(packet).unwrap();
    let all = fuzzing::cut(packet, offload).unwrap();
    assert_eq!(all.len() as u64, count(&headers, offload));
    all
}

/// Returns the payload bytes of packets, and their first sequence number where there is one.
fn bytes(packets: &[Vec<u8>], transport: usize) -> Vec<u8> {
    let data =
        |packet: &Vec<u8>| packet[Headers::parse(packet).unwrap().payload + transport..].to_vec();
    packets.iter().flat_map(data).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn segments_are_valid_and_merge_back_to_the_same_bytes(
        v6 in any::<bool>(),
        udp in any::<bool>(),
        options in prop_oneof![Just(0usize), Just(12)],
        data in prop::collection::vec(any::<u8>(), 1..20_000),
        size in 100u16..1500,
        push in any::<bool>(),
    ) {
        let kind = match (udp, v6) {
            (true, _) => SegmentKind::Udp,
            (false, false) => SegmentKind::TcpV4,
            (false, true) => SegmentKind::TcpV6,
        };
        let options = if udp { 0 } else { options };
        let transport = if udp { 8 } else { 20 + options };
        let flags = if push { 0x18 } else { 0x10 };
        let (mut packet, offload) = super_packet(Form { v6, kind, options, size, flags }, &data);
        let segments = cut(&mut packet, offload);
        for (number, segment) in segments.iter().enumerate() {
            let headers = strict(segment);
            prop_assert!(segment.len() - headers.payload - transport <= usize::from(size));
            if !udp {
                let last = number + 1 == segments.len();
                prop_assert_eq!(headers.tcp_flags & 8 != 0, last && push);
            }
        }
        prop_assert_eq!(&bytes(&segments, transport), &data);
        // CoalesceOptions gives at most a few packets, and cutting those again the very same
        // segments.
        let merged = merge(&segments);
        prop_assert!(merged.len() <= 1 + segments.len() / MAX_GATHER_PARTS);
        let again: Vec<Vec<u8>> = merged
            .into_iter()
            .flat_map(|(offload, mut packet)| cut(&mut packet, offload))
            .collect();
        prop_assert_eq!(again.len(), segments.len());
        for (a, b) in again.iter().zip(&segments) {
            strict(a);
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn tcp_is_cut_to_the_path_mtu(
        v6 in any::<bool>(),
        data in prop::collection::vec(any::<u8>(), 1..6_000),
        size in 100u16..1500,
        path_mtu in 300u16..1500,
        alone in any::<bool>(),
    ) {
        let kind = if v6 { SegmentKind::TcpV6 } else { SegmentKind::TcpV4 };
        let (mut packet, offload) =
            super_packet(Form { v6, kind, options: 12, size, flags: 0x18 }, &data);
        // A packet that stands for itself comes with its checksum.
        let whole = cut_to(
            &mut packet.clone(),
            Offload::Segment { kind, size: u16::MAX, headers: 0, start: 0 },
            None,
        )
        .unwrap();
        let segments = if alone {
            cut_to(&mut whole[0].clone(), Offload::None, Some(path_mtu)).unwrap()
        } else {
            cut_to(&mut packet, offload, Some(path_mtu)).unwrap()
        };
        for segment in &segments {
            strict(segment);
            prop_assert!(segment.len() <= usize::from(path_mtu));
        }
        prop_assert_eq!(bytes(&segments, 32), data);
    }

    #[test]
    fn packets_that_do_not_belong_together_stay_apart(
        ports in prop::collection::vec(1u16..4, 2..12),
        flags in prop::collection::vec(
            prop_oneof![Just(0x10u8), Just(0x11), Just(0x12), Just(0x50)],
            12,
        ),
    ) {
        let packets: Vec<Vec<u8>> = ports
            .iter()
            .zip(&flags)
            .map(|(port, flags)| {
                let (mut packet, offload) =
                    super_packet(Form { size: 50, flags: *flags, ..Form::TCP }, &[*port as u8; 50]);
                packet[20..22].copy_from_slice(&port.to_be_bytes());
                cut(&mut packet, offload).remove(0)
            })
            .collect();
        // None follows another: they all have one sequence number.
        let merged = merge(&packets);
        prop_assert_eq!(merged.len(), packets.len());
        for ((_, out), packet) in merged.iter().zip(&packets) {
            prop_assert_eq!(out, packet);
        }
    }

    #[test]
    fn no_offload_makes_segmentation_panic(
        header in prop::collection::vec(any::<u8>(), 10),
        mut packet in prop::collection::vec(any::<u8>(), 20..200),
        six in any::<bool>(),
    ) {
        packet[0] = if six { 0x60 } else { 0x45 };
        let length = packet.len() as u16;
        if six && packet.len() >= 40 {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[6..8].fill(0);
        }
        let header: [u8; 10] = header.try_into().unwrap();
        if let (Ok(headers), Some(offload)) = (Headers::parse(&packet), Offload::decode(&header)) {
            count(&headers, offload);
            if let Ok(segments) = Segments::new(&mut packet, &headers, offload, None) {
                for number in 0..segments.count() {
                    segments.write(number, &mut vec![0; segments.length(number)]);
                }
            }
        }
    }
}

proptest! {
    /// Flows that come mixed are merged each for itself, and none of them loses its order.
    #[test]
    fn mixed_flows_keep_their_bytes_and_their_order(
        turns in prop::collection::vec((0usize..4, 0u8..12), 1..60),
        size in 50u16..300,
    ) {
        let data: Vec<Vec<u8>> = (0..4)
            .map(|flow| (0..60 * usize::from(size)).map(|at| (at * 7 + flow) as u8).collect())
            .collect();
        let segments: Vec<Vec<Vec<u8>>> = (0..4u16)
            .map(|flow| {
                let (mut packet, offload) =
                    super_packet(Form { options: 12, size, ..Form::TCP }, &data[usize::from(flow)]);
                packet[20..22].copy_from_slice(&(4000 + flow).to_be_bytes());
                cut(&mut packet, offload)
            })
            .collect();
        let mut next = [0; 4];
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for (flow, odd) in turns {
            let mut packet = segments[flow][next[flow]].clone();
            next[flow] += 1;
            // Now and then one that cannot be merged: broken on its way.
            if odd == 0 {
                let last = packet.len() - 1;
                packet[last] ^= 1;
            }
            sent.push(packet);
        }
        let again: Vec<Vec<u8>> = merge(&sent)
            .into_iter()
            .flat_map(|(offload, mut packet)| cut(&mut packet, offload))
            .collect();
        let of = |packets: &[Vec<u8>], flow: u16| -> Vec<Vec<u8>> {
            packets.iter().filter(|p| p[20..22] == (4000 + flow).to_be_bytes()).cloned().collect()
        };
        for flow in 0..4 {
            prop_assert_eq!(of(&again, flow), of(&sent, flow));
        }
    }
}

#[test]
fn a_packet_with_a_wrong_checksum_is_not_merged_and_not_mended() {
    let (mut packet, offload) = super_packet(Form::TCP, &[7; 300]);
    let mut segments = cut(&mut packet, offload);
    let last = segments[1].len() - 1;
    segments[1][last] ^= 1;
    let merged = merge(&segments);
    assert_eq!(merged.len(), 3);
    assert_eq!(merged[1], (Offload::None, segments[1].clone()));
}

#[test]
fn a_partial_checksum_is_completed() {
    let (a, b) = addresses(false);
    let mut packet = build::packet(a, b, 17, (5000, 53), b"question");
    let length = (packet.len() - 20) as u16;
    packet[24..26].copy_from_slice(&length.to_be_bytes());
    set_ipv4(&mut packet, 20);
    let headers = Headers::parse(&packet).unwrap();
    let partial = Sum::default()
        .add_pseudo(headers.source, headers.destination, 17, packet.len() - 20)
        .fold();
    packet[26..28].copy_from_slice(&partial);
    let done = cut(&mut packet, Offload::Checksum { start: 20, offset: 6 });
    strict(&done[0]);
}

#[test]
fn offloads_survive_their_header() {
    for offload in [
        Offload::None,
        Offload::Checksum { start: 20, offset: 6 },
        Offload::Segment { kind: SegmentKind::TcpV6, size: 1400, headers: 72, start: 40 },
        Offload::Segment { kind: SegmentKind::Udp, size: 1200, headers: 28, start: 20 },
    ] {
        assert_eq!(Offload::decode(&offload.encode()), Some(offload));
    }
}
