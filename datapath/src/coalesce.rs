//! Merging the packets of one flow that arrive in a row from one peer into one super-packet (what the kernel's GRO does).

use crate::{
    checksum::{Sum, set_ipv4},
    offload::{Kind, Offload},
    packet::{Fragment, Headers},
};
use std::net::IpAddr;

const ACK: u8 = 16;
const PSH: u8 = 8;
/// The most bytes of a super-packet.
const MOST: usize = 65_535;

/// A run of packets that is being merged.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    packet: Vec<u8>,
    run: Option<Run>,
    udp_apart: bool,
}

#[derive(Debug)]
struct Run {
    /// Who sent it.
    peer: usize,
    /// Those of the first packet.
    headers: Headers,
    /// `None`: of a kind that is not merged.
    kind: Option<Kind>,
    /// Bytes of all headers.
    head: usize,
    /// Bytes of payload in each packet but the last.
    size: usize,
    count: usize,
    /// Nothing more can be added: a short packet came, or one that asks to be handed over.
    closed: bool,
}

impl Coalescer {
    /// Merges no UDP from now on: kernels before 6.2 do not take it from a TUN.
    pub fn keep_udp_apart(&mut self) {
        self.udp_apart = true;
    }

    /// Takes a packet of a peer. What cannot be merged with it is handed to `emit` first.
    pub fn push(&mut self, peer: usize, packet: &[u8], headers: &Headers, emit: impl FnOnce(Merged<'_>)) {
        if self.append(peer, packet, headers) {
            return;
        }
        if let Some(merged) = self.take() {
            emit(merged);
        }
        let mergeable = mergeable(packet, headers).filter(|(kind, _)| *kind != Kind::Udp || !self.udp_apart);
        let (kind, head) = mergeable.map_or((None, packet.len()), |(kind, head)| (Some(kind), head));
        let closed = kind.is_none_or(|kind| kind != Kind::Udp && packet[headers.payload + 13] & PSH != 0);
        self.packet.clear();
        self.packet.extend_from_slice(packet);
        let size = packet.len() - head;
        self.run =
            Some(Run { peer, headers: *headers, kind, head, size, count: 1, closed: closed || size == 0 });
    }

    fn append(&mut self, peer: usize, packet: &[u8], headers: &Headers) -> bool {
        let Some(run) = &mut self.run else { return false };
        let Some(kind) = run.kind.filter(|_| !run.closed && run.peer == peer) else { return false };
        let Some((own, head)) = mergeable(packet, headers) else { return false };
        let size = packet.len() - head;
        let fits = own == kind
            && head == run.head
            && (1..=run.size).contains(&size)
            && self.packet.len() + size <= MOST
            && follows(&self.packet, packet, run, headers);
        if !fits {
            return false;
        }
        let flags = headers.payload + 13;
        if kind != Kind::Udp && packet[flags] & PSH != 0 {
            self.packet[flags] |= PSH;
            run.headers.tcp_flags |= PSH;
            run.closed = true;
        }
        run.closed |= size < run.size;
        run.count += 1;
        self.packet.extend_from_slice(&packet[head..]);
        true
    }

    /// Takes out what has been merged.
    pub fn take(&mut self) -> Option<Merged<'_>> {
        let run = self.run.take()?;
        let offload = match (run.kind, run.count) {
            (Some(kind), 2..) => {
                write_headers(&mut self.packet, &run, kind);
                let (size, headers, start) = (run.size as u16, run.head as u16, run.headers.payload as u16);
                Offload::Segment { kind, size, headers, start }
            }
            // A packet of a kind that is merged has been verified.
            (Some(_), _) => Offload::Verified,
            (None, _) => Offload::None,
        };
        let headers = Headers { length: self.packet.len(), ..run.headers };
        Some(Merged { peer: run.peer, headers, offload, packet: &self.packet })
    }
}

/// One packet of a peer, or several in a row as one.
#[derive(Debug)]
pub(crate) struct Merged<'a> {
    pub peer: usize,
    pub headers: Headers,
    pub offload: Offload,
    pub packet: &'a [u8],
}

/// The kind and the length of all headers of a packet that may be merged: plain headers, nothing but data, a checksum that
/// is right.
fn mergeable(packet: &[u8], headers: &Headers) -> Option<(Kind, usize)> {
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
            (if source.is_ipv4() { Kind::TcpV4 } else { Kind::TcpV6 }, head)
        }
        (17, _) => {
            let length = usize::from(u16::from_be_bytes([packet[at + 4], packet[at + 5]]));
            let summed = packet[at + 6..at + 8] != [0, 0];
            if length != packet.len() - at || !summed {
                return None;
            }
            (Kind::Udp, at + 8)
        }
        _ => return None,
    };
    if head < at + 8 || head > packet.len() {
        return None;
    }
    let Headers { source, destination, ip_protocol, .. } = *headers;
    let pseudo = Sum::default().add_pseudo(source, destination, ip_protocol, packet.len() - at);
    pseudo.add(&packet[at..]).is_valid().then_some((kind, head))
}

/// Whether a packet is the next of a run: the same in all headers but those that count on.
fn follows(merged: &[u8], packet: &[u8], run: &Run, headers: &Headers) -> bool {
    let at = headers.payload;
    let same = |from: usize, to: usize| merged[from..to] == packet[from..to];
    let ip = match headers.source {
        // Version, service and ECN; then flags, offset, lifetime and protocol; then addresses.
        IpAddr::V4(_) => same(0, 2) && same(6, 10) && same(12, 20),
        // Version, class and label; then next header, hop limit and addresses.
        IpAddr::V6(_) => same(0, 4) && same(6, 40),
    };
    if !ip || !same(at, at + 4) {
        return false;
    }
    if run.kind == Some(Kind::Udp) {
        return true;
    }
    let number =
        |packet: &[u8]| u32::from_be_bytes([packet[at + 4], packet[at + 5], packet[at + 6], packet[at + 7]]);
    let next = number(merged).wrapping_add((merged.len() - run.head) as u32);
    // Acknowledgement; offset; window and, behind the checksum, the urgent pointer and all options.
    number(packet) == next && same(at + 8, at + 13) && same(at + 14, at + 16) && same(at + 18, run.head)
}

fn write_headers(packet: &mut [u8], run: &Run, kind: Kind) {
    let (at, length) = (run.headers.payload, packet.len());
    match run.headers.source {
        IpAddr::V4(_) => {
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            set_ipv4(packet, 20);
        }
        IpAddr::V6(_) => packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes()),
    }
    let transport = length - at;
    if kind == Kind::Udp {
        packet[at + 4..at + 6].copy_from_slice(&(transport as u16).to_be_bytes());
    }
    let Headers { source, destination, ip_protocol, .. } = run.headers;
    let partial = Sum::default().add_pseudo(source, destination, ip_protocol, transport).fold();
    let field = at + usize::from(kind.checksum_offset());
    packet[field..field + 2].copy_from_slice(&partial);
}
