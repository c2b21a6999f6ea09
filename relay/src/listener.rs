//! The listener of coordinators and relays: QUIC over UDP, and TLS over TCP on the same port.

use crate::{
    guard::{AddressValidation, Guard, Verdict},
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
    Connection, Endpoint, EndpointConfig, Incoming, Runtime, TokioRuntime,
    crypto::rustls::QuicServerConfig,
};
use rustls::{ServerConfig, pki_types::CertificateDer, server::ResolvesServerCert};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};
use time::OffsetDateTime;

/// The receive buffer of the UDP socket, in bytes.
const SOCKET_BUFFER: usize = 32 << 20;
/// The buffer for relayed packets of one node, in bytes, in each direction.
const RELAY_BUFFER: usize = 512 << 10;

/// Time limit for a QUIC handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The maximum number of handshakes that wait for the guard's decision.
const MAX_UNDECIDED: usize = 4096;
/// The maximum number of bytes of packets that wait with one of them.
const UNDECIDED_BYTES: u64 = 16 << 10;
/// The maximum number of bytes of packets that wait with all of them.
const ALL_UNDECIDED_BYTES: u64 = 16 << 20;
/// The receive window of a connection that has not authenticated, in bytes.
const STRANGER_WINDOW: u32 = 128 << 10;
/// The receive window of a member's connection, in bytes.
const MEMBER_WINDOW: u32 = 2 << 20;

/// A listener: one port, over UDP and TCP.
pub struct Listener {
    /// The QUIC endpoint.
    pub endpoint: Endpoint,
    /// QUIC datagrams in TLS connections, for clients behind firewalls that block UDP.
    pub tunnels: Arc<Tunnels>,
    /// The listener for TLS over TCP.
    pub tls: TlsListener,
    /// The bound address, with the port that the kernel chose if none was given.
    pub address: SocketAddr,
}

/// The configuration of a listener.
pub struct ListenerConfig<'a> {
    /// The address and port, for UDP and TCP.
    pub listen: SocketAddr,
    /// The mesh's CA, which signs the certificates of members.
    pub ca: CertificateDer<'static>,
    /// The certificate to present.
    pub certificate: Arc<dyn ResolvesServerCert>,
    /// The channels that are served to members over QUIC.
    pub channels: &'a [Channel],
    /// The ALPN protocols that are served over TLS, besides tunnels.
    pub alpn: &'a [&'a [u8]],
}

