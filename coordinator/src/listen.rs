//! What coordinators and relays listen on, and who may speak to them there.

use crate::api::TlsListener;
use anyhow::{Context, Result};
use meshward_daemon::{
    Mistake,
    tls::{MemberCertificate, Members},
    tunnel::{ALPN_TUNNEL, Tunnels},
};
use meshward_model::relay::ALPN_RELAY;
use nix::sys::socket::{setsockopt, sockopt};
use quinn::{Connection, Endpoint, Incoming, Runtime, TokioRuntime, crypto::rustls::QuicServerConfig};
use rustls::{ServerConfig, pki_types::CertificateDer, server::ResolvesServerCert};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that wait in the socket.
const SOCKET_BUFFER: usize = 32 << 20;
/// Bytes of relayed packets that wait for one node, in each direction.
const RELAY_BUFFER: usize = 512 << 10;

/// How many connections may be in their handshake at a time. All nodes may come back at once: those beyond are refused, and
/// come again after a pause of their own.
const HANDSHAKES: usize = 256;

/// What is listened on: one port, over UDP and TCP.
pub struct Listening {
    /// For QUIC.
    pub endpoint: Endpoint,
    /// QUIC by way of TLS.
    pub tunnels: Arc<Tunnels>,
    /// For what else comes by TLS.
    pub tls: TlsListener,
    /// Where.
    pub address: SocketAddr,
}

/// Listens with a certificate: for members of the mesh with this CA over QUIC, for tunnels and what `over_tls` names over TLS.
///
/// # Errors
/// [`Mistake`] if the address cannot be had.
pub fn open(
    wanted: SocketAddr,
    ca: CertificateDer<'static>,
    certificate: Arc<dyn ResolvesServerCert>,
    over_quic: &[&[u8]],
    over_tls: &[&[u8]],
) -> Result<Listening> {
    let (tcp, udp, address) = bind(wanted)?;
    let tunnels = Tunnels::beside(TokioRuntime.wrap_udp_socket(udp)?);
    let quic = quic_config(Members::of(ca)?, certificate.clone(), over_quic)?;
    let endpoint = Endpoint::new_with_abstract_socket(
        Default::default(),
        Some(quic),
        tunnels.clone(),
        Arc::new(TokioRuntime),
    )?;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    tls.alpn_protocols = over_tls.iter().chain([&ALPN_TUNNEL]).map(|protocol| protocol.to_vec()).collect();
    let tls = TlsListener::new(tokio::net::TcpListener::from_std(tcp)?, Arc::new(tls), tunnels.clone())?;
    Ok(Listening { endpoint, tunnels, tls, address })
}

/// Takes connections until the endpoint is closed. Each is served in a task of its own, which holds the place that it is given until
/// the handshake is done.
pub async fn accept<F>(endpoint: Endpoint, serve: impl Fn(Incoming, OwnedSemaphorePermit) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    while let Some(incoming) = endpoint.accept().await {
        match room.clone().try_acquire_owned() {
            Ok(place) => drop(tokio::spawn(serve(incoming, place))),
            // Said at once: who is kept waiting gives up, and the work that was begun for it is lost.
            Err(_) => incoming.refuse(),
        }
    }
}

/// Ends what an endpoint serves, saying why.
pub async fn close(endpoint: &Endpoint, why: &str) {
    endpoint.close(0u32.into(), why.as_bytes());
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

/// Binds both sockets to one port. Where the kernel has no IPv6, the unspecified address means IPv4's.
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
        Mistake(format!("cannot listen on {wanted} ({error}); set another `listen`, such as [::]:8443"))
            .into()
    })
}

/// Room for the first packets of all nodes, which may come back at once. Who may not have that much gets what the kernel
/// gives (net.core.rmem_max), and lost packets are sent again.
fn widen(udp: &UdpSocket) {
    if setsockopt(udp, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(udp, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
}

/// How QUIC is served to members and to those who want to be.
fn quic_config(
    members: Members,
    certificate: Arc<dyn ResolvesServerCert>,
    protocols: &[&[u8]],
) -> Result<quinn::ServerConfig> {
    let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(members))
        .with_cert_resolver(certificate);
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let mut transport = quinn::TransportConfig::default();
    // The nodes keep their sessions alive.
    transport.max_idle_timeout(Some(meshward_daemon::SESSION_IDLE.try_into()?));
    transport.datagram_send_buffer_size(RELAY_BUFFER);
    transport.datagram_receive_buffer_size(Some(RELAY_BUFFER));
    transport.ack_frequency_config(Some(meshward_daemon::seldom_acknowledged()));
    transport.max_concurrent_uni_streams(0u8.into());
    // Relayed packets come in datagrams.
    let streams: u8 = if protocols == [ALPN_RELAY] { 0 } else { 4 };
    transport.max_concurrent_bidi_streams(streams.into());
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The certificate that the other side of a connection has shown.
///
/// # Errors
/// If it has shown none of a member.
pub fn certificate(connection: &Connection) -> Result<MemberCertificate> {
    let chain =
        connection.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer>>().ok());
    chain
        .and_then(|chain| MemberCertificate::read(chain.first()?))
        .context("the connection has no member's certificate")
}

/// Whether a certificate is still good: with one that is not, a member can do nothing but ask for another.
///
/// # Errors
/// If it is not.
pub fn check_unexpired(certificate: &MemberCertificate) -> Result<()> {
    let unexpired = certificate.not_after >= OffsetDateTime::now_utc().unix_timestamp();
    anyhow::ensure!(unexpired, "the certificate of {} {} has expired", certificate.part, certificate.node);
    Ok(())
}
