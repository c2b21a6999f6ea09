//! The certificate that a relay presents to nodes.

use anyhow::Result;
use meshward_runtime::member::Credentials;
use parking_lot::Mutex;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// The resolver of the relay's certificate, which is replaced when it is renewed.
#[derive(Debug)]
pub(crate) struct CertResolver(Mutex<Arc<CertifiedKey>>);

impl CertResolver {
    /// Presents the certificate of these credentials.
    ///
    /// # Errors
    /// Fails if the private key cannot be used.
    pub(crate) fn new(credentials: &Credentials) -> Result<Self> {
        Ok(Self(Mutex::new(certified_key(credentials)?)))
    }

    /// Presents the certificate of these credentials from now on.
    ///
    /// # Errors
    /// Fails if the private key cannot be used.
    pub(crate) fn replace(&self, credentials: &Credentials) -> Result<()> {
        *self.0.lock() = certified_key(credentials)?;
        Ok(())
    }
}

impl ResolvesServerCert for CertResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().clone())
    }
}

fn certified_key(credentials: &Credentials) -> Result<Arc<CertifiedKey>> {
    let Credentials { ca, certificate, key } = credentials;
    let chain = vec![CertificateDer::from(certificate.clone()), CertificateDer::from(ca.clone())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}
