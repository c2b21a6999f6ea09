//! Fuzz targets; see the crate `meshward-fuzzing`.

mod filter;
mod messages;
mod samples;
mod services;

use crate::{
    checksum::Sum,
    config::{ConfigChange, NetworkConfig, PeerConfig, PeerSite},
    drop_reason::DropReason,
    ecn::Ecn,
    egress::segment::Segments,
    endpoint::api::Endpoint,
    gather::GatherList,
    headers::Headers,
    index::{PeerIndex, WorkloadIndex},
    ingress::{Received, coalesce::Coalescer},
    keys::SecretKey,
    offload::{Offload, VIRTIO_HEADER_LENGTH},
    packet_batch::WorkerScratch,
    sink::Sink,
    transport::state::Now,
    workload::LocalWorkload,
};
use ipnet::IpNet;
use meshward_types::{Conduct, NodeName};
use meshward_wireguard::load_gate::Incoming;
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

meshward_fuzzing::targets! {
    coalescing: coalescing, samples::coalescing, |_| 32 << 20;
    filter: filter::filter, filter::samples, |length| (32 << 20) + ((length as u64) << 12);
    services: services::services, services::samples, |length| (32 << 20) + ((length as u64) << 12);
    segmentation: segmentation, samples::segmentation, |_| 32 << 20;
    tunnel: messages::tunnel, messages::samples;
}

/// Reads a packet as strictly as a receiver may: lengths and checksums must be right.
pub(crate) fn strict(packet: &[u8]) -> Headers {
    let headers = Headers::parse(packet).expect("well-formed");
    assert_eq!(headers.length, packet.len());
    if headers.source.is_ipv4() {
        let length = usize::from(packet[0] & 15) * 4;
        assert!(Sum::default().add(&packet[..length]).is_valid(), "IPv4 header checksum");
    }
    let transport = &packet[headers.payload..];
    let Headers { source, destination, ip_protocol, .. } = headers;
    let pseudo = Sum::default().add_pseudo(source, destination, ip_protocol, transport.len());
    assert!(pseudo.add(transport).is_valid(), "transport checksum");
    headers
}

/// Returns a packet with its lengths and checksums made right.
pub(crate) fn with_checksums(packet: &[u8]) -> Vec<u8> {
    let headers = Headers::parse(packet).expect("well-formed");
    let kind = match (headers.ip_protocol, headers.source) {
        (17, _) => crate::offload::SegmentKind::Udp,
        (_, IpAddr::V4(_)) => crate::offload::SegmentKind::TcpV4,
        (_, IpAddr::V6(_)) => crate::offload::SegmentKind::TcpV6,
    };
    let offload = Offload::Segment { kind, size: u16::MAX, headers: 0, start: 0 };
    cut(&mut packet.to_vec(), offload).expect("it can be cut").remove(0)
}

/// All packets that one stands for, if its offload fits it.
pub(crate) fn cut(packet: &mut [u8], offload: Offload) -> Result<Vec<Vec<u8>>, DropReason> {
    cut_to(packet, offload, None)
}

/// Cuts a packet as [`cut`] does, for a path with an MTU.
pub(crate) fn cut_to(
    packet: &mut [u8],
    offload: Offload,
    path_mtu: Option<u16>,
) -> Result<Vec<Vec<u8>>, DropReason> {
    let headers = Headers::parse(packet)?;
    let packet = &mut packet[..headers.length];
    let segments = Segments::new(packet, &headers, offload, path_mtu)?;
    let segment = |number| {
        let mut segment = vec![0xee; segments.length(number)];
        segments.write(number, &mut segment);
        segment
    };
    Ok((0..segments.count()).map(segment).collect())
}

/// Merges packets as they stand in one receive buffer, with what a datagram has around each.
pub(crate) fn merge(packets: &[Vec<u8>]) -> Vec<(Offload, Vec<u8>)> {
    let mut coalescer = Coalescer::default();
    let around = |packet: &Vec<u8>| [&[0xaa; 16][..], packet, &[0xbb; 16]].concat();
    let mut buffer: Vec<u8> = packets.iter().flat_map(around).collect();
    let mut at = 16;
    for packet in packets {
        if let Ok(headers) = Headers::parse(packet) {
            coalescer.push(&mut buffer, PeerIndex(0), at..at + headers.length, &headers);
        }
        at += packet.len() + 32;
    }
    let merged = (0..coalescer.count()).map(|number| {
        let (run, offload) = coalescer.finish(number, &mut buffer);
        let packet = GatherList::new(&buffer, &run.parts).to_vec();
        assert_eq!(run.headers, Headers::parse(&packet).expect("what is merged is well-formed"));
        (offload, packet)
    });
    merged.collect()
}

/// Fuzzes segmentation with a virtio header and a packet, as from a TUN: the segments of a
/// super-packet are valid, and coalesce to a super-packet that is cut into the same segments.
///
/// # Panics
/// Panics if that does not hold, which is a finding.
pub fn segmentation(data: &[u8]) {
    let Some((header, packet)) = data.split_first_chunk::<VIRTIO_HEADER_LENGTH>() else { return };
    let Some(offload) = Offload::decode(header) else { return };
    let Ok(segments) = cut(&mut packet.to_vec(), offload) else { return };
    if !matches!(offload, Offload::Segment { .. }) || segments[0].len() > usize::from(u16::MAX) {
        return;
    }
    for segment in &segments {
        strict(segment);
    }
    let again: Vec<Vec<u8>> = merge(&segments)
        .into_iter()
        .flat_map(|(offload, mut packet)| {
            cut(&mut packet, offload).expect("what was merged can be cut")
        })
        .collect();
    assert_eq!(again, segments);
}

