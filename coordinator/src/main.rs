//! `meshward-coordinator`: the CA, the API, the policy compiler and the distribution of one mesh.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use meshward_control_proto::Channel;
use meshward_coordinator::{
    admin, api, ca,
    config::{Config, USUAL_FILE},
    control,
    limits::Retention,
    load_follower,
    mesh::{Mesh, Settings},
    metrics, reactions,
    store::{self, StoreError},
};
use meshward_relay::{
    guard::Guard,
    listener::{self, Listener, ListenerConfig},
    stun,
};
use meshward_runtime::{
    Mistake,
    arguments::{ConfigArguments, Flags, LogArguments},
    config::Lasting,
    descriptors,
};
use serde::Serialize;
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tracing::info;

/// The coordinator of a mesh: it distributes peer keys and policy to the nodes, and serves the API.
///
/// Starts with no configuration at all. Settings come from defaults, then a file, then MESHWARD_*
/// variables, then flags.
#[derive(Parser)]
#[command(version, max_term_width = 110, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    log: LogArguments,
    #[command(flatten)]
    common: ConfigArguments<CoordinatorFlags>,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a data folder of a backup of `meshctl backup`; nothing of a mesh may be there
    Restore {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        common: ConfigArguments<RestoreFlags>,
    },
    /// Relays are a program of their own: says which command to run instead.
    #[command(hide = true)]
    Relay {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

#[derive(clap::Args, Serialize)]
struct RestoreFlags {
    /// Where the CA, the database and the first credential are to be
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
}

#[derive(clap::Args, Serialize)]
struct CoordinatorFlags {
    /// Where the CA, the database and the first credential are kept
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Address and port for nodes (UDP) and the API (TCP) [default: [::]:7443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    /// Address and port for Prometheus [default: 127.0.0.1:7480]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_listen: Option<SocketAddr>,
    /// Address and port for STUN, by which nodes behind NAT find out how they are seen [default:
    /// [::]:3478]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stun_listen: Option<SocketAddr>,
    /// One more DNS name or address for the certificate; may be given several times
    #[arg(long = "name", value_name = "NAME")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    /// The lifetime of a node's certificate [default: 24h]
    #[arg(long, value_name = "TIME", alias = "certificate-seconds")]
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_lifetime: Option<Lasting>,
    /// A private network in which webhooks of policies may be; may be given several times [default:
    /// none]
    #[arg(long = "webhook-network", value_name = "CIDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    webhook_networks: Vec<ipnet::IpNet>,
}

impl Flags for RestoreFlags {
    const CONFIG_FILE: &'static str = USUAL_FILE;
}

impl Flags for CoordinatorFlags {
    const CONFIG_FILE: &'static str = USUAL_FILE;
}

/// The minimum lifetime of certificates: shorter ones would be renewed all the time.
const MIN_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    meshward_runtime::init_logging(arguments.log.log_format);
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => meshward_runtime::report("meshward-coordinator", &error),
    }
}

#[tokio::main]
async fn start(arguments: Arguments) -> Result<()> {
    match arguments.verb {
        Some(Verb::Relay { arguments }) => return Err(relay_has_moved(&arguments).into()),
        Some(Verb::Restore { file, common }) => return restore(&file, &common.load()?),
        None => {}
    }
    let config: Config = arguments.common.load()?;
    let Lasting(lifetime) = config.certificate_lifetime;
    if lifetime < MIN_CERTIFICATE_LIFETIME {
        return Err(
            Mistake("configuration: certificate_lifetime must be at least 30s".into()).into()
        );
    }
    prepare(&config.data_dir)?;
    let ca = ca::Ca::open(&config.data_dir)?;
    let database = config.data_dir.join("mesh.db");
    let store = match store::Sqlite::open(&database) {
        Err(error @ StoreError::InUse(_)) => return Err(Mistake(error.to_string()).into()),
        other => other.with_context(|| format!("{} cannot be opened", database.display()))?,
    };
    let guard = Guard::new(&config.strangers, descriptors::raise());
    let settings = Settings {
        certificate_lifetime: lifetime,
        guard: guard.clone(),
        budget: config.nodes.clone(),
        webhook_networks: config.webhook_networks.clone(),
        data_dir: config.data_dir.clone(),
    };
    let mesh = Mesh::open(ca, Box::new(store), settings)?;
    let certificate = Arc::new(ca::ServerCertificate::new(mesh.ca.clone(), config.names.clone())?);

    let listener = ListenerConfig {
        listen: config.listen,
        ca: mesh.ca.certificate.clone(),
        certificate,
        channels: &Channel::ALL,
        alpn: &[b"http/1.1"],
    };
    let Listener { endpoint, tunnels, tls, address } = listener::open(listener, &guard)?;
    meshward_runtime::metrics::serve(config.metrics_listen, metrics::scrape(mesh.clone())).await?;
    stun::serve(config.stun_listen).await?;
    admin::keep(&mesh, &config, address).await?;
    reactions::reserve_blocks(&mesh).await;

    tokio::spawn(api::serve(tls, mesh.clone()));
    tokio::spawn(control::serve(mesh.clone(), endpoint.clone(), tunnels));
    start_tasks(&mesh, config.retention.clone());
    let revision = mesh.look(|world| world.revision);
    info!(listen = %address, mesh = %mesh.ca.mesh, %revision, "coordinator ready");
    meshward_runtime::ended().await?;
    info!("coordinator ends");
    listener::close(&endpoint, "the coordinator ends").await;
    Ok(())
}

/// Starts the tasks that run until the process ends.
fn start_tasks(mesh: &Arc<Mesh>, retention: Retention) {
    tokio::spawn(reactions::expire(mesh.clone()));
    tokio::spawn(load_follower::follow(mesh.clone()));
    let own = mesh.clone();
    tokio::spawn(async move { own.keep_retention(retention).await });
    let own = mesh.clone();
    tokio::spawn(async move { own.audit_failures().await });
    let own = mesh.clone();
    tokio::spawn(async move { own.sessions.track_last_seen().await });
}

fn restore(file: &Path, config: &Config) -> Result<()> {
    prepare(&config.data_dir)?;
    let backup = store::restore(file, &config.data_dir)
        .map_err(|error| Mistake(format!("not restored: {error:#}")))?;
    println!(
        "restored mesh {} at revision {}, {} records, to {}; now start the coordinator, at an \
        address by which the nodes know it",
        backup.mesh,
        backup.revision,
        backup.records,
        config.data_dir.display()
    );
    Ok(())
}

/// Returns the error for `meshward-coordinator relay`, with the command that replaces it.
fn relay_has_moved(arguments: &[std::ffi::OsString]) -> Mistake {
    let join = arguments.first().is_some_and(|first| first == "join");
    let command = if join { "meshward-relay join" } else { "meshward-relay" };
    Mistake(format!(
        "relays are a program of their own; run `{command}` with the same arguments instead"
    ))
}

fn prepare(data_dir: &Path) -> Result<()> {
    let prepare = || {
        fs::create_dir_all(data_dir)?;
        fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700))
    };
    prepare().map_err(|error: std::io::Error| {
        let dir = data_dir.display();
        Mistake(format!("cannot use the data folder {dir} ({error}); name another with --data-dir"))
            .into()
    })
}
