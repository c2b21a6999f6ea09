//! Frames: batches of messages, cut to the size of datagrams, and their reassembly.

use meshward_types::relay::{RelayId, RelayNetwork};
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

/// The size of a frame's header, in bytes.
pub const HEADER: usize = 20;

/// The largest number of incomplete batches; the oldest are dropped beyond it.
const MOST_WAITING: usize = 256;

/// Cuts a batch of messages, each of `size` bytes but for a shorter last one, into frames of at
/// most `most` bytes. Returns none if `most` is too small or the batch too long.
pub fn frames(
    to: RelayId,
    network: RelayNetwork,
    number: u16,
    messages: &[u8],
    size: usize,
    most: usize,
) -> impl Iterator<Item = Vec<u8>> {
    let room = most.saturating_sub(HEADER).max(1);
    let fits = most > HEADER
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

/// Cuts a frame into frames of at most `most` bytes, for a path with a smaller MTU. Returns none if
/// `most` is too small.
pub fn cut(frame: &[u8], most: usize) -> impl Iterator<Item = Vec<u8>> {
    let room = most.saturating_sub(HEADER);
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
    if let Some(place) = frame.first_chunk_mut() {
        *place = from.0;
    }
}

type Key = (RelayId, RelayNetwork);

/// Complete messages that follow each other in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
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
pub struct Gathering {
    waiting: HashMap<Key, Batch>,
    order: VecDeque<Key>,
    /// The batches that got a frame since the last call.
    touched: Vec<Key>,
    whole: Vec<Run>,
}

/// A batch that is being reassembled.
#[derive(Debug)]
struct Batch {
    number: u16,
    size: usize,
    bytes: Vec<u8>,
    /// The ranges of bytes that have arrived; they neither touch nor overlap.
    came: Vec<Range<usize>>,
    /// The offset up to which messages were returned.
    done: usize,
}

impl Gathering {
    /// Adds a frame. [`Self::take_whole`] returns the messages that it completes.
    pub fn take(&mut self, frame: &[u8]) {
        let Some((head, part)) = frame.split_first_chunk::<HEADER>() else { return };
        let Some(from) = head.first_chunk().copied().map(RelayId) else { return };
        let field = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let key = (from, RelayNetwork([head[8], head[9], head[10], head[11]]));
        let (number, length, size, at) =
            (field(12), usize::from(field(14)), usize::from(field(16)), usize::from(field(18)));
        let place = at..at + part.len();
        if part.is_empty() || place.end > length || !(1..=length).contains(&size) {
            return;
        }
        let same =
            |batch: &Batch| (batch.number, batch.bytes.len(), batch.size) == (number, length, size);
        if !self.waiting.get(&key).is_some_and(same) {
            // The missing frames of the batch before will not come any more.
            self.give_up(&key);
            self.order.push_back(key);
            if self.order.len() > MOST_WAITING
                && let Some(oldest) = self.order.front().copied()
            {
                self.give_up(&oldest);
            }
            let batch = Batch { number, size, bytes: vec![0; length], came: vec![], done: 0 };
            self.waiting.insert(key, batch);
        }
        if let Some(batch) = self.waiting.get_mut(&key) {
            batch.bytes[place.clone()].copy_from_slice(part);
            batch.note(place);
        }
        if self.touched.last() != Some(&key) {
            self.touched.push(key);
        }
    }

    /// Returns the messages that were completed since the last call.
    pub fn take_whole(&mut self) -> Vec<Run> {
        for key in std::mem::take(&mut self.touched) {
            let Some(batch) = self.waiting.get_mut(&key) else { continue };
            batch.hand_on(key, false, &mut self.whole);
            if batch.done == batch.bytes.len() {
                self.waiting.remove(&key);
                self.order.retain(|own| *own != key);
            }
        }
        std::mem::take(&mut self.whole)
    }

    fn give_up(&mut self, key: &Key) {
        if let Some(mut batch) = self.waiting.remove(key) {
            batch.hand_on(*key, true, &mut self.whole);
            self.order.retain(|own| own != key);
        }
    }
}

impl Batch {
    fn note(&mut self, mut place: Range<usize>) {
        self.came.retain(|known| {
            let apart = known.end < place.start || place.end < known.start;
            if !apart {
                place = place.start.min(known.start)..place.end.max(known.end);
            }
            apart
        });
        self.came.push(place);
    }

    /// Returns the complete messages that are next; those after a gap only if the batch is final.
    fn hand_on(&mut self, (from, network): Key, is_final: bool, into: &mut Vec<Run>) {
        self.came.sort_unstable_by_key(|place| place.start);
        for place in &self.came {
            let begin = place.start.max(self.done).next_multiple_of(self.size);
            if begin > self.done && !is_final {
                return;
            }
            let whole = if place.end == self.bytes.len() {
                place.end
            } else {
                place.end - place.end % self.size
            };
            if whole <= begin {
                continue;
            }
            let messages = self.bytes[begin..whole].to_vec();
            into.push(Run { from, network, messages, size: self.size });
            self.done = whole;
        }
    }
}

#[cfg(test)]
mod tests;
