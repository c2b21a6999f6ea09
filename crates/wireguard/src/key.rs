//! Curve25519 keys.

use std::fmt;
use x25519_dalek::StaticSecret;

/// A peer's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A private key. It can be neither printed nor serialised.
#[derive(Clone)]
pub struct SecretKey(StaticSecret);

impl SecretKey {
    /// The key with these bytes (RFC 7748 §5 clamps them).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// Derives a secret for another purpose, from which the key cannot be found out (HMAC-SHA256).
    pub fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let mut derived = [0; 32];
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.to_bytes());
        derived.copy_from_slice(ring::hmac::sign(&key, purpose).as_ref());
        derived
    }

    pub(crate) fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_key_does_not_show() {
        assert_eq!(format!("{:?}", SecretKey::from_bytes([7; 32])), "SecretKey(..)");
    }
}
