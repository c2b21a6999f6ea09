//! Cutting a super-packet into packets of the path's size, each with headers of its own (what a
//! network card's TSO and USO do).

use crate::{
    checksum::{Sum, set_ipv4},
    drop_reason::DropReason,
    headers::{FIN, Fragment, Headers},
    offload::{Offload, SegmentKind},
};
use std::net::IpAddr;

const PSH: u8 = 8;
const CWR: u8 = 0x80;

/// The packets that one packet of a TUN stands for.
pub(crate) enum Segments<'a> {
    Whole(&'a [u8]),
    Many(SuperPacket<'a>),
}

impl<'a> Segments<'a> {
    /// Completes the checksum of a packet that stands for itself, or cuts one that stands for many.
    /// TCP is cut to packets of at most `path_mtu` bytes, whatever its workload assumed as the
    /// path's MTU.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] if the offload does not fit the packet.
    pub(crate) fn new(
        packet: &'a mut [u8],
        headers: &'a Headers,
        offload: Offload,
        path_mtu: Option<u16>,
    ) -> Result<Self, DropReason> {
        let longest = path_mtu.map_or(usize::MAX, usize::from);
        match offload {
            Offload::None | Offload::Verified => {}
            Offload::Checksum { start, offset } => {
                complete_checksum(packet, headers, usize::from(start), usize::from(offset))?;
            }
            Offload::Segment { kind, size, .. } => {
                return Ok(Self::Many(SuperPacket::new(
                    packet,
                    headers,
                    kind,
                    usize::from(size),
                    longest,
                )?));
            }
        }
        if packet.len() > longest && headers.ip_protocol == 6 && headers.fragment == Fragment::Whole
        {
            let kind =
                if headers.source.is_ipv4() { SegmentKind::TcpV4 } else { SegmentKind::TcpV6 };
            return Ok(Self::Many(SuperPacket::new(packet, headers, kind, usize::MAX, longest)?));
        }
        Ok(Self::Whole(packet))
    }

    /// Returns how many there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Whole(_) => 1,
            Self::Many(super_packet) => super_packet.data.len().div_ceil(super_packet.size).max(1),
        }
    }

    /// Headers of the first of them, at the least.
    pub(crate) fn first(&self) -> &[u8] {
        match self {
            Self::Whole(packet) => packet,
            Self::Many(super_packet) => super_packet.head,
        }
    }

    /// Length of one of them, in bytes. Only the last may be shorter than the others.
    pub(crate) fn length(&self, number: usize) -> usize {
        match self {
            Self::Whole(packet) => packet.len(),
            Self::Many(super_packet) => super_packet.head.len() + super_packet.chunk(number).len(),
        }
    }

    /// Writes one of them, complete, to `output`, which has its length.
    pub(crate) fn write(&self, number: usize, output: &mut [u8]) {
        match self {
            Self::Whole(packet) => output.copy_from_slice(packet),
            Self::Many(super_packet) => {
                super_packet.write(number, number + 1 == self.count(), output);
            }
        }
    }
}

/// Returns how many packets a super-packet stands for.
pub(crate) fn count(headers: &Headers, offload: Offload) -> u64 {
    let Offload::Segment { size: size @ 1.., headers: all, .. } = offload else { return 1 };
    headers.length.saturating_sub(usize::from(all)).div_ceil(usize::from(size)).max(1) as u64
}

/// Returns the length of the first of the packets that a super-packet stands for, in bytes.
pub(crate) fn length(headers: &Headers, offload: Offload) -> usize {
    let Offload::Segment { size, headers: all, .. } = offload else { return headers.length };
    headers.length.min(usize::from(all) + usize::from(size))
}

