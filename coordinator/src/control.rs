//! The control channel: QUIC, on which machines join and nodes hold their sessions.

use crate::{
    listen::{accept, certificate, check_unexpired},
    mesh::{Author, Mesh, Refusal},
    plans::{nodes, relays, workloads::Report},
    reactions,
    relay::links,
    sessions::{Next, Session},
    world::World,
};
use anyhow::{Context, Result};
use meshward_daemon::{frames, tls::MemberCertificate, tunnel::Tunnels};
use meshward_model::{
    Change, NetworkName, NodeName, Revision,
    control::{
        ALPN_JOIN, ALPN_SESSION, FromCoordinator, FromNode, JoinReply, JoinRequest, MAX_FRAME,
        MAX_JOIN_FRAME, Part, encode, encode_update,
    },
    relay::{ALPN_RELAY, ALPN_RELAY_LINK, RelayId},
};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, crypto::rustls::HandshakeData};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tracing::{info, warn};

/// For how long a machine may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Messages of a node that may wait; then its stream is held back.
const QUEUE: usize = 256;
/// The most starts and stops of one node that are taken together.
const BATCH: usize = 512;
/// For how long a node may work out what it has.
const SHADOW: Duration = Duration::from_secs(30);
/// A node that has not read for this long is stuck: its session ends, and it is told all that it missed in its next.
const STUCK: Duration = Duration::from_secs(30);

/// Serves the control channel until the endpoint is closed.
pub async fn serve(mesh: Arc<Mesh>, endpoint: Endpoint, tunnels: Arc<Tunnels>) {
    let serve = |incoming: Incoming, place| {
        let mesh = mesh.clone();
        let from = tunnels.origin(incoming.remote_address());
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        async move {
            if let Err(error) = serve_connection(&mesh, incoming, from, place).await {
                info!(%from, "control connection ended: {error:#}");
            }
        }
    };
    accept(endpoint, serve).await;
}

async fn serve_connection(
    mesh: &Arc<Mesh>,
    incoming: Incoming,
    from: SocketAddr,
    place: OwnedSemaphorePermit,
) -> Result<()> {
    let connection = incoming.await.context("the handshake failed")?;
    drop(place);
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let alpn = data.and_then(|data| data.protocol).unwrap_or_default();
    if alpn == ALPN_RELAY {
        let certificate = member(mesh, &connection, Part::Node)?;
        check_unexpired(&certificate)?;
        let id = RelayId::of(&certificate.node);
        mesh.relay.serve(id, connection).await;
        return Ok(());
    }
    let opened = tokio::time::timeout(FIRST_MESSAGE, connection.accept_bi());
    let (send, receive) = opened.await.context("nothing was said")??;
    match &alpn[..] {
        ALPN_JOIN => serve_join(mesh, &connection, from, send, receive).await,
        ALPN_RELAY_LINK => {
            let certificate = member(mesh, &connection, Part::Relay)?;
            links::serve(mesh, connection, &certificate, from.ip(), send, receive).await
        }
        ALPN_SESSION => serve_session(mesh, connection.clone(), from, send, receive).await,
        _ => anyhow::bail!("an unknown protocol was asked for"),
    }
}

async fn serve_join(
    mesh: &Mesh,
    connection: &Connection,
    from: SocketAddr,
    mut send: SendStream,
    mut receive: RecvStream,
) -> Result<()> {
    let request: JoinRequest =
        tokio::time::timeout(FIRST_MESSAGE, frames::receive(&mut receive, MAX_JOIN_FRAME)).await??;
    let (part, name) = (request.part, request.name.clone());
    let reply = match join(mesh, request).await {
        Ok((certificate, site)) => {
            info!(%part, %name, "joined");
            JoinReply::Accepted { certificate, mesh: mesh.ca.mesh.clone(), site }
        }
        Err(refusal) => {
            warn!(%part, %name, %from, "refused to join: {refusal}");
            JoinReply::Refused(refusal.to_string())
        }
    };
    frames::send(&mut send, &reply).await?;
    send.finish()?;
    // The reply is out once the other side has closed.
    let _ = tokio::time::timeout(FIRST_MESSAGE, connection.closed()).await;
    Ok(())
}

async fn join(mesh: &Mesh, request: JoinRequest) -> Result<(Vec<u8>, Option<String>), Refusal> {
    let (certificate, read) = mesh
        .ca
        .sign_member(request.part, &request.name, &request.csr, mesh.certificate_lifetime)
        .map_err(|error| Refusal::Invalid(format!("{error:#}")))?;
    let (key, now) = (read.key.to_string(), OffsetDateTime::now_utc().unix_timestamp());
    let author = Author::named(format!("{}:{}", request.part, request.name));
    let plan = |world: &World| match request.part {
        Part::Node => nodes::join(world, &request, &key, now),
        Part::Relay => relays::join(world, &request, &key, now),
    };
    let done = mesh.change(&author, plan).await?;
    Ok((certificate, done.outcome))
}

