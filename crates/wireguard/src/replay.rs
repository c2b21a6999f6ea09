//! Replay protection: a sliding window of the counters that a session has received (RFC 6479).

/// The distance by which a packet may be behind the greatest counter; the kernel's WireGuard has
/// the same.
pub const WINDOW_SIZE: u64 = (WORDS as u64 - 1) * 64;
const WORDS: usize = 128;

/// The counters of a session that were received.
#[derive(Debug)]
pub struct ReplayWindow {
    /// The greatest counter plus one.
    next: u64,
    bits: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, bits: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Returns whether a counter may be new. That of a packet that authenticates is then to be
    /// [accepted](Self::accept).
    #[inline]
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - counter <= WINDOW_SIZE && self.bits[word(counter)] & bit(counter) == 0
    }

    /// Marks a counter as used. Returns `false` if it was used before, or is too old to know.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.is_fresh(counter) {
            return false;
        }
        if counter >= self.next {
            let (last, new) = (self.next.saturating_sub(1) / 64, counter / 64);
            for passed in (last + 1..=new).take(WORDS) {
                self.bits[passed as usize % WORDS] = 0;
            }
            // A jump over the whole window leaves nothing of it.
            if new - last >= WORDS as u64 {
                self.bits = [0; WORDS];
            }
            self.next = counter + 1;
        }
        self.bits[word(counter)] |= bit(counter);
        true
    }
}

fn word(counter: u64) -> usize {
    (counter / 64) as usize % WORDS
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn a_counter_is_accepted_once_and_an_old_one_never() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(0));
        assert!(!window.accept(0));
        assert!(window.accept(WINDOW_SIZE + 5));
        assert!(!window.accept(5), "too old");
        assert!(window.accept(6), "the oldest that counts");
        assert!(!window.accept(6));
    }

    proptest! {
        #[test]
        fn the_window_accepts_what_a_list_of_all_counters_would(
            steps in prop::collection::vec((any::<bool>(), 0u64..20_000), 1..400),
        ) {
            let (mut window, mut seen, mut greatest) =
                (ReplayWindow::default(), HashSet::new(), 0u64);
            for (ahead, distance) in steps {
                let counter = if ahead {
                    greatest + distance % 300
                } else {
                    greatest.saturating_sub(distance)
                };
                let fresh = !seen.contains(&counter)
                    && greatest + 1 - counter.min(greatest + 1) <= WINDOW_SIZE;
                prop_assert_eq!(window.is_fresh(counter), fresh);
                prop_assert_eq!(window.accept(counter), fresh);
                if fresh {
                    seen.insert(counter);
                    greatest = greatest.max(counter);
                }
            }
        }
    }
}
