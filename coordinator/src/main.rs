//! `meshward-coordinator`: the CA, the API, the policy compiler and the distribution of one mesh.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use meshward_coordinator::{
    admin, api, ca,
    config::{Config, USUAL_FILE},
    control,
    guard::Guard,
    listen::{self, Listening},
    mesh::{Mesh, Settings},
    metrics, reactions,
    relay::process,
    store::{self, StoreError},
};
use meshward_runtime::{
    LogFormat, Mistake,
    config::Lasting,
    descriptors,
    join::{self, InvitationSource},
};
use meshward_types::{
    Labels, NodeName,
    control::{ALPN_JOIN, ALPN_SESSION},
    relay::{ALPN_RELAY, ALPN_RELAY_LINK},
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
    /// In what form to log
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    log_format: LogFormat,
    /// Configuration file, in TOML [default: /etc/meshward/coordinator.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it, once")]
enum Verb {
    /// Make a data folder of a backup of `meshctl backup`; nothing of a mesh may be there
    Restore {
        /// The backup
        file: PathBuf,
        /// Configuration file, in TOML [default: /etc/meshward/coordinator.toml, if it is there]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: RestoreFlags,
    },
    /// Be a relay for a mesh instead: pass sealed packets on between nodes that cannot reach each
    /// other
    #[command(args_conflicts_with_subcommands = true)]
    Relay {
        #[command(subcommand)]
        verb: Option<RelayVerb>,
        #[command(flatten)]
        common: RelayArguments,
    },
}

#[derive(clap::Args, Serialize)]
struct RestoreFlags {
    /// Where the CA, the database and the first credential are to be
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum RelayVerb {
    /// Join a mesh with a token of `meshctl token create --relay`, once
    Join {
        #[command(flatten)]
        invitation: InvitationSource,
        /// The relay's name in the mesh
        #[arg(long)]
        name: NodeName,
        #[command(flatten)]
        common: RelayArguments,
    },
}

#[derive(clap::Args)]
struct RelayArguments {
    /// Configuration file, in TOML [default: /etc/meshward/relay.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: RelayFlags,
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

#[derive(clap::Args, Serialize)]
struct Flags {
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
    /// How long a node's certificate is good [default: 24h]
    #[arg(long, value_name = "TIME", alias = "certificate-seconds")]
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_lifetime: Option<Lasting>,
    /// A private network in which webhooks of policies may be; may be given several times [default:
    /// none]
    #[arg(long = "webhook-network", value_name = "CIDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    webhook_networks: Vec<ipnet::IpNet>,
}

/// Certificates that are good for less would be renewed all the time.
const SHORTEST_CERTIFICATE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    meshward_runtime::init_logging(arguments.log_format);
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => meshward_runtime::report("meshward-coordinator", &error),
    }
}

#[tokio::main]
async fn start(arguments: Arguments) -> Result<()> {
    match arguments.verb {
        Some(Verb::Relay { verb, common }) => return relay(verb, common).await,
        Some(Verb::Restore { file, config, flags }) => {
            return restore(&file, config.as_deref(), &flags);
        }
        None => {}
    }
    let file = arguments.config.as_deref();
    let config: Config =
        meshward_runtime::config::load(file, Path::new(USUAL_FILE), &arguments.flags)?;
    let Lasting(lifetime) = config.certificate_lifetime;
    if lifetime < SHORTEST_CERTIFICATE {
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

    let Listening { endpoint, tunnels, tls, address } = listen::open(
        config.listen,
        mesh.ca.certificate.clone(),
        certificate,
        &[ALPN_SESSION, ALPN_JOIN, ALPN_RELAY, ALPN_RELAY_LINK],
        &[b"http/1.1"],
        &guard,
    )?;
    meshward_runtime::metrics::serve(config.metrics_listen, metrics::scrape(mesh.clone())).await?;
    meshward_coordinator::stun::serve(config.stun_listen).await?;
    admin::keep(&mesh, &config, address).await?;

    tokio::spawn(tls.serve(Some(api::router(mesh.clone()))));
    tokio::spawn(control::serve(mesh.clone(), endpoint.clone(), tunnels));
    tokio::spawn(reactions::expire(mesh.clone()));
    let (kept, retention) = (mesh.clone(), config.retention.clone());
    tokio::spawn(async move { kept.keep_retention(retention).await });
    tokio::spawn({
        let mesh = mesh.clone();
        async move { mesh.audit_failures().await }
    });
    tokio::spawn({
        let mesh = mesh.clone();
        async move { mesh.sessions.hear().await }
    });
    info!(listen = %address, mesh = %mesh.ca.mesh, revision = %mesh.look(|world| world.revision), "coordinator ready");
    meshward_runtime::ended().await?;
    info!("coordinator ends");
    listen::close(&endpoint, "the coordinator ends").await;
    Ok(())
}

fn restore(file: &Path, config: Option<&Path>, flags: &RestoreFlags) -> Result<()> {
    let config: Config = meshward_runtime::config::load(config, Path::new(USUAL_FILE), flags)?;
    prepare(&config.data_dir)?;
    let backup = store::restore(file, &config.data_dir)
        .map_err(|error| Mistake(format!("not restored: {error:#}")))?;
    println!(
        "restored mesh {} at revision {}, {} records, to {}; now start the coordinator, at an address by which the nodes know it",
        backup.mesh,
        backup.revision,
        backup.records,
        config.data_dir.display()
    );
    Ok(())
}

async fn relay(verb: Option<RelayVerb>, common: RelayArguments) -> Result<()> {
    let load = |common: &RelayArguments| -> Result<process::Config> {
        let file = common.config.as_deref();
        Ok(meshward_runtime::config::load(file, Path::new(process::USUAL_FILE), &common.flags)?)
    };
    let Some(RelayVerb::Join { invitation, name, common }) = verb else {
        return process::run(load(&common)?).await;
    };
    let folder = process::open(&load(&common)?.data_dir)?;
    if folder.removed_at().is_some() {
        folder.forget_membership(&process::KEPT)?;
    }
    let membership =
        join::join(&folder, &invitation.read()?, name, Labels::default(), None).await?;
    meshward_runtime::say(format_args!(
        "joined mesh {} as relay {}; now run: meshward-coordinator relay",
        membership.mesh, membership.name
    ));
    Ok(())
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
