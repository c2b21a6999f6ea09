//! Commands of health checks, run by what has started the workload: the container's runtime, or
//! `meshctl run`. So they have the user, the privileges, the limits and the filters that the
//! workload itself has.

use super::{
    bounded::{check_id, post_unix},
    command_error::CommandError,
    cri::Cri,
    engine::{Engine, Engines, MAX_ANSWER, Named, PATIENCE},
};
use crate::{
    attachment::{Attachment, Origin},
    config::Config,
    runners::Runners,
};
use anyhow::{Context, Result, ensure};
use hyper::StatusCode;
use meshward_api_types::local::CommandEnd as RunnerEnd;
use serde::Deserialize;
use serde_json::json;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// The programs that run commands.
pub(crate) struct Commands {
    docker_socket: PathBuf,
    engines: Engines,
    cri: Cri,
    runners: Arc<Runners>,
}

/// How the end of a command is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// [`Commands::run`] returns at the end, and what it runs ends with it.
    Told,
    /// [`Commands::begin`] returns at the begin, and the command goes on by itself.
    Asked,
}

/// A command that has begun.
pub(crate) struct Command {
    engine: Arc<Engine>,
    id: String,
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandEnd {
    /// It runs.
    Running,
    /// It has ended with this status.
    Status(i64),
    /// The runtime does not know it any more.
    Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    running: bool,
    exit_code: Option<i64>,
}

impl Commands {
    pub(crate) fn new(config: &Config, runners: Arc<Runners>) -> Self {
        let Config { docker_socket, cri_socket, .. } = config.clone();
        Self { docker_socket, engines: Engines::default(), cri: Cri::new(cri_socket), runners }
    }

    /// Returns how the end of a command in a workload of this origin is learnt.
    pub(crate) fn ending(origin: &Origin) -> Ending {
        match origin {
            Origin::Docker { .. } | Origin::Cni { engine: Some(_), pod: None, .. } => Ending::Asked,
            _ => Ending::Told,
        }
    }

    /// Runs a command in a workload, and returns its status. Dropped before its end, the command is
    /// killed.
    ///
    /// # Errors
    /// [`CommandError`].
    pub(crate) async fn run(
        &self,
        workload: &Attachment,
        command: &[String],
        timeout: Duration,
    ) -> Result<i64, CommandError> {
        match &workload.origin {
            Origin::Cni { container, .. } => self.cri.run(container, command, timeout).await,
            Origin::Local => match self.runners.run(&workload.report.id, command, timeout).await {
                Some(RunnerEnd::Status(status)) => Ok(status.into()),
                Some(RunnerEnd::Failed(problem)) => Err(CommandError::Failed(problem)),
                None => Err(CommandError::Impossible(
                    "nothing is there to run a command in it: start it with `meshctl run`, or \
                         use http, tcp or grpc"
                        .into(),
                )),
            },
            _ => Err(CommandError::Impossible(
                "no command can be run in it; use http, tcp or grpc".into(),
            )),
        }
    }

    /// Begins a command in a container whose runtime has an API like Docker's.
    ///
    /// # Errors
    /// Fails if the runtime refuses, or does not answer.
    pub(crate) async fn begin(&self, origin: &Origin, command: &[String]) -> Result<Command> {
        let (socket, named) = match origin {
            Origin::Docker { endpoint } => (&self.docker_socket, Named::Endpoint(endpoint.clone())),
            Origin::Cni { engine: Some(socket), container, pod: None, .. } => {
                (socket, Named::Container(container.clone()))
            }
            _ => anyhow::bail!("no runtime runs commands in it"),
        };
        let slot = self.engines.slot(socket).await;
        let engine = slot.engine(socket).await?;
        let begun = begin(&engine, &named, command).await;
        if begun.is_err() {
            slot.forget().await;
        }
        Ok(Command { id: begun?, engine })
    }
}

async fn begin(engine: &Engine, named: &Named, command: &[String]) -> Result<String> {
    let container = match named {
        Named::Container(id) => id.clone(),
        Named::Endpoint(endpoint) => {
            let running = engine.running().await?;
            running.by_endpoint.get(endpoint).context("its container does not run")?.clone()
        }
    };
    let path = format!("/containers/{}/exec", check_id(&container)?);
    let body = json!({ "Cmd": command, "AttachStdout": false, "AttachStderr": false });
    let Created { id } =
        engine.post(&path, &body).await?.context("the runtime names no command")?;
    let path = format!("/exec/{}/start", check_id(&id)?);
    engine.post::<serde_json::Value>(&path, &json!({ "Detach": true })).await?;
    Ok(id)
}

impl Command {
    /// Returns its end, if it has ended.
    ///
    /// # Errors
    /// Fails if the runtime does not answer.
    pub(crate) async fn end(&self) -> Result<CommandEnd> {
        let path = format!("/exec/{}/json", check_id(&self.id)?);
        Ok(match self.engine.ask::<Inspected>(&path, MAX_ANSWER).await? {
            None => CommandEnd::Unknown,
            Some(Inspected { running: true, .. } | Inspected { exit_code: None, .. }) => {
                CommandEnd::Running
            }
            Some(Inspected { exit_code: Some(status), .. }) => CommandEnd::Status(status),
        })
    }
}

impl Engine {
    /// Sends a request with a body; returns the answer, if it has one.
    async fn post<T: for<'a> Deserialize<'a>>(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<Option<T>> {
        let path = format!("{}{path}", self.prefix);
        let (status, answer) =
            post_unix(&self.socket, &path, body.to_string(), (MAX_ANSWER, PATIENCE)).await?;
        ensure!(status.is_success(), "the runtime answers {}", refusal(status, &answer));
        Ok(if answer.is_empty() { None } else { serde_json::from_slice(&answer).ok() })
    }
}

/// Returns the runtime's reason for a refusal.
fn refusal(status: StatusCode, answer: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Reason {
        message: String,
    }
    match serde_json::from_slice::<Reason>(answer) {
        Ok(Reason { message }) => format!("{status}: {message}"),
        Err(_) => status.to_string(),
    }
}
