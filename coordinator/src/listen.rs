//! What coordinators and relays listen on, and who may speak to them there.

use anyhow::{Context, Result};
use meshward_daemon::{
    Mistake,
    tls::{MemberCertificate, Members},
};
use nix::sys::socket::{setsockopt, sockopt};
use quinn::{Connection, crypto::rustls::QuicServerConfig};
use rustls::{ServerConfig, server::ResolvesServerCert};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
};
use time::OffsetDateTime;

/// Bytes that wait in the socket.
const SOCKET_BUFFER: usize = 32 << 20;
/// Bytes of relayed packets that wait for one node, in each direction.
const RELAY_BUFFER: usize = 512 << 10;

/// What a QUIC socket serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayedQuic {
    /// Relayed packets, in datagrams, and nothing else.
    Only,
    /// Streams, too.
    BesideStreams,
}

/// Binds both sockets to one port. Where the kernel has no IPv6, the unspecified address means IPv4's.
///
/// # Errors
/// [`Mistake`] if the address cannot be had.
pub fn bind(wanted: SocketAddr) -> Result<(TcpListener, UdpSocket, SocketAddr)> {
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
///
/// # Errors
/// If the TLS library has no TLS 1.3.
pub fn quic_config(
    members: Members,
    certificate: Arc<dyn ResolvesServerCert>,
    protocols: &[&[u8]],
    serves: RelayedQuic,
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
    let streams: u8 = if serves == RelayedQuic::Only { 0 } else { 4 };
    transport.max_concurrent_bidi_streams(streams.into());
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The certificate that the other side of a connection has shown.
///
/// # Errors
/// If it has shown none of a member.
pub fn certificate(connection: &Connection) -> Result<MemberCertificate> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<rustls::pki_types::CertificateDer>>().ok());
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
