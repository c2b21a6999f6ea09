//! The command line.

mod common;
mod local;
mod mesh;
mod policy;

pub(crate) use common::*;
pub(crate) use local::*;
pub(crate) use mesh::*;
pub(crate) use policy::*;

use crate::completion;
use clap::{Parser, Subcommand};
use meshward_types::WorkloadId;
use std::path::PathBuf;

/// Run a Meshward mesh: networks, nodes, policy, quarantine, and workloads on this machine.
///
/// Commands about the mesh talk to the coordinator of the context in use; `run`, `attach`,
/// `detach`, `label`, `attached` and `route advertise` talk to the node daemon of this machine. A
/// noun without a verb lists: `meshctl nodes`. Exit codes: 0 done, 1 our failure, or not enforced
/// everywhere yet, 2 a mistake in what was asked.
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
    /// The mesh in short, and this machine's node
    Status {
        #[command(flatten)]
        watching: Watching,
    },
    /// Ask another node for an answer: round trip, path, and what policy says about a workload
    /// there
    Ping(Ping),
    /// What lies around this machine's node: UDP, NAT, relays, port mapping, IPv6
    Netcheck,
    /// What whoever helps has to see
    Debug {
        #[command(subcommand)]
        verb: DebugVerb,
    },
    /// Which coordinators there are to talk to, and which of them is in use
    #[command(visible_alias = "contexts")]
    Context {
        #[command(subcommand)]
        verb: Option<ContextVerb>,
    },
    /// Join tokens: what a machine needs to become a node
    #[command(visible_alias = "tokens")]
    Token {
        #[command(subcommand)]
        verb: Option<Token>,
        #[command(flatten)]
        which: Watching,
    },
    /// Networks
    #[command(visible_alias = "networks")]
    Network {
        #[command(subcommand)]
        verb: Option<Network>,
        #[command(flatten)]
        which: Watching,
    },
    /// Nodes: list them, approve or remove one
    #[command(visible_alias = "nodes")]
    Node {
        #[command(subcommand)]
        verb: Option<Node>,
        #[command(flatten)]
        which: Labelled,
    },
    /// Relays: machines that pass sealed packets on between nodes that cannot reach each other
    #[command(visible_alias = "relays")]
    Relay {
        #[command(subcommand)]
        verb: Option<Relay>,
        #[command(flatten)]
        which: Watching,
    },
    /// Routes to machines behind gateways, which run no daemon of ours
    #[command(visible_alias = "routes")]
    Route {
        #[command(subcommand)]
        verb: Option<Route>,
        #[command(flatten)]
        which: Labelled,
    },
    /// Devices: machines with a stock `WireGuard`, which join by a node
    #[command(visible_alias = "devices")]
    Device {
        #[command(subcommand)]
        verb: Option<Device>,
        #[command(flatten)]
        which: Labelled,
    },
    /// The keys of endpoints
    #[command(visible_alias = "keys")]
    Key {
        #[command(subcommand)]
        verb: Key,
    },
    /// Workloads of all nodes
    #[command(visible_alias = "workloads")]
    Workload {
        #[command(subcommand)]
        verb: Option<WorkloadVerb>,
        #[command(flatten)]
        which: Workloads,
    },
    /// Links: who may talk to whom, with what was seen and denied
    #[command(visible_alias = "links")]
    Link {
        #[command(subcommand)]
        verb: Option<LinkVerb>,
        #[command(flatten)]
        which: Links,
    },
    /// Credentials of people and programs, and what they may do
    #[command(visible_alias = "credentials")]
    Credential {
        #[command(subcommand)]
        verb: Option<Credential>,
        #[command(flatten)]
        which: Watching,
    },
    /// Policies: write, check, compare, apply, go back
    #[command(visible_alias = "policies")]
    Policy {
        #[command(subcommand)]
        verb: Policy,
    },
    /// Say whether a flow is allowed, and which rule decides
    Explain(Explain),
    /// Cut every link of workloads, now, established connections included; or list what is cut
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
    /// Write a backup of the mesh to a file; `meshward-coordinator restore` makes a coordinator of
    /// it
    Backup {
        /// The file, which must not be there yet
        file: PathBuf,
        /// Leave the CA out: without it the backup is no secret that lets anybody into the mesh,
        /// and `ca.key` has to be kept elsewhere
        #[arg(long)]
        without_ca: bool,
    },
    /// Run a command in a network namespace of its own, attached to the mesh
    Run(Run),
    /// Attach an existing network namespace to the mesh
    Attach(Attach),
    /// Detach a workload of this machine
    Detach {
        /// Its id
        #[arg(add = live(completion::attached))]
        workload: WorkloadId,
    },
    /// Change the labels of a workload of this machine
    Label {
        /// Its id
        #[arg(add = live(completion::attached))]
        workload: WorkloadId,
        /// A label that it gets, or with a `-` behind the key, one that it loses
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
        /// Into this folder
        folder: PathBuf,
    },
}
