//! The relay's daemon. It keeps a link to the coordinator, by which it learns the mesh's nodes;
//! while the coordinator is away, it goes on serving those that it knows.

use crate::{cert_resolver::CertResolver, config::Config, members_file::MembersFile};
use anyhow::{Context, Result};
use meshward_control_proto::{
    COORDINATOR_NAME, Channel, MAX_UPDATE, MemberKind,
    relay::{FromRelay, ServedNode, ToRelay},
};
use meshward_relay::{
    forwarder::Forwarder,
    guard::Guard,
    listener::{self, Listener, ListenerConfig},
    metrics::{register_forwarder, register_guard},
    stun,
};
use meshward_runtime::{
    Mistake,
    csr::request,
    descriptors,
    dial::{Dial, Pauses, is_removed},
    frames,
    member::{Credentials, MemberFolder, Membership, Removed},
    metrics,
    sources::SourcePermit,
    tls::MemberCertificate,
    tunnel::Tunnels,
};
use meshward_types::{NodeName, relay::RelayId};
use parking_lot::RwLock;
use quinn::{Connection, Incoming, RecvStream};
use rustls::pki_types::CertificateDer;
use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The file with the nodes that may use the relay.
const MEMBERS: &str = "members.json";

/// Opens the data folder of a relay.
///
/// # Errors
/// Fails if the folder cannot be created.
pub(crate) fn open(data_dir: &Path) -> Result<MemberFolder> {
    MemberFolder::open(data_dir, MemberKind::Relay, &[])
}

/// Serves until the process gets a signal to end, or the relay is removed from the mesh.
///
/// # Errors
/// [`Mistake`] if the machine has not joined, or cannot listen on an address.
pub(crate) async fn run(config: Config) -> Result<()> {
    let folder = open(&config.data_dir)?;
    let membership = folder.membership()?.ok_or_else(|| {
        Mistake(
            "this machine is no relay of a mesh yet; get a token with `meshctl token create \
            --relay` and run: meshward-relay join TOKEN@HOST"
                .into(),
        )
    })?;
    let credentials = folder.credentials()?;
    if folder.removed_at().is_some() {
        return Err(Removed::of(MemberKind::Relay, membership.name).into());
    }
    let resolver = Arc::new(CertResolver::new(&credentials)?);
    let ca = CertificateDer::from(credentials.ca.clone());
    let guard = Guard::new(&config.strangers, descriptors::raise());
    let listener = ListenerConfig {
        listen: config.listen,
        ca,
        certificate: resolver.clone(),
        channels: &[Channel::Relay],
        alpn: &[],
    };
    let Listener { endpoint, tunnels, tls, address } = listener::open(listener, &guard)?;
    stun::serve(config.stun_listen).await?;
    let members: Option<HashMap<NodeName, String>> =
        folder.read_state(MEMBERS).map(|MembersFile { members }| members.into_iter().collect());
    let members = members.unwrap_or_default();
    let advertise = match config.advertise.is_empty() {
        true => vec![format!(":{}", address.port())],
        false => config.advertise.clone(),
    };
    let daemon = Arc::new(Daemon {
        folder,
        membership,
        advertise,
        stun_port: config.stun_listen.port(),
        members: RwLock::new(members),
        forwarder: Forwarder::default(),
        is_linked: AtomicBool::new(false),
        resolver,
        guard,
        tunnels,
    });
    info!(listen = %address, relay = %daemon.membership.name, "relay ready");
    metrics::serve(config.metrics_listen, scrape(daemon.clone())).await?;
    let mut tasks = tokio::task::JoinSet::new();
    let link = tokio::spawn(daemon.clone().hold_link());
    tasks.spawn(daemon.clone().accept(endpoint.clone()));
    // Over TLS there are tunnels only.
    tasks.spawn(tls.serve(|_| async {}));
    let removed = tokio::select! {
        ended = meshward_runtime::ended() => ended.map(|()| false)?,
        _ = link => true,
    };
    listener::close(&endpoint, "the relay ends").await;
    match removed {
        true => Err(Removed::of(MemberKind::Relay, daemon.membership.name.clone()).into()),
        false => Ok(()),
    }
}

/// Returns the function that makes the registry of each scrape.
fn scrape(daemon: Arc<Daemon>) -> metrics::Scrape {
    Arc::new(move || {
        let daemon = daemon.clone();
        Box::pin(async move {
            metrics::with_process("meshward_relay", env!("CARGO_PKG_VERSION"), |registry| {
                let members = daemon.members.read().len() as u64;
                metrics::number(
                    registry,
                    "members",
                    "Nodes that packets may be relayed to",
                    members,
                );
                let connected = u64::from(daemon.is_linked.load(Relaxed));
                metrics::number(
                    registry,
                    "connected",
                    "1 while there is a link to the coordinator",
                    connected,
                );
                register_guard(registry, &daemon.guard);
                register_forwarder(registry, &daemon.forwarder);
            })
        })
    })
}

/// The coordinator has removed this relay from the mesh, so no further link is tried.
#[derive(Debug, thiserror::Error)]
#[error("this relay was removed from the mesh")]
struct Expelled;

/// The files that a relay keeps besides its membership.
pub(crate) const KEPT: [&str; 1] = [MEMBERS];

/// The connection of a node of the mesh.
struct Admitted {
    id: RelayId,
    connection: Connection,
}

