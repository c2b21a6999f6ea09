//! Packets to begin with.

use crate::checksum::Sum;
use std::net::IpAddr;

/// A TCP segment with right checksums.
fn tcp(at: u32, payload: usize) -> Vec<u8> {
    let length = 40 + payload;
    let mut packet = vec![0; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
    packet[12..20].copy_from_slice(&[10, 42, 0, 1, 10, 42, 1, 1]);
    packet[20..24].copy_from_slice(&[0x13, 0x88, 0, 80]);
    packet[24..28].copy_from_slice(&at.to_be_bytes());
    packet[32..36].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
    let (source, destination) = (IpAddr::from([10, 42, 0, 1]), IpAddr::from([10, 42, 1, 1]));
    let sum =
        Sum::default().add_pseudo(source, destination, 6, length - 20).add(&packet[20..]).finish();
    packet[36..38].copy_from_slice(&sum);
    let sum = Sum::default().add(&packet[..20]).finish();
    packet[10..12].copy_from_slice(&sum);
    packet
}

/// A virtio header (`linux/virtio_net.h`) in front of a packet.
pub(super) fn segmentation() -> Vec<Vec<u8>> {
    let header = |size: u16| {
        let mut header = vec![1, 1, 40, 0];
        header.extend(size.to_le_bytes());
        header.extend([20, 0, 16, 0]);
        header
    };
    vec![[header(100), tcp(1, 450)].concat(), [vec![0; 10], tcp(1, 50)].concat()]
}

pub(super) fn coalescing() -> Vec<Vec<u8>> {
    let packets = [
        tcp(1, 100),
        tcp(101, 100),
        tcp(201, 40),
        super::probe([10, 42, 0, 1].into(), [10, 42, 1, 1].into()),
    ];
    vec![meshward_fuzzing::blocks(packets)]
}
