//! A mesh of real daemons, one a site.

use crate::{
    internet::{Internet, Site},
    process::{Binaries, Process, output},
};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use meshward_api_types as api;
use meshward_types::Revision;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A coordinator, and what nodes need to join it.
pub struct Mesh {
    /// The sites and what connects them.
    pub internet: Internet,
    /// The programs that are run.
    pub binaries: Binaries,
    /// The site that the coordinator runs on.
    pub site: Site,
    /// The coordinator.
    pub coordinator: Process,
    folder: TempDir,
    flags: Vec<String>,
}

/// A coordinator that is about to be started: on a new site of a new internet, with data that end
/// with it, unless something else is said.
#[must_use = "no coordinator is started before `start`"]
pub struct MeshBuilder {
    binaries: Binaries,
    flags: Vec<String>,
    location: Option<Location>,
    data: Option<PathBuf>,
}

/// A site, and the internet that it is part of.
struct Location {
    internet: Internet,
    site: Site,
}

/// The part of `meshctl status` that is about the mesh.
#[derive(Deserialize)]
struct MeshStatus {
    mesh: api::Status,
}

impl MeshBuilder {
    /// Adds flags to the coordinator's command line.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// Starts the coordinator on this site.
    pub fn at(mut self, internet: Internet, site: Site) -> Self {
        self.location = Some(Location { internet, site });
        self
    }

    /// Has the coordinator keep its data in this folder, which outlives the mesh.
    pub fn data(mut self, data: &Path) -> Self {
        self.data = Some(data.to_owned());
        self
    }

    /// Starts the coordinator and waits until its API answers.
    ///
    /// # Errors
    /// Fails with its output if it does not start.
    pub fn start(self) -> Result<Mesh> {
        let Self { binaries, flags, location, data } = self;
        let Location { mut internet, site } = location.map_or_else(new_location, Ok)?;
        let folder = tempfile::Builder::new().prefix("meshward-").tempdir()?;
        if let Some(data) = data {
            std::os::unix::fs::symlink(&data, folder.path().join("coordinator"))?;
            fs::create_dir_all(&data)?;
        }
        if binaries.are_watched() {
            internet.watch()?;
        }
        let coordinator = start_coordinator(&binaries, &site, folder.path(), &flags)?;
        Ok(Mesh { internet, binaries, site, coordinator, folder, flags })
    }
}

fn new_location() -> Result<Location> {
    let mut internet = Internet::new()?;
    let site = internet.site("coordinator")?;
    Ok(Location { internet, site })
}

impl Mesh {
    /// Begins a mesh of these programs.
    pub fn builder(binaries: Binaries) -> MeshBuilder {
        MeshBuilder { binaries, flags: vec![], location: None, data: None }
    }

    /// Starts a coordinator on a site of its own: [`Mesh::builder`] with nothing else said.
    ///
    /// # Errors
    /// Fails with its output if it does not start.
    pub fn start(binaries: Binaries) -> Result<Self> {
        Self::builder(binaries).start()
    }

    /// Starts the coordinator again after it was killed.
    ///
    /// # Errors
    /// Fails with its output if it does not start.
    pub fn restart_coordinator(&mut self) -> Result<()> {
        self.coordinator =
            start_coordinator(&self.binaries, &self.site, self.folder.path(), &self.flags)?;
        Ok(())
    }

    /// Starts the coordinator again, and does not wait until it is ready.
    ///
    /// # Errors
    /// Fails if there is no such program.
    pub fn begin_coordinator(&mut self) -> Result<()> {
        self.coordinator =
            begin_coordinator(&self.binaries, &self.site, self.folder.path(), &self.flags)?;
        Ok(())
    }

    /// Returns a folder that ends with the mesh.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the path of the file with the operator's credential.
    pub fn context(&self) -> PathBuf {
        self.folder.path().join("coordinator/admin.json")
    }

    /// Returns the operator's context: the coordinator's addresses, its CA and a credential.
    ///
    /// # Errors
    /// Fails if the coordinator has not written it yet.
    pub fn read_context(&self) -> Result<api::Context> {
        Ok(serde_json::from_slice(&fs::read(self.context())?)?)
    }

