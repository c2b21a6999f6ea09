//! `meshward-coordinator relay`: a relay on a machine of its own. It holds a link to the
//! coordinator, by which it is told who the nodes are; with the coordinator gone it goes on serving
//! those that it knows.

use super::Relay;
use crate::{
    guard::Guard,
    limits::Strangers,
    listen::{self, Listening},
    stun,
};
use anyhow::{Context, Result};
use meshward_runtime::{
    Mistake, descriptors,
    dial::{Dial, Pauses, is_removed},
    frames,
    join::request,
    member::{Credentials, MemberFolder, Membership, Removed},
    metrics,
    sources::SourcePermit,
    tls::MemberCertificate,
    tunnel::Tunnels,
};
use meshward_types::{
    NodeName,
    control::{COORDINATOR_NAME, MAX_UPDATE, Part},
    relay::{ALPN_RELAY, ALPN_RELAY_LINK, FromRelay, RelayId, ToRelay},
};
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, Incoming, RecvStream};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Where the configuration is looked for if no file is named.
pub const USUAL_FILE: &str = "/etc/meshward/relay.toml";
/// The file with the nodes that may use the relay.
const MEMBERS: &str = "members.json";

/// The port of the metrics, unless it is configured otherwise.
const METRICS_PORT: u16 = 7482;

/// What can be configured. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the certificate and the list of nodes are kept.
    pub data_dir: PathBuf,
    /// Where nodes connect, QUIC over UDP and TLS over TCP.
    pub listen: SocketAddr,
    /// Where STUN is served.
    pub stun_listen: SocketAddr,
    /// Where nodes reach the relay, as `HOST:PORT`; where the coordinator sees it, with the port of
    /// `listen`, if none is given.
    pub advertise: Vec<String>,
    /// Where metrics are served, over plain HTTP.
    pub metrics_listen: SocketAddr,
    /// What those may take who have not authenticated.
    pub strangers: Strangers,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/meshward/relay".into(),
            listen: SocketAddr::from((
                Ipv6Addr::UNSPECIFIED,
                meshward_types::control::DEFAULT_PORT,
            )),
            stun_listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, meshward_types::stun::PORT)),
            advertise: vec![],
            metrics_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT)),
            strangers: Strangers::default(),
        }
    }
}

/// The folder of a relay.
///
/// # Errors
/// If it cannot be made.
pub fn open(data_dir: &Path) -> Result<MemberFolder> {
    MemberFolder::open(data_dir, Part::Relay, &[])
}

/// Serves until the process is to end.
///
/// # Errors
/// [`Mistake`] if the machine has not joined, or an address cannot be had.
pub async fn run(config: Config) -> Result<()> {
    let folder = open(&config.data_dir)?;
    let membership = folder.membership()?.ok_or_else(|| {
        Mistake("this machine is no relay of a mesh yet; get a token with `meshctl token create --relay` and run: meshward-coordinator relay join TOKEN@HOST".into())
    })?;
    let credentials = folder.credentials()?;
    if folder.removed_at().is_some() {
        return Err(Removed::of(Part::Relay, membership.name).into());
    }
    let shown = Arc::new(Shown(Mutex::new(certified(&credentials)?)));
    let ca = CertificateDer::from(credentials.ca.clone());
    let guard = Guard::new(&config.strangers, descriptors::raise());
    let Listening { endpoint, tunnels, tls, address } =
        listen::open(config.listen, ca, shown.clone(), &[ALPN_RELAY], &[], &guard)?;
    stun::serve(config.stun_listen).await?;
    let members: HashMap<NodeName, String> = folder.take_up_json(MEMBERS).unwrap_or_default();
    let advertise = match config.advertise.is_empty() {
        true => vec![format!(":{}", address.port())],
        false => config.advertise.clone(),
    };
    let station = Arc::new(Station {
        folder,
        membership,
        advertise,
        stun_port: config.stun_listen.port(),
        members: RwLock::new(members),
        relay: Relay::default(),
        is_linked: AtomicBool::new(false),
        shown,
        guard,
        tunnels,
    });
    info!(listen = %address, relay = %station.membership.name, "relay ready");
    metrics::serve(config.metrics_listen, scrape(station.clone())).await?;
    let mut tasks = tokio::task::JoinSet::new();
    let link = tokio::spawn(station.clone().hold_link());
    tasks.spawn(station.clone().accept(endpoint.clone()));
    // By TLS nothing comes but tunnels.
    tasks.spawn(tls.serve(None));
    let removed = tokio::select! {
        ended = meshward_runtime::ended() => ended.map(|()| false)?,
        _ = link => true,
    };
    listen::close(&endpoint, "the relay ends").await;
    match removed {
        true => Err(Removed::of(Part::Relay, station.membership.name.clone()).into()),
        false => Ok(()),
    }
}

