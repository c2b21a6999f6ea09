//! Coalescing: packets of one flow that arrive in a row from one peer become one super-packet (what
//! the kernel's GRO does).

use crate::{
    checksum::{Sum, set_ipv4},
    gather::{MAX_GATHER_PARTS, Span},
    headers::{Fragment, Headers},
    index::PeerIndex,
    offload::{Offload, SegmentKind},
};
use std::net::IpAddr;

const ACK: u8 = 16;
const PSH: u8 = 8;
/// Maximum number of bytes of a super-packet.
const MAX_LENGTH: usize = 65_535;
/// Number of newest runs among which the run of a packet's flow is searched.
const LOOK_BACK: usize = 8;

/// The packets that came in one call, in runs that each become one packet. Nothing is copied: a run
/// is a list of ranges of the buffer.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    /// The runs, in the order in which they began; those from `count` on are unused and kept for
    /// their memory.
    runs: Vec<Run>,
    count: usize,
    options: CoalesceOptions,
}

/// The packets that may be merged: those that the workloads' interfaces accept as super-packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoalesceOptions {
    /// Segments of TCP.
    pub tcp: bool,
    /// Datagrams of UDP (kernels from 6.2 on accept them from a TUN).
    pub udp: bool,
}

impl CoalesceOptions {
    fn has(self, kind: SegmentKind) -> bool {
        if kind == SegmentKind::Udp { self.udp } else { self.tcp }
    }
}

impl Default for CoalesceOptions {
    fn default() -> Self {
        Self { tcp: true, udp: true }
    }
}

/// Packets of one flow in sequence.
#[derive(Debug)]
pub(crate) struct Run {
    /// The peer that sent it.
    pub peer: PeerIndex,
    /// The headers of the first packet, with the length of all.
    pub headers: Headers,
    /// The first packet, then the payloads of the others.
    pub parts: Vec<Span>,
    /// `None`: of a kind that is not merged.
    kind: Option<SegmentKind>,
    /// Bytes of all headers.
    head: usize,
    /// Bytes of payload in each packet but the last.
    size: usize,
    /// No packet can be added any more: a short one came, or one with PSH.
    closed: bool,
}

impl Coalescer {
    /// Merges this from now on.
    pub(crate) fn set_options(&mut self, options: CoalesceOptions) {
        self.options = options;
    }

    /// Adds a packet of a peer that stands at `span` in `buffer`.
    pub(crate) fn push(
        &mut self,
        buffer: &mut [u8],
        peer: PeerIndex,
        span: Span,
        headers: &Headers,
    ) {
        let mergeable = mergeable(&buffer[span.clone()], headers)
            .filter(|mergeable| self.options.has(mergeable.kind));
        let pushes = headers.tcp_flags & PSH != 0;
        if let Some(mergeable) = mergeable
            && self.append(buffer, &Addition { peer, span: &span, headers, mergeable })
        {
            return;
        }
        let (kind, head) = match mergeable {
            Some(Mergeable { kind, head }) => (Some(kind), head),
            None => (None, span.len()),
        };
        let size = span.len() - head;
        if self.count == self.runs.len() {
            self.runs.push(Run::empty(*headers));
        }
        let run = &mut self.runs[self.count];
        self.count += 1;
        run.parts.clear();
        run.parts.push(span);
        let closed = kind.is_none() || pushes || size == 0;
        let parts = std::mem::take(&mut run.parts);
        *run = Run { peer, headers: *headers, kind, head, size, closed, parts };
    }

    /// Appends a packet to the latest run of its flow. Returns false if it does not fit there.
    fn append(&mut self, buffer: &mut [u8], addition: &Addition<'_>) -> bool {
        let Addition { peer, span, headers, mergeable: Mergeable { kind, head } } = *addition;
        let recent = &mut self.runs[self.count.saturating_sub(LOOK_BACK)..self.count];
        // The flow's latest run alone counts: to add to an earlier one would change the order.
        let Some(run) =
            recent.iter_mut().rfind(|run| run.peer == peer && run.headers.same_flow(headers))
        else {
            return false;
        };
        let (first, size) = (run.parts[0].start, span.len() - head);
        let fits = run.kind == Some(kind)
            && !run.closed
            && head == run.head
            && (1..=run.size).contains(&size)
            && run.headers.length + size <= MAX_LENGTH
            && run.parts.len() < MAX_GATHER_PARTS
            && continues(&buffer[first..first + head], &buffer[span.clone()], run, headers);
        if !fits {
            return false;
        }
        if headers.tcp_flags & PSH != 0 {
            buffer[first + headers.payload + 13] |= PSH;
            run.headers.tcp_flags |= PSH;
            run.closed = true;
        }
        run.closed |= size < run.size;
        run.headers.length += size;
        run.parts.push(span.start + head..span.end);
        true
    }

