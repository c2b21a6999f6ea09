//! Certificate signing requests (PKCS #10) of members.

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;

/// Returns the request for a key (PKCS #8).
///
/// # Errors
/// Fails if the key is damaged.
pub fn request(key: &[u8]) -> Result<Vec<u8>> {
    let key = KeyPair::from_pkcs8_der_and_sign_algo(
        &PrivatePkcs8KeyDer::from(key),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    )
    .context("the member's key is damaged; remove it and join again")?;
    Ok(CertificateParams::default().serialize_request(&key)?.der().to_vec())
}
