//! Workloads: namespaces and commands that are attached to a network of the mesh.

use crate::{host::host, node::Node, process::Process};
use anyhow::{Context, Result};
use meshward_api_types::local::{LocalWorkload, State};
use meshward_netns::Netns;
use std::{net::IpAddr, path::Path};

/// A workload in its namespace.
pub struct Workload {
    /// The workload's id.
    pub id: String,
    /// The namespace that it is in.
    pub netns: Netns,
    /// The name of the mesh's interface in the namespace.
    pub interface: String,
    /// The state that the node reported when it was attached, such as open.
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

    /// Returns the IPv4 address.
    ///
    /// # Panics
    /// Panics if it has none.
    pub fn v4(&self) -> IpAddr {
        let v4 = self.addresses.iter().find(|address| address.is_ipv4());
        *v4.expect("the workload has an IPv4 address")
    }

    /// Returns the IPv6 address.
    ///
    /// # Panics
    /// Panics if it has none.
    pub fn v6(&self) -> IpAddr {
        let v6 = self.addresses.iter().find(|address| address.is_ipv6());
        *v6.expect("the workload has an IPv6 address")
    }
}

/// A namespace that is about to be attached to a network: a new one, unless
/// [`netns`](Self::netns) says otherwise.
#[must_use = "nothing is attached before `attach`"]
pub struct WorkloadBuilder<'a> {
    node: &'a Node,
    network: &'a str,
    netns: Option<Netns>,
    flags: Vec<String>,
}

impl WorkloadBuilder<'_> {
    /// Attaches this namespace instead of a new one.
    pub fn netns(mut self, netns: Netns) -> Self {
        self.netns = Some(netns);
        self
    }

    /// Names the workload.
    pub fn named(mut self, name: &str) -> Self {
        self.flags.extend(["--name".to_owned(), name.to_owned()]);
        self
    }

    /// Adds labels, as `a=b,c=d`; a declaration is a label, too.
    pub fn label(mut self, label: &str) -> Self {
        self.flags.extend(["--label".to_owned(), label.to_owned()]);
        self
    }

    /// Declares whose connections the workload accepts, such as `app=web, port=tcp/8080`.
    pub fn accept_from(mut self, peers: &str) -> Self {
        self.flags.extend(["--accept-from".to_owned(), peers.to_owned()]);
        self
    }

    /// Attaches the namespace.
    ///
    /// # Errors
    /// Fails with the daemon's message if it refuses.
    pub fn attach(self) -> Result<Workload> {
        let netns = self.netns.map_or_else(host, Ok)?;
        let path = netns.path();
        let path = path.to_string_lossy();
        let mut arguments = vec!["attach", "--network", self.network, "--netns", &path];
        arguments.extend(self.flags.iter().map(String::as_str));
        Ok(Workload::of(self.node.read_as(&arguments)?, netns, None))
    }
}

impl Node {
    /// Begins a workload with labels, as `a=b,c=d`.
    pub fn workload<'a>(&'a self, network: &'a str, labels: &str) -> WorkloadBuilder<'a> {
        WorkloadBuilder { node: self, network, netns: None, flags: vec![] }.label(labels)
    }

    /// Attaches a new namespace as a workload: [`Node::workload`] with nothing else said.
    ///
    /// # Errors
    /// Fails with the daemon's message if it refuses.
    pub fn attach(&self, network: &str, labels: &str) -> Result<Workload> {
        self.workload(network, labels).attach()
    }

    /// Runs a command as a workload of its own, with `meshctl run`.
    ///
    /// # Errors
    /// Fails with the output if it does not come up.
    pub fn run(
        &self,
        network: &str,
        name: &str,
        labels: &str,
        command: &[&str],
    ) -> Result<Workload> {
        let run = ["run", "--network", network, "--name", name, "--label", labels, "--"];
        let arguments = [&run, command].concat();
        let log = self.log_of(name);
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
