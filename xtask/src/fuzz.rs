//! Fuzzing everything that takes bytes from outside, with libFuzzer.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};
use xtask::cargo;

#[derive(clap::Args)]
pub struct Options {
    /// What is fuzzed: the folders in `fuzz/corpus` have the names [default: each in turn]
    pub target: Option<String>,
    /// For how long each is
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub seconds: u32,
    /// Put the smallest inputs that reach what was reached into the corpus in the tree, up to so many bytes for a target
    #[arg(long, value_name = "BYTES", num_args = 0..=1, default_missing_value = "4096")]
    pub keep: Option<u64>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let fuzzer = Fuzzer { program: program()? };
    let names = targets()?;
    let wanted = match &options.target {
        None => names,
        Some(name) if names.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target `{name}`; there are: {}", names.join(", ")),
    };
    for name in &wanted {
        println!("\n== {name}");
        let time = format!("-max_total_time={}", options.seconds);
        fuzzer.run(name, &[&work(name)?, &tree(name)], &[&time, "-max_len=4096", "-print_final_stats=1"])?;
        if let Some(most) = options.keep {
            fuzzer.keep(name, most)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// cargo-fuzz, installed if it is not there.
fn program() -> Result<PathBuf> {
    let tools = cargo::binaries("tools");
    let program = tools.join("bin/cargo-fuzz");
    if !program.exists() {
        println!("Installing cargo-fuzz ...");
        cargo::run(cargo::command(&["install", "--locked", "cargo-fuzz", "--root"]).arg(&tools))?;
    }
    Ok(program)
}

fn tree(name: &str) -> PathBuf {
    cargo::project().join("fuzz/corpus").join(name)
}

/// The targets: each has a folder of inputs in the tree.
fn targets() -> Result<Vec<String>> {
    let folder = cargo::project().join("fuzz/corpus");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// The folder in which a target's inputs are found, out of the tree.
fn work(name: &str) -> Result<PathBuf> {
    let folder = cargo::binaries("fuzz").join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

struct Fuzzer {
    program: PathBuf,
}

impl Fuzzer {
    fn run(&self, name: &str, folders: &[&Path], arguments: &[&str]) -> Result<()> {
        let mut fuzz = Command::new(&self.program);
        // Without a sanitizer, which a stable compiler does not have; there is no unsafe code to look after.
        fuzz.current_dir(cargo::project()).args([
            "fuzz",
            "run",
            "--fuzz-dir",
            "fuzz/libfuzzer",
            "-s",
            "none",
        ]);
        fuzz.arg("meshward").args(folders).arg("--").args(arguments);
        fuzz.env("MESHWARD_FUZZ_TARGET", name).env("MESHWARD_FUZZ_SEEDS", work(name)?);
        cargo::run(&mut fuzz)
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
            let name = path.file_name().context("an input has a name")?.to_string_lossy().into_owned();
            fs::copy(&path, folder.join(name.get(..12).unwrap_or(&name)))?;
        }
        Ok(())
    }
}
