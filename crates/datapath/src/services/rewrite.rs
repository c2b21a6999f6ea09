//! Rewriting the addresses and ports of packets, with their checksums (RFC 1624, RFC 3022 §4).

use super::mapping::{Ends, Socket};
use crate::{
    checksum::Sum,
    drop_reason::DropReason,
    headers::{Fragment, Headers},
    icmp_error::{HEADER, Quoted},
    offload::{Offload, SegmentKind},
};
use std::net::IpAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Offsets in the header of IPv4.
const V4_CHECKSUM: usize = 10;

/// The checksum field of a transport header.
#[derive(Clone, Copy)]
enum Field {
    /// It holds the checksum.
    Complete(usize),
    /// It holds the sum of the pseudo-header; the rest is left to whoever sends the packet.
    Partial(usize),
    /// There is none: a later fragment, or UDP over IPv4 without a checksum (RFC 768).
    Missing,
}

impl Field {
    fn of(packet: &[u8], headers: &Headers, offload: Offload) -> Result<Self, DropReason> {
        if matches!(headers.fragment, Fragment::Later(_)) {
            return Ok(Self::Missing);
        }
        let at = headers.payload + checksum_offset(headers.ip_protocol);
        let is_own = match offload {
            Offload::None | Offload::Verified => {
                let summed = headers.ip_protocol == TCP
                    || headers.source.is_ipv6()
                    || packet[at..at + 2] != [0, 0];
                return Ok(if summed { Self::Complete(at) } else { Self::Missing });
            }
            Offload::Checksum { start, offset } => {
                usize::from(start) == headers.payload
                    && usize::from(start) + usize::from(offset) == at
            }
            Offload::Segment { kind, start, .. } => {
                let is_udp = kind == SegmentKind::Udp;
                usize::from(start) == headers.payload && is_udp == (headers.ip_protocol == UDP)
            }
        };
        is_own.then_some(Self::Partial(at)).ok_or(DropReason::Malformed)
    }
}

fn checksum_offset(ip_protocol: u8) -> usize {
    if ip_protocol == UDP { 6 } else { 16 }
}

/// Writes other addresses and ports into a packet of TCP or UDP. A later fragment has addresses
/// alone.
///
/// # Errors
/// [`DropReason::Malformed`] if the packet is of another protocol, or its offload is not that of its
/// headers.
pub(crate) fn rewrite(
    packet: &mut [u8],
    headers: &mut Headers,
    offload: Offload,
    ends: &Ends,
) -> Result<(), DropReason> {
    if !matches!(headers.ip_protocol, TCP | UDP)
        || headers.source.is_ipv4() != ends.source.address.is_ipv4()
        || headers.source.is_ipv4() != ends.destination.address.is_ipv4()
    {
        return Err(DropReason::Malformed);
    }
    let field = Field::of(packet, headers, offload)?;
    let addresses = write_addresses(packet, 0, ends);
    if headers.source.is_ipv4() {
        adjust(packet, V4_CHECKSUM, addresses);
    }
    (headers.source, headers.destination) = (ends.source.address, ends.destination.address);
    if matches!(headers.fragment, Fragment::Later(_)) {
        return Ok(());
    }
    let ports = write_ports(packet, headers.payload, ends);
    (headers.source_port, headers.destination_port) = (ends.source.port, ends.destination.port);
    match field {
        Field::Complete(at) => {
            adjust(packet, at, addresses.and(ports));
            if headers.ip_protocol == UDP && packet[at..at + 2] == [0, 0] {
                packet[at..at + 2].fill(0xff);
            }
        }
        Field::Partial(at) => {
            let sum = addresses.adjust_partial([packet[at], packet[at + 1]]);
            packet[at..at + 2].copy_from_slice(&sum);
        }
        Field::Missing => {}
    }
    Ok(())
}

/// The addresses of an ICMP error, and the ends of the packet that it quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorEnds {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) quoted: Ends,
}

/// Writes other addresses into an ICMP error, and other addresses and ports into what it quotes.
///
/// # Errors
/// [`DropReason::StrayIcmpError`] if what it quotes is no packet of TCP or UDP.
pub(crate) fn rewrite_error(
    packet: &mut [u8],
    headers: &mut Headers,
    quoted: &Quoted,
    ends: &ErrorEnds,
) -> Result<(), DropReason> {
    let (ip_protocol, is_v4) = (quoted.headers.ip_protocol, headers.source.is_ipv4());
    let all = [
        ends.source,
        ends.destination,
        ends.quoted.source.address,
        ends.quoted.destination.address,
    ];
    if !matches!(ip_protocol, TCP | UDP) || all.iter().any(|address| address.is_ipv4() != is_v4) {
        return Err(DropReason::StrayIcmpError);
    }
    let (message, inner) = (headers.payload, headers.payload + HEADER);
    let transport = inner + quoted.headers.payload;
    let addresses = write_addresses(packet, inner, &ends.quoted);
    let ports = write_ports(packet, transport, &ends.quoted);
    let mut change = addresses.and(ports);
    if is_v4 {
        change = change.and(adjust(packet, inner + V4_CHECKSUM, addresses));
    }
    let at = transport + checksum_offset(ip_protocol);
    let is_summed = ip_protocol == TCP || packet.get(at..at + 2) != Some(&[0, 0]);
    if at + 2 <= headers.length && is_summed {
        change = change.and(adjust(packet, at, addresses.and(ports)));
    }
    let outer = Ends {
        source: Socket { address: ends.source, port: 0 },
        destination: Socket { address: ends.destination, port: 0 },
    };
    let outer = write_addresses(packet, 0, &outer);
    if is_v4 {
        adjust(packet, V4_CHECKSUM, outer);
    } else {
        // The checksum of ICMPv6 covers the addresses (RFC 4443 §2.3).
        change = change.and(outer);
    }
    adjust(packet, message + 2, change);
    (headers.source, headers.destination) = (ends.source, ends.destination);
    Ok(())
}

/// Writes the addresses of the IP header at an offset. Returns what that changes of a sum.
fn write_addresses(packet: &mut [u8], header: usize, ends: &Ends) -> Sum {
    match (ends.source.address, ends.destination.address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let change = write(packet, header + 12, &source.octets());
            change.and(write(packet, header + 16, &destination.octets()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let change = write(packet, header + 8, &source.octets());
            change.and(write(packet, header + 24, &destination.octets()))
        }
        _ => Sum::default(),
    }
}

/// Writes the ports of the transport header at an offset. Returns what that changes of a sum.
fn write_ports(packet: &mut [u8], transport: usize, ends: &Ends) -> Sum {
    let change = write(packet, transport, &ends.source.port.to_be_bytes());
    change.and(write(packet, transport + 2, &ends.destination.port.to_be_bytes()))
}

fn write(packet: &mut [u8], at: usize, bytes: &[u8]) -> Sum {
    let field = &mut packet[at..at + bytes.len()];
    if field == bytes {
        return Sum::default();
    }
    let change = Sum::default().replace(field, bytes);
    field.copy_from_slice(bytes);
    change
}

/// Adjusts the checksum at an offset to a change of what it covers. Returns what that changes of a
/// sum over it.
fn adjust(packet: &mut [u8], at: usize, change: Sum) -> Sum {
    let checksum = change.adjust([packet[at], packet[at + 1]]);
    write(packet, at, &checksum)
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