/// Opens a listener.
///
/// # Errors
/// [`Mistake`] if the address is in use, or is none of this machine.
pub fn open(config: ListenerConfig<'_>, guard: &Arc<Guard>) -> Result<Listener> {
    let ListenerConfig { listen, ca, certificate, channels, alpn } = config;
    let Bound { tcp, udp, address } = bind(listen)?;
    let tunnels = Tunnels::beside(TokioRuntime.wrap_udp_socket(udp)?);
    let quic = quic_config(Members::of(ca)?, certificate.clone(), channels)?;
    let endpoint = Endpoint::new_with_abstract_socket(
        EndpointConfig::default(),
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
        alpn.iter().chain([&ALPN_TUNNEL]).map(|protocol| protocol.to_vec()).collect();
    let tcp = tokio::net::TcpListener::from_std(tcp)?;
    let tls = TlsListener::new(tcp, Arc::new(tls), tunnels.clone(), guard.clone());
    Ok(Listener { endpoint, tunnels, tls, address })
}

/// Accepts connections until the endpoint is closed. Each is served in a task of its own, with the
/// client's address, and keeps its permit until the handshake is done.
pub async fn accept<F>(
    endpoint: Endpoint,
    tunnels: Arc<Tunnels>,
    guard: Arc<Guard>,
    serve: impl Fn(Incoming, SocketAddr, SourcePermit) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    while let Some(incoming) = endpoint.accept().await {
        let remote = incoming.remote_address();
        let from = tunnels.origin(remote);
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        // A client behind a tunnel has received what was sent to its address: TCP proves that.
        let validation = match incoming.remote_address_validated() || tunnels.has(remote) {
            true => AddressValidation::Proven,
            false => AddressValidation::Unproven,
        };
        match guard.decide(from.ip(), validation) {
            Verdict::Accept(permit) => drop(tokio::spawn(serve(incoming, from, permit))),
            Verdict::Retry => drop(incoming.retry()),
            // At once: a client that is kept waiting gives up, and the work for it is lost.
            Verdict::Refuse => incoming.refuse(),
        }
    }
}

/// Finishes a handshake within [`HANDSHAKE`].
///
/// # Errors
/// Fails if the handshake fails or takes too long.
pub async fn finish_handshake(incoming: Incoming, permit: SourcePermit) -> Result<Connection> {
    let connection = tokio::time::timeout(HANDSHAKE, incoming.into_future()).await;
    drop(permit);
    connection.context("the handshake took too long")?.context("the handshake failed")
}

/// Sets the receive window of an authenticated member.
pub fn widen_for_member(connection: &Connection) {
    connection.set_receive_window(MEMBER_WINDOW.into());
}

/// Closes all connections of an endpoint with a reason.
pub async fn close(endpoint: &Endpoint, reason: &str) {
    endpoint.close(0u32.into(), reason.as_bytes());
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

/// Two sockets that are bound to one port.
struct Bound {
    tcp: TcpListener,
    udp: UdpSocket,
    address: SocketAddr,
}

/// Binds both sockets to one port. Where the kernel has no IPv6, the unspecified address means
/// IPv4's.
fn bind(wanted: SocketAddr) -> Result<Bound> {
    let bind = |address: SocketAddr| -> io::Result<_> {
        let tcp = TcpListener::bind(address)?;
        let address = SocketAddr::new(address.ip(), tcp.local_addr()?.port());
        let udp = UdpSocket::bind(address)?;
        tcp.set_nonblocking(true)?;
        widen(&udp);
        Ok(Bound { tcp, udp, address })
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

/// Sets a receive buffer for the first packets of all nodes, which may come back at once. Without
/// the privilege the kernel's limit holds (`net.core.rmem_max`), and lost packets are sent again.
fn widen(udp: &UdpSocket) {
    if setsockopt(udp, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(udp, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
}

/// Returns the QUIC configuration for members, and for machines that join.
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
        .max_incoming(MAX_UNDECIDED)
        .incoming_buffer_size(UNDECIDED_BYTES)
        .incoming_buffer_size_total(ALL_UNDECIDED_BYTES);
    let mut transport = quinn::TransportConfig::default();
    // Nodes send keep-alives.
    transport.max_idle_timeout(Some(meshward_runtime::SESSION_IDLE.try_into()?));
    transport.datagram_send_buffer_size(RELAY_BUFFER);
    transport.datagram_receive_buffer_size(Some(RELAY_BUFFER));
    transport.ack_frequency_config(Some(meshward_runtime::seldom_acknowledged()));
    // A connection for relayed packets begins with one.
    transport.max_concurrent_uni_streams(1u8.into());
    transport.receive_window(STRANGER_WINDOW.into());
    // Relayed packets come in datagrams.
    let streams: u8 = if channels == [Channel::Relay] { 0 } else { 4 };
    transport.max_concurrent_bidi_streams(streams.into());
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Returns the certificate that the client of a connection has presented.
///
/// # Errors
/// Fails if it is not a member's certificate.
pub fn peer_certificate(connection: &Connection) -> Result<MemberCertificate> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer>>().ok());
    chain
        .and_then(|chain| MemberCertificate::read(chain.first()?))
        .context("the connection has no member's certificate")
}

/// Checks that a certificate is valid now: with one that is not, a member can only renew it.
///
/// # Errors
/// Fails if it is not valid yet or has expired; the error has the time of the coordinator's clock.
pub fn check_unexpired(certificate: &MemberCertificate) -> Result<()> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let MemberCertificate { kind, node, not_before, not_after, .. } = certificate;
    anyhow::ensure!(
        now >= *not_before,
        "the certificate of {kind} {node} is valid from {} on, and the coordinator's clock shows \
        {}: the coordinator's clock is behind; set it",
        date(*not_before),
        date(now)
    );
    anyhow::ensure!(
        now <= *not_after,
        "the certificate of {kind} {node} expired at {}, and the coordinator's clock shows {}",
        date(*not_after),
        date(now)
    );
    Ok(())
}
