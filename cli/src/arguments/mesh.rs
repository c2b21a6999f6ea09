//! Commands about the parts of the mesh: contexts, tokens, networks, nodes, devices and so on.

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
    /// Switch to a context
    Use {
        /// The name of the context
        #[arg(add = live(completion::contexts))]
        name: String,
    },
    /// Show a context, without its secret
    Show {
        /// The name of the context [default: the one in use]
        #[arg(add = live(completion::contexts))]
        name: Option<String>,
    },
    /// Give a context another name
    Rename {
        /// The name of the context
        #[arg(add = live(completion::contexts))]
        name: String,
        /// The new name
        new: String,
    },
    /// Delete a context. The credential stays valid until `meshctl credential revoke`
    #[command(aliases = ["remove", "rm"])]
    Delete {
        /// The name of the context
        #[arg(add = live(completion::contexts))]
        name: String,
    },
    /// Import a context: the coordinator's admin.json, or the output of `meshctl credential create`
    Import(ImportContext),
}

#[derive(Args)]
pub(crate) struct ImportContext {
    /// The file; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The name to give it [default: the host of its server]
    #[arg(long)]
    pub name: Option<String>,
    /// An address of the coordinator, tried before those in the file; may be given several times
    #[arg(long = "server", value_name = "HOST[:PORT]")]
    pub servers: Vec<String>,
    /// Overwrite a context with this name
    #[arg(long)]
    pub replace: bool,
    /// Switch to it
    #[arg(long = "use")]
    pub in_use: bool,
}

