//! Fuzz targets: what they are, what all of them are held to, and how tests run them without a
//! fuzzer.
//!
//! A crate lists its targets with [`targets!`] in a module `fuzzing` that is compiled for tests and
//! for libFuzzer (`cfg(fuzzing)`) alone. libFuzzer drives them by `cargo xtask fuzz`; for each
//! there is a test, which gives it its seeds, the corpus in `fuzz/corpus/NAME` and, for some
//! seconds, inputs that are made of those.
#![forbid(unsafe_code)]

mod mutate;
mod replay;
mod scratch;

pub use replay::replay;
pub use scratch::scratch;

use std::time::{Duration, Instant};

/// The processor time after which an input is held to hang the target.
const LONGEST: Duration = Duration::from_secs(2);

/// Something that takes bytes from outside.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Takes an input, and panics if something does not hold that must.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made by the code that writes such messages.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The most bytes that may be allocated at once for an input of so many bytes.
    pub memory: fn(usize) -> u64,
}

/// The memory that a target may take if it says nothing else: what reading in one go needs, where a
/// byte of a message can stand for a whole element of a list.
pub fn usual_memory(input: usize) -> u64 {
    (2 << 20) + 512 * input as u64
}

impl Target {
    /// Runs the target on an input.
    ///
    /// # Panics
    /// If the target does, takes more memory than it may, or more time than any input is worth.
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

    /// Runs it again, by the time that this thread has had: the machine may just be busy.
    fn check_time(&self, input: &[u8]) {
        let before = processor_time();
        (self.run)(input);
        let took = processor_time().saturating_sub(before);
        assert!(took <= LONGEST, "{}: an input of {} bytes takes {took:?}", self.name, input.len());
    }
}

/// The processor time of this thread so far (`Documentation/scheduler/sched-stats.rst`).
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// Lists the targets of a crate as `TARGETS`, and makes a test of each.
///
/// `NAME: RUN, SEEDS;` or `NAME: RUN, SEEDS, MEMORY;`, see the fields of [`Target`].
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

/// Bytes that stand for choices: what a fuzzer changes, changes little.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte; 0 behind the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        let wide = if end > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (wide | usize::from(self.byte())) % end.max(1)
    }

    /// Up to so many bytes.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes behind their length in two bytes, big-endian.
    pub fn block(&mut self) -> &'a [u8] {
        let length = u16::from_be_bytes([self.byte(), self.byte()]);
        self.take(length.into())
    }

    /// Text behind its length; what is no UTF-8 is replaced.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.block()).into_owned()
    }
}

/// What [`Bytes::block`] reads, one behind the other.
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
