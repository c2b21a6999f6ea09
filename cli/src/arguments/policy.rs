//! Commands about policy, quarantine and the audit log.

use super::common::{Watching, duration, live};
use crate::completion;
use clap::{Args, Subcommand};
use meshward_types::{
    LabelKey, NetworkName, OutsideTarget, PortSpec, Revision, Selector, ServiceName,
};
use std::{path::PathBuf, time::Duration};

#[derive(Args)]
pub(crate) struct Sources {
    /// YAML files, or folders with YAML files (*.yaml, *.yml); - is standard input
    #[arg(value_name = "FILE|FOLDER")]
    pub paths: Vec<PathBuf>,
    /// A YAML file or a folder, as above; may be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE|FOLDER")]
    pub more: Vec<PathBuf>,
}

#[derive(Args)]
pub(crate) struct OfNetwork {
    /// The network, if there are several
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
}

#[derive(Subcommand)]
pub(crate) enum Policy {
    /// Apply policies to the networks that they name, all or none
    Apply {
        #[command(flatten)]
        sources: Sources,
        /// Remove the policies of networks that no file names
        #[arg(long)]
        prune: bool,
        /// Only if the network's policy is still the one that this revision made (`policy log`); 0:
        /// if it has none
        #[arg(long, value_name = "REVISION", conflicts_with = "prune")]
        if_revision: Option<Revision>,
        /// The reason, for the log
        #[arg(short, long)]
        message: Option<String>,
        /// Reset both ends of every TCP connection that is not allowed any more, so that
        /// applications notice at once
        #[arg(long)]
        reset: bool,
    },
    /// Check policies: syntax, tests, rules that do nothing, selectors that match nothing,
    /// guardrails
    ///
    /// Asks the coordinator, if there is one, because it knows the workloads.
    Check {
        #[command(flatten)]
        sources: Sources,
        /// Do not ask the coordinator
        #[arg(long)]
        offline: bool,
        /// Fail on suspicious rules, too
        #[arg(long)]
        strict: bool,
    },
    /// Show which links would open and close, and how many live flows would be cut; or what changed
    /// between two revisions
    Diff {
        /// A revision, and another [default: now]
        #[arg(value_name = "REVISION", num_args = 0..=2, conflicts_with = "more")]
        revisions: Vec<Revision>,
        /// YAML files or folders that are not applied yet; may be given several times
        #[arg(
            short = 'f',
            long = "file",
            value_name = "FILE|FOLDER",
            required_unless_present = "revisions"
        )]
        more: Vec<PathBuf>,
        /// Compare the texts instead of the links
        #[arg(long, conflicts_with = "more")]
        text: bool,
        #[command(flatten)]
        of: OfNetwork,
    },
    /// Print the policy of a network
    Get {
        /// The network, if there are several
        #[arg(add = live(completion::networks))]
        network: Option<NetworkName>,
    },
    /// Edit the policy of a network, and apply it, unless somebody else has changed it meanwhile
    ///
    /// It is opened in the editor that VISUAL or EDITOR names, else in vi. What is saved is
    /// checked; with mistakes it is opened again, and they stand below the lines that they are
    /// about. Saved as it was, or empty, nothing happens. What is not applied is kept in a file,
    /// which is named.
    Edit {
        /// The network, if there are several
        #[arg(add = live(completion::networks))]
        network: Option<NetworkName>,
        /// The reason, for the log
        #[arg(short, long)]
        message: Option<String>,
        /// Reset both ends of every TCP connection that is not allowed any more, so that
        /// applications notice at once
        #[arg(long)]
        reset: bool,
    },
    /// List the revisions of a network's policy: who made them, when, why and from where
    Log {
        #[command(flatten)]
        of: OfNetwork,
        /// The number of lines
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
        /// Only if the network's policy is still the one that this revision made
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<Revision>,
        #[command(flatten)]
        of: OfNetwork,
        /// The reason, for the log
        #[arg(short, long)]
        message: Option<String>,
        /// Reset both ends of every TCP connection that is not allowed any more, so that
        /// applications notice at once
        #[arg(long)]
        reset: bool,
    },
    /// Write the smallest policy that allows the flows that were seen
    Suggest {
        #[command(flatten)]
        of: OfNetwork,
        /// Flows that began in this time
        #[arg(long, default_value = "1h", value_parser = duration)]
        since: Duration,
        /// Also allow flows that were denied
        #[arg(long)]
        with_denied: bool,
    },
    /// Print the JSON Schema of policies, for editors
    Schema,
}