async fn serve_session(
    mesh: &Arc<Mesh>,
    connection: Connection,
    from: SocketAddr,
    send: SendStream,
    mut receive: RecvStream,
) -> Result<()> {
    let certificate = member(mesh, &connection, Part::Node)?;
    let node = certificate.node.clone();
    let (to_session, messages) = mpsc::channel(QUEUE);
    let reader = tokio::spawn(async move {
        while let Ok(message) = frames::receive::<FromNode>(&mut receive, MAX_FRAME).await {
            if to_session.send(message).await.is_err() {
                break;
            }
        }
    });
    let mut serving = Serving { mesh: mesh.clone(), node: node.clone(), from, send, messages };
    let ended = serving.run(connection, &certificate).await;
    reader.abort();
    info!(%node, "session ended");
    ended
}

/// Whose connection this is, if the certificate is that of a member.
fn member(mesh: &Mesh, connection: &Connection, part: Part) -> Result<MemberCertificate> {
    let certificate = certificate(connection)?;
    let known = mesh.look(|world| match part {
        Part::Node => world.nodes.get(&certificate.node).map(|node| node.key.clone()),
        Part::Relay => world.relays.get(&certificate.node).map(|relay| relay.key.clone()),
    });
    if certificate.part != part || known != Some(certificate.key.to_string()) {
        connection.close(2u32.into(), format!("this {part} was removed from the mesh").as_bytes());
        anyhow::bail!("{part} {} is no member", certificate.node);
    }
    Ok(certificate)
}

/// One session as it runs.
struct Serving {
    mesh: Arc<Mesh>,
    node: NodeName,
    /// Where the node's packets come from.
    from: SocketAddr,
    send: SendStream,
    messages: mpsc::Receiver<FromNode>,
}

impl Serving {
    async fn run(&mut self, connection: Connection, certificate: &MemberCertificate) -> Result<()> {
        let first = tokio::time::timeout(FIRST_MESSAGE, self.messages.recv()).await?;
        let mut first = first.context("nothing was said")?;
        if let FromNode::Renew { csr } = first {
            self.renew(&csr).await?;
            if check_unexpired(certificate).is_err() {
                // Its new certificate is for its next session.
                let _ = tokio::time::timeout(FIRST_MESSAGE, connection.closed()).await;
                return Ok(());
            }
            first = tokio::time::timeout(FIRST_MESSAGE, self.messages.recv())
                .await?
                .context("nothing was said")?;
        }
        check_unexpired(certificate)?;
        let FromNode::Hello { version, revision, digest: theirs, endpoints, workloads: reports } = first
        else {
            anyhow::bail!("the session does not begin with a hello");
        };
        let (author, node) = (Author::node(&self.node), self.node.clone());
        let seen = self.from.ip();
        self.mesh.change(&author, |world| nodes::set_endpoints(world, &node, &endpoints, seen)).await?;
        self.report(vec![Report::All(reports)]).await?;
        // From this look on, the session is told of every revision.
        let begun = self.mesh.look(|world| {
            let index = world.nodes.index(&node)?;
            let session = Arc::new(Session::new(node.clone(), index, version, self.from, connection));
            self.mesh.sessions.add(session.clone());
            Some((session, world.revision, world.digest_of(&node)))
        });
        let (session, current, ours) = begun.context("the node was removed from the mesh")?;
        let _end = RemoveAtEnd(&self.mesh.clone(), session.clone());
        info!(node = %self.node, from = %self.from, %revision, "session begun");
        if ours == theirs {
            self.update(current, vec![]).await?;
        } else {
            self.compare(&session).await?;
        }
        self.serve(&session).await
    }

