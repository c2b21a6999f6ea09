//! Developer commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`, `cargo xtask fuzz`.
#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod demo;
mod fuzz;
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
    /// Give the data path's pure functions random bytes, and look whether what must hold does
    Fuzz(fuzz::Options),
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
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Test(options) => test::run(&options),
    }
}
