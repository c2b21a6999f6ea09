//! Commands about what the mesh is made of.

use super::common::{Labelled, Patience, Watching, duration, live};
use crate::{Mistake, completion, prefix::prefix};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use meshward_types::{Labels, NetworkName, NodeName, PublicKey, WorkloadName};
use std::{path::PathBuf, time::Duration};

#[derive(Subcommand)]
pub(crate) enum ContextVerb {
    /// List the contexts
    #[command(visible_alias = "ls")]
    List,
    /// Use a context from now on
    Use {
        /// Its name
        #[arg(add = live(completion::contexts))]
        name: String,
    },
    /// Show a context, without its secret
    Show {
        /// Its name [default: the one in use]
        #[arg(add = live(completion::contexts))]
        name: Option<String>,
    },
    /// Give a context another name
    Rename {
        /// Its name
        #[arg(add = live(completion::contexts))]
        name: String,
        /// Its name from now on
        new: String,
    },
    /// Forget a context. The credential stays good: `meshctl credential revoke` ends it
    #[command(aliases = ["remove", "rm"])]
    Delete {
        /// Its name
        #[arg(add = live(completion::contexts))]
        name: String,
    },
    /// Take in a context: a file as the coordinator's admin.json, or what `meshctl credential
    /// create` prints
    Import {
        /// The file; - is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// What it is to be called [default: the host of its server]
        #[arg(long)]
        name: Option<String>,
        /// Where this machine reaches the coordinator, before what the file says; may be given
        /// several times
        #[arg(long = "server", value_name = "HOST[:PORT]")]
        servers: Vec<String>,
        /// Take the place of a context with this name
        #[arg(long)]
        replace: bool,
        /// Use it from now on
        #[arg(long = "use")]
        in_use: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum Token {
    /// Make a join token; its text is shown this once
    Create {
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// For how long it is good
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: Duration,
        /// The site of the nodes that join with it
        #[arg(long)]
        site: Option<String>,
        /// A network that those nodes may serve; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK", add = live(completion::networks))]
        networks: Vec<NetworkName>,
        /// Relays join with it (`meshward-relay join`), and no nodes
        #[arg(long, conflicts_with = "networks")]
        relay: bool,
        /// Nodes that join with it serve no network before `meshctl node approve`
        #[arg(long, conflicts_with = "relay")]
        needs_approval: bool,
        /// Nodes that join with it are removed after not being seen for this time [without TIME:
        /// 10m]
        #[arg(long, value_name = "TIME", conflicts_with = "relay", num_args = 0..=1,
            default_missing_value = "10m", value_parser = duration)]
        ephemeral: Option<Duration>,
    },
    /// List the join tokens
    #[command(visible_alias = "ls")]
    List(Watching),
    /// Revoke a join token; nodes that have joined stay
    #[command(aliases = ["remove", "delete", "rm"])]
    Revoke {
        /// Its id
        #[arg(add = live(completion::tokens))]
        id: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum Network {
    /// Make a network
    Create {
        /// Its name
        name: NetworkName,
        /// A prefix, one of each address family at most
        #[arg(long = "cidr", value_name = "PREFIX", required = true, value_parser = prefix)]
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
    #[command(visible_alias = "ls")]
    List(Watching),
    /// Delete a network that has no workloads
    #[command(aliases = ["remove", "rm"])]
    Delete {
        /// Its name
        #[arg(add = live(completion::networks))]
        name: NetworkName,
    },
}

#[derive(Subcommand)]
pub(crate) enum Node {
    /// List the nodes
    #[command(visible_alias = "ls")]
    List(Labelled),
    /// Approve a node by name, before or after it joins, and give it labels
    ///
    /// The labels take the place of those that it was given before. What it joined with stays
    /// beneath.
    Approve {
        /// Its name
        #[arg(add = live(completion::nodes))]
        name: NodeName,
        /// A label; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Remove a node: its workloads go, and its certificate is good for nothing
    #[command(aliases = ["delete", "rm"])]
    Remove {
        /// Its name
        #[arg(add = live(completion::nodes))]
        name: NodeName,
    },
}

#[derive(Subcommand)]
pub(crate) enum Route {
    /// Offer prefixes behind this machine's node: machines there are reached and policed as
    /// workloads with these labels
    Advertise {
        /// A prefix, such as 10.8.0.0/24
        #[arg(required = true, value_name = "PREFIX", value_parser = prefix)]
        prefixes: Vec<IpNet>,
        /// The network whose workloads are to reach it
        #[arg(long, add = live(completion::networks))]
        network: NetworkName,
        /// A label of all machines there; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// What people call it [default: its id]
        #[arg(long)]
        name: Option<WorkloadName>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Take back what this machine's node offers
    Withdraw {
        /// The prefix
        #[arg(value_parser = prefix)]
        prefix: IpNet,
        /// The network
        #[arg(long, add = live(completion::networks))]
        network: NetworkName,
    },
    /// List the routes of all nodes
    #[command(visible_alias = "ls")]
    List(Labelled),
    /// Approve a prefix behind a node
    Approve(RouteOf),
    /// Take an approval back: links through the route are cut, unless the policy approves it
    Disapprove(RouteOf),
}

#[derive(Args)]
pub(crate) struct RouteOf {
    /// The prefix
    #[arg(value_parser = prefix)]
    pub prefix: IpNet,
    /// The node that is the gateway
    #[arg(long, add = live(completion::nodes))]
    pub node: NodeName,
    /// The network, if there are several
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
}

#[derive(Subcommand)]
pub(crate) enum Device {
    /// Take a machine in, and print its configuration for wg-quick, on a terminal as a QR code,
    /// too. Its private key is made here and told nobody
    Create {
        /// What people call it
        #[arg(long)]
        name: WorkloadName,
        /// The network
        #[arg(long, add = live(completion::networks))]
        network: NetworkName,
        /// A label; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// The node by which it joins: one that it reaches directly [default: the only connected
        /// one]
        #[arg(long, value_name = "NODE", add = live(completion::nodes))]
        gateway: Option<NodeName>,
        /// The key of a device that has made one itself
        #[arg(long, value_name = "KEY")]
        public_key: Option<PublicKey>,
        /// Where the device reaches the gateway [default: the first address that the coordinator
        /// knows]
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<String>,
    },
    /// List the devices
    #[command(visible_alias = "ls")]
    List(Labelled),
    /// Turn a device away: its key is good for nothing
    #[command(aliases = ["delete", "rm"])]
    Remove {
        /// Its name
        #[arg(add = live(completion::devices))]
        name: WorkloadName,
        /// The network
        #[arg(long, add = live(completion::networks))]
        network: NetworkName,
    },
}

#[derive(Subcommand)]
pub(crate) enum Key {
    /// Have endpoints make other keys, without losing a packet. They do so by themselves each week
    Rotate {
        /// Only those of this node
        #[arg(long, add = live(completion::nodes))]
        node: Option<NodeName>,
        /// Only those of this network
        #[arg(long, add = live(completion::networks))]
        network: Option<NetworkName>,
        /// How long the keys of before are good, for peers that are away from the coordinator
        #[arg(long, default_value = "10m", value_parser = duration)]
        keep_old: Duration,
    },
}

#[derive(Subcommand)]
pub(crate) enum Relay {
    /// List the relays, apart from the coordinator
    #[command(visible_alias = "ls")]
    List(Watching),
    /// Remove a relay: its certificate is good for nothing, and nodes use others
    #[command(aliases = ["delete", "rm"])]
    Remove {
        /// Its name
        #[arg(add = live(completion::relays))]
        name: NodeName,
    },
}

#[derive(Subcommand)]
pub(crate) enum WorkloadVerb {
    /// List the workloads
    #[command(visible_alias = "ls")]
    List(Workloads),
}

#[derive(Args, Default, PartialEq, Eq)]
pub(crate) struct Workloads {
    /// Only those of this network
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
    /// Only those on this node
    #[arg(long, add = live(completion::nodes))]
    pub node: Option<NodeName>,
    #[command(flatten)]
    pub which: Labelled,
}

#[derive(Subcommand)]
pub(crate) enum LinkVerb {
    /// List the links
    #[command(visible_alias = "ls")]
    List(Links),
}

#[derive(Args, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// Only those of this network
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
    /// Only pairs with denied packets
    #[arg(long)]
    pub denied: bool,
    /// Only pairs with packets that passed because they are observed
    #[arg(long)]
    pub observed: bool,
    /// Only pairs of which one side has these labels, such as app=web
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<meshward_types::Selector>,
    #[command(flatten)]
    pub watching: Watching,
}

#[derive(Subcommand)]
pub(crate) enum Credential {
    /// Make a credential; prints the context that `meshctl context import` takes, this once
    Create {
        /// Its name, for the audit log
        name: String,
        /// What it may do: viewer reads; operator also quarantines; owner also applies policy, but
        /// for guardrails; admin everything
        #[arg(long, value_enum)]
        role: Role,
        /// A network in which it holds; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK", add = live(completion::networks))]
        networks: Vec<NetworkName>,
        /// For how long it is good [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        lifetime: Option<Duration>,
        /// Where its owner reaches the coordinator, before what is known here; may be given several
        /// times
        #[arg(long = "server", value_name = "HOST[:PORT]")]
        servers: Vec<String>,
    },
    /// Change what a credential may do, or for how long; its token stays the same
    #[command(
        group = clap::ArgGroup::new("what")
            .args(["role", "networks", "lifetime", "no_expiry"])
            .required(true)
            .multiple(true),
    )]
    Change {
        /// Its name
        #[arg(add = live(completion::credentials))]
        name: String,
        /// What it may do; without --network everywhere
        #[arg(long, value_enum)]
        role: Option<Role>,
        /// For how long it is good, from now on
        #[arg(long, value_name = "TIME", value_parser = duration)]
        lifetime: Option<Duration>,
        /// Until it is revoked
        #[arg(long, conflicts_with = "lifetime")]
        no_expiry: bool,
        /// A network in which it holds; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK", add = live(completion::networks))]
        networks: Vec<NetworkName>,
    },
    /// List the credentials
    #[command(visible_alias = "ls")]
    List(Watching),
    /// Revoke a credential
    #[command(aliases = ["remove", "delete", "rm"])]
    Revoke {
        /// Its name
        #[arg(add = live(completion::credentials))]
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

impl From<Role> for meshward_api_types::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Owner => Self::Owner,
            Role::Admin => Self::Admin,
        }
    }
}

/// The labels that were given one by one.
///
/// # Errors
/// [`Mistake`] if one is none.
pub(crate) fn labels(given: &[String]) -> Result<Labels, Mistake> {
    Labels::parse_each(given.iter().map(String::as_str)).map_err(|error| Mistake(error.to_string()))
}
