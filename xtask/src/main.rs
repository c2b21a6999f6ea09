//! Developer commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`.
#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod demo;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
    Demo(demo::Options),
    /// Measure the release binaries beside what others use
    Bench(bench::Options),
    /// Install what the tests need, and run every test
    Test(test::Options),
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
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Test(options) => test::run(&options),
    }
}
