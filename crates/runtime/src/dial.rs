//! Connections to the coordinator and to relays: by QUIC over UDP, and where that does not pass, by
//! QUIC in a [tunnel](crate::tunnel).

use crate::{
    SESSION_IDLE, random, seldom_acknowledged,
    tls::{PinnedCa, Servers},
    tunnel::{ALPN_TUNNEL, Tunnel},
};
use anyhow::{Context, Result};
use meshward_control_proto::{CLOSE_REMOVED, COORDINATOR_NAME, Channel};
use meshward_types::token::Fingerprint;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime,
    crypto::rustls::QuicClientConfig,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::TlsConnector;

/// The time for which one address is tried.
const DIAL: Duration = Duration::from_secs(5);
/// The time without an answer by UDP after which a tunnel is tried as well.
const TUNNEL_AFTER: Duration = Duration::from_millis(800);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The time after which a connection counts as good, so that the next pause is short again.
const GOOD: Duration = Duration::from_secs(10);

/// Returns `true` if the coordinator, which has shown the mesh's certificate, has closed a
/// connection because this member was removed.
pub fn is_removed(connection: &Connection) -> bool {
    matches!(
        connection.close_reason(),
        Some(ConnectionError::ApplicationClosed(close)) if close.error_code == CLOSE_REMOVED.into()
    )
}

/// The pauses between connections, which grow while none lasts.
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    /// Waits after a connection that was started at `begun`.
    pub async fn wait(&mut self, begun: Instant) {
        if begun.elapsed() > GOOD {
            self.0 = FIRST_PAUSE;
        }
        time::sleep(jittered(self.0)).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// Returns a random time between half of a pause and all of it, so that nodes do not reconnect in
/// step.
fn jittered(pause: Duration) -> Duration {
    let [byte] = random();
    pause / 2 + (pause / 2) * u32::from(byte) / 255
}

/// The settings of connections to one kind of server.
#[derive(Clone)]
pub struct Dial {
    /// The QUIC configuration.
    pub quic: ClientConfig,
    /// The TLS configuration of a tunnel around it.
    tls: TlsConnector,
    /// The DNS name in the server's certificate.
    name: String,
    channel: Channel,
}

/// The two ends have no version of a channel in common (TLS alert 120, RFC 7301 §3.2).
#[derive(Debug, thiserror::Error)]
#[error("it speaks none of this program's versions ({0}): bring both to neighbouring releases")]
pub struct NoCommonVersion(Channel);

/// A connection to a server.
pub struct Reached {
    /// The QUIC connection.
    pub connection: Connection,
    /// `true` if it uses a tunnel.
    pub tunnelled: bool,
    /// The endpoint, which must live as long as the connection.
    _endpoint: Endpoint,
}

impl Dial {
    /// Creates the settings to join: the coordinator is authenticated by its CA's fingerprint.
    ///
    /// # Errors
    /// Fails if the TLS library has no TLS 1.3.
    pub fn to_join(ca: Fingerprint) -> Result<Self> {
        let tls = || -> Result<_> {
            let verifier = Arc::new(PinnedCa(ca));
            Ok(builder()?
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth())
        };
        Self::new(tls()?, tls()?, Channel::Join, COORDINATOR_NAME)
    }

    /// Creates the settings of a session, with certificates of the mesh on both sides. All are in
    /// DER, the key as PKCS #8.
    ///
    /// # Errors
    /// Fails if one of them cannot be read, or the key does not belong to the certificate.
    pub fn for_session(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self> {
        Self::for_member(ca, certificate, key, Channel::Session, COORDINATOR_NAME)
    }

    /// Creates the settings of a connection for relayed packets to the relay with `name` in its
    /// certificate, otherwise as [`Self::for_session`].
    ///
    /// # Errors
    /// The errors of [`Self::for_session`].
    pub fn for_relay(ca: &[u8], certificate: &[u8], key: &[u8], name: &str) -> Result<Self> {
        Self::for_member(ca, certificate, key, Channel::Relay, name)
    }

    /// Creates the settings of a member for any channel.
    ///
    /// # Errors
    /// The errors of [`Self::for_session`].
    pub fn for_member(
        ca: &[u8],
        certificate: &[u8],
        key: &[u8],
        channel: Channel,
        name: &str,
    ) -> Result<Self> {
        let chain = vec![CertificateDer::from(certificate.to_vec())];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        let servers = Arc::new(Servers::of(CertificateDer::from(ca.to_vec()))?);
        let verified = || -> Result<_> {
            Ok(builder()?.dangerous().with_custom_certificate_verifier(servers.clone()))
        };
        let quic = verified()?.with_client_auth_cert(chain, key)?;
        let tunnel = verified()?.with_no_client_auth();
        Self::new(quic, tunnel, channel, name)
    }

    fn new(
        mut quic: rustls::ClientConfig,
        mut tunnel: rustls::ClientConfig,
        channel: Channel,
        name: &str,
    ) -> Result<Self> {
        quic.alpn_protocols = channel.alpn();
        tunnel.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(quic)?));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(SESSION_IDLE / 3));
        transport.max_idle_timeout(Some(SESSION_IDLE.try_into()?));
        if channel == Channel::Relay {
            transport.ack_frequency_config(Some(seldom_acknowledged()));
        }
        config.transport_config(Arc::new(transport));
        Ok(Self { quic: config, tls: Arc::new(tunnel).into(), name: name.to_owned(), channel })
    }

    /// Connects to `HOST:PORT`, trying each of its addresses in turn.
    ///
    /// # Errors
    /// The reason why the last address did not answer.
    pub async fn dial(&self, host: &str) -> Result<Reached> {
        let addresses = tokio::net::lookup_host(host)
            .await
            .with_context(|| format!("the name in `{host}` cannot be resolved"))?;
        let mut failure = anyhow::anyhow!("`{host}` has no address");
        for address in addresses {
            match self.dial_address(address).await {
                Ok(reached) => return Ok(reached),
                Err(error) => failure = error.context(format!("cannot reach {address}")),
            }
        }
        Err(failure)
    }

    async fn dial_address(&self, address: SocketAddr) -> Result<Reached> {
        let limit = || anyhow::anyhow!("no answer within {} s", DIAL.as_secs());
        let mut udp = Box::pin(async {
            time::timeout(DIAL, self.by_udp(address)).await.map_err(|_| limit())?
        });
        let tunnel = async {
            time::sleep(TUNNEL_AFTER).await;
            time::timeout(DIAL, self.by_tunnel(address)).await.map_err(|_| limit())?
        };
        tokio::select! {
            by_udp = &mut udp => by_udp,
            by_tunnel = tunnel => match by_tunnel {
                Ok(reached) => Ok(reached),
                Err(error) => {
                    let tcp = format!("and by TCP: {error:#}");
                    udp.await.with_context(|| tcp)
                }
            },
        }
    }

    async fn by_udp(&self, address: SocketAddr) -> Result<Reached> {
        let local: SocketAddr =
            if address.is_ipv6() { "[::]:0".parse()? } else { "0.0.0.0:0".parse()? };
        let endpoint = Endpoint::client(local)?;
        let connection = self.connect(&endpoint, address).await?;
        Ok(Reached { connection, tunnelled: false, _endpoint: endpoint })
    }

    async fn by_tunnel(&self, address: SocketAddr) -> Result<Reached> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let stream = self.tls.connect(ServerName::try_from(self.name.clone())?, stream).await?;
        let socket = Arc::new(Tunnel::over(stream, local, address));
        let endpoint = Endpoint::new_with_abstract_socket(
            EndpointConfig::default(),
            None,
            socket,
            Arc::new(TokioRuntime),
        )?;
        let connection = self.connect(&endpoint, address).await?;
        Ok(Reached { connection, tunnelled: true, _endpoint: endpoint })
    }

    async fn connect(&self, endpoint: &Endpoint, address: SocketAddr) -> Result<Connection> {
        let connecting = endpoint.connect_with(self.quic.clone(), address, &self.name)?;
        connecting.await.map_err(|error| match error {
            ConnectionError::ConnectionClosed(close) if close.error_code == no_common_version() => {
                NoCommonVersion(self.channel).into()
            }
            other => other.into(),
        })
    }
}

