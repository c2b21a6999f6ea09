//! The command line.

use crate::Mistake;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use meshward_model::{
    AcceptFrom, LabelKey, Labels, NetworkName, NodeName, PortSpec, PublicKey, Revision, Selector, WorkloadId,
    WorkloadName, local::DEFAULT_SOCKET,
};
use std::{path::PathBuf, str::FromStr, time::Duration};

/// Run a Meshward mesh: networks, nodes, policy, quarantine, and workloads on this machine.
///
/// Commands about the mesh talk to the coordinator; `run`, `attach`, `detach`, `label` and `attached` talk to the node daemon of this
/// machine. Exit codes: 0 done, 1 our failure, 2 a mistake in what was asked.
#[derive(Parser)]
#[command(name = "meshctl", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args)]
pub struct Common {
    /// How to print what was read
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// The coordinator's address and credential, as the coordinator wrote them to admin.json
    /// [default: ~/.config/meshward/context.json, then the coordinator's own file on this machine]
    #[arg(long, global = true, value_name = "FILE", env = "MESHCTL_CONTEXT")]
    pub context: Option<PathBuf>,
    /// The node daemon's socket
    #[arg(long, global = true, value_name = "PATH", env = "MESHCTL_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Check and say what would be changed, and change nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    Json,
    Yaml,
}

