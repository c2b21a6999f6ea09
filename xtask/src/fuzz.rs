//! Fuzzing of the parsers of all input from outside, with libFuzzer.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};
use xtask::{cargo, packages};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The target: a folder in `fuzz/corpus` [default: all targets in turn]
    pub target: Option<String>,
    /// How long to fuzz each target
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub seconds: u32,
    /// Put the smallest inputs that cover what was covered into the corpus in the repository, up to
    /// this size for each target
    #[arg(long, value_name = "BYTES", num_args = 0..=1, default_missing_value = "4096")]
    pub keep: Option<u64>,
}

/// The workspace with libFuzzer.
const WORKSPACE: &str = "fuzz/libfuzzer";

/// Compiler flags for coverage feedback to libFuzzer (LLVM's `SanitizerCoverage`, as in
/// cargo-fuzz). There is no sanitizer: a stable compiler has none, and there is no unsafe code to
/// check. Overflows panic.
const FLAGS: [&str; 9] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Clink-dead-code",
];

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let names = targets()?;
    let wanted = match &options.target {
        None => names,
        Some(name) if names.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target `{name}`; there are: {}", names.join(", ")),
    };
    let fuzzer = Fuzzer { program: build()? };
    let mut failed = Vec::new();
    for name in &wanted {
        println!("\n== {name}");
        // A failure does not stop the other targets.
        if let Err(error) = fuzzer.search(name, options) {
            eprintln!("{name}: {error:#}");
            failed.push(name.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("\nFailed: {}. The inputs are named above.", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Builds the program with all targets.
fn build() -> Result<PathBuf> {
    if !packages::is_there("g++") && !packages::is_there("c++") {
        // libFuzzer itself is C++.
        packages::install(&["g++"])?;
    }
    let target_folder = cargo::binaries("fuzz").join("build");
    let triple = host()?;
    // The same versions as in what users run; the few crates of libFuzzer are added.
    let (locked, own) = (cargo::project().join("Cargo.lock"), cargo::project().join(WORKSPACE));
    fs::copy(locked, own.join("Cargo.lock"))?;
    println!("Building the fuzz targets (some minutes the first time) ...");
    let mut build = cargo::command(&["build", "--release", "--target", &triple]);
    build
        .current_dir(own)
        .env("RUSTFLAGS", FLAGS.join(" "))
        .env("CARGO_TARGET_DIR", &target_folder);
    cargo::run(&mut build)?;
    Ok(target_folder.join(triple).join("release/meshward"))
}

/// Returns the compiler's own target triple. It is passed explicitly, so that build scripts are
/// built without libFuzzer's flags.
fn host() -> Result<String> {
    let said = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say what it builds for")
}

fn tree(name: &str) -> PathBuf {
    cargo::project().join("fuzz/corpus").join(name)
}

/// The targets: each has a folder of inputs in the tree.
fn targets() -> Result<Vec<String>> {
    let folder = cargo::project().join("fuzz/corpus");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// The folder in which a target's inputs are found, out of the tree.
fn work(name: &str) -> Result<PathBuf> {
    let folder = cargo::binaries("fuzz").join("inputs").join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

struct Fuzzer {
    program: PathBuf,
}

impl Fuzzer {
    fn search(&self, name: &str, options: &Options) -> Result<()> {
        let time = format!("-max_total_time={}", options.seconds);
        // What breaks a target lies beside the folder of its inputs.
        let found = format!("-artifact_prefix={}-", work(name)?.display());
        let arguments = [
            &time[..],
            &found,
            "-max_len=4096",
            "-timeout=30",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ];
        self.run(name, &[&work(name)?, &tree(name)], &arguments)?;
        match options.keep {
            Some(most) => self.keep(name, most),
            None => Ok(()),
        }
    }

    fn run(&self, name: &str, folders: &[&Path], arguments: &[&str]) -> Result<()> {
        let mut fuzz = Command::new(&self.program);
        fuzz.args(folders).args(arguments);
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let scratch = base.join(format!("meshward-fuzz-{}", std::process::id()));
        fs::create_dir_all(&scratch)?;
        fuzz.env("MESHWARD_FUZZ_TARGET", name).env("MESHWARD_FUZZ_SEEDS", work(name)?);
        fuzz.env("MESHWARD_FUZZ_SCRATCH", &scratch);
        let done = cargo::run(&mut fuzz);
        fs::remove_dir_all(&scratch)?;
        done
    }

    /// Merges what was found into the corpus in the tree, the smallest inputs first.
    fn keep(&self, name: &str, most: u64) -> Result<()> {
        let merged = work(name)?.with_extension("merged");
        let _ = fs::remove_dir_all(&merged);
        fs::create_dir_all(&merged)?;
        self.run(name, &[&merged, &tree(name), &work(name)?], &["-merge=1"])?;
        let inputs = fs::read_dir(&merged)?.map(|entry| {
            let path = entry?.path();
            Ok((fs::metadata(&path)?.len(), path))
        });
        let mut inputs: Vec<(u64, PathBuf)> = inputs.collect::<Result<_>>()?;
        inputs.sort();
        let (folder, mut bytes) = (tree(name), 0);
        fs::remove_dir_all(&folder)?;
        fs::create_dir_all(&folder)?;
        for (length, path) in inputs {
            bytes += length;
            if bytes > most {
                break;
            }
            // libFuzzer names inputs by their SHA-1.
            let name =
                path.file_name().context("an input has a name")?.to_string_lossy().into_owned();
            fs::copy(&path, folder.join(name.get(..12).unwrap_or(&name)))?;
        }
        Ok(())
    }
}