#[derive(Subcommand)]
pub(crate) enum Token {
    /// Create a join token; it is shown only once
    Create {
        /// The number of nodes that may join with it
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// The time for which it is valid
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: Duration,
        /// The site of the nodes that join with it
        #[arg(long)]
        site: Option<String>,
        /// A network that those nodes may serve; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK", add = live(completion::networks))]
        networks: Vec<NetworkName>,
        /// Let relays join with it (`meshward-relay join`) instead of nodes
        #[arg(long, conflicts_with = "networks")]
        relay: bool,
        /// Nodes that join with it serve no network until `meshctl node approve`
        #[arg(long, conflicts_with = "relay")]
        needs_approval: bool,
        /// Remove nodes that join with it this long after their last contact [without TIME: 10m]
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
        /// The id of the token
        #[arg(add = live(completion::tokens))]
        id: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum Network {
    /// Create a network
    Create {
        /// The name of the network
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
        /// The name of the network
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
    /// The labels replace those of an earlier approval. The labels of its join token stay.
    Approve {
        /// The name of the node
        #[arg(add = live(completion::nodes))]
        name: NodeName,
        /// A label; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Remove a node: end its workloads and revoke its certificate
    #[command(aliases = ["delete", "rm"])]
    Remove {
        /// The name of the node
        #[arg(add = live(completion::nodes))]
        name: NodeName,
    },
}

#[derive(Subcommand)]
pub(crate) enum Route {
    /// Advertise prefixes behind this machine's node: machines there become workloads with these
    /// labels
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
        /// The name [default: its id]
        #[arg(long)]
        name: Option<WorkloadName>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Withdraw a prefix that this machine's node advertises
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
    /// Take back an approval: cuts links through the route, unless the policy approves it
    Disapprove(RouteOf),
}

#[derive(Subcommand)]
pub(crate) enum Egress {
    /// Make this machine an egress gateway: it has these labels in rules, and packets leave it with
    /// its own address
    Start {
        /// The network whose workloads are to use it
        #[arg(long, add = live(completion::networks))]
        network: NetworkName,
        /// A label of everything outside; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// The name [default: its id]
        #[arg(long)]
        name: Option<WorkloadName>,
        /// Lead to IPv4 addresses only [default: to those of the network's families]
        #[arg(long, conflicts_with = "ipv6")]
        ipv4: bool,
        /// Lead to IPv6 addresses only
        #[arg(long)]
        ipv6: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// End it: what goes through this machine is cut
    Stop {
        /// The network
        #[arg(long, add = live(completion::networks))]
        network: NetworkName,
    },
    /// List the egress gateways of all nodes
    #[command(visible_alias = "ls")]
    List(Labelled),
    /// Approve the egress gateway of a node
    Approve(EgressOf),
    /// Take back an approval: cuts links through the gateway, unless the policy approves it
    Disapprove(EgressOf),
}

#[derive(Args)]
pub(crate) struct EgressOf {
    /// The node that is the gateway
    #[arg(add = live(completion::nodes))]
    pub node: NodeName,
    /// The network, if the node is a gateway of several
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
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
    /// Create a device and print its configuration for wg-quick, on a terminal as a QR code, too.
    /// The private key is generated here and sent to nobody
    Create {
        /// The name
        #[arg(long)]
        name: WorkloadName,
        /// The network
        #[arg(long, add = live(completion::networks))]
        network: NetworkName,
        /// A label; may be given several times
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// The node through which it joins, which it must reach directly [default: the only
        /// connected node]
        #[arg(long, value_name = "NODE", add = live(completion::nodes))]
        gateway: Option<NodeName>,
        /// The public key of a device that has its own key
        #[arg(long, value_name = "KEY")]
        public_key: Option<PublicKey>,
        /// The address at which the device reaches the gateway [default: the first one that the
        /// coordinator knows]
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<String>,
    },
    /// List the devices
    #[command(visible_alias = "ls")]
    List(Labelled),
    /// Remove a device: its key becomes invalid
    #[command(aliases = ["delete", "rm"])]
    Remove {
        /// The name of the device
        #[arg(add = live(completion::devices))]
        name: WorkloadName,
        /// The network
        #[arg(long, add = live(completion::networks))]
        network: NetworkName,
    },
}

#[derive(Subcommand)]
pub(crate) enum Key {
    /// Rotate the keys of endpoints without losing a packet. Endpoints do so weekly by themselves
    Rotate {
        /// Only those of this node
        #[arg(long, add = live(completion::nodes))]
        node: Option<NodeName>,
        /// Only those of this network
        #[arg(long, add = live(completion::networks))]
        network: Option<NetworkName>,
        /// The time for which the old keys stay valid, for peers that have no session with the
        /// coordinator
        #[arg(long, default_value = "10m", value_parser = duration)]
        keep_old: Duration,
    },
}

#[derive(Subcommand)]
pub(crate) enum Relay {
    /// List the relays, apart from the coordinator
    #[command(visible_alias = "ls")]
    List(Watching),
    /// Remove a relay: revoke its certificate, and have nodes use others
    #[command(aliases = ["delete", "rm"])]
    Remove {
        /// The name of the relay
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
    /// Create a credential; prints once the context for `meshctl context import`
    Create {
        /// The name of the credential, for the audit log
        name: String,
        /// The role: viewer reads; operator also quarantines; owner also applies policy except
        /// guardrails; admin may do everything
        #[arg(long, value_enum)]
        role: Role,
        /// A network that it is limited to; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK", add = live(completion::networks))]
        networks: Vec<NetworkName>,
        /// The time for which it is valid [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        lifetime: Option<Duration>,
        /// An address of the coordinator for its owner, tried first; may be given several times
        #[arg(long = "server", value_name = "HOST[:PORT]")]
        servers: Vec<String>,
    },
    /// Change the role or lifetime of a credential; its token stays the same
    #[command(
        group = clap::ArgGroup::new("what")
            .args(["role", "networks", "lifetime", "no_expiry"])
            .required(true)
            .multiple(true),
    )]
    Change {
        /// The name of the credential
        #[arg(add = live(completion::credentials))]
        name: String,
        /// The role; without --network, in all networks
        #[arg(long, value_enum)]
        role: Option<Role>,
        /// The time for which it is valid from now on
        #[arg(long, value_name = "TIME", value_parser = duration)]
        lifetime: Option<Duration>,
        /// Valid until it is revoked
        #[arg(long, conflicts_with = "lifetime")]
        no_expiry: bool,
        /// A network that it is limited to; may be given several times [default: all]
        #[arg(long = "network", value_name = "NETWORK", add = live(completion::networks))]
        networks: Vec<NetworkName>,
    },
    /// List the credentials
    #[command(visible_alias = "ls")]
    List(Watching),
    /// Revoke a credential
    #[command(aliases = ["remove", "delete", "rm"])]
    Revoke {
        /// The name of the credential
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
