//! Gather lists: packets that stand in several parts of a buffer.

use std::ops::Range;

/// Maximum number of parts of a packet: as many as datagrams may come in one call
/// (`UDP_GRO_CNT_MAX` is 64, `net/ipv4/udp_offload.c`).
pub const MAX_GATHER_PARTS: usize = 128;

/// A range of the buffer that datagrams were received into.
pub(crate) type Span = Range<usize>;

/// A packet in parts, in order: what the kernel calls a gather list.
#[derive(Debug, Clone, Copy)]
pub struct GatherList<'a> {
    buffer: &'a [u8],
    spans: &'a [Span],
}

impl<'a> GatherList<'a> {
    /// The packet whose parts stand at `spans` in `buffer`.
    pub(crate) fn new(buffer: &'a [u8], spans: &'a [Span]) -> Self {
        Self { buffer, spans }
    }

    /// Returns the parts; at most [`MAX_GATHER_PARTS`].
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        let buffer = self.buffer;
        self.spans.iter().map(move |span| &buffer[span.clone()])
    }

    /// Returns the packet as one.
    pub fn to_vec(&self) -> Vec<u8> {
        self.iter().flatten().copied().collect()
    }
}
