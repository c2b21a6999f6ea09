//! The command line.

mod local;
mod mesh;
mod policy;

pub(crate) use local::*;
pub(crate) use mesh::*;
pub(crate) use policy::*;

use crate::{Mistake, completion};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use meshward_api_types::local::DEFAULT_SOCKET;
use meshward_types::{Selector, WorkloadId};
use std::{path::PathBuf, time::Duration};

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

/// Names that are looked up while a line is being written.
fn live(look: fn() -> Vec<CompletionCandidate>) -> ArgValueCandidates {
    ArgValueCandidates::new(look)
}

/// Under what the help lists what every command takes.
const EVERYWHERE: &str = "Options of every command";

/// What every command takes.
#[derive(Args)]
pub(crate) struct Common {
    /// How to print what was read or done
    #[arg(short, long, global = true, help_heading = EVERYWHERE, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// A context by its name (`meshctl context list`), or a file with one, such as the
    /// coordinator's admin.json [env: `MESHCTL_CONTEXT`] [default: the one in use, then the
    /// coordinator's own file on this machine]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "NAME|FILE", add = live(completion::contexts))]
    pub context: Option<String>,
    /// The node daemon's socket [env: `MESHCTL_SOCKET`]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "PATH", default_value_os_t = usual_socket())]
    pub socket: PathBuf,
    /// Check and say what would be changed, by name, and change nothing
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub dry_run: bool,
}

/// The variable that names a context, and the one that names a socket.
pub(crate) const CONTEXT: &str = "MESHCTL_CONTEXT";
pub(crate) const SOCKET: &str = "MESHCTL_SOCKET";

/// The value of a variable of the environment; an empty one counts as unset.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn usual_socket() -> PathBuf {
    variable(SOCKET).unwrap_or_else(|| DEFAULT_SOCKET.into()).into()
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

impl Common {
    /// Whether people read what is printed.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self.output, Output::Table | Output::Wide)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people; on a terminal as wide as it is
    Table,
    /// For people, with every column, however wide
    Wide,
    Json,
    Yaml,
}

/// What every list takes.
#[derive(Args, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Watching {
    /// Go on, and print anew whenever something has changed
    #[arg(short, long)]
    pub watch: bool,
}

/// The verb, or, where there is none, the list that is meant.
///
/// # Errors
/// [`Mistake`] if what is meant for the list stands in front of a verb: there it would do nothing.
pub(crate) fn verb_or_list<V, W: Default + PartialEq>(
    verb: Option<V>,
    which: W,
    list: impl FnOnce(W) -> V,
) -> Result<V, Mistake> {
    match verb {
        None => Ok(list(which)),
        Some(verb) if which == W::default() => Ok(verb),
        Some(_) => Err(Mistake(
            "say what to list behind the verb: `meshctl NOUN list ...`, or leave the verb out"
                .into(),
        )),
    }
}

/// What lists of things with labels take.
#[derive(Args, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labelled {
    /// Only those with these labels, such as app=web,env!=prod
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<Selector>,
    #[command(flatten)]
    pub watching: Watching,
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
        after_help = "A word alone is no selector here: say --label-exists KEY for every workload that has the label.\nExit codes: 0 enforced everywhere, 1 not everywhere yet (the nodes are named), 2 nothing was selected or the selector is wrong."
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

/// A time such as `10m`, `24h` or `7d`.
///
/// # Errors
/// What is wrong with it, and how to write one.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s, 10m, 24h or 7d"))
}
