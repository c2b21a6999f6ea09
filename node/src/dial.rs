//! Reaching the coordinator over QUIC.

use crate::folder::Credentials;
use anyhow::{Context, Result};
use meshward_daemon::tls::{PinnedCa, roots};
use meshward_model::{
    control::{ALPN_JOIN, ALPN_SESSION, COORDINATOR_NAME},
    token::Fingerprint,
};
use quinn::{ClientConfig, Connection, Endpoint, crypto::rustls::QuicClientConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// For how long one address is tried.
const DIAL: Duration = Duration::from_secs(5);

/// A configuration for joining: the coordinator is known by its CA's fingerprint.
pub fn to_join(ca: Fingerprint) -> Result<ClientConfig> {
    let tls =
        builder()?.dangerous().with_custom_certificate_verifier(Arc::new(PinnedCa(ca))).with_no_client_auth();
    quic(tls, ALPN_JOIN)
}

/// A configuration for a session: both sides show certificates of the mesh.
pub fn for_session(credentials: &Credentials) -> Result<ClientConfig> {
    let chain = vec![CertificateDer::from(credentials.certificate.clone())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key.clone()));
    let tls = builder()?
        .with_root_certificates(roots(CertificateDer::from(credentials.ca.clone()))?)
        .with_client_auth_cert(chain, key)?;
    quic(tls, ALPN_SESSION)
}

fn builder() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?)
}

fn quic(mut tls: rustls::ClientConfig, alpn: &[u8]) -> Result<ClientConfig> {
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(meshward_daemon::SESSION_IDLE / 3));
    transport.max_idle_timeout(Some(meshward_daemon::SESSION_IDLE.try_into()?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Dials `HOST:PORT`, each of its addresses in turn. The endpoint comes with the connection: it ends when that is dropped.
///
/// # Errors
/// Why the last address did not answer.
pub async fn dial(coordinator: &str, config: ClientConfig) -> Result<(Endpoint, Connection)> {
    let addresses = tokio::net::lookup_host(coordinator)
        .await
        .with_context(|| format!("the coordinator's name in `{coordinator}` cannot be resolved"))?;
    let mut failure = anyhow::anyhow!("`{coordinator}` has no address");
    for address in addresses {
        let local: SocketAddr = if address.is_ipv6() { "[::]:0".parse()? } else { "0.0.0.0:0".parse()? };
        let endpoint = Endpoint::client(local)?;
        let connecting = endpoint.connect_with(config.clone(), address, COORDINATOR_NAME)?;
        match tokio::time::timeout(DIAL, connecting).await {
            Ok(Ok(connection)) => return Ok((endpoint, connection)),
            Ok(Err(error)) => failure = anyhow::Error::from(error),
            Err(_) => failure = anyhow::anyhow!("no answer within {} s", DIAL.as_secs()),
        }
        failure = failure.context(format!("cannot reach the coordinator at {address}"));
    }
    Err(failure)
}
