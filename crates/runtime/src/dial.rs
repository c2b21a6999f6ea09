//! Reaching the coordinator and relays: by QUIC over UDP, and where that does not pass, by QUIC in
//! a [tunnel](crate::tunnel).

use crate::{
    SESSION_IDLE, random, seldom_acknowledged,
    tls::{PinnedCa, Servers},
    tunnel::{ALPN_TUNNEL, Tunnel},
};
use anyhow::{Context, Result};
use meshward_control_proto::{
    ALPN_JOIN, ALPN_SESSION, CLOSE_REMOVED, COORDINATOR_NAME, relay::ALPN_RELAY,
};
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

/// For how long one address is tried.
const DIAL: Duration = Duration::from_secs(5);
/// After how long without an answer by UDP a tunnel is tried, too.
const TUNNEL_AFTER: Duration = Duration::from_millis(800);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A connection that has lasted this long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(10);

/// Whether the coordinator, which has shown the mesh's certificate, has closed a connection because
/// this is no member any more.
pub fn is_removed(connection: &Connection) -> bool {
    matches!(
        connection.close_reason(),
        Some(ConnectionError::ApplicationClosed(close)) if close.error_code == CLOSE_REMOVED.into()
    )
}

/// The pauses between one connection and the next: longer and longer, while none lasts.
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    /// Waits after a connection that was begun at `begun`.
    pub async fn wait(&mut self, begun: Instant) {
        if begun.elapsed() > GOOD {
            self.0 = FIRST_PAUSE;
        }
        time::sleep(jittered(self.0)).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// Between half of a pause and all of it, so that nodes do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let [byte] = random();
    pause / 2 + (pause / 2) * u32::from(byte) / 255
}

/// How somebody is dialled.
#[derive(Clone)]
pub struct Dial {
    /// For QUIC.
    pub quic: ClientConfig,
    /// For a tunnel around it.
    tls: TlsConnector,
    /// The DNS name in the certificate of who is dialled.
    name: String,
}

/// Who was reached.
pub struct Reached {
    /// The connection.
    pub connection: Connection,
    /// Whether it goes by a tunnel.
    pub tunnelled: bool,
    /// It ends when this is dropped.
    _endpoint: Endpoint,
}

impl Dial {
    /// To join: the coordinator is known by its CA's fingerprint.
    ///
    /// # Errors
    /// If the TLS library has no TLS 1.3.
    pub fn to_join(ca: Fingerprint) -> Result<Self> {
        let tls = || -> Result<_> {
            let verifier = Arc::new(PinnedCa(ca));
            Ok(builder()?
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth())
        };
        Self::new(tls()?, tls()?, ALPN_JOIN, COORDINATOR_NAME)
    }

    /// For a session: both sides show certificates of the mesh. All in DER, the key as PKCS #8.
    ///
    /// # Errors
    /// If one of them cannot be read, or the key does not fit the certificate.
    pub fn for_session(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self> {
        Self::for_member(ca, certificate, key, ALPN_SESSION, COORDINATOR_NAME)
    }

    /// For packets that are relayed by who has `name` in its certificate; otherwise as
    /// [`Self::for_session`].
    ///
    /// # Errors
    /// As there.
    pub fn for_relay(ca: &[u8], certificate: &[u8], key: &[u8], name: &str) -> Result<Self> {
        Self::for_member(ca, certificate, key, ALPN_RELAY, name)
    }

    /// The same for any protocol.
    ///
    /// # Errors
    /// As there.
    pub fn for_member(
        ca: &[u8],
        certificate: &[u8],
        key: &[u8],
        alpn: &[u8],
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
        Self::new(quic, tunnel, alpn, name)
    }

    fn new(
        mut quic: rustls::ClientConfig,
        mut tunnel: rustls::ClientConfig,
        alpn: &[u8],
        name: &str,
    ) -> Result<Self> {
        quic.alpn_protocols = vec![alpn.to_vec()];
        tunnel.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(quic)?));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(SESSION_IDLE / 3));
        transport.max_idle_timeout(Some(SESSION_IDLE.try_into()?));
        if alpn == ALPN_RELAY {
            transport.ack_frequency_config(Some(seldom_acknowledged()));
        }
        config.transport_config(Arc::new(transport));
        Ok(Self { quic: config, tls: Arc::new(tunnel).into(), name: name.to_owned() })
    }

    /// Dials `HOST:PORT`, each of its addresses in turn.
    ///
    /// # Errors
    /// Why the last address did not answer.
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
        let connection = endpoint.connect_with(self.quic.clone(), address, &self.name)?.await?;
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
        let connection = endpoint.connect_with(self.quic.clone(), address, &self.name)?.await?;
        Ok(Reached { connection, tunnelled: true, _endpoint: endpoint })
    }
}

fn builder() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?)
}
