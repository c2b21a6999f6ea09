//! Datagrams to one peer that leave in one system call: equal in size, only the last may be shorter
//! (`UDP_SEGMENT`, linux/udp.h).

use crate::{ecn::Ecn, sink::Sink};
use std::net::SocketAddr;

/// Maximum number of datagrams of one batch (the kernel's `UDP_MAX_SEGMENTS` was 64 before it was
/// 128).
const MAX_DATAGRAMS: usize = 64;
/// Maximum number of bytes of one batch: what fits the length field of one UDP header, and the
/// headers below.
const MAX_BYTES: usize = 65_000;

/// A batch that is being filled.
#[derive(Debug)]
pub(crate) struct SendBatch {
    to: Option<(SocketAddr, Ecn)>,
    buffer: Vec<u8>,
    used: usize,
    /// Size of every datagram but the last, in bytes.
    size: usize,
    count: usize,
    closed: bool,
    lost: u64,
}

impl Default for SendBatch {
    fn default() -> Self {
        Self {
            to: None,
            // One datagram may be as long as a packet can be, and that is longer than a batch.
            buffer: vec![0; MAX_BYTES.max(usize::from(u16::MAX) + 64)],
            used: 0,
            size: 0,
            count: 0,
            closed: false,
            lost: 0,
        }
    }
}

impl SendBatch {
    /// Room for a datagram of `length` bytes. What cannot leave in one call with it is sent first.
    pub(crate) fn push(
        &mut self,
        to: SocketAddr,
        ecn: Ecn,
        length: usize,
        sink: &mut impl Sink,
    ) -> &mut [u8] {
        let joins = self.to == Some((to, ecn))
            && !self.closed
            && length <= self.size
            && self.count < MAX_DATAGRAMS
            && self.used + length <= MAX_BYTES;
        if !joins {
            self.flush(sink);
            (self.to, self.size) = (Some((to, ecn)), length);
        }
        let begin = self.used;
        self.used += length;
        self.count += 1;
        self.closed = length < self.size;
        if self.buffer.len() < self.used {
            self.buffer.resize(self.used, 0);
        }
        &mut self.buffer[begin..self.used]
    }

    /// Sends what is there.
    pub(crate) fn flush(&mut self, sink: &mut impl Sink) {
        if let Some((to, ecn)) = self.to.take()
            && !sink.to_network(to, ecn, &self.buffer[..self.used], self.size)
        {
            self.lost += self.count as u64;
        }
        (self.used, self.count, self.closed) = (0, 0, false);
    }

    /// Returns the number of datagrams that the kernel did not accept since the last call.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}
