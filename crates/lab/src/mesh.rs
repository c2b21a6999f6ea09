//! A mesh of real daemons, one a site.

use crate::{
    host::host,
    internet::{Internet, Site},
    process::{Binaries, Process, output},
};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use meshward_api_types as api;
use meshward_api_types::local::{LocalEndpoint, LocalPeer, LocalStatus, LocalWorkload, State};
use meshward_netns::Netns;
use serde_json::Value;
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A coordinator and what it takes to run nodes.
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

impl Mesh {
    /// Starts a coordinator on a site of its own. `flags` are added to its command line.
    ///
    /// # Errors
    /// With what it printed, if it does not start.
    pub fn start(binaries: Binaries, flags: &[&str]) -> Result<Self> {
        let mut internet = Internet::new()?;
        let site = internet.site("coordinator")?;
        Self::start_at(binaries, internet, site, flags)
    }

    /// The same on a site that is there.
    ///
    /// # Errors
    /// With what it printed, if it does not start.
    pub fn start_at(
        binaries: Binaries,
        internet: Internet,
        site: Site,
        flags: &[&str],
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("meshward-").tempdir()?;
        Self::start_with(binaries, internet, site, flags, folder)
    }

    /// The same, with the coordinator's data in a folder of the caller's.
    ///
    /// # Errors
    /// With what it printed, if it does not start.
    pub fn start_in(
        binaries: Binaries,
        internet: Internet,
        site: Site,
        flags: &[&str],
        data: &Path,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("meshward-").tempdir()?;
        std::os::unix::fs::symlink(data, folder.path().join("coordinator"))?;
        fs::create_dir_all(data)?;
        Self::start_with(binaries, internet, site, flags, folder)
    }

    fn start_with(
        binaries: Binaries,
        mut internet: Internet,
        site: Site,
        flags: &[&str],
        folder: TempDir,
    ) -> Result<Self> {
        if binaries.are_watched() {
            internet.watch()?;
        }
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let coordinator = start_coordinator(&binaries, &site, folder.path(), &flags)?;
        Ok(Self { internet, binaries, site, coordinator, folder, flags })
    }

    /// Starts the coordinator again after it was killed.
    ///
    /// # Errors
    /// With what it printed, if it does not start.
    pub fn restart_coordinator(&mut self) -> Result<()> {
        self.coordinator =
            start_coordinator(&self.binaries, &self.site, self.folder.path(), &self.flags)?;
        Ok(())
    }

