//! Commands about services and drains.

use super::{
    common::{Watching, duration, live},
    policy::OfNetwork,
};
use crate::completion;
use clap::{Args, Subcommand};
use meshward_types::{NetworkName, NodeName, ServiceName, WorkloadId};
use std::time::Duration;

#[derive(Subcommand)]
pub(crate) enum ServiceVerb {
    /// List the services
    #[command(visible_alias = "ls")]
    List(Services),
    /// Show a service and its instances
    Show {
        /// Its name
        #[arg(add = live(completion::services))]
        name: ServiceName,
        #[command(flatten)]
        of: OfNetwork,
        #[command(flatten)]
        watching: Watching,
    },
    /// Take a workload or a node out of services: the same as `meshctl drain`
    Drain(Drain),
}

#[derive(Args, Default, PartialEq, Eq)]
pub(crate) struct Services {
    /// Only those of this network
    #[arg(long, add = live(completion::networks))]
    pub network: Option<NetworkName>,
    #[command(flatten)]
    pub watching: Watching,
}

#[derive(Args)]
pub(crate) struct Drain {
    /// The id of the workload, or its name if only one has it
    #[arg(conflicts_with = "node", add = live(completion::workload_ids))]
    pub workload: Option<WorkloadId>,
    /// All workloads of this node, later ones included
    #[arg(long, add = live(completion::nodes))]
    pub node: Option<NodeName>,
    /// How long to wait until their flows are gone
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Do not wait until their flows are gone
    #[arg(long)]
    pub no_wait: bool,
    /// The reason, for the log
    #[arg(short, long)]
    pub message: Option<String>,
    #[command(flatten)]
    pub watching: Watching,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Undrain {
    /// The id of the workload, or its name if only one has it
    #[arg(add = live(completion::workload_ids))]
    pub workload: Option<WorkloadId>,
    /// All workloads of this node
    #[arg(long, add = live(completion::nodes))]
    pub node: Option<NodeName>,
}
