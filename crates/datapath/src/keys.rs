//! The endpoint's private key, and where keys of the mesh become keys of WireGuard.

use meshward_types::PublicKey;
use meshward_wireguard as wireguard;
use std::fmt;

/// An endpoint's private key. It can be neither printed nor serialised.
#[derive(Clone)]
pub struct SecretKey(wireguard::SecretKey);

impl SecretKey {
    /// The key with these bytes (RFC 7748 §5 clamps them).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(wireguard::SecretKey::from_bytes(bytes))
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        from_wireguard(self.0.public())
    }

    /// Derives a secret for another purpose, from which the key cannot be found out.
    pub(crate) fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        self.0.derive(purpose)
    }

    pub(crate) fn into_wireguard(self) -> wireguard::SecretKey {
        self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(crate) fn from_wireguard(key: wireguard::PublicKey) -> PublicKey {
    PublicKey(key.0)
}

pub(crate) fn to_wireguard(key: PublicKey) -> wireguard::PublicKey {
    wireguard::PublicKey(key.0)
}
