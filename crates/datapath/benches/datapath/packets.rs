//! The packets and the ACL that are measured with.

use meshward_types::{Acl, AclEntry, IdentityId, PortRange, Protocol};

pub(crate) const WEB: IdentityId = IdentityId(1);
pub(crate) const API: IdentityId = IdentityId(2);
/// The port of the load.
pub(crate) const PORT: u16 = 5201;

/// The destination of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// An instance of the service.
    Instance,
    /// The service.
    Service,
}

/// The service's port and address.
pub(crate) const SERVICE_PORT: u16 = 80;
pub(crate) const SERVICE: [u8; 4] = [10, 42, 255, 7];
/// The address of the first instance.
const INSTANCE: [u8; 4] = [10, 42, 1, 1];

/// Returns an IPv4 packet of `length` bytes to the service, or to one of its instances.
pub(crate) fn packet_to(to: To, protocol: u8, length: usize) -> Vec<u8> {
    match to {
        To::Instance => packet(protocol, 4000, length),
        To::Service => packet_with_ports(protocol, SERVICE, [4000, SERVICE_PORT], length),
    }
}

/// An ACL of so many entries of which no two touch, the load's among them.
pub(crate) fn acl(rules: u16) -> Acl {
    let entry =
        |port| AclEntry { protocol: Protocol::Udp, ports: PortRange { first: port, last: port } };
    let tcp = AclEntry { protocol: Protocol::Tcp, ports: PortRange { first: PORT, last: PORT } };
    Acl::new((0..rules).map(|rule| entry(PORT + 2 * rule)).chain([tcp]).collect())
}

/// Returns an IPv4 packet of `length` bytes to an instance.
pub(crate) fn packet(protocol: u8, source_port: u16, length: usize) -> Vec<u8> {
    packet_with_ports(protocol, INSTANCE, [source_port, PORT], length)
}

/// Returns an IPv4 packet whose checksums are right: receivers merge no others.
fn packet_with_ports(
    protocol: u8,
    destination: [u8; 4],
    ports: [u16; 2],
    length: usize,
) -> Vec<u8> {
    let mut packet = vec![0x5a; length];
    packet[..16].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 42, 0, 1]);
    packet[16..20].copy_from_slice(&destination);
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    let sum = checksum(&packet[..20], 0);
    packet[10..12].copy_from_slice(&sum);
    packet[20..22].copy_from_slice(&ports[0].to_be_bytes());
    packet[22..24].copy_from_slice(&ports[1].to_be_bytes());
    if protocol == 17 {
        packet[24..26].copy_from_slice(&((length - 20) as u16).to_be_bytes());
        packet[26..28].fill(0);
        let sum = checksum(&packet[12..], u32::from(protocol) + (length - 20) as u32);
        packet[26..28].copy_from_slice(&sum);
    } else {
        packet[32..34].copy_from_slice(&[5 << 4, 0x10]);
    }
    packet
}

fn checksum(bytes: &[u8], seed: u32) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum = seed + words.sum::<u32>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