/// Fuzzes coalescing with packets, each behind its length: cutting the merged packets returns every
/// packet, in the order of its flow.
///
/// # Panics
/// Panics if that does not hold, which is a finding.
pub fn coalescing(data: &[u8]) {
    let (mut rest, mut packets) = (data, Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)) % 2048;
        let (packet, behind) = behind.split_at(length.min(behind.len()));
        rest = behind;
        if let Ok(headers) = Headers::parse(packet) {
            packets.push(packet[..headers.length].to_vec());
        }
    }
    let again: Vec<Vec<u8>> = merge(&packets)
        .into_iter()
        .flat_map(|(offload, mut packet)| {
            cut(&mut packet, offload).expect("what was merged can be cut")
        })
        .collect();
    assert_eq!(again.len(), packets.len());
    let flow = |packet: &[u8]| {
        let Headers { source, destination, source_port, destination_port, ip_protocol, .. } =
            Headers::parse(packet).expect("well-formed");
        (source, destination, source_port, destination_port, ip_protocol)
    };
    let (mut before, mut after) = (packets, again);
    before.sort_by_key(|packet| flow(packet));
    after.sort_by_key(|packet| flow(packet));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(without_id(before), without_id(after));
    }
}

/// Returns a packet without its IPv4 identification, which counts on by itself, and the checksum
/// over it.
fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// An endpoint without rules, and one peer.
struct End {
    endpoint: Endpoint,
    scratch: WorkerScratch,
    out: Out,
    address: IpAddr,
}

#[derive(Default)]
struct Out {
    datagrams: Vec<Vec<u8>>,
    handshakes: Vec<Vec<u8>>,
    delivered: usize,
}

impl Sink for Out {
    fn to_workload(&mut self, _: WorkloadIndex, _: Offload, _: GatherList<'_>) -> bool {
        self.delivered += 1;
        true
    }
    fn to_network(&mut self, _: SocketAddr, _: Ecn, datagrams: &[u8], size: usize) -> bool {
        self.datagrams.extend(datagrams.chunks(size.max(1)).map(<[u8]>::to_vec));
        true
    }
    fn to_network_unfragmented(&mut self, _: SocketAddr, _: &[u8]) {}
    fn queue_handshake(&mut self, _: SocketAddr, message: &[u8]) -> bool {
        self.handshakes.push(message.to_vec());
        true
    }
    fn request_handshakes(&mut self) {}
}

impl End {
    fn new(now: Instant, at: u8) -> Self {
        let secret = |at: u8| SecretKey::from_bytes([at + 1; 32]);
        let name = |at: u8| -> NodeName { format!("node-{at}").parse().expect("a name") };
        let endpoint = Endpoint::new(name(at), secret(at), now, Duration::ZERO);
        let address = IpAddr::from([10, 42, at, 1]);
        let id = format!("w{at}").parse().expect("a name");
        endpoint.add_workload(LocalWorkload {
            prefixes: vec![],
            id,
            addresses: vec![address],
            vouched: None,
        });
        let prefix: IpNet = format!("10.42.{}.0/24", at ^ 1).parse().expect("a prefix");
        let peer = PeerConfig {
            public_key: secret(at ^ 1).public(),
            candidates: vec![([192, 0, 2, at ^ 1], 51820).into()],
            prefixes: vec![prefix],
            site: PeerSite::Other,
        };
        let network = NetworkConfig {
            prefixes: vec![],
            service_blocks: vec![],
            mtu: 1420,
            conduct: Conduct::default(),
        };
        endpoint.apply(
            now,
            [ConfigChange::SetNetwork(network), ConfigChange::PutPeer(name(at ^ 1), peer)],
        );
        Self { endpoint, scratch: WorkerScratch::default(), out: Out::default(), address }
    }

    /// Sends a packet to the peer past the filter.
    fn send(&mut self, now: Instant, packet: &[u8]) {
        let mut batch = self.endpoint.begin_batch(&mut self.scratch, now);
        batch.send_control(PeerIndex(0), packet, &mut self.out);
        batch.finish(&mut self.out);
        self.endpoint.begin_handshakes(time(now), &mut self.out);
    }

    fn receive(&mut self, now: Instant, datagram: &[u8]) {
        self.receive_from(now, SocketAddr::from(([192, 0, 2, 9], 51820)), datagram, false);
    }

    fn receive_from(&mut self, now: Instant, from: SocketAddr, datagram: &[u8], under_load: bool) {
        if under_load {
            self.endpoint.note_overload(now);
        } else {
            self.endpoint.end_load();
        }
        let (mut buffer, length) = (datagram.to_vec(), datagram.len());
        let mut batch = self.endpoint.begin_batch(&mut self.scratch, now);
        batch.ingress(
            Received { from, ecn: Ecn::Congestion, range: 0..length, size: length },
            &mut buffer,
            &mut self.out,
        );
        batch.deliver(&mut buffer, &mut self.out);
        batch.finish(&mut self.out);
        for message in std::mem::take(&mut self.out.handshakes) {
            self.endpoint.receive_handshake(
                time(now),
                Incoming { from, message: &message },
                &mut self.scratch,
                &mut self.out,
            );
        }
    }
}

fn time(now: Instant) -> Now {
    Now { instant: now, unix: Duration::from_secs(1_700_000_000) }
}

/// Returns a packet from one workload to another.
fn probe(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0,
    ];
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        packet[12..16].copy_from_slice(&from.octets());
        packet[16..20].copy_from_slice(&to.octets());
    }
    packet
}
