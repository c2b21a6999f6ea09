//! Developer commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`, `cargo xtask
//! fuzz`.
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

/// What developers of Meshward run.
#[derive(Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, then show the main job: three sites, a shop, its policy, a quarantine
    Demo(Demo),
    /// Measure the release binaries beside what others use
    #[command(disable_help_flag = true)]
    Bench(Passed),
    /// Give whatever takes bytes from outside more and more of them, and look whether what must
    /// hold does
    Fuzz(fuzz::Options),
    /// Kill, lie and fuzz for as long as it takes: a thousand kills, then every fuzz target
    Soak(soak::Options),
    /// Install what the tests need, and run every test
    Test(test::Options),
}

#[derive(clap::Args)]
struct Demo {
    /// Leave everything running at the end, and say how to look around
    #[arg(long)]
    keep: bool,
}

/// Arguments of a program that is built first: it knows what they mean.
#[derive(clap::Args)]
struct Passed {
    /// Passed on; `--help` says what there is
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

/// The profile of the demo: built soon rather than fast.
const DEMO: &str = "demo";

fn demo(options: &Demo) -> Result<ExitCode> {
    if !packages::is_there("nft") {
        // For the NATs of two of the sites.
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

/// Goes on as another program.
fn become_program(path: &Path, arguments: &[String]) -> Result<ExitCode> {
    let error = Process::new(path).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", path.display()))
}