    /// Returns a `meshctl` with the operator's credential; it is for the coordinator's site.
    pub fn meshctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.path("meshctl"));
        command.arg("--context").arg(self.context()).args(arguments);
        command
    }

    /// Runs `meshctl` to its end and returns its standard output.
    ///
    /// # Errors
    /// With its standard error, if it fails.
    pub fn meshctl(&self, arguments: &[&str]) -> Result<String> {
        if let (["network", "create", ..], Some(watch)) = (arguments, self.internet.watched()) {
            let mut prefixes =
                arguments.iter().filter_map(|argument| argument.parse::<IpNet>().ok());
            prefixes.try_for_each(|prefix| watch.add(prefix))?;
        }
        output(&self.site.netns, &mut self.meshctl_command(arguments))
    }

    /// Runs `meshctl` with `-o json` and returns what it printed, for tests of its form; others
    /// use [`Mesh::read_as`].
    ///
    /// # Errors
    /// With its standard error, if it fails.
    pub fn read(&self, arguments: &[&str]) -> Result<Value> {
        self.read_as(arguments)
    }

    /// Runs `meshctl` with `-o json` and returns what it read.
    ///
    /// # Errors
    /// With its standard error, if it fails; if it printed something else than a `T`.
    pub fn read_as<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.meshctl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("meshctl {arguments:?}: {text}"))
    }

    /// Returns all that there is of something, such as `routes`.
    ///
    /// # Errors
    /// Fails with the message of `meshctl`.
    pub fn list<T: DeserializeOwned>(&self, noun: &str) -> Result<Vec<T>> {
        self.read_as(&[noun])
    }

    /// Returns the nodes of the mesh, as the coordinator lists them.
    ///
    /// # Errors
    /// Fails with the message of `meshctl`.
    pub fn nodes(&self) -> Result<Vec<api::Node>> {
        self.list("nodes")
    }

    /// Returns the node of a name, as the coordinator lists it.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn node_named(&self, name: &str) -> Result<api::Node> {
        let mut all = self.nodes()?.into_iter();
        all.find(|node| node.name.as_str() == name).with_context(|| format!("no node {name}"))
    }

    /// Returns the workloads of the mesh, as the coordinator lists them.
    ///
    /// # Errors
    /// Fails with the message of `meshctl`.
    pub fn workloads(&self) -> Result<Vec<api::Workload>> {
        self.list("workloads")
    }

    /// Returns the workload of a name, as the coordinator lists it.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn workload_named(&self, name: &str) -> Result<api::Workload> {
        let mut all = self.workloads()?.into_iter();
        all.find(|one| one.name.as_str() == name).with_context(|| format!("no workload {name}"))
    }

    /// Returns the links of all networks, with what has passed over them.
    ///
    /// # Errors
    /// Fails with the message of `meshctl`.
    pub fn links(&self) -> Result<api::Links> {
        self.read_as(&["links"])
    }

    /// Returns the mesh's status.
    ///
    /// # Errors
    /// Fails with the message of `meshctl`.
    pub fn status(&self) -> Result<api::Status> {
        let MeshStatus { mesh } = self.read_as(&["status"])?;
        Ok(mesh)
    }

    /// Returns the revision that the coordinator distributes.
    ///
    /// # Errors
    /// Fails with the message of `meshctl`.
    pub fn revision(&self) -> Result<Revision> {
        Ok(self.status()?.revision)
    }

    /// Applies a policy and returns what `meshctl policy apply` printed.
    ///
    /// # Errors
    /// Fails with the message of `meshctl` if it is refused.
    pub fn apply(&self, policy: &str) -> Result<String> {
        let file = self.folder.path().join("policy.yaml");
        fs::write(&file, policy)?;
        self.meshctl(&["policy", "apply", &file.to_string_lossy()])
    }

    /// Creates a token that one member joins with. `arguments` are added to the command line.
    ///
    /// # Errors
    /// Fails with the message of `meshctl`.
    pub fn token(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.meshctl(&[&["token", "create"], arguments].concat())?.trim().to_owned())
    }

    /// Runs `meshward-node join` on a site, whose name the node gets.
    ///
    /// # Errors
    /// Fails with its message if it is refused.
    pub fn join(&self, site: &Site, token: &str) -> Result<String> {
        self.join_by(site, token, self.site.v4.into())
    }

    /// Runs `meshward-node join` with this address of the coordinator.
    pub(crate) fn join_by(&self, site: &Site, token: &str, address: IpAddr) -> Result<String> {
        let mut command = Command::new(self.binaries.path("meshward-node"));
        let invitation = format!("{token}@{address}");
        command.args(["join", &invitation, "--name", &site.name, "--data-dir"]);
        command.arg(self.folder.path().join(&site.name).join("data"));
        output(&site.netns, &mut command)
    }

    /// Waits for a condition, for at most twenty seconds.
    ///
    /// # Errors
    /// Fails if it does not hold by then.
    pub fn wait(&self, mut condition: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            if Instant::now() > deadline {
                bail!(
                    "the condition does not hold after 20 s; the coordinator says:\n{}",
                    self.coordinator.printed()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn begin_coordinator(
    binaries: &Binaries,
    site: &Site,
    folder: &Path,
    flags: &[String],
) -> Result<Process> {
    let mut command = Command::new(binaries.path("meshward-coordinator"));
    command.arg("--data-dir").arg(folder.join("coordinator"));
    command.args(flags);
    Process::start(&site.netns, &mut command, &folder.join("coordinator.log"))
}

fn start_coordinator(
    binaries: &Binaries,
    site: &Site,
    folder: &Path,
    flags: &[String],
) -> Result<Process> {
    let mut process = begin_coordinator(binaries, site, folder, flags)?;
    let context = folder.join("coordinator/admin.json");
    let ready = || {
        let mut status = Command::new(binaries.path("meshctl"));
        status.arg("--context").arg(&context).arg("nodes");
        context.exists() && output(&site.netns, &mut status).is_ok()
    };
    process.wait_until(ready)?;
    Ok(process)
}
