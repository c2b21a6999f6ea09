//! Probes, one at a time for each check.

mod grpc;
mod http;
mod sockets;

use super::check::Outcome;
use crate::{
    attachment::Attachment,
    config::Config,
    runners::Runners,
    runtimes::{Command, CommandEnd, CommandError, Commands, Ending},
};
use meshward_types::{HealthCheck, HealthProbe};
use sockets::SocketMaker;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// The pauses between two looks whether a command has ended.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_millis(320);
/// The longest reason of a failure, in characters: the other side may have written it.
const MAX_PROBLEM: usize = 200;

/// The parts that probes share.
pub(super) struct Prober {
    commands: Commands,
    sockets: SocketMaker,
    may_exec: bool,
}

/// The probes of one check.
pub(super) struct Probe<'a> {
    prober: &'a Prober,
    attachment: &'a Attachment,
    check: &'a HealthCheck,
    port: u16,
    /// A command that has not ended within its time: no other begins before it has.
    command: Option<Command>,
}

impl Prober {
    /// # Errors
    /// Fails if the kernel gives no thread.
    pub(super) fn new(config: &Config, runners: Arc<Runners>) -> io::Result<Self> {
        Ok(Self {
            commands: Commands::new(config, runners),
            sockets: SocketMaker::start()?,
            may_exec: config.health_exec,
        })
    }

    pub(super) fn probe<'a>(
        &'a self,
        attachment: &'a Attachment,
        check: &'a HealthCheck,
        port: u16,
    ) -> Probe<'a> {
        Probe { prober: self, attachment, check, port, command: None }
    }
}

impl Probe<'_> {
    /// Makes a probe. It ends within the check's timeout.
    pub(super) async fn attempt(&mut self) -> Outcome {
        let outcome = match &self.check.probe {
            HealthProbe::Exec(command) => self.execute(command).await,
            other => match timeout(self.check.timeout, self.ask(other)).await {
                Ok(Ok(())) => Outcome::Passed,
                Ok(Err(problem)) => Outcome::Failed(problem),
                Err(_) => Outcome::TimedOut,
            },
        };
        match outcome {
            Outcome::Failed(problem) => Outcome::Failed(cut(&problem)),
            Outcome::Impossible(problem) => Outcome::Impossible(cut(&problem)),
            other => other,
        }
    }

    async fn ask(&self, probe: &HealthProbe) -> Result<(), String> {
        let (stream, address) = self.connect().await?;
        match probe {
            HealthProbe::Http(path) => http::ask(stream, address, path).await,
            HealthProbe::Grpc(service) => grpc::ask(stream, address, service).await,
            HealthProbe::Tcp | HealthProbe::Exec(_) => Ok(()),
        }
    }

    /// Connects to the first of the workload's addresses that accepts, from within its namespace.
    async fn connect(&self) -> Result<(TcpStream, SocketAddr), String> {
        let netns = self.attachment.open_netns().ok_or("its network namespace is gone")?;
        let mut problem = "it has no address".to_owned();
        for address in &self.attachment.report.addresses {
            let address = SocketAddr::new(*address, self.port);
            let socket = self.prober.sockets.make(netns.clone(), address).await?;
            match socket.connect(address).await {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => problem = format!("{address}: {error}"),
            }
        }
        Err(problem)
    }

    /// Has what has started the workload run a command in it.
    async fn execute(&mut self, command: &[String]) -> Outcome {
        if !self.prober.may_exec {
            let text = "this node runs no commands for health checks: its setting `health_exec` is \
                not set";
            return Outcome::Impossible(text.to_owned());
        }
        match timeout(self.check.timeout, self.run(command)).await {
            Ok(Ok(0)) => Outcome::Passed,
            Ok(Ok(status)) => Outcome::Failed(format!("the command ended with status {status}")),
            Ok(Err(CommandError::Failed(problem))) => Outcome::Failed(problem),
            Ok(Err(CommandError::Impossible(problem))) => Outcome::Impossible(problem),
            Err(_) => Outcome::TimedOut,
        }
    }

    /// Runs a command, and returns its status.
    async fn run(&mut self, command: &[String]) -> Result<i64, CommandError> {
        match Commands::ending(&self.attachment.origin) {
            Ending::Told => {
                let commands = &self.prober.commands;
                commands.run(self.attachment, command, self.check.timeout).await
            }
            Ending::Asked => {
                let ended = self.run_asking(command).await;
                ended.map_err(|error| CommandError::Failed(format!("{error:#}")))
            }
        }
    }

    /// Begins a command, and waits for its status. If the last one still runs, waits for its end
    /// first.
    async fn run_asking(&mut self, command: &[String]) -> anyhow::Result<i64> {
        if let Some(last) = &self.command {
            self.prober.wait(last).await?;
            self.command = None;
        }
        let begun = self.prober.commands.begin(&self.attachment.origin, command).await?;
        let begun = self.command.insert(begun);
        let status = self.prober.wait(begun).await?;
        self.command = None;
        Ok(status)
    }
}

impl Prober {
    async fn wait(&self, command: &Command) -> anyhow::Result<i64> {
        let mut pause = FIRST_LOOK;
        loop {
            match command.end().await? {
                CommandEnd::Status(status) => return Ok(status),
                // The runtime has forgotten it, as after the container's end.
                CommandEnd::Unknown => return Ok(-1),
                CommandEnd::Running => sleep(pause).await,
            }
            pause = LAST_LOOK.min(pause * 2);
        }
    }
}

fn cut(problem: &str) -> String {
    problem.chars().filter(|c| !c.is_control()).take(MAX_PROBLEM).collect()
}

#[cfg(test)]
mod tests;
