//! Developer commands: `cargo xtask demo`, `test`, `bench`, `fuzz` and `soak`.
#![forbid(unsafe_code)]

mod fuzz;
mod soak;
mod test;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command as Process, ExitCode},
};
use xtask::{cargo, packages};

/// Commands for developers of Meshward.
#[derive(Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, then run the demo: three sites, a shop, its policy, a quarantine
    Demo(Demo),
    /// Run benchmarks of the release binaries, in comparison with other programs
    #[command(disable_help_flag = true)]
    Bench(Passed),
    /// Fuzz the parsers of all input from outside
    Fuzz(fuzz::Options),
    /// Run the long tests: a thousand kills, hostile members, transfers, then every fuzz target
    Soak(soak::Options),
    /// Install what the tests need, and run them
    Test(test::Options),
}

#[derive(clap::Args)]
struct Demo {
    /// Leave everything running at the end, and print how to look around
    #[arg(long)]
    keep: bool,
}

/// Arguments for a program that is built first.
#[derive(clap::Args)]
struct Passed {
    /// Arguments for the benchmarks; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    match act(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Demo(options) => demo(&options),
        Command::Bench(passed) => bench(&passed),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Test(options) => test::run(&options),
    }
}

/// The build profile of the demo, for short build times.
const DEMO: &str = "demo";

fn demo(options: &Demo) -> Result<ExitCode> {
    if !packages::is_there("nft") {
        // Two of the sites are behind NATs.
        packages::install(&["nftables"])?;
    }
    println!("Building the demo: a coordinator, nodes, a shop (some minutes the first time) ...");
    cargo::build(DEMO, &[&["meshward-demo"], &cargo::PROGRAMS[..]].concat())?;
    let keep = options.keep.then(|| "--keep".to_owned());
    become_program(&cargo::binaries(DEMO).join("meshward-demo"), keep.as_slice())
}

fn bench(passed: &Passed) -> Result<ExitCode> {
    println!("Building the benchmarks (some minutes the first time) ...");
    cargo::build("release", &["meshward-bench"])?;
    become_program(&cargo::binaries("release").join("meshward-bench"), &passed.arguments)
}

/// Replaces this process by another program.
fn become_program(path: &Path, arguments: &[String]) -> Result<ExitCode> {
    let error = Process::new(path).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", path.display()))
}