    async fn serve(&mut self, session: &Arc<Session>) -> Result<()> {
        // When what waits is to go.
        let mut due: Option<Instant> = None;
        let mut relays = self.mesh.relays.specs();
        let known = relays.borrow_and_update().to_vec();
        self.say(&FromCoordinator::Relays(known)).await?;
        loop {
            tokio::select! {
                Ok(()) = relays.changed() => {
                    let known = relays.borrow_and_update().to_vec();
                    self.say(&FromCoordinator::Relays(known)).await?;
                }
                () = session.wake.notified() => {
                    for (network, peer) in session.take_calls() {
                        self.say(&FromCoordinator::Called { network, peer }).await?;
                    }
                    for order in session.take_orders() {
                        self.say(&order).await?;
                    }
                    let now = Instant::now();
                    let pace = self.mesh.sessions.pace(session);
                    due = Some(if session.is_urgent() { now } else { due.unwrap_or(now + pace) });
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    match self.mesh.sessions.next(session) {
                        (_, Next::Wait) => {}
                        (revision, Next::Send(changes, urgent)) => {
                            self.say_encoded(&encode_update(revision, &changes, urgent)).await?;
                        }
                        (_, Next::Compare) => self.compare(session).await?,
                    }
                }
                message = self.messages.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    self.take(message, session).await?;
                }
            }
        }
    }

    /// Finds out what the node has, and sends what differs from it.
    async fn compare(&mut self, session: &Arc<Session>) -> Result<()> {
        self.say(&FromCoordinator::Compare).await?;
        let mut before = Vec::new();
        let shadow = loop {
            let message = tokio::time::timeout(SHADOW, self.messages.recv()).await;
            match message.context("the node did not say what it has")?.context("the session ended")? {
                FromNode::Shadow(shadow) => break shadow,
                _ if before.len() == QUEUE => anyhow::bail!("the node says everything but what it has"),
                other => before.push(other),
            }
        };
        let view = self.mesh.look(|world| {
            session.forget_backlog();
            world.view_of(&self.node)
        });
        let changes = view.changes_since(&shadow);
        self.update(view.revision, changes).await?;
        for message in before {
            self.take(message, session).await?;
        }
        Ok(())
    }

    async fn update(&mut self, revision: Revision, changes: Vec<Change>) -> Result<()> {
        self.say(&FromCoordinator::Update { revision, changes, urgent: true }).await
    }

    async fn say(&mut self, message: &FromCoordinator) -> Result<()> {
        self.say_encoded(&encode(message)).await
    }

    async fn say_encoded(&mut self, frame: &[u8]) -> Result<()> {
        let sent = tokio::time::timeout(STUCK, frames::send_encoded(&mut self.send, frame)).await;
        Ok(sent.context("the node has stopped reading")??)
    }

    async fn take(&mut self, message: FromNode, session: &Arc<Session>) -> Result<()> {
        let (author, node) = (Author::node(&self.node), self.node.clone());
        match message {
            FromNode::Enforced(revision) => session.note_enforced(revision),
            FromNode::Started(report) => {
                return self.take_reports(Report::Started(Box::new(report)), session).await;
            }
            FromNode::Stopped(id) => return self.take_reports(Report::Stopped(id), session).await,
            FromNode::Endpoint(report) => {
                let seen = self.from.ip();
                let reports = [report];
                self.mesh.change(&author, |world| nodes::set_endpoints(world, &node, &reports, seen)).await?;
            }
            FromNode::Call { network, peer } => self.pass_call(session, network, &peer),
            FromNode::Fired(fired) => reactions::fire(&self.mesh, &self.node, fired).await,
            FromNode::Renew { csr } => self.renew(&csr).await?,
            FromNode::Degraded(why) => session.note_degraded(why),
            FromNode::Hello { .. } | FromNode::Shadow(_) => anyhow::bail!("a message came out of turn"),
        }
        Ok(())
    }

    /// Tells a peer that the node calls it, if the two have something to say to each other.
    fn pass_call(&self, session: &Session, network: NetworkName, peer: &NodeName) {
        let meet = self.mesh.look(|world| {
            let (known, peer) = (world.networks.get(&network)?, world.nodes.index(peer)?);
            known.meeting(session.index()).contains(peer).then_some(())
        });
        if let (Some(()), Some(called)) = (meet, self.mesh.sessions.get(peer)) {
            called.call(network, self.node.clone());
        }
    }

    /// Takes a start or a stop, and whatever of these waits behind it.
    async fn take_reports(&mut self, first: Report, session: &Arc<Session>) -> Result<()> {
        let (mut reports, mut other) = (vec![first], None);
        while reports.len() < BATCH && other.is_none() {
            match self.messages.try_recv() {
                Ok(FromNode::Started(report)) => reports.push(Report::Started(Box::new(report))),
                Ok(FromNode::Stopped(id)) => reports.push(Report::Stopped(id)),
                Ok(message) => other = Some(message),
                Err(_) => break,
            }
        }
        self.report(reports).await?;
        match other {
            Some(message) => Box::pin(self.take(message, session)).await,
            None => Ok(()),
        }
    }

    async fn report(&mut self, reports: Vec<Report>) -> Result<()> {
        for (workload, reason) in self.mesh.admissions.report(&self.node, reports).await? {
            warn!(node = %self.node, %workload, "refused: {reason}");
            self.say(&FromCoordinator::Refused { workload, reason }).await?;
        }
        Ok(())
    }

    async fn renew(&mut self, csr: &[u8]) -> Result<()> {
        let (certificate, read) =
            self.mesh.ca.sign_member(Part::Node, &self.node, csr, self.mesh.certificate_lifetime)?;
        let (author, node, key) = (Author::node(&self.node), self.node.clone(), read.key.to_string());
        self.mesh.change(&author, |world| nodes::set_key(world, &node, &key)).await?;
        info!(node = %self.node, "certificate renewed");
        self.say(&FromCoordinator::Renewed { certificate }).await
    }
}

struct RemoveAtEnd<'a>(&'a Arc<Mesh>, Arc<Session>);

impl Drop for RemoveAtEnd<'_> {
    fn drop(&mut self) {
        self.0.sessions.remove(&self.1);
    }
}