#[derive(Subcommand)]
pub enum Command {
    /// The mesh in short, and this machine's node
    Status,
    /// Join tokens: what a machine needs to become a node
    #[command(subcommand)]
    Token(Token),
    /// Networks
    #[command(subcommand)]
    Network(Network),
    /// List the nodes, approve or remove one
    Nodes {
        #[command(subcommand)]
        verb: Option<Nodes>,
    },
    /// Relays: machines that pass sealed packets on between nodes that cannot reach each other
    #[command(subcommand)]
    Relay(Relay),
    /// Routes to machines behind gateways, which run no daemon of ours
    #[command(subcommand)]
    Route(Route),
    /// Devices: machines with a stock WireGuard, which join by a node
    #[command(subcommand)]
    Device(Device),
    /// The keys of endpoints
    #[command(subcommand)]
    Keys(Keys),
    /// List the workloads
    Workloads {
        /// Only those of this network
        #[arg(long)]
        network: Option<NetworkName>,
    },
    /// List who may talk to whom, with what was seen and denied
    Links {
        /// Only those of this network
        #[arg(long)]
        network: Option<NetworkName>,
        /// Only pairs with denied packets
        #[arg(long)]
        denied: bool,
        /// Only pairs with packets that passed because they are observed
        #[arg(long)]
        observed: bool,
    },
    /// Credentials of people and programs, and what they may do
    #[command(subcommand)]
    Credential(Credential),
    /// Policies: write, check, compare, apply, go back
    #[command(subcommand)]
    Policy(Policy),
    /// Say whether a flow is allowed, and which rule decides
    Explain(Explain),
    /// Cut every link of workloads, now, established connections included
    Quarantine(Quarantine),
    /// End a quarantine
    Release(Target),
    /// List the quarantines that stand
    Quarantines,
    /// Show who changed what
    Audit {
        /// How many lines
        #[arg(long, default_value_t = 30)]
        limit: u32,
    },
    /// Write a backup of the mesh to a file; `meshward-coordinator restore` makes a coordinator of it
    Backup {
        /// The file, which must not be there yet
        file: PathBuf,
        /// Leave the CA out: without it the backup is no secret that lets anybody into the mesh, and `ca.key` has to be kept elsewhere
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
        workload: WorkloadId,
    },
    /// Change the labels of a workload of this machine
    Label {
        /// Its id
        workload: WorkloadId,
        /// A label that it gets, or with a `-` behind the key, one that it loses
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<LabelChange>,
    },
    /// List the workloads of this machine
    Attached,
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

#[derive(Subcommand)]
pub enum Token {
    /// Make a join token; its text is shown this once
    Create {
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// For how long it is good
        #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// The site of the nodes that join with it
        #[arg(long)]
        site: Option<String>,
        /// A network that those nodes may serve; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK")]
        networks: Vec<NetworkName>,
        /// Relays join with it (`meshward-coordinator relay join`), and no nodes
        #[arg(long, conflicts_with = "networks")]
        relay: bool,
        /// Nodes that join with it serve no network before `meshctl nodes approve`
        #[arg(long, conflicts_with = "relay")]
        needs_approval: bool,
    },
    /// List the join tokens
    List,
    /// Revoke a join token; nodes that have joined stay
    Revoke {
        /// Its id
        id: String,
    },
}

#[derive(Subcommand)]
pub enum Network {
    /// Make a network
    Create {
        /// Its name
        name: NetworkName,
        /// A prefix, one of each address family at most
        #[arg(long = "cidr", value_name = "PREFIX", required = true)]
        prefixes: Vec<IpNet>,
        /// The length of the block that each node gets of the IPv4 prefix
        #[arg(long, value_name = "LENGTH")]
        block_v4: Option<u8>,
        /// The length of the block that each node gets of the IPv6 prefix
        #[arg(long, value_name = "LENGTH")]
        block_v6: Option<u8>,
        /// MTU of the workloads' interfaces, in bytes
        #[arg(long, default_value_t = 1420)]
        mtu: u16,
    },
    /// List the networks
    List,
    /// Delete a network that has no workloads
    Delete {
        /// Its name
        name: NetworkName,
    },
}

#[derive(Subcommand)]
pub enum Nodes {
    /// List the nodes
    List,
    /// Approve a node by name, before or after it joins, and give it labels
    ///
    /// The labels take the place of those that it was given before. What it joined with stays beneath.
    Approve {
        /// Its name
        name: NodeName,
        /// A label; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Remove a node: its workloads go, and its certificate is good for nothing
    Remove {
        /// Its name
        name: NodeName,
    },
}

#[derive(Subcommand)]
pub enum Route {
    /// Offer prefixes behind this machine's node: machines there are reached and policed as workloads with these labels
    Advertise {
        /// A prefix, such as 10.8.0.0/24
        #[arg(required = true, value_name = "PREFIX")]
        prefixes: Vec<IpNet>,
        /// The network whose workloads are to reach it
        #[arg(long)]
        network: NetworkName,
        /// A label of all machines there; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// What people call it [default: its id]
        #[arg(long)]
        name: Option<WorkloadName>,
    },
    /// Take back what this machine's node offers
    Withdraw {
        /// The prefix
        prefix: IpNet,
        /// The network
        #[arg(long)]
        network: NetworkName,
    },
    /// List the routes of all nodes
    List,
    /// Approve a prefix behind a node
    Approve(RouteOf),
    /// Take an approval back: links through the route are cut, unless the policy approves it
    Disapprove(RouteOf),
}

#[derive(Args)]
pub struct RouteOf {
    /// The prefix
    pub prefix: IpNet,
    /// The node that is the gateway
    #[arg(long)]
    pub node: NodeName,
    /// The network, if there are several
    #[arg(long)]
    pub network: Option<NetworkName>,
}

#[derive(Subcommand)]
pub enum Device {
    /// Take a machine in, and print its configuration for wg-quick, on a terminal as a QR code, too. Its private key is made here
    /// and told nobody
    Create {
        /// What people call it
        #[arg(long)]
        name: WorkloadName,
        /// The network
        #[arg(long)]
        network: NetworkName,
        /// A label; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// The node by which it joins: one that it reaches directly [default: the only connected one]
        #[arg(long, value_name = "NODE")]
        gateway: Option<NodeName>,
        /// The key of a device that has made one itself
        #[arg(long, value_name = "KEY")]
        public_key: Option<PublicKey>,
        /// Where the device reaches the gateway [default: the first address that the coordinator knows]
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<String>,
    },
    /// List the devices
    List,
    /// Turn a device away: its key is good for nothing
    Remove {
        /// Its name
        name: WorkloadName,
        /// The network
        #[arg(long)]
        network: NetworkName,
    },
}

#[derive(Subcommand)]
pub enum Keys {
    /// Have endpoints make other keys, without losing a packet. They do so by themselves each week
    Rotate {
        /// Only those of this node
        #[arg(long)]
        node: Option<NodeName>,
        /// Only those of this network
        #[arg(long)]
        network: Option<NetworkName>,
        /// How long the keys of before are good, for peers that are away from the coordinator
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
        keep_old: Duration,
    },
}

#[derive(Subcommand)]
pub enum Relay {
    /// List the relays, apart from the coordinator
    List,
    /// Remove a relay: its certificate is good for nothing, and nodes use others
    Remove {
        /// Its name
        name: NodeName,
    },
}

#[derive(Subcommand)]
pub enum Credential {
    /// Make a credential; prints the context that `meshctl --context FILE` takes, this once
    Create {
        /// Its name, for the audit log
        name: String,
        /// What it may do: viewer reads; operator also quarantines; owner also applies policy, but for guardrails; admin everything
        #[arg(long, value_enum)]
        role: Role,
        /// A network in which it holds; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK")]
        networks: Vec<NetworkName>,
    },
    /// Change what a credential may do; its token stays the same
    Change {
        /// Its name
        name: String,
        /// What it may do
        #[arg(long, value_enum)]
        role: Role,
        /// A network in which it holds; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK")]
        networks: Vec<NetworkName>,
    },
    /// List the credentials
    List,
    /// Revoke a credential
    Revoke {
        /// Its name
        name: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Viewer,
    Operator,
    Owner,
    Admin,
}

impl From<Role> for meshward_model::api::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Owner => Self::Owner,
            Role::Admin => Self::Admin,
        }
    }
}

