//! The command line.
#![allow(clippy::doc_markdown, reason = "`--help` prints these comments")]

mod common;
mod local;
mod mesh;
mod policy;
mod services;

pub(crate) use common::*;
pub(crate) use local::*;
pub(crate) use mesh::*;
pub(crate) use policy::*;
pub(crate) use services::*;

use crate::completion;
use clap::{Parser, Subcommand};
use meshward_types::WorkloadId;
use std::path::PathBuf;

/// Run a Meshward mesh: networks, nodes, policy, quarantine, and workloads on this machine.
///
/// Commands about the mesh talk to the coordinator of the context in use; `run`, `attach`,
/// `detach`, `label`, `attached` and `route advertise` talk to the node daemon of this machine. A
/// noun without a verb lists: `meshctl nodes`. Exit codes: 0 success; 1 failure, or not enforced
/// everywhere yet; 2 invalid request.
#[derive(Parser)]
#[command(name = "meshctl", version, max_term_width = 110, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// Reads the command line, and the variables that stand in for flags. clap would show those as
    /// flags in its usage lines.
    pub(crate) fn read() -> Self {
        let mut read = Self::parse();
        read.common.context = read.common.context.or_else(|| variable(CONTEXT));
        read
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show the state of the mesh and of this machine's node
    Status {
        #[command(flatten)]
        watching: Watching,
    },
    /// Ping a node or workload: round-trip time, path, and what policy allows
    Ping(Ping),
    /// Check the network around this machine's node: UDP, NAT, relays, port mapping, IPv6
    Netcheck,
    /// Collect what somebody needs to debug a problem
    Debug {
        #[command(subcommand)]
        verb: DebugVerb,
    },
    /// Manage contexts: the coordinators that you use, and your credentials there
    #[command(visible_alias = "contexts")]
    Context {
        #[command(subcommand)]
        verb: Option<ContextVerb>,
    },
    /// Manage join tokens, with which machines become nodes
    #[command(visible_alias = "tokens")]
    Token {
        #[command(subcommand)]
        verb: Option<Token>,
        #[command(flatten)]
        which: Watching,
    },
    /// Manage networks
    #[command(visible_alias = "networks")]
    Network {
        #[command(subcommand)]
        verb: Option<Network>,
        #[command(flatten)]
        which: Watching,
    },
    /// Manage nodes: list, approve, remove
    #[command(visible_alias = "nodes")]
    Node {
        #[command(subcommand)]
        verb: Option<Node>,
        #[command(flatten)]
        which: Labelled,
    },
    /// Manage relays, which forward encrypted packets between nodes without a direct path
    #[command(visible_alias = "relays")]
    Relay {
        #[command(subcommand)]
        verb: Option<Relay>,
        #[command(flatten)]
        which: Watching,
    },
    /// Manage routes to machines behind gateways, which run no node daemon
    #[command(visible_alias = "routes")]
    Route {
        #[command(subcommand)]
        verb: Option<Route>,
        #[command(flatten)]
        which: Labelled,
    },
    /// Manage egress gateways, by which workloads reach what is outside of the mesh
    Egress {
        #[command(subcommand)]
        verb: Option<Egress>,
        #[command(flatten)]
        which: Labelled,
    },
    /// Manage devices: machines with a stock WireGuard, which join through a node
    #[command(visible_alias = "devices")]
    Device {
        #[command(subcommand)]
        verb: Option<Device>,
        #[command(flatten)]
        which: Labelled,
    },
    /// Manage the WireGuard keys of endpoints
    #[command(visible_alias = "keys")]
    Key {
        #[command(subcommand)]
        verb: Key,
    },
    /// List the workloads of all nodes
    #[command(visible_alias = "workloads")]
    Workload {
        #[command(subcommand)]
        verb: Option<WorkloadVerb>,
        #[command(flatten)]
        which: Workloads,
    },
    /// List services, and show their instances
    ///
    /// Services are written in the policy of a network, under `services:`.
    #[command(visible_alias = "services")]
    Service {
        #[command(subcommand)]
        verb: Option<ServiceVerb>,
        #[command(flatten)]
        which: Services,
    },
    /// Take a workload or a node out of services, and wait until its flows are gone; or list drains
    #[command(
        after_help = "A drained workload gets no new connections through services, and keeps those \
            that it has. The drain lasts until `meshctl undrain`, or until the workload stops.\n\
            Exit codes: 0 no flows are left; 1 some are, after the time; 2 invalid request."
    )]
    Drain(Drain),
    /// End the drain of a workload or a node
    Undrain(Undrain),
    /// List links: who may talk to whom, with counters of what passed and was denied
    #[command(visible_alias = "links")]
    Link {
        #[command(subcommand)]
        verb: Option<LinkVerb>,
        #[command(flatten)]
        which: Links,
    },
    /// Manage credentials of people and programs, and their roles
    #[command(visible_alias = "credentials")]
    Credential {
        #[command(subcommand)]
        verb: Option<Credential>,
        #[command(flatten)]
        which: Watching,
    },
    /// Manage policies: check, compare, apply, edit, roll back
    #[command(visible_alias = "policies")]
    Policy {
        #[command(subcommand)]
        verb: Policy,
    },
    /// Show whether a flow is allowed, and which rule decides
    Explain(Explain),
    /// Cut every link of workloads at once, established connections included; or list quarantines
    #[command(
        visible_alias = "quarantines",
        after_help = "A word alone is no selector here: say --label-exists KEY for every workload \
            that has the label.\n\
            Exit codes: 0 enforced everywhere, 1 not everywhere yet (the nodes are named), 2 \
            nothing was selected or the selector is wrong."
    )]
    Quarantine {
        #[command(subcommand)]
        verb: Option<QuarantineVerb>,
        #[command(flatten)]
        wanted: Quarantine,
    },
    /// End a quarantine
    Release(Target),
    /// Show who changed what
    Audit(Audit),
    /// Write a backup of the mesh to a file; restore it with `meshward-coordinator restore`
    Backup {
        /// The file, which must not exist yet
        file: PathBuf,
        /// Leave out the CA key, so that the backup lets nobody into the mesh; keep `ca.key`
        /// elsewhere then
        #[arg(long)]
        without_ca: bool,
    },
    /// Run a command in a network namespace of its own, attached to the mesh
    Run(Run),
    /// Attach an existing network namespace to the mesh
    Attach(Attach),
    /// Detach a workload of this machine
    Detach {
        /// The id of the workload
        #[arg(add = live(completion::attached))]
        workload: WorkloadId,
    },
    /// Change the labels of a workload of this machine
    Label {
        /// The id of the workload
        #[arg(add = live(completion::attached))]
        workload: WorkloadId,
        /// A label to set, or, with `-` after the key, to remove
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<LabelChange>,
    },
    /// List the workloads of this machine
    Attached(Labelled),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages
    Man {
        /// The folder to write to
        folder: PathBuf,
    },
}
