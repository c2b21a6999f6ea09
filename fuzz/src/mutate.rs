//! Mutation of inputs, without feedback from the target.

/// The longest input that is made, in bytes.
const LONGEST: usize = 4096;
/// Boundary values, at which bugs are likely.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX / 2,
    u64::MAX,
];

/// A source of mutated inputs.
pub(crate) struct Mutator(u64);

impl Mutator {
    /// Creates a mutator; the same seed gives the same inputs.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Returns the next random number: xorshift64* (Vigna, 2016).
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 33) as usize) % end.max(1)
    }

    /// Returns an input made from some of these.
    pub(crate) fn input(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.below(pool.len())].clone();
        for _ in 0..1 << self.below(6) {
            self.change(&mut input, pool);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let longest = 1 << self.below(8);
        let length = self.below(longest).min(input.len() - at);
        match self.below(9) {
            0 => drop(input.drain(at..at + length)),
            1 => {
                let copy = input[at..at + length].to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, copy));
            }
            2 => {
                let other = &pool[self.below(pool.len())];
                let from = self.below(other.len() + 1);
                let part = &other[from..(from + 1 + self.below(64)).min(other.len())];
                drop(input.splice(at..at + length, part.iter().copied()));
            }
            3 => {
                let (edge, width) = (EDGES[self.below(EDGES.len())], 1 << self.below(4));
                let bytes = if self.below(2) == 0 {
                    edge.to_le_bytes()
                } else {
                    edge.rotate_right(8 * width).to_be_bytes()
                };
                let end = (at + width as usize).min(input.len());
                input[at..end].iter_mut().zip(bytes).for_each(|(target, byte)| *target = byte);
            }
            4 => {
                let byte = self.next() as u8;
                drop(input.splice(at..at, std::iter::repeat_n(byte, 1 + length)));
            }
            5 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = byte.wrapping_add(1 + self.below(3) as u8).wrapping_sub(2);
                }
            }
            6 => input.truncate(at.max(input.len() / 2)),
            7 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.next() as u8;
                }
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }
}