    /// Starts the coordinator again, and does not wait until it is ready.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn begin_coordinator(&mut self) -> Result<()> {
        self.coordinator =
            begin_coordinator(&self.binaries, &self.site, self.folder.path(), &self.flags)?;
        Ok(())
    }

    /// A folder that ends with the mesh.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file with the operator's credential.
    pub fn context(&self) -> PathBuf {
        self.folder.path().join("coordinator/admin.json")
    }

    /// `meshctl`, on the coordinator's site, with the operator's credential.
    pub fn meshctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.path("meshctl"));
        command.arg("--context").arg(self.context()).args(arguments);
        command
    }

    /// Runs `meshctl` to its end and gives what it printed.
    ///
    /// # Errors
    /// With what it said, if it fails.
    pub fn meshctl(&self, arguments: &[&str]) -> Result<String> {
        if let (["network", "create", ..], Some(watch)) = (arguments, self.internet.watched()) {
            let mut prefixes =
                arguments.iter().filter_map(|argument| argument.parse::<IpNet>().ok());
            prefixes.try_for_each(|prefix| watch.add(prefix))?;
        }
        output(&self.site.netns, &mut self.meshctl_command(arguments))
    }

    /// Runs `meshctl` with `-o json`.
    ///
    /// # Errors
    /// With what it said, if it fails.
    pub fn read(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.meshctl(&[arguments, &["-o", "json"]].concat())?)?)
    }

    /// Returns the nodes of the mesh, as the coordinator has them.
    ///
    /// # Errors
    /// With what `meshctl` said, if it fails.
    pub fn nodes(&self) -> Result<Vec<api::Node>> {
        Ok(serde_json::from_value(self.read(&["nodes"])?)?)
    }

    /// Returns the node of a name, as the coordinator has it.
    ///
    /// # Errors
    /// If there is none.
    pub fn node_named(&self, name: &str) -> Result<api::Node> {
        let mut all = self.nodes()?.into_iter();
        all.find(|node| node.name.as_str() == name).with_context(|| format!("no node {name}"))
    }

    /// Returns the workloads of the mesh, as the coordinator has them.
    ///
    /// # Errors
    /// With what `meshctl` said, if it fails.
    pub fn workloads(&self) -> Result<Vec<api::Workload>> {
        Ok(serde_json::from_value(self.read(&["workloads"])?)?)
    }

    /// Applies a policy.
    ///
    /// # Errors
    /// With what `meshctl` said, if it is refused.
    pub fn apply(&self, policy: &str) -> Result<String> {
        let file = self.folder.path().join("policy.yaml");
        fs::write(&file, policy)?;
        self.meshctl(&["policy", "apply", &file.to_string_lossy()])
    }

    /// Makes a token for one node.
    ///
    /// # Errors
    /// With what `meshctl` said, if it fails.
    pub fn token(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.meshctl(&[&["token", "create"], arguments].concat())?.trim().to_owned())
    }

    /// Joins and starts a relay on a new site.
    ///
    /// # Errors
    /// With what it printed, if it does not.
    pub fn relay(&mut self, name: &str) -> Result<Relay> {
        let token = self.token(&["--relay"])?;
        let site = self.internet.site(name)?;
        let data = self.folder.path().join(name);
        let mut join = Command::new(self.binaries.path("meshward-relay"));
        let invitation = format!("{token}@{}", self.site.v4);
        join.args(["join", &invitation, "--name", name, "--data-dir"]).arg(&data);
        output(&site.netns, &mut join)?;
        let mut command = Command::new(self.binaries.path("meshward-relay"));
        command.args(["--data-dir"]).arg(&data);
        let process = Process::start(
            &site.netns,
            &mut command,
            &self.folder.path().join(format!("{name}.log")),
        )?;
        let relay = Relay { site, process };
        self.wait(|| relay.process.printed().contains("linked to the coordinator"))?;
        Ok(relay)
    }

    /// Joins and starts a node on a new site.
    ///
    /// # Errors
    /// With what it printed, if it does not.
    pub fn node(&mut self, name: &str) -> Result<Node> {
        self.node_with(name, &[])
    }

    /// The same, with flags for the daemon.
    ///
    /// # Errors
    /// With what it printed, if it does not.
    pub fn node_with(&mut self, name: &str, flags: &[&str]) -> Result<Node> {
        let token = self.token(&["--site", name])?;
        let site = self.internet.site(name)?;
        self.join(&site, &token)?;
        self.start_node(site, flags.iter().map(ToString::to_string).collect())
    }

    /// The same, where the node knows and is known by IPv6 addresses only.
    ///
    /// # Errors
    /// With what it printed, if it does not.
    pub fn node_over_ipv6(&mut self, name: &str) -> Result<Node> {
        let token = self.token(&["--site", name])?;
        let site = self.internet.site(name)?;
        self.join_by(&site, &token, self.site.v6.into())?;
        let flags = vec!["--advertise".to_owned(), site.v6.to_string()];
        self.start_node(site, flags)
    }

    /// Joins and starts a node with a token on a site, whose name it takes.
    ///
    /// # Errors
    /// With what it printed, if it does not.
    pub fn node_at(&self, site: Site, token: &str) -> Result<Node> {
        self.node_on(site, token, &[])
    }

    /// Joins and starts a node with flags, with a token, on a site whose name it takes.
    ///
    /// # Errors
    /// With what it printed, if it does not.
    pub fn node_on(&self, site: Site, token: &str, flags: &[String]) -> Result<Node> {
        self.join(&site, token)?;
        self.start_node(site, flags.to_vec())
    }

    /// Starts a node daemon on the data folder that is there for a site's name, and does not wait
    /// for its session.
    ///
    /// # Errors
    /// With what it printed, if it does not start.
    pub fn start_copy(&self, site: Site) -> Result<Node> {
        self.started(site, vec![])
    }

    fn started(&self, site: Site, flags: Vec<String>) -> Result<Node> {
        let folder = self.folder.path().join(&site.name);
        let (environment, binaries) = (vec![], self.binaries.clone());
        let mut node = Node { site, folder, flags, environment, binaries, process: None };
        node.start()?;
        Ok(node)
    }

    fn start_node(&self, site: Site, flags: Vec<String>) -> Result<Node> {
        let node = self.started(site, flags)?;
        self.wait(|| node.is_connected())?;
        Ok(node)
    }

    /// Runs `meshward-node join`.
    ///
    /// # Errors
    /// With what it said, if it is refused.
    pub fn join(&self, site: &Site, token: &str) -> Result<String> {
        self.join_by(site, token, self.site.v4.into())
    }

    fn join_by(&self, site: &Site, token: &str, coordinator: IpAddr) -> Result<String> {
        let mut command = Command::new(self.binaries.path("meshward-node"));
        let invitation = format!("{token}@{coordinator}");
        command.args(["join", &invitation, "--name", &site.name, "--data-dir"]);
        command.arg(self.folder.path().join(&site.name).join("data"));
        output(&site.netns, &mut command)
    }

    /// Waits for something to become true, for at most twenty seconds.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait(&self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ready() {
            if Instant::now() > deadline {
                bail!(
                    "it did not come to pass within 20 s; the coordinator says:\n{}",
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

/// A relay on a site.
pub struct Relay {
    /// The site that it runs on.
    pub site: Site,
    /// The daemon.
    pub process: Process,
}

/// A node daemon on a site.
pub struct Node {
    /// The site that it runs on.
    pub site: Site,
    binaries: Binaries,
    folder: PathBuf,
    flags: Vec<String>,
    /// Variables that the daemon is started with.
    pub environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl Node {
    /// Starts the daemon, for the first time or again.
    ///
    /// # Errors
    /// With what it printed, if it does not start.
    pub fn start(&mut self) -> Result<()> {
        self.begin()?;
        let socket = self.socket();
        self.process().wait_until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok())
    }

    /// Starts the daemon, and does not wait until it is ready.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn begin(&mut self) -> Result<()> {
        let mut command = Command::new(self.binaries.path("meshward-node"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .arg("--data-dir")
            .arg(self.folder.join("data"))
            .arg("--socket")
            .arg(self.socket())
            .args(&self.flags);
        self.process =
            Some(Process::start(&self.site.netns, &mut command, &self.folder.join("node.log"))?);
        Ok(())
    }

    /// The daemon.
    ///
    /// # Panics
    /// If it was killed.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node daemon was started")
    }

    /// Ends the daemon with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// The local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("node.sock")
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the daemon has printed.
    pub fn printed(&self) -> String {
        fs::read_to_string(self.folder.join("node.log")).unwrap_or_default()
    }

    /// `meshctl`, with this node's socket.
    pub fn meshctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.path("meshctl"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }

    /// Runs `meshctl` to its end and gives what it printed.
    ///
    /// # Errors
    /// With what it said, if it fails.
    pub fn meshctl(&self, arguments: &[&str]) -> Result<String> {
        output(&self.site.netns, &mut self.meshctl_command(arguments))
    }

    /// Returns what the node says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<LocalStatus> {
        let text = self.meshctl(&["--context", "/dev/null", "status", "-o", "json"])?;
        Ok(serde_json::from_value(serde_json::from_str::<Value>(&text)?["node"].take())?)
    }

    /// Returns the endpoint of the node's first network.
    ///
    /// # Errors
    /// If the node does not answer or serves no network.
    pub fn endpoint(&self) -> Result<LocalEndpoint> {
        self.status()?.endpoints.into_iter().next().context("the node serves no network")
    }

    /// Returns the first peer of the node's first network.
    ///
    /// # Errors
    /// If there is none.
    pub fn peer(&self) -> Result<LocalPeer> {
        self.endpoint()?.peers.into_iter().next().context("the node has no peer")
    }

    /// Returns the workloads of the node, as it has them itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn attached(&self) -> Result<Vec<LocalWorkload>> {
        Ok(serde_json::from_str(&self.meshctl(&["attached", "-o", "json"])?)?)
    }

    /// Returns whether the node has a session with the coordinator.
    pub fn is_connected(&self) -> bool {
        self.status().is_ok_and(|status| status.connected)
    }

    /// Packets dropped for a cause, over all endpoints.
    pub fn drops(&self, cause: &str) -> u64 {
        let endpoints = self.status().map_or(vec![], |status| status.endpoints);
        endpoints.iter().filter_map(|endpoint| endpoint.drops.get(cause)).sum()
    }

    /// Attaches a new namespace as a workload. `labels` as `a=b,c=d`.
    ///
    /// # Errors
    /// With what the daemon said, if it refuses.
    pub fn attach(&self, network: &str, labels: &str) -> Result<Workload> {
        let netns = host()?;
        self.attach_netns(network, labels, netns)
    }

    /// Attaches a new namespace as a workload that declares who may reach it.
    ///
    /// # Errors
    /// With what the daemon said, if it refuses.
    pub fn attach_accepting(
        &self,
        network: &str,
        labels: &str,
        accept_from: &str,
    ) -> Result<Workload> {
        self.attach_flags(network, labels, host()?, &["--accept-from", accept_from])
    }

    /// Attaches a new namespace as a workload with one more label, which may be a declaration.
    ///
    /// # Errors
    /// With what the daemon said, if it refuses.
    pub fn attach_declaring(&self, network: &str, labels: &str, label: &str) -> Result<Workload> {
        self.attach_flags(network, labels, host()?, &["--label", label])
    }

    /// Attaches a namespace.
    ///
    /// # Errors
    /// With what the daemon said, if it refuses.
    pub fn attach_netns(&self, network: &str, labels: &str, netns: Netns) -> Result<Workload> {
        self.attach_flags(network, labels, netns, &[])
    }

    fn attach_flags(
        &self,
        network: &str,
        labels: &str,
        netns: Netns,
        flags: &[&str],
    ) -> Result<Workload> {
        let path = netns.path();
        let path = path.to_string_lossy();
        let arguments =
            ["attach", "--network", network, "--label", labels, "--netns", &path, "-o", "json"];
        let attached = serde_json::from_str(&self.meshctl(&[&arguments, flags].concat())?)?;
        Ok(Workload::of(attached, netns, None))
    }

    /// Runs a command as a workload of its own, with `meshctl run`.
    ///
    /// # Errors
    /// With what was printed, if it does not come up.
    pub fn run(
        &self,
        network: &str,
        name: &str,
        labels: &str,
        command: &[&str],
    ) -> Result<Workload> {
        let arguments =
            [&["run", "--network", network, "--name", name, "--label", labels, "--"], command]
                .concat();
        let log = self.folder.join(format!("{name}.log"));
        let mut process =
            Process::start(&self.site.netns, &mut self.meshctl_command(&arguments), &log)?;
        let find = || {
            let mut all = self.attached().ok()?.into_iter();
            all.find(|workload| workload.name.as_str() == name)
        };
        process.wait_until(|| find().is_some_and(|workload| workload.state == State::Open))?;
        let netns = Netns::open(Path::new(&format!("/proc/{}/ns/net", process.pid())))?;
        Ok(Workload::of(find().context("the workload is gone")?, netns, Some(process)))
    }
}

/// A workload in its namespace.
pub struct Workload {
    /// The workload's id.
    pub id: String,
    /// The namespace that it is in.
    pub netns: Netns,
    /// The name of the mesh's interface in the namespace.
    pub interface: String,
    /// The state that the node showed when it was attached, such as open.
    pub state: State,
    /// The addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The `meshctl run` that it lives in.
    pub process: Option<Process>,
}

impl Workload {
    fn of(attached: LocalWorkload, netns: Netns, process: Option<Process>) -> Self {
        let LocalWorkload { id, interface, state, addresses, .. } = attached;
        Self { id: id.to_string(), netns, interface, state, addresses, process }
    }

    /// Its IPv4 address.
    ///
    /// # Panics
    /// If it has none.
    pub fn v4(&self) -> IpAddr {
        *self
            .addresses
            .iter()
            .find(|address| address.is_ipv4())
            .expect("the workload has an IPv4 address")
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// If it has none.
    pub fn v6(&self) -> IpAddr {
        *self
            .addresses
            .iter()
            .find(|address| address.is_ipv6())
            .expect("the workload has an IPv6 address")
    }
}
