//! `meshctl`: what people and CI use to run a mesh.
#![forbid(unsafe_code)]

mod arguments;
mod attach;
mod backup;
mod client;
mod coordinator;
mod devices;
mod output;
mod policy;
mod routes;
mod sources;
mod status;

use anyhow::Result;
use arguments::{Arguments, Command};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;

/// A mistake of the user's: the process ends with exit code 2 instead of 1.
#[derive(Debug)]
struct Mistake(String);

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match act(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            if error.is::<Mistake>() { 2.into() } else { 1.into() }
        }
    }
}

fn act(arguments: Arguments) -> Result<ExitCode> {
    // A process gets its namespace before there is any other thread.
    if let Command::Run(run) = arguments.command {
        return attach::run(&arguments.common, run);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dispatch(arguments))
}

async fn dispatch(Arguments { common, command }: Arguments) -> Result<ExitCode> {
    match command {
        Command::Run(_) => unreachable!("taken care of before"),
        Command::Status => status::status(&common).await?,
        Command::Token(verb) => coordinator::token(&common, verb).await?,
        Command::Network(verb) => coordinator::network(&common, verb).await?,
        Command::Nodes { verb } => coordinator::nodes(&common, verb).await?,
        Command::Device(verb) => devices::device(&common, verb).await?,
        Command::Keys(verb) => coordinator::keys(&common, verb).await?,
        Command::Route(verb) => routes::route(&common, verb).await?,
        Command::Relay(verb) => coordinator::relay(&common, verb).await?,
        Command::Workloads { network } => coordinator::workloads(&common, network).await?,
        Command::Links { network, denied, observed } => {
            coordinator::links(&common, network, denied, observed).await?;
        }
        Command::Credential(verb) => coordinator::credential(&common, verb).await?,
        Command::Quarantine(wanted) => coordinator::quarantine(&common, wanted).await?,
        Command::Release(target) => coordinator::release(&common, target).await?,
        Command::Quarantines => coordinator::quarantines(&common).await?,
        Command::Audit { limit } => coordinator::audit(&common, limit).await?,
        Command::Backup { file, without_ca } => backup::backup(&common, &file, !without_ca).await?,
        Command::Policy(verb) => return policy::policy(&common, verb).await,
        Command::Explain(query) => return policy::explain(&common, query).await,
        Command::Attach(wanted) => attach::attach(&common, wanted).await?,
        Command::Detach { workload } => attach::detach(&common, &workload).await?,
        Command::Label { workload, changes } => attach::label(&common, &workload, changes).await?,
        Command::Attached => attach::list(&common).await?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "meshctl", &mut std::io::stdout());
        }
        Command::Man { folder } => clap_mangen::generate_to(Arguments::command(), folder)?,
    }
    Ok(ExitCode::SUCCESS)
}