/// Returns the field holds the pseudo-header's sum; the kernel left the rest to whoever sends the
/// packet.
fn complete_checksum(
    packet: &mut [u8],
    headers: &Headers,
    start: usize,
    offset: usize,
) -> Result<(), DropReason> {
    let field = start + offset;
    if start < headers.payload || field + 2 > packet.len() {
        return Err(DropReason::Malformed);
    }
    let mut sum = Sum::default().add(&packet[start..]).finish();
    // RFC 768: a UDP checksum of zero would say that there is none.
    if sum == [0, 0] && headers.ip_protocol == 17 {
        sum = [0xff, 0xff];
    }
    packet[field..field + 2].copy_from_slice(&sum);
    Ok(())
}

/// A super-packet that can be cut.
pub(crate) struct SuperPacket<'a> {
    head: &'a [u8],
    data: &'a [u8],
    headers: &'a Headers,
    kind: SegmentKind,
    size: usize,
}

impl<'a> SuperPacket<'a> {
    fn new(
        packet: &'a [u8],
        headers: &'a Headers,
        kind: SegmentKind,
        size: usize,
        longest: usize,
    ) -> Result<Self, DropReason> {
        let at = headers.payload;
        let fits = match kind {
            SegmentKind::TcpV4 => headers.ip_protocol == 6 && headers.source.is_ipv4(),
            SegmentKind::TcpV6 => headers.ip_protocol == 6 && headers.source.is_ipv6(),
            SegmentKind::Udp => headers.ip_protocol == 17,
        };
        let transport = match kind {
            SegmentKind::Udp => 8,
            _ => usize::from(packet.get(at + 12).ok_or(DropReason::Malformed)? >> 4) * 4,
        };
        let least = if kind == SegmentKind::Udp { 8 } else { 20 };
        let whole = headers.fragment == Fragment::Whole;
        if !fits || !whole || size == 0 || transport < least || at + transport > packet.len() {
            return Err(DropReason::Malformed);
        }
        let (head, data) = packet.split_at(at + transport);
        // The size of UDP's datagrams is the workload's own.
        let most = if kind == SegmentKind::Udp {
            usize::MAX
        } else {
            longest.saturating_sub(head.len()).max(1)
        };
        let size = size.min(most);
        Ok(Self { head, data, headers, kind, size })
    }

    fn chunk(&self, number: usize) -> &[u8] {
        let from = (number * self.size).min(self.data.len());
        &self.data[from..self.data.len().min(from + self.size)]
    }

    fn write(&self, number: usize, last: bool, packet: &mut [u8]) {
        let (head, data) = packet.split_at_mut(self.head.len());
        head.copy_from_slice(self.head);
        data.copy_from_slice(self.chunk(number));
        let (at, length) = (self.headers.payload, packet.len());
        match self.headers.source {
            IpAddr::V4(_) => {
                packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(number as u16);
                packet[4..6].copy_from_slice(&id.to_be_bytes());
                set_ipv4(packet, at.min(usize::from(packet[0] & 15) * 4));
            }
            IpAddr::V6(_) => packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes()),
        }
        let transport = &mut packet[at..];
        match self.kind {
            SegmentKind::Udp => {
                let udp = transport.len() as u16;
                transport[4..6].copy_from_slice(&udp.to_be_bytes());
            }
            SegmentKind::TcpV4 | SegmentKind::TcpV6 => {
                let first =
                    u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                let sequence = first.wrapping_add((number * self.size) as u32);
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                if !last {
                    transport[13] &= !(FIN | PSH);
                }
                // RFC 3168 §6.1.2: the answer to a congestion mark is said once.
                if number > 0 {
                    transport[13] &= !CWR;
                }
            }
        }
        let field = usize::from(self.kind.checksum_offset());
        transport[field..field + 2].fill(0);
        let Headers { source, destination, ip_protocol, .. } = *self.headers;
        let pseudo = Sum::default().add_pseudo(source, destination, ip_protocol, transport.len());
        let mut sum = pseudo.add(transport).finish();
        if sum == [0, 0] && self.kind == SegmentKind::Udp {
            sum = [0xff, 0xff];
        }
        transport[field..field + 2].copy_from_slice(&sum);
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
