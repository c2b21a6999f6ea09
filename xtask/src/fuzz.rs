//! Fuzzing of the data path's pure functions with libFuzzer.

use anyhow::Result;
use clap::ValueEnum;
use std::process::ExitCode;
use xtask::cargo;

#[derive(clap::Args)]
pub struct Options {
    /// What is fuzzed [default: each in turn]
    target: Option<Target>,
    /// For how long each is
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
}

/// The targets in `fuzz/fuzz_targets`.
#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// Super-packets from a TUN, cut and merged again
    Segmentation,
    /// Packets from a peer, merged and cut again
    Coalescing,
    /// Calls of the CNI plugin
    Cni,
    /// Datagrams from anybody, and sealed messages from a peer
    Peer,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let tools = cargo::binaries("tools");
    let program = tools.join("bin/cargo-fuzz");
    if !program.exists() {
        println!("Installing cargo-fuzz ...");
        cargo::run(cargo::command(&["install", "--locked", "cargo-fuzz", "--root"]).arg(&tools))?;
    }
    let targets = options.target.map_or(Target::value_variants().to_vec(), |target| vec![target]);
    for target in targets {
        let Some(name) = target.to_possible_value() else { continue };
        let mut fuzz = std::process::Command::new(&program);
        // Without a sanitizer, which a stable compiler does not have; there is no unsafe code to look after.
        fuzz.current_dir(cargo::project()).args(["fuzz", "run", "-s", "none", name.get_name(), "--"]);
        fuzz.args([format!("-max_total_time={}", options.seconds), "-max_len=4096".into()]);
        cargo::run(&mut fuzz)?;
    }
    Ok(ExitCode::SUCCESS)
}
