//! `meshward-node`: the endpoints and workloads of one host.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use meshward_control_proto::MemberKind;
use meshward_node::{
    api,
    app::Node,
    config::{Config, USUAL_FILE},
    docker,
    folder::Folder,
    health, host_name, leaving, metrics,
    offloads::Offload,
    reachability::{home_relays, port_mapping, relays},
    relay_queue, runtimes, service_load, session,
};
use meshward_runtime::{
    Mistake,
    arguments::{ConfigArguments, Flags, LogArguments},
    config::Lasting,
    join::{self, InvitationSource},
    member::{Membership, Removed},
};
use meshward_types::{Labels, NodeName};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// The time within which the last changes must be on disk.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// The node daemon: it gives the workloads of this host their place in the mesh, and enforces
/// policy on every packet.
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
    common: ConfigArguments<NodeFlags>,
}

#[derive(clap::Args, Serialize)]
struct NodeFlags {
    /// Folder for keys, certificate and the last view [default: /var/lib/meshward/node]
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// The local API's socket [default: /run/meshward/node.sock]
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    /// Address and port for Prometheus [default: 127.0.0.1:7481]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_listen: Option<SocketAddr>,
    /// The first UDP port that is tried for an endpoint [default: 51820]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    first_port: Option<u16>,
    /// Number of threads that carry packets [default: one for each core]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    workers: Option<NonZeroUsize>,
    /// Leave an offload of the kernel alone, where one is broken; may be given several times
    #[arg(long = "disable-offload", value_name = "NAME")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disable_offloads: Vec<Offload>,
    /// An address at which other nodes reach this one; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    advertise: Vec<IpAddr>,
    /// Ask the router for ports of its own, by PCP or NAT-PMP, behind a NAT [default: true]
    #[arg(long, value_name = "true|false")]
    #[serde(skip_serializing_if = "Option::is_none")]
    port_mapping: Option<bool>,
    /// Age at which endpoints' keys are rotated [default: 7d]
    #[arg(long, value_name = "TIME", alias = "rotate-keys-seconds")]
    #[serde(skip_serializing_if = "Option::is_none")]
    rotate_keys: Option<Lasting>,
    /// A STUN server that tells how this node is seen; may be given several times [default: the
    /// coordinator, port 3478, and the relays]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stun: Vec<String>,
    /// The file with the resolvers that are asked for names outside of the mesh [default:
    /// /etc/resolv.conf]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    resolv_conf: Option<PathBuf>,
    /// Serve Docker's networks of the driver `meshward` by a plugin with this socket; Docker looks
    /// for it at
    /// /run/docker/plugins/meshward.sock
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    docker_plugin: Option<PathBuf>,
    /// Leave out labels of containers whose keys begin so, or take those that do after a `!`; may
    /// be given several times
    #[arg(long = "ignore-label", value_name = "PREFIX")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored_labels: Vec<String>,
    /// Docker's API, by which containers are measured [default: /var/run/docker.sock]
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    docker_socket: Option<PathBuf>,
    /// The socket of containerd or CRI-O, which run commands of health checks in pods [default:
    /// where it usually is]
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cri_socket: Option<PathBuf>,
    /// Let health checks of services run their commands in workloads (`exec`): whoever writes a
    /// network's policy chooses these [default: false]
    #[arg(long, value_name = "true|false")]
    #[serde(skip_serializing_if = "Option::is_none")]
    health_exec: Option<bool>,
    /// A registry that is asked for signatures without TLS, also in a private network; may be given
    /// several times
    #[arg(long = "insecure-registry", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    insecure_registries: Vec<String>,
    /// A registry that may be in a private network, and is asked for signatures with TLS; may be
    /// given several times
    #[arg(long = "private-registry", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    private_registries: Vec<String>,
    /// A host to which registries may send for signatures; may be given several times [default:
    /// none]
    #[arg(long = "registry-redirect", value_name = "HOST")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    registry_redirects: Vec<String>,
    /// A file like Docker's config.json, with the passwords of registries
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    registry_credentials: Option<PathBuf>,
    /// An OCI layout in which signatures of images are looked for, too; may be given several times
    #[arg(long = "image-layout", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    image_layouts: Vec<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Join a mesh with a token of `meshctl token create`, once
    Join {
        #[command(flatten)]
        invitation: InvitationSource,
        /// The node's name in the mesh [default: the host's name]
        #[arg(long)]
        name: Option<NodeName>,
        /// A label of the node; may be given several times
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// Be removed from the mesh after not being seen for this time [default: as the token says;
        /// without =TIME: 10m]
        #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
            default_missing_value = "10m")]
        ephemeral: Option<Lasting>,
        #[command(flatten)]
        common: ConfigArguments<NodeFlags>,
    },
    /// Leave the mesh: the coordinator forgets this node, its workloads are closed, its keys go
    Leave {
        /// Forget the mesh even if the coordinator cannot be reached; there, `meshctl node remove`
        /// is left to do
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        common: ConfigArguments<NodeFlags>,
    },
    /// Run the daemon; the same as giving no command
    Run {
        #[command(flatten)]
        common: ConfigArguments<NodeFlags>,
    },
}

impl Flags for NodeFlags {
    const CONFIG_FILE: &'static str = USUAL_FILE;
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    meshward_runtime::init_logging(arguments.log.log_format);
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => meshward_runtime::report("meshward-node", &error),
    }
}

