//! The control channel: QUIC, on which machines join and nodes hold their sessions.

mod inbox;
mod limits;
mod member;
mod relay_link;
mod session;

use crate::mesh::{ChangeContext, Mesh};
use anyhow::{Context, Result};
use limits::FIRST_MESSAGE;
use member::MemberConnection;
use meshward_control_proto::{
    CLOSE_REMOVED, Channel, JoinReply, JoinRequest, MAX_JOIN_FRAME, MemberKind,
};
use meshward_control_state::{
    Refusal,
    plans::{nodes, relays, tokens},
    world::World,
};
use meshward_relay::listener::{
    accept, check_unexpired, finish_handshake, peer_certificate, widen_for_member,
};
use meshward_runtime::{
    frames,
    sources::{Seldom, SourcePermit},
    tls::{MemberCertificate, clocks_apart},
    tunnel::Tunnels,
};
use meshward_types::relay::RelayId;
use quinn::{
    Connection, Endpoint, Incoming, RecvStream, SendStream, crypto::rustls::HandshakeData,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tracing::{debug, info, warn};

/// Serves the control channel until the endpoint is closed.
pub async fn serve(mesh: Arc<Mesh>, endpoint: Endpoint, tunnels: Arc<Tunnels>) {
    let serve = |incoming: Incoming, from: SocketAddr, permit| {
        let (mesh, tunnels) = (mesh.clone(), tunnels.clone());
        async move {
            if let Err(error) = serve_connection(&mesh, &tunnels, incoming, from, permit).await {
                log_ended(from, &error);
            }
        }
    };
    accept(endpoint, tunnels.clone(), mesh.guard.clone(), serve).await;
}

/// Logs why a connection ended, at most five times a second: strangers can end as many as they
/// like.
fn log_ended(from: SocketAddr, error: &anyhow::Error) {
    static LINES: Seldom = Seldom::every(Duration::from_millis(200));
    if let Some(unlogged) = LINES.due(std::time::Instant::now()) {
        info!(%from, unlogged_before = unlogged, "control connection ended: {error:#}");
    }
}

async fn serve_connection(
    mesh: &Arc<Mesh>,
    tunnels: &Tunnels,
    incoming: Incoming,
    from: SocketAddr,
    permit: SourcePermit,
) -> Result<()> {
    let connection = finish_handshake(incoming, permit).await?;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let alpn = data.and_then(|data| data.protocol).unwrap_or_default();
    let (channel, version) =
        Channel::negotiated(&alpn).context("the client asked for an unknown protocol")?;
    debug!(%from, ?channel, version = version.0, "connected");
    if channel == Channel::Join {
        let Some(_permit) = mesh.guard.permit_join(from.ip(), std::time::Instant::now()) else {
            connection.close(5u32.into(), b"too many machines are joining; try again in a moment");
            anyhow::bail!("too many machines are joining from there");
        };
        let (send, receive) = first_stream(&connection).await?;
        return serve_join(mesh, &connection, from, send, receive).await;
    }
    let kind = if channel == Channel::RelayLink { MemberKind::Relay } else { MemberKind::Node };
    let certificate = member(mesh, &connection, from, kind)?;
    let who = format!("{kind}:{}", certificate.node);
    let Some(_permit) = mesh.members.open(&who, &alpn) else {
        connection.close(5u32.into(), b"too many connections of one member");
        anyhow::bail!("{who} has too many connections");
    };
    mesh.guard.note_known(from.ip());
    tunnels.trust(connection.remote_address(), &who);
    widen_for_member(&connection);
    if channel == Channel::Relay {
        check_unexpired(&certificate)?;
        return mesh.forwarder.serve(RelayId::of(&certificate.node), connection).await;
    }
    let (send, receive) = first_stream(&connection).await?;
    let member = MemberConnection { connection, certificate, from, send, receive };
    if channel == Channel::RelayLink {
        return relay_link::serve(mesh, member).await;
    }
    session::serve(mesh, member).await
}

async fn first_stream(connection: &Connection) -> Result<(SendStream, RecvStream)> {
    let opened = tokio::time::timeout(FIRST_MESSAGE, connection.accept_bi()).await;
    Ok(opened.context("the client opened no stream in time")??)
}

async fn serve_join(
    mesh: &Mesh,
    connection: &Connection,
    from: SocketAddr,
    mut send: SendStream,
    mut receive: RecvStream,
) -> Result<()> {
    let request: JoinRequest =
        tokio::time::timeout(FIRST_MESSAGE, frames::receive(&mut receive, MAX_JOIN_FRAME))
            .await??;
    let (kind, name) = (request.kind, request.name.clone());
    let reply = match join(mesh, request, from).await {
        Ok(Joined { certificate, site }) => {
            info!(%kind, %name, "joined");
            JoinReply::Accepted { certificate, mesh: mesh.ca.mesh.clone(), site }
        }
        Err(refusal) => {
            // Wrong tokens are logged elsewhere, at a bounded rate.
            if !matches!(refusal, Refusal::Missing(_)) {
                warn!(%kind, %name, %from, "refused to join: {refusal}");
            }
            JoinReply::Refused(refusal.to_string())
        }
    };
    frames::send(&mut send, &reply).await?;
    send.finish()?;
    // The reply is out once the other side has closed.
    let _ = tokio::time::timeout(FIRST_MESSAGE, connection.closed()).await;
    Ok(())
}

/// A machine that has joined.
struct Joined {
    /// The member's certificate (DER).
    certificate: Vec<u8>,
    /// The member's site, if the token names one.
    site: Option<String>,
}

/// Makes a machine a member of the mesh.
async fn join(mesh: &Mesh, request: JoinRequest, from: SocketAddr) -> Result<Joined, Refusal> {
    let now = std::time::Instant::now();
    if !mesh.guard.may_authenticate(from.ip(), now) {
        let text = "too many wrong join tokens came from this address; wait a minute";
        return Err(Refusal::Conflict(text.into()));
    }
    // Checked before anything that costs more: without a token, nothing is signed or verified.
    if let Err(refusal) = mesh.look(|world| tokens::check_known(world, &request.secret)) {
        mesh.guard.note_failure(from.ip(), "a join token", now);
        return Err(refusal);
    }
    let now = OffsetDateTime::now_utc().unix_timestamp();
    if let Some(apart) = clocks_apart(request.clock, now) {
        return Err(Refusal::Invalid(format!("{apart}; set this machine's clock, and join again")));
    }
    let signed = mesh
        .ca
        .sign_member(request.kind, &request.name, &request.csr, mesh.certificate_lifetime)
        .map_err(|error| Refusal::Invalid(format!("{error:#}")))?;
    let key = signed.certificate.key.to_string();
    let context = ChangeContext {
        origin: Some(from.ip().to_string()),
        ..ChangeContext::named(format!("{}:{}", request.kind, request.name))
    };
    let plan = |world: &World| match request.kind {
        MemberKind::Node => nodes::join(world, &request, &key, now),
        MemberKind::Relay => relays::join(world, &request, &key, now),
    };
    // Recorded before the node is a member: an ephemeral node has its whole time to begin a
    // session.
    if request.kind == MemberKind::Node {
        mesh.sessions.note_joining(&request.name);
    }
    let done = mesh.change(&context, plan).await;
    if mesh.look(|world| !world.nodes.contains_key(&request.name)) {
        mesh.sessions.forget_joining(&request.name);
    }
    Ok(Joined { certificate: signed.der, site: done?.outcome })
}

/// Returns the certificate of the member that has the connection.
///
/// # Errors
/// Fails if the certificate is not that of a current member; the connection is then closed.
fn member(
    mesh: &Mesh,
    connection: &Connection,
    from: SocketAddr,
    kind: MemberKind,
) -> Result<MemberCertificate> {
    let certificate = peer_certificate(connection)?;
    let known = mesh.look(|world| match kind {
        MemberKind::Node => world.nodes.get(&certificate.node).map(|node| node.key.clone()),
        MemberKind::Relay => world.relays.get(&certificate.node).map(|relay| relay.key.clone()),
    });
    if certificate.kind != kind || known != Some(certificate.key.to_string()) {
        mesh.guard.note_failure(from.ip(), "a certificate", std::time::Instant::now());
        connection.close(
            CLOSE_REMOVED.into(),
            format!("this {kind} was removed from the mesh").as_bytes(),
        );
        anyhow::bail!("{kind} {} is no member", certificate.node);
    }
    Ok(certificate)
}
