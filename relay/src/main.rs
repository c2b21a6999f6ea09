//! `meshward-relay`: forwards encrypted packets between nodes that cannot reach each other.
#![forbid(unsafe_code)]

mod cert_resolver;
mod config;
mod daemon;
mod members_file;

use crate::config::{Config, USUAL_FILE};
use anyhow::Result;
use clap::{Parser, Subcommand};
use meshward_runtime::{
    arguments::{ConfigArguments, Flags, LogArguments},
    join::{self, InvitationSource},
};
use meshward_types::{Labels, NodeName};
use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

/// A relay of a mesh: it passes sealed packets on between nodes that cannot reach each other.
///
/// Settings come from defaults, then a file, then MESHWARD_* variables, then flags.
#[derive(Parser)]
#[command(version, max_term_width = 110, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    common: ConfigArguments<RelayFlags>,
}

#[derive(Subcommand)]
enum Verb {
    /// Join a mesh with a token of `meshctl token create --relay`, once
    Join {
        #[command(flatten)]
        invitation: InvitationSource,
        /// The relay's name in the mesh
        #[arg(long)]
        name: NodeName,
        #[command(flatten)]
        common: ConfigArguments<RelayFlags>,
    },
}

#[derive(clap::Args, Serialize)]
struct RelayFlags {
    /// Where the certificate and the list of nodes are kept [default: /var/lib/meshward/relay]
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Address and port for nodes, UDP and TCP [default: [::]:7443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    /// Address and port for STUN [default: [::]:3478]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stun_listen: Option<SocketAddr>,
    /// Where nodes reach the relay; may be given several times [default: where the coordinator sees
    /// it]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    advertise: Vec<String>,
    /// Address and port for Prometheus, over plain HTTP [default: 127.0.0.1:7482]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_listen: Option<SocketAddr>,
}

impl Flags for RelayFlags {
    const CONFIG_FILE: &'static str = USUAL_FILE;
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    meshward_runtime::init_logging(arguments.log.log_format);
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => meshward_runtime::report("meshward-relay", &error),
    }
}

#[tokio::main]
async fn start(arguments: Arguments) -> Result<()> {
    let Some(Verb::Join { invitation, name, common }) = arguments.verb else {
        return daemon::run(arguments.common.load()?).await;
    };
    let folder = daemon::open(&common.load::<Config>()?.data_dir)?;
    if folder.removed_at().is_some() {
        folder.forget_membership(&daemon::KEPT)?;
    }
    let membership =
        join::join(&folder, &invitation.read()?, name, Labels::default(), None).await?;
    meshward_runtime::say(format_args!(
        "joined mesh {} as relay {}; now run: meshward-relay",
        membership.mesh, membership.name
    ));
    Ok(())
}
