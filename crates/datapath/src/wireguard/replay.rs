//! Which of a session's counters have been used: a sliding window (RFC 6479).

/// How far behind the greatest counter a packet may come; the kernel's WireGuard has as much.
pub(crate) const WINDOW: u64 = (WORDS as u64 - 1) * 64;
const WORDS: usize = 128;

/// The counters that were received.
#[derive(Debug)]
pub(crate) struct Window {
    /// One more than the greatest counter.
    next: u64,
    bits: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, bits: [0; WORDS] }
    }
}

impl Window {
    /// Whether a counter may still be new. A packet that authenticates is then to be
    /// [taken](Self::take).
    pub fn may_take(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - counter <= WINDOW && self.bits[word(counter)] & bit(counter) == 0
    }

    /// Notes a counter; `false` if it was used, or is too old to tell.
    pub fn take(&mut self, counter: u64) -> bool {
        if !self.may_take(counter) {
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
    fn a_counter_is_taken_once_and_an_old_one_never() {
        let mut window = Window::default();
        assert!(window.take(0));
        assert!(!window.take(0));
        assert!(window.take(WINDOW + 5));
        assert!(!window.take(5), "too old");
        assert!(window.take(6), "the oldest that counts");
        assert!(!window.take(6));
    }

    proptest! {
        #[test]
        fn the_window_takes_what_a_list_of_all_counters_would(
            steps in prop::collection::vec((any::<bool>(), 0u64..20_000), 1..400),
        ) {
            let (mut window, mut seen, mut greatest) = (Window::default(), HashSet::new(), 0u64);
            for (ahead, distance) in steps {
                let counter = if ahead { greatest + distance % 300 } else { greatest.saturating_sub(distance) };
                let fresh = !seen.contains(&counter) && greatest + 1 - counter.min(greatest + 1) <= WINDOW;
                prop_assert_eq!(window.may_take(counter), fresh);
                prop_assert_eq!(window.take(counter), fresh);
                if fresh {
                    seen.insert(counter);
                    greatest = greatest.max(counter);
                }
            }
        }
    }
}
