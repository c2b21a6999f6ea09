//! Commands about the workloads of this machine.

use super::common::{Patience, duration, live};
use crate::completion;
use clap::Args;
use meshward_types::{AcceptFrom, DomainName, LabelKey, Labels, NetworkName, WorkloadName};
use std::{path::PathBuf, str::FromStr, time::Duration};

/// The least time between two pings.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(crate) struct Workload {
    /// The network
    #[arg(long, add = live(completion::networks))]
    pub network: NetworkName,
    /// A label of the workload; may be given several times. `meshward.accept-from` says the same as
    /// --accept-from
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
    pub labels: Vec<Declared>,
    /// The workloads that may reach it, such as 'app=web, port=tcp/8080'; may be given several
    /// times. It narrows what policy allows, or opens where the network's policy says
    /// `declarations: open`
    #[arg(long, value_name = "LABELS, port=PORT")]
    pub accept_from: Vec<AcceptFrom>,
    /// The name of the workload [default: its id]
    #[arg(long)]
    pub name: Option<WorkloadName>,
    #[command(flatten)]
    pub patience: Patience,
}

/// A declaration by a label of a workload.
#[derive(Clone)]
pub(crate) enum Declared {
    Labels(Labels),
    AcceptFrom(AcceptFrom),
}

impl FromStr for Declared {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text
            .strip_prefix(meshward_types::accept::LABEL)
            .and_then(|rest| rest.strip_prefix('='))
        {
            Some(accept) => accept.parse().map(Self::AcceptFrom).map_err(|error| error.to_string()),
            None => text.parse().map(Self::Labels).map_err(|error| error.to_string()),
        }
    }
}

/// A label that comes or goes.
#[derive(Debug, Clone)]
pub(crate) enum LabelChange {
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
pub(crate) struct Run {
    #[command(flatten)]
    pub workload: Workload,
    /// A search domain for the command's names, such as shop.mesh; may be given several times
    /// [default: none]
    #[arg(long = "search", value_name = "DOMAIN")]
    pub search: Vec<DomainName>,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    pub workload: Workload,
    /// The namespace, as /run/netns/NAME or /proc/PID/ns/net
    #[arg(long, value_name = "PATH")]
    pub netns: PathBuf,
    /// A process; the workload is detached when it ends
    #[arg(long, value_name = "PID")]
    pub owner: Option<u32>,
    /// Attach the namespace of this host itself, so that every process here belongs to the workload
    #[arg(long)]
    pub host: bool,
}

#[derive(Args)]
pub(crate) struct Ping {
    /// A node, or a workload by its name, id or address
    #[arg(value_name = "NODE|WORKLOAD|ADDRESS", add = live(completion::targets))]
    pub target: String,
    /// The network, if there are several
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
    /// The number of pings
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..),
    )]
    pub count: u32,
    /// The time between two pings, at least 100ms
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Stop once the path is direct; if it never is, exit code 1
    #[arg(long)]
    pub until_direct: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < LEAST_INTERVAL => Err("it is at least 100ms".into()),
        time => Ok(time),
    }
}

#[derive(clap::Subcommand)]
pub(crate) enum DebugVerb {
    /// Write status, metrics, lists and logs into a file (tar, gzip), without tokens and private
    /// keys
    Bundle {
        /// The file, which must not be there yet
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// A log file to include, where systemd does not keep the log; may be given several times
        #[arg(long = "log", value_name = "FILE")]
        logs: Vec<PathBuf>,
    },
}