/// The registry of a relay's metrics, made anew for each scrape.
fn scrape(station: Arc<Station>) -> metrics::Scrape {
    Arc::new(move || {
        let station = station.clone();
        Box::pin(async move {
            metrics::with_process("meshward_relay", env!("CARGO_PKG_VERSION"), |registry| {
                let members = station.members.read().len() as u64;
                metrics::number(registry, "members", "Nodes that may be relayed to", members);
                let linked = u64::from(station.is_linked.load(Relaxed));
                metrics::number(
                    registry,
                    "linked",
                    "1 while there is a link to the coordinator",
                    linked,
                );
                crate::metrics::guarded(registry, &station.guard);
                crate::metrics::relayed(registry, &station.relay);
            })
        })
    })
}

/// What ends a link for ever: the coordinator says that this relay is no member of the mesh any
/// more.
#[derive(Debug, thiserror::Error)]
#[error("this relay was removed from the mesh")]
struct Expelled;

/// What a relay keeps besides who it is.
pub const KEPT: [&str; 1] = [MEMBERS];

/// A relay as it runs.
struct Station {
    folder: MemberFolder,
    membership: Membership,
    advertise: Vec<String>,
    stun_port: u16,
    /// The nodes that may use it, with the keys of their certificates.
    members: RwLock<HashMap<NodeName, String>>,
    relay: Relay,
    /// Whether there is a link to the coordinator.
    is_linked: AtomicBool,
    shown: Arc<Shown>,
    guard: Arc<Guard>,
    tunnels: Arc<Tunnels>,
}

impl Station {
    async fn accept(self: Arc<Self>, endpoint: quinn::Endpoint) {
        let serve = |incoming, from, place| {
            let station = self.clone();
            async move {
                match station.admit(incoming, from, place).await {
                    Ok((id, connection)) => {
                        if let Err(error) = station.relay.serve(id, connection).await {
                            debug!("refused: {error:#}");
                        }
                    }
                    Err(error) => debug!("refused: {error:#}"),
                }
            }
        };
        listen::accept(endpoint, self.tunnels.clone(), self.guard.clone(), serve).await;
    }

    async fn admit(
        &self,
        incoming: Incoming,
        from: SocketAddr,
        place: SourcePermit,
    ) -> Result<(RelayId, Connection)> {
        let connection = listen::finish(incoming, place).await?;
        let certificate = listen::certificate(&connection)?;
        let known = self.members.read().get(&certificate.node).cloned();
        if certificate.part != Part::Node || known != Some(certificate.key.to_string()) {
            self.guard.note_failure(from.ip(), "a certificate", std::time::Instant::now());
            connection.close(2u32.into(), b"this is no node of the mesh");
            anyhow::bail!("{} is no node of the mesh", certificate.node);
        }
        listen::check_unexpired(&certificate)?;
        self.guard.note_known(from.ip());
        self.tunnels.trust(connection.remote_address(), &format!("node:{}", certificate.node));
        listen::widen_for_member(&connection);
        Ok((RelayId::of(&certificate.node), connection))
    }