#[derive(Args)]
pub struct Sources {
    /// YAML files, or folders with such (*.yaml, *.yml); - is standard input
    #[arg(value_name = "FILE|FOLDER")]
    pub places: Vec<PathBuf>,
    /// The same; may be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE|FOLDER")]
    pub more: Vec<PathBuf>,
}

#[derive(Args)]
pub struct OfNetwork {
    /// The network, if there are several
    #[arg(long)]
    pub network: Option<NetworkName>,
}

#[derive(Subcommand)]
pub enum Policy {
    /// Apply policies to the networks that they name: all of them or none
    Apply {
        #[command(flatten)]
        sources: Sources,
        /// Remove the policies of networks that no file names
        #[arg(long)]
        prune: bool,
        /// Why, for the log
        #[arg(short, long)]
        message: Option<String>,
    },
    /// Check policies: syntax, tests, rules that do nothing, selectors that match nothing, guardrails
    ///
    /// The coordinator is asked, if there is one: it knows the workloads.
    Check {
        #[command(flatten)]
        sources: Sources,
        /// Do not ask the coordinator
        #[arg(long)]
        offline: bool,
        /// Fail on what is merely suspicious, too
        #[arg(long)]
        strict: bool,
    },
    /// Say which links would open and close, and how many live flows would be cut; or what changed between two revisions
    Diff {
        /// A revision, and another [default: now]
        #[arg(value_name = "REVISION", num_args = 0..=2, conflicts_with = "more")]
        revisions: Vec<Revision>,
        /// YAML files or folders that are not applied yet; may be given several times
        #[arg(short = 'f', long = "file", value_name = "FILE|FOLDER", required_unless_present = "revisions")]
        more: Vec<PathBuf>,
        #[command(flatten)]
        of: OfNetwork,
    },
    /// Print the policy of a network
    Get {
        /// The network
        network: NetworkName,
    },
    /// List the states that a network's policy had: who made them, when, why and from where
    Log {
        #[command(flatten)]
        of: OfNetwork,
        /// How many
        #[arg(long, default_value_t = 30)]
        limit: u32,
    },
    /// Print the policy that a network had at a revision
    Show {
        /// The revision
        revision: Revision,
        #[command(flatten)]
        of: OfNetwork,
    },
    /// Apply the policy that a network had at a revision
    Rollback {
        /// The revision
        revision: Revision,
        #[command(flatten)]
        of: OfNetwork,
        /// Why, for the log
        #[arg(short, long)]
        message: Option<String>,
    },
    /// Write the least policy that explains the flows that were seen
    Suggest {
        #[command(flatten)]
        of: OfNetwork,
        /// Flows that began in this time
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        since: Duration,
        /// Also allow what was tried and denied
        #[arg(long)]
        with_denied: bool,
    },
    /// Print the JSON Schema of policies, for editors
    Schema,
}

