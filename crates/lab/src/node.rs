//! Node daemons.

use crate::{
    internet::Site,
    process::{Binaries, Process, output},
};
use anyhow::{Context, Result};
use meshward_api_types::local::{LocalEndpoint, LocalPeer, LocalStatus, LocalWorkload};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A node daemon on a site.
pub struct Node {
    /// The site that it runs on.
    pub site: Site,
    /// Variables that the daemon is started with.
    pub environment: Vec<(String, String)>,
    binaries: Binaries,
    folder: PathBuf,
    flags: Vec<String>,
    process: Option<Process>,
}

/// The part of `meshctl status` that is about the node of this machine.
#[derive(Deserialize)]
struct OwnStatus {
    node: LocalStatus,
}

impl Node {
    /// A daemon that is not started yet. `folder` has its data, its socket and its log.
    pub(crate) fn new(site: Site, binaries: Binaries, folder: &Path, flags: Vec<String>) -> Self {
        let folder = folder.to_owned();
        Self { site, environment: vec![], binaries, folder, flags, process: None }
    }

    /// Starts the daemon, for the first time or again, and waits until its local API answers.
    ///
    /// # Errors
    /// Fails with its output if it does not start.
    pub fn start(&mut self) -> Result<()> {
        self.begin()?;
        let socket = self.socket();
        self.process().wait_until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok())
    }

    /// Starts the daemon, and does not wait until it is ready.
    ///
    /// # Errors
    /// Fails if there is no such program.
    pub fn begin(&mut self) -> Result<()> {
        let mut command = Command::new(self.binaries.path("meshward-node"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("--data-dir").arg(self.data()).arg("--socket").arg(self.socket());
        command.args(&self.flags);
        let log = self.log_of("node");
        self.process = Some(Process::start(&self.site.netns, &mut command, &log)?);
        Ok(())
    }

    /// Returns the daemon's process.
    ///
    /// # Panics
    /// Panics if it was killed.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node daemon was started")
    }

    /// Ends the daemon with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Returns the path of the local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("node.sock")
    }

    /// Returns the path of the data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Returns the path of the log of a program that runs on this node.
    pub(crate) fn log_of(&self, program: &str) -> PathBuf {
        self.folder.join(format!("{program}.log"))
    }

    /// Returns everything that the daemon has printed.
    pub fn printed(&self) -> String {
        fs::read_to_string(self.log_of("node")).unwrap_or_default()
    }

    /// Returns a `meshctl` with this node's socket.
    pub fn meshctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.path("meshctl"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }

    /// Runs `meshctl` to its end and returns its standard output.
    ///
    /// # Errors
    /// With its standard error, if it fails.
    pub fn meshctl(&self, arguments: &[&str]) -> Result<String> {
        output(&self.site.netns, &mut self.meshctl_command(arguments))
    }

    /// Runs `meshctl` with `-o json` and returns what it read.
    ///
    /// # Errors
    /// With its standard error, if it fails; if it printed something else than a `T`.
    pub fn read_as<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.meshctl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("meshctl {arguments:?}: {text}"))
    }

    /// Returns the node's own status.
    ///
    /// # Errors
    /// Fails if it does not answer.
    pub fn status(&self) -> Result<LocalStatus> {
        let OwnStatus { node } = self.read_as(&["--context", "/dev/null", "status"])?;
        Ok(node)
    }

    /// Returns the endpoint of the node's first network.
    ///
    /// # Errors
    /// Fails if the node does not answer or serves no network.
    pub fn endpoint(&self) -> Result<LocalEndpoint> {
        self.status()?.endpoints.into_iter().next().context("the node serves no network")
    }

    /// Returns the first peer of the node's first network.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn peer(&self) -> Result<LocalPeer> {
        self.endpoint()?.peers.into_iter().next().context("the node has no peer")
    }

    /// Returns the workloads of the node, as the node itself lists them.
    ///
    /// # Errors
    /// Fails if it does not answer.
    pub fn attached(&self) -> Result<Vec<LocalWorkload>> {
        self.read_as(&["attached"])
    }

    /// Returns whether the node has a session with the coordinator.
    pub fn is_connected(&self) -> bool {
        self.status().is_ok_and(|status| status.connected)
    }

    /// Returns how many packets all endpoints together have dropped for a reason.
    pub fn drops(&self, reason: &str) -> u64 {
        let endpoints = self.status().map_or(vec![], |status| status.endpoints);
        endpoints.iter().filter_map(|endpoint| endpoint.drops.get(reason)).sum()
    }

    /// Advertises prefixes behind the node as routes of a network, with labels as `a=b,c=d`.
    /// Returns what `meshctl route advertise` printed.
    ///
    /// # Errors
    /// Fails with the daemon's message if it refuses.
    pub fn advertise(&self, network: &str, prefixes: &[&str], labels: &str) -> Result<String> {
        let mut arguments = vec!["route", "advertise", "--network", network];
        arguments.extend(labels.split(',').flat_map(|label| ["--label", label]));
        arguments.extend(prefixes);
        self.meshctl(&arguments)
    }

    /// Withdraws a route of a network.
    ///
    /// # Errors
    /// Fails with the daemon's message if it refuses.
    pub fn withdraw(&self, network: &str, prefix: &str) -> Result<String> {
        self.meshctl(&["route", "withdraw", prefix, "--network", network])
    }
}
