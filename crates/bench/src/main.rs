//! Benchmarks, with what they need. `cargo xtask bench` builds and runs this.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use meshward_bench::{PROGRAMS, Row, Tools};
use meshward_lab::Binaries;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};
use xtask::{cargo, packages};

/// Measures the release binaries beside what others use.
#[derive(Parser)]
#[command(name = "cargo xtask bench", arg_required_else_help = true)]
struct Options {
    /// The measurement to run
    bench: Bench,
    /// One short pair: to see that it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Write the figures here as well, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// For `link`: compare with the release binaries in this folder, those of a commit before,
    /// instead of other programs
    #[arg(long, value_name = "FOLDER")]
    before: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// A link between two nodes, beside other overlay networks in userspace
    Link,
    /// A link between two nodes: its round trips alone
    RoundTrips,
    /// A link between two workloads of one node, beside a bare bridge
    Local,
    /// A link with 10,000 rules loaded, beside one with a single rule
    Rules,
    /// A thousand workloads that come to a node and go: what that costs, and that nothing is left
    Attach,
    /// Health checks of 500 instances of one node: what they cost, and what those that hang do to
    /// others
    Checks,
    /// One node with thousands of peers: how many it reaches, and its memory
    Node,
    /// The packet path by itself: new flows through the filter, and packets through an endpoint
    /// beside boringtun's engine
    Datapath,
    /// The time until a quarantine stops a running connection between real nodes
    Quarantine,
    /// A TCP connection through a node that is flooded with handshakes from forged addresses
    Handshakes,
    /// The coordinator under attack: a flood of strangers, and one hostile node at all its limits
    Control,
    /// DNS queries that a node answers for its workloads, beside unbound and dnsmasq
    Dns,
    /// The throughput of a relay on one core, beside the same link without it; five thousand nodes
    /// connected to one relay
    Relay,
    /// The time that Terraform needs to plan and apply 500 resources
    Terraform,
    /// The coordinator's decisions by themselves, with a million workloads: compiling, and the
    /// deltas of single changes
    Policy,
    /// A coordinator and ten thousand simulated nodes: quarantine, reconnection, churn, memory
    Propagate,
    /// Services: a late instance, beside a balancer that takes turns; a rolling restart under load;
    /// the subsets of instances that clients are linked with
    Services,
}

/// Crates that are compared with, in their own release builds, and what their binaries are called.
const CRATES: [(&str, &str); 2] = [("gotatun-cli", "gotatun"), ("boringtun-cli", "boringtun-cli")];

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    ensure!(
        options.before.is_none() || options.bench == Bench::Link,
        "--before FOLDER is for `link`: leave it out, or measure `link`"
    );
    let rows = match options.bench {
        Bench::Datapath => of_crate("datapath", "datapath", options.quick)?,
        Bench::Policy => of_crate("coordinator", "policy", options.quick)?,
        Bench::Services => {
            let mut rows = against_programs(Bench::Services, options)?;
            rows.extend(of_crate("coordinator", "services", options.quick)?);
            rows
        }
        Bench::Propagate => {
            build_release()?;
            of_crate("coordinator", "propagate", options.quick)?
        }
        Bench::Relay => {
            let mut rows = against_programs(Bench::Relay, options)?;
            rows.extend(of_crate("coordinator", "relay", options.quick)?);
            rows
        }
        bench => against_programs(bench, options)?,
    };
    meshward_bench::print(&rows);
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_vec_pretty(&rows)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Builds the release binaries and says where they are.
fn build_release() -> Result<PathBuf> {
    cargo::build("release", &cargo::PROGRAMS)?;
    Ok(cargo::binaries("release"))
}

/// A benchmark of one crate. It prints its figures as JSON.
fn of_crate(name: &str, bench: &str, quick: bool) -> Result<Vec<Row>> {
    let package = format!("meshward-{name}");
    let mut command =
        cargo::command(&["bench", "--locked", "-q", "-p", &package, "--bench", bench]);
    if quick {
        command.args(["--", "--quick"]);
    }
    let done = command.stderr(Stdio::inherit()).output()?;
    ensure!(done.status.success(), "the benchmark `{bench}` of {package} failed");
    serde_json::from_slice(&done.stdout)
        .with_context(|| format!("the benchmark `{bench}` of {package} printed no figures"))
}

fn against_programs(bench: Bench, options: &Options) -> Result<Vec<Row>> {
    let quick = options.quick;
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !packages::is_there(program))
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        packages::install(&missing)?;
    }
    let others = cargo::binaries("bench-tools");
    if options.before.is_none() && matches!(bench, Bench::Link | Bench::RoundTrips) {
        install_crates(&others)?;
    }
    if bench == Bench::Terraform {
        cargo::run(&mut cargo::command(&[
            "build",
            "--release",
            "--locked",
            "-p",
            "terraform-provider-meshward",
        ]))?;
    }
    let tools = Tools { ours: Binaries::in_folder(&build_release()?)?, others };
    let folder = tempfile::tempdir()?;
    if let Some(before) = &options.before {
        let before = Tools { ours: Binaries::in_folder(before)?, others: tools.others.clone() };
        return meshward_bench::link_before(&tools, &before, folder.path(), quick);
    }
    match bench {
        Bench::Link => meshward_bench::link(&tools, folder.path(), quick),
        Bench::Control => meshward_bench::control(&tools, quick),
        Bench::RoundTrips => meshward_bench::round_trips(&tools, folder.path(), quick),
        Bench::Local => meshward_bench::local(&tools, folder.path(), quick),
        Bench::Rules => meshward_bench::rules(&tools, folder.path(), quick),
        Bench::Attach => meshward_bench::attach(&tools, quick),
        Bench::Checks => meshward_bench::checks(&tools, quick),
        Bench::Node => meshward_bench::node(&tools, quick),
        Bench::Handshakes => meshward_bench::handshakes(&tools, folder.path(), quick),
        Bench::Dns => meshward_bench::dns(&tools, folder.path(), quick),
        Bench::Relay => meshward_bench::relay(&tools, folder.path(), quick),
        Bench::Terraform => meshward_bench::terraform(&tools, quick),
        Bench::Quarantine => meshward_bench::quarantine(&tools, quick),
        Bench::Services => meshward_bench::services(&tools, folder.path(), quick),
        Bench::Datapath | Bench::Policy | Bench::Propagate => Ok(Vec::new()),
    }
}

fn install_crates(folder: &Path) -> Result<()> {
    for (name, program) in CRATES {
        if !folder.join("bin").join(program).exists() {
            println!("Installing {name} ...");
            cargo::run(cargo::command(&["install", "--locked", name, "--root"]).arg(folder))?;
        }
    }
    Ok(())
}
