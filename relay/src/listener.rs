//! The listener of coordinators and relays: QUIC over UDP, and TLS over TCP on the same port.

use crate::{
    guard::{Guard, Verdict},
    tls_listener::TlsListener,
};
use anyhow::{Context, Result};
use meshward_control_proto::Channel;
use meshward_runtime::{
    Mistake,
    sources::SourcePermit,
    tls::{MemberCertificate, Members, date},
    tunnel::{ALPN_TUNNEL, Tunnels},
};
use nix::sys::socket::{setsockopt, sockopt};
use quinn::{
    Connection, Endpoint, Incoming, Runtime, TokioRuntime, crypto::rustls::QuicServerConfig,
};
use rustls::{ServerConfig, pki_types::CertificateDer, server::ResolvesServerCert};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};
use time::OffsetDateTime;

/// Bytes that wait in the socket.
const SOCKET_BUFFER: usize = 32 << 20;
/// Bytes of relayed packets that wait for one node, in each direction.
const RELAY_BUFFER: usize = 512 << 10;

/// Time limit for a QUIC handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes that wait to be judged, and the bytes of their packets that come meanwhile, of one
/// and of all.
const UNJUDGED: usize = 4096;
const UNJUDGED_BYTES: u64 = 16 << 10;
const ALL_UNJUDGED_BYTES: u64 = 16 << 20;
/// The most bytes of one connection that wait to be read: of one that has not shown who it is, and
/// of a member's.
const STRANGER_WINDOW: u32 = 128 << 10;
const MEMBER_WINDOW: u32 = 2 << 20;

/// A listener: one port, over UDP and TCP.
pub struct Listener {
    /// For QUIC.
    pub endpoint: Endpoint,
    /// QUIC datagrams in TLS connections, for clients behind firewalls that block UDP.
    pub tunnels: Arc<Tunnels>,
    /// TLS over TCP.
    pub tls: TlsListener,
    /// The bound address, with the port that was chosen.
    pub address: SocketAddr,
}

/// Listens with a certificate: for members of the mesh with this CA over QUIC, for tunnels and what
/// `over_tls` names over TLS.
///
/// # Errors
/// [`Mistake`] if the address cannot be had.
pub fn open(
    wanted: SocketAddr,
    ca: CertificateDer<'static>,
    certificate: Arc<dyn ResolvesServerCert>,
    over_quic: &[Channel],
    over_tls: &[&[u8]],
    guard: &Arc<Guard>,
) -> Result<Listener> {
    let (tcp, udp, address) = bind(wanted)?;
    let tunnels = Tunnels::beside(TokioRuntime.wrap_udp_socket(udp)?);
    let quic = quic_config(Members::of(ca)?, certificate.clone(), over_quic)?;
    let endpoint = Endpoint::new_with_abstract_socket(
        Default::default(),
        Some(quic),
        tunnels.clone(),
        Arc::new(TokioRuntime),
    )?;
    let mut tls =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
    tls.alpn_protocols =
        over_tls.iter().chain([&ALPN_TUNNEL]).map(|protocol| protocol.to_vec()).collect();
    let tcp = tokio::net::TcpListener::from_std(tcp)?;
    let tls = TlsListener::new(tcp, Arc::new(tls), tunnels.clone(), guard.clone());
    Ok(Listener { endpoint, tunnels, tls, address })
}

/// Takes connections until the endpoint is closed. Each is served in a task of its own, from where
/// it comes, and holds its permit until the handshake is done.
pub async fn accept<F>(
    endpoint: Endpoint,
    tunnels: Arc<Tunnels>,
    guard: Arc<Guard>,
    serve: impl Fn(Incoming, SocketAddr, SourcePermit) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    while let Some(incoming) = endpoint.accept().await {
        let seen = incoming.remote_address();
        let from = tunnels.origin(seen);
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        // Who comes by a tunnel has received what was sent there.
        let proven = incoming.remote_address_validated() || tunnels.has(seen);
        match guard.judge(from.ip(), proven) {
            Verdict::Accept(permit) => drop(tokio::spawn(serve(incoming, from, permit))),
            Verdict::Retry => drop(incoming.retry()),
            // Said at once: who is kept waiting gives up, and the work that was begun for it is
            // lost.
            Verdict::Refuse => incoming.refuse(),
        }
    }
}

