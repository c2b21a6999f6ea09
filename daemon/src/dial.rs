//! How nodes reach the coordinator: client configurations for QUIC.

use crate::{
    SESSION_IDLE,
    tls::{PinnedCa, roots},
};
use anyhow::Result;
use meshward_model::{
    control::{ALPN_JOIN, ALPN_SESSION},
    relay::ALPN_RELAY,
    token::Fingerprint,
};
use quinn::{ClientConfig, crypto::rustls::QuicClientConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;

/// A configuration for joining: the coordinator is known by its CA's fingerprint.
///
/// # Errors
/// If the TLS library has no TLS 1.3.
pub fn to_join(ca: Fingerprint) -> Result<ClientConfig> {
    let tls =
        builder()?.dangerous().with_custom_certificate_verifier(Arc::new(PinnedCa(ca))).with_no_client_auth();
    quic(tls, ALPN_JOIN)
}

/// A configuration for a session: both sides show certificates of the mesh. All in DER, the key as PKCS #8.
///
/// # Errors
/// If one of them cannot be read, or the key does not fit the certificate.
pub fn for_session(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<ClientConfig> {
    for_member(ca, certificate, key, ALPN_SESSION)
}

/// A configuration for packets that are relayed; otherwise as [`for_session`].
///
/// # Errors
/// As there.
pub fn for_relay(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<ClientConfig> {
    for_member(ca, certificate, key, ALPN_RELAY)
}

fn for_member(ca: &[u8], certificate: &[u8], key: &[u8], alpn: &[u8]) -> Result<ClientConfig> {
    let chain = vec![CertificateDer::from(certificate.to_vec())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    let tls = builder()?
        .with_root_certificates(roots(CertificateDer::from(ca.to_vec()))?)
        .with_client_auth_cert(chain, key)?;
    quic(tls, alpn)
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
    transport.keep_alive_interval(Some(SESSION_IDLE / 3));
    transport.max_idle_timeout(Some(SESSION_IDLE.try_into()?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
