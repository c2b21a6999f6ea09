//! Running a target in a test.

use crate::{Target, mutate::Mutator, scratch::Running};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The time for which a test mutates inputs, in seconds, unless `MESHWARD_FUZZ_SECONDS` is set.
const SECONDS: u64 = 2;

/// Runs a target on its seeds, its corpus, and mutations of both for some seconds.
/// `MESHWARD_FUZZ_SEED` repeats a run.
///
/// # Panics
/// Panics if an input breaks the target; the input is kept, and its path printed.
pub fn replay(target: &Target) {
    let _running = Running::begin();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut pool = (target.seeds)();
    if std::env::var_os("MESHWARD_WRITE_CORPUS").is_some() {
        write_corpus(target.name, &pool);
    }
    pool.extend(corpus(target.name));
    assert!(!pool.is_empty(), "{} has neither seeds nor a corpus", target.name);
    for input in &pool {
        check(target, input);
    }
    let clock =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let seed = number("MESHWARD_FUZZ_SEED").unwrap_or(clock);
    println!("MESHWARD_FUZZ_SEED={seed}");
    let until =
        Instant::now() + Duration::from_secs(number("MESHWARD_FUZZ_SECONDS").unwrap_or(SECONDS));
    let (mut mutator, mut count) = (Mutator::new(seed), pool.len());
    while Instant::now() < until {
        check(target, &mutator.input(&pool));
        count += 1;
    }
    println!("{}: {count} inputs", target.name);
}

fn check(target: &Target, input: &[u8]) {
    let kept = Kept { name: target.name, input };
    target.check(input);
    drop(kept);
}

/// A guard that keeps an input if the target panics on it.
struct Kept<'a> {
    name: &'static str,
    input: &'a [u8],
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let sum = self.input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let path = std::env::temp_dir().join(format!("meshward-fuzz-{}-{sum:016x}", self.name));
        match fs::write(&path, self.input) {
            Ok(()) => eprintln!("the input is kept: {}", path.display()),
            Err(error) => eprintln!("the input cannot be kept ({error}): {:02x?}", self.input),
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// Starts the corpus of a target with its seeds.
fn write_corpus(name: &str, seeds: &[Vec<u8>]) {
    fs::create_dir_all(folder(name)).expect("the folder can be made");
    for (at, seed) in seeds.iter().enumerate() {
        fs::write(folder(name).join(format!("seed-{at}")), seed).expect("seeds can be written");
    }
}

/// Returns the corpus of a target in the source tree.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = folder(name);
    let Ok(entries) = fs::read_dir(&folder) else { return vec![] };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("a file of the corpus can be read")).collect()
}