    /// Returns how many runs there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Returns a run, with its headers written to the first packet, and the offloads that are still
    /// to be done.
    pub(crate) fn finish(&self, number: usize, buffer: &mut [u8]) -> (&Run, Offload) {
        let run = &self.runs[number];
        let offload = match (run.kind, run.parts.len()) {
            (Some(kind), 2..) => {
                write_headers(&mut buffer[run.parts[0].clone()], run, kind);
                let (size, headers, start) =
                    (run.size as u16, run.head as u16, run.headers.payload as u16);
                Offload::Segment { kind, size, headers, start }
            }
            // A packet of a kind that is merged has been verified.
            (Some(_), _) => Offload::Verified,
            (None, _) => Offload::None,
        };
        (run, offload)
    }

    /// Forgets all runs.
    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }
}

impl Run {
    fn empty(headers: Headers) -> Self {
        let parts = Vec::with_capacity(MAX_GATHER_PARTS);
        Self { peer: PeerIndex(0), headers, parts, kind: None, head: 0, size: 0, closed: true }
    }
}

/// A packet that may be added to a run.
struct Addition<'a> {
    peer: PeerIndex,
    span: &'a Span,
    headers: &'a Headers,
    mergeable: Mergeable,
}

/// A packet that may be merged.
#[derive(Debug, Clone, Copy)]
struct Mergeable {
    kind: SegmentKind,
    /// Length of all headers, in bytes.
    head: usize,
}

/// Returns the kind and the length of all headers of a packet that may be merged: plain headers,
/// nothing but data, a checksum that is right.
fn mergeable(packet: &[u8], headers: &Headers) -> Option<Mergeable> {
    let at = headers.payload;
    let plain = match headers.source {
        IpAddr::V4(_) => at == 20 && packet[6] & 0x80 == 0,
        IpAddr::V6(_) => at == 40,
    };
    if !plain || headers.fragment != Fragment::Whole {
        return None;
    }
    let (kind, head) = match (headers.ip_protocol, headers.source) {
        (6, source) => {
            if headers.tcp_flags & !PSH != ACK {
                return None;
            }
            let head = at + usize::from(packet[at + 12] >> 4) * 4;
            (if source.is_ipv4() { SegmentKind::TcpV4 } else { SegmentKind::TcpV6 }, head)
        }
        (17, _) => {
            let length = usize::from(u16::from_be_bytes([packet[at + 4], packet[at + 5]]));
            let summed = packet[at + 6..at + 8] != [0, 0];
            if length != packet.len() - at || !summed {
                return None;
            }
            (SegmentKind::Udp, at + 8)
        }
        _ => return None,
    };
    if head < at + 8 || head > packet.len() {
        return None;
    }
    let Headers { source, destination, ip_protocol, .. } = *headers;
    let pseudo = Sum::default().add_pseudo(source, destination, ip_protocol, packet.len() - at);
    pseudo.add(&packet[at..]).is_valid().then_some(Mergeable { kind, head })
}

/// Returns whether a packet is the next of a run whose headers are `head`: the same in all but
/// those that count on.
fn continues(head: &[u8], packet: &[u8], run: &Run, headers: &Headers) -> bool {
    let at = headers.payload;
    let same = |from: usize, to: usize| head[from..to] == packet[from..to];
    let ip = match headers.source {
        // Version, service and ECN; then flags, offset, lifetime and protocol. Addresses and ports
        // are the flow's.
        IpAddr::V4(_) => same(0, 2) && same(6, 10),
        // Version, class and label; then next header and hop limit.
        IpAddr::V6(_) => same(0, 4) && same(6, 8),
    };
    if !ip {
        return false;
    }
    if run.kind == Some(SegmentKind::Udp) {
        return true;
    }
    let number = |packet: &[u8]| {
        u32::from_be_bytes([packet[at + 4], packet[at + 5], packet[at + 6], packet[at + 7]])
    };
    let next = number(head).wrapping_add((run.headers.length - run.head) as u32);
    // Acknowledgement; offset; window and, behind the checksum, the urgent pointer and all options.
    number(packet) == next
        && same(at + 8, at + 13)
        && same(at + 14, at + 16)
        && same(at + 18, run.head)
}

/// Writes the headers of all of a run to its first packet.
fn write_headers(packet: &mut [u8], run: &Run, kind: SegmentKind) {
    let (at, length) = (run.headers.payload, run.headers.length);
    match run.headers.source {
        IpAddr::V4(_) => {
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            set_ipv4(packet, 20);
        }
        IpAddr::V6(_) => packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes()),
    }
    let transport = length - at;
    if kind == SegmentKind::Udp {
        packet[at + 4..at + 6].copy_from_slice(&(transport as u16).to_be_bytes());
    }
    let Headers { source, destination, ip_protocol, .. } = run.headers;
    let partial = Sum::default().add_pseudo(source, destination, ip_protocol, transport).fold();
    let field = at + usize::from(kind.checksum_offset());
    packet[field..field + 2].copy_from_slice(&partial);
}