#[derive(Args)]
pub(crate) struct Explain {
    /// The labels of the client
    #[arg(long, value_name = "SELECTOR")]
    pub from: Selector,
    /// The labels of the server
    #[arg(long, value_name = "SELECTOR", required_unless_present_any = ["service", "outside"])]
    pub to: Option<Selector>,
    /// The service that the client connects to, instead of the server's labels
    #[arg(long, conflicts_with = "to", add = live(completion::services))]
    pub service: Option<ServiceName>,
    /// The address or domain name outside of the mesh that the flow is to; `--to` names the egress
    /// gateway then [default: any]
    #[arg(long, value_name = "ADDRESS|NAME", conflicts_with = "service")]
    pub outside: Option<OutsideTarget>,
    /// The port, such as tcp/5432, udp/53, icmp; with --service, a port of the service
    #[arg(long, value_name = "PORT")]
    pub port: PortSpec,
    /// The network, if there are several
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
    /// By the policies and quarantines of this revision [default: those of now]
    #[arg(long = "at", value_name = "REVISION")]
    pub revision: Option<Revision>,
}

#[derive(Subcommand)]
pub(crate) enum QuarantineVerb {
    /// List the quarantines in force
    #[command(visible_alias = "ls")]
    List(Watching),
}

#[derive(Args)]
#[group(skip)]
pub(crate) struct Quarantine {
    #[command(flatten)]
    pub target: Target,
    /// Clients that may still reach the workloads, except where guardrails deny it; unless you are
    /// an admin, only clients that the policy lists under `forensics`
    #[arg(long, value_name = "SELECTOR")]
    pub allow_from: Option<Selector>,
    /// The time for which it lasts [default: until it is released]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub lasts: Option<Duration>,
    /// The reason, for the log
    #[arg(short, long)]
    pub message: Option<String>,
    /// Quarantine even if no workload matches now: it holds those that start later
    #[arg(long)]
    pub even_if_none: bool,
    /// Reset both ends of every TCP connection that is cut, so that applications notice at once
    #[arg(long)]
    pub reset: bool,
}

#[derive(Args)]
pub(crate) struct Target {
    /// Labels, such as app=web,env!=prod; or the id of one workload
    #[arg(value_name = "SELECTOR|WORKLOAD", add = live(completion::selected))]
    pub what: Option<String>,
    /// Workloads that have this label, whatever its value; may be given several times
    #[arg(long, value_name = "KEY")]
    pub label_exists: Vec<LabelKey>,
    /// Only in this network
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
}

#[derive(Args, Clone)]
pub(crate) struct Audit {
    /// The number of lines, the newest first [default: 30, or all of them with --after]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Only the lines of later revisions than this
    #[arg(long, value_name = "REVISION")]
    pub after: Option<Revision>,
    /// Only the lines of earlier revisions than this
    #[arg(long, value_name = "REVISION")]
    pub before: Option<Revision>,
    /// Only what this one did: user:NAME, node:NAME, trigger:NAME
    #[arg(long, value_name = "WHO")]
    pub actor: Option<String>,
    /// Print new lines as they come, the oldest first; in JSON one object a line
    #[arg(short, long, conflicts_with_all = ["before", "watch"])]
    pub follow: bool,
    #[command(flatten)]
    pub watching: Watching,
}