/// Finishes a handshake within [`HANDSHAKE`].
///
/// # Errors
/// If it failed or took too long.
pub async fn finish_handshake(incoming: Incoming, permit: SourcePermit) -> Result<Connection> {
    let connection = tokio::time::timeout(HANDSHAKE, incoming.into_future()).await;
    drop(permit);
    connection.context("the handshake took too long")?.context("the handshake failed")
}

/// Sets the receive window of an authenticated member.
pub fn widen_for_member(connection: &Connection) {
    connection.set_receive_window(MEMBER_WINDOW.into());
}

/// Ends what an endpoint serves, saying why.
pub async fn close(endpoint: &Endpoint, why: &str) {
    endpoint.close(0u32.into(), why.as_bytes());
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

/// Binds both sockets to one port. Where the kernel has no IPv6, the unspecified address means
/// IPv4's.
fn bind(wanted: SocketAddr) -> Result<(TcpListener, UdpSocket, SocketAddr)> {
    let bind = |address: SocketAddr| -> io::Result<_> {
        let tcp = TcpListener::bind(address)?;
        let address = SocketAddr::new(address.ip(), tcp.local_addr()?.port());
        let udp = UdpSocket::bind(address)?;
        tcp.set_nonblocking(true)?;
        widen(&udp);
        Ok((tcp, udp, address))
    };
    let bound = bind(wanted).or_else(|error| {
        if wanted.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse {
            return bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted.port())));
        }
        Err(error)
    });
    bound.map_err(|error| {
        Mistake(format!(
            "cannot listen on {wanted} ({error}); set another `listen`, such as [::]:8443"
        ))
        .into()
    })
}

/// Room for the first packets of all nodes, which may come back at once. Who may not have that much
/// gets what the kernel gives (`net.core.rmem_max`), and lost packets are sent again.
fn widen(udp: &UdpSocket) {
    if setsockopt(udp, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(udp, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
}

/// How QUIC is served to members and to those who want to be.
fn quic_config(
    members: Members,
    certificate: Arc<dyn ResolvesServerCert>,
    channels: &[Channel],
) -> Result<quinn::ServerConfig> {
    let mut tls =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(members))
            .with_cert_resolver(certificate);
    tls.alpn_protocols = channels.iter().flat_map(|channel| channel.alpn()).collect();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config
        .max_incoming(UNJUDGED)
        .incoming_buffer_size(UNJUDGED_BYTES)
        .incoming_buffer_size_total(ALL_UNJUDGED_BYTES);
    let mut transport = quinn::TransportConfig::default();
    // The nodes keep their sessions alive.
    transport.max_idle_timeout(Some(meshward_runtime::SESSION_IDLE.try_into()?));
    transport.datagram_send_buffer_size(RELAY_BUFFER);
    transport.datagram_receive_buffer_size(Some(RELAY_BUFFER));
    transport.ack_frequency_config(Some(meshward_runtime::seldom_acknowledged()));
    // One, at the beginning of a connection for relayed packets.
    transport.max_concurrent_uni_streams(1u8.into());
    transport.receive_window(STRANGER_WINDOW.into());
    // Relayed packets come in datagrams.
    let streams: u8 = if channels == [Channel::Relay] { 0 } else { 4 };
    transport.max_concurrent_bidi_streams(streams.into());
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The certificate that the other side of a connection has shown.
///
/// # Errors
/// If it has shown none of a member.
pub fn peer_certificate(connection: &Connection) -> Result<MemberCertificate> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer>>().ok());
    chain
        .and_then(|chain| MemberCertificate::read(chain.first()?))
        .context("the connection has no member's certificate")
}

/// Whether a certificate is good now: with one that is not, a member can do nothing but ask for
/// another.
///
/// # Errors
/// If it is not, with what the coordinator's clock says.
pub fn check_unexpired(certificate: &MemberCertificate) -> Result<()> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let MemberCertificate { kind, node, not_before, not_after, .. } = certificate;
    anyhow::ensure!(
        now >= *not_before,
        "the certificate of {kind} {node} is good from {} on, and the coordinator's clock says {}: \
        the coordinator's clock is behind; set it",
        date(*not_before),
        date(now)
    );
    anyhow::ensure!(
        now <= *not_after,
        "the certificate of {kind} {node} expired at {}, and the coordinator's clock says {}",
        date(*not_after),
        date(now)
    );
    Ok(())
}