#[derive(Args)]
pub struct Explain {
    /// Who begins the flow
    #[arg(long, value_name = "SELECTOR")]
    pub from: Selector,
    /// With whom
    #[arg(long, value_name = "SELECTOR")]
    pub to: Selector,
    /// What, such as tcp/5432, udp/53, icmp
    #[arg(long, value_name = "PORT")]
    pub port: PortSpec,
    /// The network, if there are several
    #[arg(long)]
    pub network: Option<NetworkName>,
    /// By the policies and quarantines of this revision [default: those of now]
    #[arg(long = "at", value_name = "REVISION")]
    pub revision: Option<Revision>,
}

#[derive(Args)]
pub struct Quarantine {
    #[command(flatten)]
    pub target: Target,
    /// Who may still reach the workloads, but for what guardrails deny; unless you are an admin, of those whom the policy names under `forensics`
    #[arg(long, value_name = "SELECTOR")]
    pub allow_from: Option<Selector>,
    /// For how long [default: until it is released]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub lasts: Option<Duration>,
    /// Why, for the log
    #[arg(short, long)]
    pub message: Option<String>,
}

#[derive(Args)]
pub struct Target {
    /// Labels, such as app=web,env!=prod; or the id of one workload
    #[arg(value_name = "SELECTOR|WORKLOAD")]
    pub what: String,
    /// Only in this network
    #[arg(long)]
    pub network: Option<NetworkName>,
}

#[derive(Args)]
pub struct Workload {
    /// The network
    #[arg(long)]
    pub network: NetworkName,
    /// A label of the workload; may be given several times. `meshward.accept-from` says the same as --accept-from
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
    pub labels: Vec<Declared>,
    /// Who may reach the workload, such as 'app=web, port=tcp/8080'; may be given several times. It narrows what policy
    /// allows, or opens where the network's policy says `declarations: open`
    #[arg(long, value_name = "LABELS, port=PORT")]
    pub accept_from: Vec<AcceptFrom>,
    /// What people call the workload [default: its id]
    #[arg(long)]
    pub name: Option<WorkloadName>,
}

/// The labels that were given one by one.
///
/// # Errors
/// [`Mistake`] if one is none.
pub fn labels(given: &[String]) -> Result<Labels, Mistake> {
    Labels::parse_each(given.iter().map(String::as_str)).map_err(|error| Mistake(error.to_string()))
}

/// What a label of a workload declares.
#[derive(Clone)]
pub enum Declared {
    Labels(Labels),
    AcceptFrom(AcceptFrom),
}

impl FromStr for Declared {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(meshward_model::accept::LABEL).and_then(|rest| rest.strip_prefix('=')) {
            Some(accept) => accept.parse().map(Self::AcceptFrom).map_err(|error| error.to_string()),
            None => text.parse().map(Self::Labels).map_err(|error| error.to_string()),
        }
    }
}

/// A label that comes or goes.
#[derive(Debug, Clone)]
pub enum LabelChange {
    Set(Labels),
    Remove(LabelKey),
}

impl FromStr for LabelChange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('-').filter(|key| !key.contains('=')) {
            Some(key) => key.parse().map(Self::Remove).map_err(|error| format!("{error}")),
            None => Labels::parse_each([text]).map(Self::Set).map_err(|error| error.to_string()),
        }
    }
}

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    pub workload: Workload,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Args)]
pub struct Attach {
    #[command(flatten)]
    pub workload: Workload,
    /// The namespace, as /run/netns/NAME or /proc/PID/ns/net
    #[arg(long, value_name = "PATH")]
    pub netns: PathBuf,
    /// A process whose end detaches the workload
    #[arg(long, value_name = "PID")]
    pub owner: Option<u32>,
}
