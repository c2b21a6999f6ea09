//! Commands of health checks, which `meshctl run` runs beside its own command: with its user, its
//! limits, and its files.

use crate::client::Client;
use meshward_api_types::local::{CommandEnd, LocalWorkload, RunnerCommand};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::json;
use std::{
    convert::Infallible, os::unix::process::ExitStatusExt, process::Stdio, sync::Arc,
    time::Duration,
};
use tokio::{
    process::Command,
    task::JoinSet,
    time::{sleep, timeout},
};

/// The largest number of commands at the same time: as many as a node makes checks of a workload.
const MAX_COMMANDS: usize = 16;
/// The pause after a request that the node has not answered.
const PAUSE: Duration = Duration::from_secs(1);

/// Variables of the environment of commands.
pub(crate) type Environment = [(&'static str, String); 2];

/// Runs what the node asks for, for ever. Dropped, it kills what runs.
pub(crate) async fn run_commands(
    client: Client,
    workload: &LocalWorkload,
    environment: Environment,
) -> Infallible {
    let client = Arc::new(client);
    let path = format!("/v1/workloads/{}/commands", workload.id);
    let mut running = JoinSet::new();
    loop {
        while running.try_join_next().is_some() {}
        let Ok(commands) = client.post::<Vec<RunnerCommand>>(&path, &json!({})).await else {
            // The daemon starts again, or does not know of commands.
            sleep(PAUSE).await;
            continue;
        };
        for wanted in commands {
            let is_full = running.len() >= MAX_COMMANDS;
            let (client, path) = (client.clone(), format!("{path}/{}", wanted.number));
            let environment = environment.clone();
            running.spawn(async move {
                let end = match is_full {
                    true => CommandEnd::Failed(format!("{MAX_COMMANDS} commands run already")),
                    false => run(&wanted, environment).await,
                };
                // If that is not known, the node's time for the command runs out.
                let _: anyhow::Result<()> = client.post(&path, &end).await;
            });
        }
    }
}

/// Runs a command, in a process group of its own and without input and output, within its time.
async fn run(wanted: &RunnerCommand, environment: Environment) -> CommandEnd {
    let Some((program, arguments)) = wanted.command.split_first() else {
        return CommandEnd::Failed("there is no command".into());
    };
    let spawned = Command::new(program)
        .args(arguments)
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return CommandEnd::Failed(format!("{program}: {error}")),
    };
    let _group = child.id().map(|id| Group(Pid::from_raw(id as i32)));
    let within = Duration::from_millis(wanted.timeout_millis);
    match timeout(within, child.wait()).await {
        Ok(Ok(status)) => {
            let signal = || status.signal().map(|signal| 128 + signal);
            CommandEnd::Status(status.code().or_else(signal).unwrap_or(1))
        }
        Ok(Err(error)) => CommandEnd::Failed(error.to_string()),
        Err(_) => CommandEnd::Failed(format!("killed after {} ms", wanted.timeout_millis)),
    }
}

/// A process group, which ends with this: nothing of a command outlives it.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}
