//! `meshward-coordinator`: the CA, the API, the policy compiler and the distribution of one mesh.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::Parser;
use meshward_coordinator::{
    api, ca,
    config::{Config, USUAL_FILE},
    control,
    mesh::{Author, Mesh},
    metrics, plans, reactions, store,
};
use meshward_daemon::{Mistake, tls::Members};
use meshward_model::{
    api::{Context as ApiContext, CreateCredential, Role},
    control::{ALPN_JOIN, ALPN_SESSION},
    relay::ALPN_RELAY,
};
use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::ServerConfig;
use serde::Serialize;
use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use tracing::info;

/// The coordinator of a mesh: it distributes peer keys and policy to the nodes, and serves the API.
///
/// Starts with no configuration at all. Settings come from defaults, then a file, then MESHWARD_* variables, then flags.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    /// Configuration file, in TOML [default: /etc/meshward/coordinator.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
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
    /// Address and port for STUN, by which nodes behind NAT find out how they are seen [default: [::]:3478]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stun_listen: Option<SocketAddr>,
    /// One more DNS name or address for the certificate; may be given several times
    #[arg(long = "name", value_name = "NAME")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    /// How long a node's certificate is good, in seconds [default: 86400]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_seconds: Option<u64>,
}

/// Bytes that wait in the control channel's socket.
const RECEIVE_BUFFER: usize = 32 << 20;
/// Bytes of relayed packets that wait for one node, in each direction.
const RELAY_BUFFER: usize = 512 << 10;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    meshward_daemon::init_logging();
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => meshward_daemon::report("meshward-coordinator", &error),
    }
}

#[tokio::main]
async fn start(arguments: Arguments) -> Result<()> {
    let file = arguments.config.as_deref();
    let config: Config = meshward_daemon::config::load(file, Path::new(USUAL_FILE), &arguments.flags)?;
    if config.certificate_seconds < 30 {
        return Err(Mistake("configuration: certificate_seconds must be at least 30".into()).into());
    }
    prepare(&config.data_dir)?;
    let ca = ca::Ca::open(&config.data_dir)?;
    let store = store::Sqlite::open(&config.data_dir.join("mesh.db")).with_context(|| {
        format!(
            "{} cannot be opened; does another coordinator run on it?",
            config.data_dir.join("mesh.db").display()
        )
    })?;
    let lifetime = Duration::from_secs(config.certificate_seconds);
    let mesh = Mesh::open(ca, Box::new(store), lifetime)?;
    let certificate = Arc::new(ca::ServerCertificate::new(mesh.ca.clone(), config.names.clone())?);

    let (tcp, udp, listen) = listen(config.listen)?;
    let endpoint = quinn::Endpoint::new(
        Default::default(),
        Some(quic_config(&mesh, certificate.clone())?),
        udp,
        Arc::new(quinn::TokioRuntime),
    )?;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = api::TlsListener::new(TcpListener::from_std(tcp)?, Arc::new(tls))?;
    meshward_daemon::metrics::serve(config.metrics_listen, metrics::scrape(mesh.clone())).await?;
    meshward_coordinator::stun::serve(config.stun_listen).await?;
    first_credential(&mesh, &config, listen).await?;

    let router = api::router(mesh.clone());
    tokio::spawn(async move {
        axum::serve(listener, router.into_make_service_with_connect_info::<api::Origin>()).await
    });
    tokio::spawn(control::serve(mesh.clone(), endpoint.clone()));
    tokio::spawn(reactions::expire(mesh.clone()));
    info!(%listen, mesh = %mesh.ca.mesh, revision = %mesh.look(|world| world.revision), "coordinator ready");
    meshward_daemon::ended().await?;
    info!("coordinator ends");
    endpoint.close(0u32.into(), b"the coordinator ends");
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    Ok(())
}

fn prepare(data_dir: &Path) -> Result<()> {
    let prepare = || {
        fs::create_dir_all(data_dir)?;
        fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700))
    };
    prepare().map_err(|error: std::io::Error| {
        let dir = data_dir.display();
        Mistake(format!("cannot use the data folder {dir} ({error}); name another with --data-dir")).into()
    })
}

/// Binds both sockets to one port. Where the kernel has no IPv6, the unspecified address means IPv4's.
fn listen(wanted: SocketAddr) -> Result<(std::net::TcpListener, std::net::UdpSocket, SocketAddr)> {
    let bind = |address: SocketAddr| -> std::io::Result<_> {
        let tcp = std::net::TcpListener::bind(address)?;
        let address = SocketAddr::new(address.ip(), tcp.local_addr()?.port());
        let udp = std::net::UdpSocket::bind(address)?;
        tcp.set_nonblocking(true)?;
        widen(&udp);
        Ok((tcp, udp, address))
    };
    let bound = bind(wanted).or_else(|error| {
        if wanted.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != std::io::ErrorKind::AddrInUse {
            return bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted.port())));
        }
        Err(error)
    });
    bound.map_err(|error| {
        Mistake(format!("cannot listen on {wanted} ({error}); set another `listen`, such as [::]:8443"))
            .into()
    })
}

/// Room for the first packets of all nodes, which may come back at once. Who may not have that much gets what the kernel
/// gives (net.core.rmem_max), and lost packets are sent again.
fn widen(udp: &std::net::UdpSocket) {
    if setsockopt(udp, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(udp, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
}

fn quic_config(mesh: &Mesh, certificate: Arc<ca::ServerCertificate>) -> Result<quinn::ServerConfig> {
    let members = Members::of(mesh.ca.certificate.clone())?;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(members))
        .with_cert_resolver(certificate);
    tls.alpn_protocols = vec![ALPN_SESSION.to_vec(), ALPN_JOIN.to_vec(), ALPN_RELAY.to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let mut transport = quinn::TransportConfig::default();
    // The nodes keep their sessions alive.
    transport.max_idle_timeout(Some(meshward_daemon::SESSION_IDLE.try_into()?));
    transport.datagram_send_buffer_size(RELAY_BUFFER);
    transport.datagram_receive_buffer_size(Some(RELAY_BUFFER));
    transport.max_concurrent_uni_streams(0u8.into());
    transport.max_concurrent_bidi_streams(4u8.into());
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// At the first start, makes the operator's credential and writes what `meshctl` needs to use it.
async fn first_credential(mesh: &Mesh, config: &Config, listen: SocketAddr) -> Result<()> {
    let file = config.data_dir.join("admin.json");
    if mesh.look(|world| !world.credentials.is_empty()) {
        return Ok(());
    }
    let secret = api::secret();
    let host = if listen.ip().is_unspecified() { "127.0.0.1".into() } else { listen.ip().to_string() };
    let context = ApiContext {
        server: SocketAddr::new(host.parse()?, listen.port()).to_string(),
        ca: mesh.ca.pem.clone(),
        token: secret.clone(),
    };
    // Written first: a credential that nobody can read would lock the operator out.
    ca::write_private(&file, &serde_json::to_string_pretty(&context)?, 0o600)?;
    let author = Author::named("user:first-start");
    mesh.change(&author, |_| {
        Ok(plans::credentials::add(
            &CreateCredential { name: "admin".into(), role: Role::Admin, networks: vec![] },
            &secret,
        ))
    })
    .await
    .map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
    info!(file = %file.display(), "made the operator's credential; meshctl finds it on this machine, or with --context FILE");
    Ok(())
}
