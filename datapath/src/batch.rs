//! Datagrams to one peer that leave in one system call: equal in size, only the last may be shorter (`UDP_SEGMENT`,
//! linux/udp.h).

use crate::endpoint::Sink;
use std::net::SocketAddr;

/// The most datagrams of one batch (the kernel's `UDP_MAX_SEGMENTS` was 64 before it was 128).
const MOST_DATAGRAMS: usize = 64;
/// The most bytes of one batch: what fits the length field of one UDP header, and the headers below.
const MOST_BYTES: usize = 65_000;

/// A batch that is being filled.
#[derive(Debug)]
pub(crate) struct Batch {
    to: Option<SocketAddr>,
    buffer: Vec<u8>,
    used: usize,
    /// Size of every datagram but the last, in bytes.
    size: usize,
    count: usize,
    closed: bool,
    lost: u64,
}

impl Batch {
    pub fn new() -> Self {
        Self {
            to: None,
            buffer: vec![0; 2 * (usize::from(u16::MAX) + 1)],
            used: 0,
            size: 0,
            count: 0,
            closed: false,
            lost: 0,
        }
    }

    /// Room for a datagram of `length` bytes to `to`, and as much more as `least` asks for. What cannot leave in one call
    /// with it is sent first.
    pub fn room(&mut self, to: SocketAddr, length: usize, least: usize, sink: &mut impl Sink) -> &mut [u8] {
        let joins = self.to == Some(to)
            && !self.closed
            && length <= self.size
            && self.count < MOST_DATAGRAMS
            && self.used + length <= MOST_BYTES;
        if !joins {
            self.flush(sink);
            (self.to, self.size) = (Some(to), length);
        }
        let end = self.used + length.max(least);
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        &mut self.buffer[self.used..end]
    }

    /// Keeps the datagram of `length` bytes that was written to the room, which was asked for with that length.
    pub fn keep(&mut self, length: usize) {
        self.used += length;
        self.count += 1;
        self.closed = length < self.size;
    }

    /// Sends what is there.
    pub fn flush(&mut self, sink: &mut impl Sink) {
        if let Some(to) = self.to.take().filter(|_| self.count > 0)
            && !sink.to_network(to, &self.buffer[..self.used], self.size)
        {
            self.lost += self.count as u64;
        }
        (self.used, self.count, self.closed) = (0, 0, false);
    }

    /// How many datagrams were not taken since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}
