//! Join tokens: one string that an operator takes to a machine.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{fmt, str::FromStr};

const PREFIX: &str = "mwj1_";
/// The length of a token's secret, in bytes.
pub const SECRET: usize = 24;
const SUM: usize = 4;

/// The SHA-256 of a CA's certificate (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of a certificate.
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, der).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A join token: `mwj1_` and, in base64url, the CA's fingerprint, a secret and a checksum.
///
/// The limits (uses, expiry, site, networks) are stored by the coordinator under the secret's hash,
/// so that nobody can change them in the token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The fingerprint of the CA that must have signed the coordinator's certificate.
    pub ca: Fingerprint,
    secret: [u8; SECRET],
}

/// The error for text that is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It does not begin with `mwj1_`.
    #[error("this is not a join token: one begins with `mwj1_`; `meshctl token create` makes them")]
    Form,
    /// It was truncated or changed.
    #[error("the join token is damaged: it was cut or changed on its way; copy it again in full")]
    Damaged,
}

impl JoinToken {
    /// Creates a token with this secret.
    pub fn new(ca: Fingerprint, secret: [u8; SECRET]) -> Self {
        Self { ca, secret }
    }

    /// Returns the secret in its wire format.
    pub fn secret(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.secret)
    }

    fn body(&self) -> Vec<u8> {
        [&self.ca.0[..], &self.secret[..]].concat()
    }
}

/// Returns the SHA-256 of a secret in hexadecimal, which is all that the coordinator stores.
pub fn secret_hash(secret: &str) -> String {
    Fingerprint::of(secret.as_bytes()).to_string()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = self.body();
        let sum = Fingerprint::of(&body).0;
        body.extend(&sum[..SUM]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(body))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(BadToken::Form)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| BadToken::Damaged)?;
        if bytes.len() != 32 + SECRET + SUM {
            return Err(BadToken::Damaged);
        }
        let (body, sum) = bytes.split_at(32 + SECRET);
        if Fingerprint::of(body).0[..SUM] != *sum {
            return Err(BadToken::Damaged);
        }
        let (mut ca, mut secret) = ([0; 32], [0; SECRET]);
        ca.copy_from_slice(&body[..32]);
        secret.copy_from_slice(&body[32..]);
        Ok(Self { ca: Fingerprint(ca), secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new(Fingerprint([7; 32]), [9; SECRET])
    }

    #[test]
    fn a_token_is_read_and_printed_alike() {
        assert_eq!(token().to_string().parse::<JoinToken>().unwrap(), token());
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let text = token().to_string();
        for at in PREFIX.len()..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(changed.parse::<JoinToken>(), Err(BadToken::Damaged), "at {at}");
        }
        assert_eq!(text[..40].parse::<JoinToken>(), Err(BadToken::Damaged));
        assert_eq!("hello".parse::<JoinToken>(), Err(BadToken::Form));
    }

    #[test]
    fn the_secret_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", token()).contains(&token().secret()));
    }
}
