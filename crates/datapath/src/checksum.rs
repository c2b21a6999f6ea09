//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// Bytes that are summed at once.
const BLOCK: usize = 32;

/// A sum under way: not folded, not complemented.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even offset of what is summed.
    #[inline]
    pub(crate) fn add(mut self, bytes: &[u8]) -> Self {
        // Words of any size and byte order give the same sum once it is folded (RFC 1071 §2).
        let (blocks, rest) = bytes.split_at(bytes.len() & !(BLOCK - 1));
        if !blocks.is_empty() {
            self.0 += sum_of_blocks(blocks);
        }
        let mut words = rest.chunks_exact(4);
        for word in &mut words {
            self.0 += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        let mut last = [0; 4];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        self.0 += u64::from(u32::from_ne_bytes(last));
        self
    }

    /// Adds the pseudo-header of TCP and UDP (RFC 9293 §3.1, RFC 8200 §8.1); `length` is that of
    /// header and payload.
    pub(crate) fn add_pseudo(
        self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        length: usize,
    ) -> Self {
        let sum = match (source, destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => self.add(&a.octets()).add(&b.octets()),
            (IpAddr::V6(a), IpAddr::V6(b)) => self.add(&a.octets()).add(&b.octets()),
            // A packet has one address family; a mixture gives a sum that no receiver accepts.
            _ => self,
        };
        let length = (length as u32).to_be_bytes();
        sum.add(&length).add(&[0, 0, 0, protocol])
    }

    /// Adds what replacing bytes that begin at an even offset changes: both have one even length, of
    /// an address at the most (RFC 1624 §3, the equation 3).
    #[inline]
    pub(crate) fn replace(self, before: &[u8], after: &[u8]) -> Self {
        let mut inverted = [0; 16];
        for (to, from) in inverted.iter_mut().zip(before) {
            *to = !from;
        }
        self.add(&inverted[..before.len().min(16)]).add(after)
    }

    /// Adds another sum.
    #[inline]
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Returns the checksum that was `checksum` before what was summed changed by this.
    #[inline]
    pub(crate) fn adjust(self, checksum: [u8; 2]) -> [u8; 2] {
        self.adjust_partial(checksum.map(|byte| !byte)).map(|byte| !byte)
    }

    /// Returns the partial checksum, which is not complemented, that was `partial` before what was
    /// summed changed by this.
    #[inline]
    pub(crate) fn adjust_partial(self, partial: [u8; 2]) -> [u8; 2] {
        self.add(&partial).fold()
    }

    /// Returns the sum in 16 bits, as bytes for the wire, not complemented: what a partial checksum
    /// field holds.
    pub(crate) fn fold(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// Returns the checksum as bytes for the wire.
    pub(crate) fn finish(self) -> [u8; 2] {
        let [a, b] = self.fold();
        [!a, !b]
    }

    /// Returns whether the sum is that of data which holds its own right checksum.
    pub(crate) fn is_valid(self) -> bool {
        self.fold() == [0xff, 0xff]
    }
}

/// Returns the sum of blocks. It is a function of its own, so that its loop is compiled in one way,
/// while sums of a few bytes are inlined.
#[inline(never)]
fn sum_of_blocks(blocks: &[u8]) -> u64 {
    // Several sums of half words at once, which cannot overflow within 64 KiB, are what compilers
    // turn into vector instructions.
    let mut sums = [0u64; BLOCK / 4];
    for block in blocks.chunks_exact(BLOCK) {
        for (sum, word) in sums.iter_mut().zip(block.chunks_exact(4)) {
            *sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    // Folded to 32 bits, so that no number of calls overflows in practice.
    sums.iter().map(|sum| (sum & 0xffff_ffff) + (sum >> 32)).sum()
}

/// Writes the checksum of an IPv4 header of `length` bytes.
pub(crate) fn set_ipv4(packet: &mut [u8], length: usize) {
    packet[10..12].fill(0);
    let sum = Sum::default().add(&packet[..length]).finish();
    packet[10..12].copy_from_slice(&sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071's own words: 16 bits at a time, in network order.
    fn slow(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&bytes).fold(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn any_bytes_sum_as_the_rfc_says(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..100,
        ) {
            prop_assert_eq!(Sum::default().add(&bytes).finish(), slow(&bytes));
            let cut = (cut * 2).min(bytes.len() & !1);
            prop_assert_eq!(
                Sum::default().add(&bytes[..cut]).add(&bytes[cut..]).finish(),
                slow(&bytes)
            );
        }
    }
}