/// The state of a running relay.
struct Daemon {
    folder: MemberFolder,
    membership: Membership,
    advertise: Vec<String>,
    stun_port: u16,
    /// The nodes that may use it, with the keys of their certificates.
    members: RwLock<HashMap<NodeName, String>>,
    forwarder: Forwarder,
    /// `true` while there is a link to the coordinator.
    is_linked: AtomicBool,
    resolver: Arc<CertResolver>,
    guard: Arc<Guard>,
    tunnels: Arc<Tunnels>,
}

impl Daemon {
    /// Serves connections of nodes until the endpoint is closed.
    async fn accept(self: Arc<Self>, endpoint: quinn::Endpoint) {
        let serve = |incoming, from, permit| {
            let daemon = self.clone();
            async move {
                match daemon.admit(incoming, from, permit).await {
                    Ok(Admitted { id, connection }) => {
                        if let Err(error) = daemon.forwarder.serve(id, connection).await {
                            debug!("refused: {error:#}");
                        }
                    }
                    Err(error) => debug!("refused: {error:#}"),
                }
            }
        };
        listener::accept(endpoint, self.tunnels.clone(), self.guard.clone(), serve).await;
    }

    /// Finishes a handshake, and checks that the client is a node of the mesh.
    async fn admit(
        &self,
        incoming: Incoming,
        from: SocketAddr,
        permit: SourcePermit,
    ) -> Result<Admitted> {
        let connection = listener::finish_handshake(incoming, permit).await?;
        let certificate = listener::peer_certificate(&connection)?;
        let known = self.members.read().get(&certificate.node).cloned();
        if certificate.kind != MemberKind::Node || known != Some(certificate.key.to_string()) {
            self.guard.note_failure(from.ip(), "a certificate", std::time::Instant::now());
            connection.close(2u32.into(), b"this is no node of the mesh");
            anyhow::bail!("{} is no node of the mesh", certificate.node);
        }
        listener::check_unexpired(&certificate)?;
        self.guard.note_known(from.ip());
        self.tunnels.trust(connection.remote_address(), &format!("node:{}", certificate.node));
        listener::widen_for_member(&connection);
        Ok(Admitted { id: RelayId::of(&certificate.node), connection })
    }

    /// Holds links to the coordinator until this relay is removed from the mesh.
    async fn hold_link(self: Arc<Self>) {
        let mut pauses = Pauses::default();
        loop {
            let begun = Instant::now();
            let ended = self.hold_one_link().await;
            // Without a link, nobody announces which start of a node's daemon has its session.
            self.forwarder.set_sessions([]);
            self.is_linked.store(false, Relaxed);
            if ended.as_ref().is_err_and(anyhow::Error::is::<Expelled>) {
                warn!("this relay was removed from the mesh: it ends");
                if let Err(error) =
                    self.folder.keep_removed(OffsetDateTime::now_utc().unix_timestamp() as u64)
                {
                    warn!("cannot write that the relay was removed: {error:#}");
                }
                return;
            }
            let reason = ended
                .err()
                .map_or_else(|| "it was closed".to_owned(), |error| format!("{error:#}"));
            warn!("no link to the coordinator: {reason}; known nodes are still served");
            pauses.wait(begun).await;
        }
    }

    /// Holds a link until it ends, or the relay has a renewed certificate.
    async fn hold_one_link(&self) -> Result<()> {
        let Credentials { ca, certificate, key } = self.folder.credentials()?;
        let dial = Dial::for_member(&ca, &certificate, &key, Channel::RelayLink, COORDINATOR_NAME)?;
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
            ended = self.apply_messages(&mut receive) => ended,
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

    /// Applies the coordinator's messages; returns when a new link is to be opened, with the
    /// renewed certificate.
    async fn apply_messages(&self, receive: &mut RecvStream) -> Result<()> {
        loop {
            match frames::receive(receive, MAX_UPDATE).await? {
                ToRelay::Members(members) => {
                    let members = members.into_iter().map(|served| (served.node, served.key));
                    let members: HashMap<_, _> = members.collect();
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
                    for name in &gone {
                        self.forwarder.end(RelayId::of(name));
                    }
                }
                ToRelay::Admit(ServedNode { node: name, key }) => {
                    let before = self.members.write().insert(name.clone(), key.clone());
                    if before.is_some_and(|before| before != key) {
                        self.forwarder.end(RelayId::of(&name));
                    }
                }
                ToRelay::Expel(name) => {
                    self.members.write().remove(&name);
                    self.forwarder.end(RelayId::of(&name));
                    info!(node = %name, "removed from the mesh: cut");
                }
                ToRelay::Sessions(sessions) => {
                    let ids = sessions.iter().map(|own| (RelayId::of(&own.node), own.instance));
                    self.forwarder.set_sessions(ids);
                    continue;
                }
                ToRelay::Session { node, instance } => {
                    self.forwarder.set_session(RelayId::of(&node), instance);
                    continue;
                }
                ToRelay::Renewed { certificate } => {
                    self.folder.keep_certificate(&certificate);
                    self.resolver.replace(&self.folder.credentials()?)?;
                    info!("certificate renewed");
                    return Ok(());
                }
            }
            let members = self.members.read().clone().into_iter().collect();
            self.folder.write_state_later(MEMBERS, &MembersFile { members })?;
        }
    }
}
