//! Frames: batches of messages, cut to the size of datagrams, and their reassembly.

use meshward_types::relay::{RelayId, RelayNetwork};
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

/// The size of a frame's header, in bytes.
pub const HEADER: usize = 20;

/// The largest number of incomplete batches; the oldest are dropped beyond it.
const MAX_PARTIAL_BATCHES: usize = 256;

/// Messages that leave together: all of one size, but for the last, which may be shorter.
#[derive(Debug, Clone, Copy)]
pub struct MessageBatch<'a> {
    /// The node that they are for.
    pub to: RelayId,
    /// The network.
    pub network: RelayNetwork,
    /// The number by which the receiver tells batches of one sender apart.
    pub number: u16,
    /// The messages, one after the other; 65,535 bytes at most.
    pub messages: &'a [u8],
    /// The size of each message but the last, in bytes.
    pub size: usize,
}

impl<'a> MessageBatch<'a> {
    /// Cuts the batch into frames of at most `max_length` bytes. Returns none if that is too
    /// little, or the batch too long.
    pub fn frames(self, max_length: usize) -> impl Iterator<Item = Vec<u8>> + use<'a> {
        let Self { to, network, number, messages, size } = self;
        let room = max_length.saturating_sub(HEADER).max(1);
        let fits = max_length > HEADER
            && u16::try_from(messages.len()).is_ok()
            && (1..=messages.len()).contains(&size);
        let parts = messages.chunks(room).take(if fits { usize::MAX } else { 0 }).enumerate();
        let length = messages.len() as u16;
        parts.map(move |(at, part)| {
            let mut frame = Vec::with_capacity(HEADER + part.len());
            frame.extend(to.0);
            frame.extend(network.0);
            for field in [number, length, size as u16, (at * room) as u16] {
                frame.extend(field.to_le_bytes());
            }
            frame.extend(part);
            frame
        })
    }
}

/// Cuts a frame into frames of at most `max_length` bytes, for a path with a smaller MTU. Returns
/// none if `max_length` is too small.
pub fn split_frame(frame: &[u8], max_length: usize) -> impl Iterator<Item = Vec<u8>> {
    let room = max_length.saturating_sub(HEADER);
    let whole = frame.split_first_chunk::<HEADER>().filter(|_| room > 0);
    whole.into_iter().flat_map(move |(head, part)| {
        let begin = u16::from_le_bytes([head[18], head[19]]);
        part.chunks(room).enumerate().map(move |(at, piece)| {
            let mut cut = Vec::with_capacity(HEADER + piece.len());
            cut.extend(&head[..18]);
            cut.extend(begin.wrapping_add((at * room) as u16).to_le_bytes());
            cut.extend(piece);
            cut
        })
    })
}

/// Returns the node that a frame is for.
pub fn destination(frame: &[u8]) -> Option<RelayId> {
    (frame.len() > HEADER).then(|| frame.first_chunk().copied().map(RelayId)).flatten()
}

/// Writes the sender into a frame.
pub fn set_source(frame: &mut [u8], from: RelayId) {
    if let Some(address) = frame.first_chunk_mut() {
        *address = from.0;
    }
}

type Key = (RelayId, RelayNetwork);

/// Complete messages that follow each other in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRun {
    /// The node that sent them.
    pub from: RelayId,
    /// The network.
    pub network: RelayNetwork,
    /// The messages, one after the other.
    pub messages: Vec<u8>,
    /// The size of each message but the last, which may be shorter, in bytes.
    pub size: usize,
}

/// The reassembly of batches, one at a time for each sender and network.
#[derive(Debug, Default)]
pub struct BatchAssembler {
    waiting: HashMap<Key, Batch>,
    order: VecDeque<Key>,
    /// The batches that got a frame since the last call.
    updated: Vec<Key>,
    complete: Vec<MessageRun>,
}

/// A batch that is being reassembled.
#[derive(Debug)]
struct Batch {
    number: u16,
    size: usize,
    bytes: Vec<u8>,
    /// The ranges of bytes that have arrived; they neither touch nor overlap.
    received: Vec<Range<usize>>,
    /// The offset up to which messages were returned.
    drained: usize,
}

impl BatchAssembler {
    /// Adds a frame. [`Self::drain_complete`] returns the messages that it completes.
    pub fn add(&mut self, frame: &[u8]) {
        let Some((head, part)) = frame.split_first_chunk::<HEADER>() else { return };
        let Some(from) = head.first_chunk().copied().map(RelayId) else { return };
        let field = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let key = (from, RelayNetwork([head[8], head[9], head[10], head[11]]));
        let (number, length, size, at) =
            (field(12), usize::from(field(14)), usize::from(field(16)), usize::from(field(18)));
        let range = at..at + part.len();
        if part.is_empty() || range.end > length || !(1..=length).contains(&size) {
            return;
        }
        let same =
            |batch: &Batch| (batch.number, batch.bytes.len(), batch.size) == (number, length, size);
        if !self.waiting.get(&key).is_some_and(same) {
            // The missing frames of the batch before will not come any more.
            self.drop_batch(&key);
            self.order.push_back(key);
            if self.order.len() > MAX_PARTIAL_BATCHES
                && let Some(oldest) = self.order.front().copied()
            {
                self.drop_batch(&oldest);
            }
            let batch =
                Batch { number, size, bytes: vec![0; length], received: vec![], drained: 0 };
            self.waiting.insert(key, batch);
        }
        if let Some(batch) = self.waiting.get_mut(&key) {
            batch.bytes[range.clone()].copy_from_slice(part);
            batch.add_range(range);
        }
        if self.updated.last() != Some(&key) {
            self.updated.push(key);
        }
    }

    /// Returns the messages that were completed since the last call.
    pub fn drain_complete(&mut self) -> Vec<MessageRun> {
        for key in std::mem::take(&mut self.updated) {
            let Some(batch) = self.waiting.get_mut(&key) else { continue };
            batch.drain_into(key, false, &mut self.complete);
            if batch.drained == batch.bytes.len() {
                self.waiting.remove(&key);
                self.order.retain(|own| *own != key);
            }
        }
        std::mem::take(&mut self.complete)
    }

    fn drop_batch(&mut self, key: &Key) {
        if let Some(mut batch) = self.waiting.remove(key) {
            batch.drain_into(*key, true, &mut self.complete);
            self.order.retain(|own| own != key);
        }
    }
}

impl Batch {
    fn add_range(&mut self, mut range: Range<usize>) {
        self.received.retain(|known| {
            let apart = known.end < range.start || range.end < known.start;
            if !apart {
                range = range.start.min(known.start)..range.end.max(known.end);
            }
            apart
        });
        self.received.push(range);
    }

    /// Returns the complete messages that are next; those after a gap only if the batch is final.
    fn drain_into(&mut self, (from, network): Key, is_last_call: bool, into: &mut Vec<MessageRun>) {
        self.received.sort_unstable_by_key(|range| range.start);
        for range in &self.received {
            let begin = range.start.max(self.drained).next_multiple_of(self.size);
            if begin > self.drained && !is_last_call {
                return;
            }
            let whole = if range.end == self.bytes.len() {
                range.end
            } else {
                range.end - range.end % self.size
            };
            if whole <= begin {
                continue;
            }
            let messages = self.bytes[begin..whole].to_vec();
            into.push(MessageRun { from, network, messages, size: self.size });
            self.drained = whole;
        }
    }
}

#[cfg(test)]
mod tests;