/// Returns the code of QUIC's close for the TLS alert `no_application_protocol` (RFC 9001 §4.8).
fn no_common_version() -> quinn::TransportErrorCode {
    quinn::TransportErrorCode::crypto(rustls::AlertDescription::NoApplicationProtocol.into())
}

fn builder() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn::crypto::rustls::QuicServerConfig;

    /// Starts a server with a CA of its own that speaks these ALPN protocols.
    fn server(alpn: Vec<Vec<u8>>) -> (Endpoint, Fingerprint) {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new([]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new([COORDINATOR_NAME.to_owned()]).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let certificate = certificate.signed_by(&key, &issuer).unwrap();
        let fingerprint = Fingerprint::of(ca_certificate.der());
        let chain = vec![certificate.der().clone(), ca_certificate.der().clone()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        tls.alpn_protocols = alpn;
        let tls = Arc::new(QuicServerConfig::try_from(tls).unwrap());
        let config = quinn::ServerConfig::with_crypto(tls);
        (Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap(), fingerprint)
    }

    #[tokio::test]
    async fn the_newest_common_version_is_taken_and_none_in_common_is_said() {
        let newer = b"meshward-join/65535".to_vec();
        let (endpoint, ca) = server([vec![newer.clone()], Channel::Join.alpn()].concat());
        let address = endpoint.local_addr().unwrap();
        let accepting = tokio::spawn(async move { endpoint.accept().await.unwrap().await });
        let reached = Dial::to_join(ca).unwrap().by_udp(address).await.unwrap();
        let data = reached.connection.handshake_data().unwrap();
        let data = data.downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
        let taken = Channel::negotiated(&data.protocol.unwrap());
        assert_eq!(taken, Some((Channel::Join, Channel::Join.versions()[0])));
        accepting.await.unwrap().unwrap();

        let (endpoint, ca) = server(vec![newer]);
        let address = endpoint.local_addr().unwrap();
        tokio::spawn(async move { endpoint.accept().await.unwrap().await });
        let error = Dial::to_join(ca).unwrap().by_udp(address).await.err().unwrap();
        assert!(error.is::<NoCommonVersion>(), "{error:#}");
        let own = format!("meshward-join {}", Channel::Join.versions()[0].0);
        assert!(error.to_string().contains(&own), "{error:#}");
    }
}
