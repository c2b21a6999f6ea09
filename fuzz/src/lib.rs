//! Fuzz targets, the limits that all of them must keep, and their replay in tests.
//!
//! A crate lists its targets with [`targets!`] in a module `fuzzing`, which is compiled for tests
//! and for libFuzzer (`cfg(fuzzing)`). `cargo xtask fuzz` runs them under libFuzzer. For each there
//! is also a test, which gives it its seeds, the corpus in `fuzz/corpus/NAME` and, for some
//! seconds, mutations of both.
#![forbid(unsafe_code)]

mod mutate;
mod replay;
mod scratch;

pub use replay::replay;
pub use scratch::scratch;

use std::time::{Duration, Instant};

/// The processor time after which an input counts as one that hangs the target.
const LONGEST: Duration = Duration::from_secs(2);

/// A fuzz target: a function that reads bytes from outside.
#[derive(Clone, Copy)]
pub struct Target {
    /// The name, and that of the folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Runs one input, and panics if a property does not hold.
    pub run: fn(&[u8]),
    /// Returns the inputs to start from, made by the code that writes such messages.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Returns the most memory that may be allocated at once, in bytes, for an input of this
    /// length.
    pub memory: fn(usize) -> u64,
}

/// Returns the default memory limit in bytes: enough to read in one go, where a byte of a message
/// can stand for a whole element of a list.
pub fn usual_memory(input: usize) -> u64 {
    (2 << 20) + 512 * input as u64
}

impl Target {
    /// Runs the target on an input.
    ///
    /// # Panics
    /// Panics if the target panics, or exceeds its limits of memory or time.
    pub fn check(&self, input: &[u8]) {
        let begun = Instant::now();
        let used = allocation_counter::measure(|| (self.run)(input));
        let most = (self.memory)(input.len());
        assert!(
            used.bytes_max <= most,
            "{}: an input of {} bytes takes {} bytes of memory; at most {most} are good",
            self.name,
            input.len(),
            used.bytes_max
        );
        if begun.elapsed() > LONGEST {
            self.check_time(input);
        }
    }

    /// Runs the input again and measures the thread's processor time, since the machine may just be
    /// busy.
    fn check_time(&self, input: &[u8]) {
        let before = processor_time();
        (self.run)(input);
        let took = processor_time().saturating_sub(before);
        assert!(took <= LONGEST, "{}: an input of {} bytes takes {took:?}", self.name, input.len());
    }
}

/// Returns the processor time of this thread so far (`Documentation/scheduler/sched-stats.rst`).
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// Lists the targets of a crate as `TARGETS`, and makes a test of each.
///
/// The form is `NAME: RUN, SEEDS;` or `NAME: RUN, SEEDS, MEMORY;`, see the fields of [`Target`].
#[macro_export]
macro_rules! targets {
    ($($name:ident: $run:expr, $seeds:expr $(, $memory:expr)?;)+) => {
        /// The targets of this crate.
        pub const TARGETS: &[$crate::Target] = &[$($crate::Target {
            name: stringify!($name),
            run: $run,
            seeds: $seeds,
            memory: $crate::targets!(@memory $($memory)?),
        }),+];

        #[cfg(test)]
        mod corpus {
            $(#[test]
            fn $name() {
                let target = super::TARGETS.iter().find(|target| target.name == stringify!($name));
                $crate::replay(target.expect("it is in the list"));
            })+
        }
    };
    (@memory) => { $crate::usual_memory };
    (@memory $memory:expr) => { $memory };
}

/// A reader that turns bytes into choices, so that a small change of an input changes little.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// Returns `true` if no byte is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the next byte; 0 after the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Returns a number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let wide = if end > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (wide | usize::from(self.byte())) % end.max(1)
    }

    /// Returns up to `length` bytes.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Returns the bytes of a block: a big-endian length of two bytes, then as many bytes.
    pub fn block(&mut self) -> &'a [u8] {
        let length = u16::from_be_bytes([self.byte(), self.byte()]);
        self.take(length.into())
    }

    /// Returns a block as text, with invalid UTF-8 replaced.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.block()).into_owned()
    }
}

/// Writes blocks one after the other, as [`Bytes::block`] reads them.
///
/// # Panics
/// Panics if a block is longer than 65,535 bytes.
pub fn blocks<T: AsRef<[u8]>>(all: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in all {
        let block = block.as_ref();
        let length = u16::try_from(block.len()).expect("a block of a seed is short");
        bytes.extend(length.to_be_bytes());
        bytes.extend(block);
    }
    bytes
}