    /// Holds links to the coordinator until this relay is removed from the mesh.
    async fn hold_link(self: Arc<Self>) {
        let mut pauses = Pauses::default();
        loop {
            let begun = Instant::now();
            let ended = self.hold_one().await;
            // Nobody says any more which start of a node has its session.
            self.relay.set_sessions([]);
            self.is_linked.store(false, Relaxed);
            if ended.as_ref().is_err_and(|error| error.is::<Expelled>()) {
                warn!("this relay was removed from the mesh: it ends");
                if let Err(error) =
                    self.folder.keep_removed(OffsetDateTime::now_utc().unix_timestamp() as u64)
                {
                    warn!("that it was removed could not be noted: {error:#}");
                }
                return;
            }
            let why = ended
                .err()
                .map_or_else(|| "it was closed".to_owned(), |error| format!("{error:#}"));
            warn!("no link to the coordinator: {why}; known nodes are served on");
            pauses.wait(begun).await;
        }
    }

    async fn hold_one(&self) -> Result<()> {
        let Credentials { ca, certificate, key } = self.folder.credentials()?;
        let dial = Dial::for_member(&ca, &certificate, &key, ALPN_RELAY_LINK, COORDINATOR_NAME)?;
        let reached = dial.dial(&self.membership.coordinator).await?;
        let (mut send, mut receive) = reached.connection.open_bi().await?;
        let hello = FromRelay::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            addresses: self.advertise.clone(),
            stun_port: self.stun_port,
        };
        frames::send(&mut send, &hello).await?;
        let read = MemberCertificate::read(&certificate)
            .context("the certificate is damaged; join again")?;
        let renewing = async {
            tokio::time::sleep(read.renewal_in(OffsetDateTime::now_utc().unix_timestamp())).await;
            frames::send(&mut send, &FromRelay::Renew { csr: request(&key)? }).await?;
            std::future::pending::<Result<()>>().await
        };
        let ended = tokio::select! {
            ended = self.listen(&mut receive) => ended,
            ended = renewing => ended,
        };
        if is_removed(&reached.connection) {
            return Err(Expelled.into());
        }
        ended.with_context(|| match reached.connection.close_reason() {
            Some(reason) => format!("the connection ended ({reason})"),
            None => "the link ended".to_owned(),
        })
    }

    /// Follows what the coordinator says; ends when the link has to be begun anew.
    async fn listen(&self, receive: &mut RecvStream) -> Result<()> {
        loop {
            match frames::receive(receive, MAX_UPDATE).await? {
                ToRelay::Members(members) => {
                    let members: HashMap<_, _> = members.into_iter().collect();
                    info!(nodes = members.len(), "linked to the coordinator");
                    self.is_linked.store(true, Relaxed);
                    let gone = {
                        let mut known = self.members.write();
                        let gone: Vec<NodeName> = known
                            .keys()
                            .filter(|name| members.get(*name) != known.get(*name))
                            .cloned()
                            .collect();
                        *known = members;
                        gone
                    };
                    gone.iter().for_each(|name| self.relay.end(RelayId::of(name)));
                }
                ToRelay::Admit(name, key) => {
                    let before = self.members.write().insert(name.clone(), key.clone());
                    if before.is_some_and(|before| before != key) {
                        self.relay.end(RelayId::of(&name));
                    }
                }
                ToRelay::Expel(name) => {
                    self.members.write().remove(&name);
                    self.relay.end(RelayId::of(&name));
                    info!(node = %name, "removed from the mesh: cut");
                }
                ToRelay::Sessions(sessions) => {
                    let ids =
                        sessions.iter().map(|(node, instance)| (RelayId::of(node), *instance));
                    self.relay.set_sessions(ids);
                    continue;
                }
                ToRelay::Session(node, instance) => {
                    self.relay.set_session(RelayId::of(&node), instance);
                    continue;
                }
                ToRelay::Renewed { certificate } => {
                    self.folder.keep_certificate(&certificate);
                    *self.shown.0.lock() = certified(&self.folder.credentials()?)?;
                    info!("certificate renewed");
                    return Ok(());
                }
            }
            self.folder.keep_json(MEMBERS, &*self.members.read())?;
        }
    }
}

/// The certificate that nodes are shown.
#[derive(Debug)]
struct Shown(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().clone())
    }
}

fn certified(credentials: &Credentials) -> Result<Arc<CertifiedKey>> {
    let Credentials { ca, certificate, key } = credentials;
    let chain = vec![CertificateDer::from(certificate.clone()), CertificateDer::from(ca.clone())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}