#[tokio::main(worker_threads = 2)]
async fn start(arguments: Arguments) -> Result<()> {
    match arguments.verb {
        None => run(arguments.common).await,
        Some(Verb::Run { common }) => run(common).await,
        Some(Verb::Leave { force, common }) => {
            let (config, folder) = open(&common)?;
            let Membership { name, mesh, .. } = leaving::leave(&config, &folder, force).await?;
            meshward_runtime::say(format_args!("node {name} has left mesh {mesh}"));
            Ok(())
        }
        Some(Verb::Join { invitation, name, labels, ephemeral, common }) => {
            let (config, folder) = open(&common)?;
            if folder.removed_at().is_some() {
                leaving::forget(&config, &folder)?;
            }
            let forget_after = ephemeral.map(|time| time.0.as_secs());
            let name = match name {
                Some(name) => name,
                None => host_name()?,
            };
            let labels = Labels::parse_each(labels.iter().map(String::as_str))
                .map_err(|error| Mistake(error.to_string()))?;
            let membership =
                join::join(&folder, &invitation.read()?, name, labels, forget_after).await?;
            let Membership { mesh, name, .. } = membership;
            meshward_runtime::say(format_args!(
                "joined mesh {mesh} as node {name}; now run: meshward-node"
            ));
            Ok(())
        }
    }
}

fn open(common: &ConfigArguments<NodeFlags>) -> Result<(Config, Folder)> {
    let config: Config = common.load()?;
    let folder = Folder::open(&config.data_dir)?;
    Ok((config, folder))
}

async fn run(common: ConfigArguments<NodeFlags>) -> Result<()> {
    let (config, folder) = open(&common)?;
    allow_descriptors();
    // Clients of registries take the process's default; there is one provider in it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let membership = folder.membership()?.ok_or_else(|| {
        Mistake(
            "this machine has not joined a mesh; get a token with `meshctl token create` and \
            run: meshward-node join TOKEN@HOST"
                .into(),
        )
    })?;
    let (relay, relayed_orders) = relay_queue::channel();
    if let Some(at) = folder.removed_at() {
        leaving::mark_removed(&config, &membership, at);
        return Err(Removed::of(MemberKind::Node, membership.name).into());
    }
    let node = Node::restore(membership, config, folder, relay).await?;
    api::serve(node.clone()).await?;
    if let Some(plugin) = node.config.docker_plugin.clone() {
        docker::serve(node.clone(), &plugin).await?;
    }
    meshward_runtime::metrics::serve(node.config.metrics_listen, metrics::scrape(node.clone()))
        .await?;
    info!(
        node = %node.membership.name, mesh = %node.membership.mesh,
        socket = %node.config.socket.display(), "node ready"
    );
    health::start(node.clone())?;
    let session = tokio::spawn(session::keep(node.clone()));
    let mut tasks = start_tasks(&node, relayed_orders);
    let removed = tokio::select! {
        ended = meshward_runtime::ended() => ended.map(|()| false)?,
        _ = session => true,
    };
    match removed {
        // The interfaces stay: the next start takes them up again.
        false => info!("node ends; its workloads keep their interfaces"),
        true => leaving::close(&node).await,
    }
    tasks.shutdown().await;
    node.workloads.note_device_addresses();
    node.endpoints.stop_and_write_flows().await;
    let _ = tokio::time::timeout(LAST_WRITES, node.folder.flush()).await;
    let _ = std::fs::remove_file(&node.config.socket);
    if let Some(plugin) = &node.config.docker_plugin {
        let _ = std::fs::remove_file(plugin);
    }
    if removed {
        Err(Removed::of(MemberKind::Node, node.membership.name.clone()).into())
    } else {
        Ok(())
    }
}

/// Starts the node's background tasks, which run until the set is dropped.
fn start_tasks(node: &Arc<Node>, relayed: relay_queue::Receiver) -> JoinSet<()> {
    let Node { endpoints, workloads, reachability, .. } = &**node;
    let mut tasks = JoinSet::new();
    tasks.spawn(relays::keep_connections(reachability.clone(), relayed));
    tasks.spawn(home_relays::choose(reachability.clone()));
    tasks.spawn(port_mapping::keep(reachability.clone()));
    tasks.spawn(runtimes::measure(node.clone()));
    let own = workloads.clone();
    tasks.spawn(async move { own.look_after().await });
    let own = workloads.clone();
    tasks.spawn(async move { own.watch_triggers().await });
    let own = reachability.clone();
    tasks.spawn(async move { own.watch_paths().await });
    let own = node.clone();
    tasks.spawn(async move { own.watch_keys().await });
    let own = node.clone();
    tasks.spawn(async move { own.retry_endpoints().await });
    tasks.spawn(service_load::report(node.clone()));
    let own = endpoints.clone();
    tasks.spawn(async move { own.keep_flows().await });
    let own = endpoints.clone();
    tasks.spawn(async move { own.keep_names().await });
    let own = endpoints.clone();
    tasks.spawn(async move { own.watch_timestamps().await });
    tasks
}

/// Every workload is a descriptor: as many as the machine's settings allow.
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most));
    match raised {
        Ok(most) => debug!(most, "descriptors"),
        Err(error) => warn!("the limit of descriptors cannot be raised: {error}"),
    }
}

fn host_name() -> Result<NodeName> {
    let host = nix::unistd::gethostname()?;
    host_name::node_name(&host.to_string_lossy()).map_err(|error| Mistake(error).into())
}
