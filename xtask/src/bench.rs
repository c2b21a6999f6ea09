//! Benchmarks, with what they need.

use crate::{cargo, demo, test};
use anyhow::{Context, Result};
use clap::ValueEnum;
use meshward_bench::{PROGRAMS, Tools};
use meshward_lab::Binaries;
use std::{fs, path::PathBuf, process::ExitCode};

#[derive(clap::Args)]
pub struct Options {
    /// What is measured
    bench: Bench,
    /// One short pair: to see that it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Write the figures here as well, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Bench {
    /// A link between two nodes, beside other userspace WireGuards
    Link,
}

/// Crates that are compared with, in their own release builds, and what their binaries are called.
const CRATES: [(&str, &str); 2] = [("gotatun-cli", "gotatun"), ("boringtun-cli", "boringtun-cli")];

pub fn run(options: &Options) -> Result<ExitCode> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !test::is_there(program))
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        test::install_packages(&missing)?;
    }
    let others = cargo::binaries("bench-tools");
    for (name, program) in CRATES {
        if !others.join("bin").join(program).exists() {
            println!("Installing {name} ...");
            cargo::run(cargo::command(&["install", "--locked", name, "--root"]).arg(&others))?;
        }
    }
    let tools = Tools { ours: Binaries::in_folder(&demo::build()?)?, others };
    let folder = tempfile::tempdir()?;
    let rows = match options.bench {
        Bench::Link => meshward_bench::link(&tools, folder.path(), options.quick)?,
    };
    meshward_bench::print(&rows);
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_vec_pretty(&rows)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
