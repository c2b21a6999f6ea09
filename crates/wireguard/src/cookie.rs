//! Protection of a responder from floods: MACs that only a sender with the receiver's public key
//! can make, and cookies that only a receiver at its source address can know (paper §5.3, §5.4.4,
//! §5.4.7).

use crate::{
    Millis, PublicKey,
    message::{
        COOKIE_REPLY_LENGTH, MAC, MessageType, RECEIVER_INDEX, SENDER_INDEX, read_u32, write_u32,
    },
    timers::{COOKIE_SECRET_LATENCY, COOKIE_SECRET_MAX_AGE},
};
use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{KeyInit, Mac, consts::U16},
};
use chacha20poly1305::{AeadInPlace, XChaCha20Poly1305, XNonce};
use ring::rand::{SecureRandom, SystemRandom};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

/// A cookie: the key of the second MAC.
pub type Cookie = [u8; MAC];

/// The nonce of a cookie reply.
const REPLY_NONCE: Range<usize> = 8..32;
/// The sealed cookie of a cookie reply.
const REPLY_COOKIE: Range<usize> = 32..48;

/// The keys of MACs and cookie replies, which are derived from the public key of the receiver of
/// handshake messages.
pub struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    /// Derives the keys for messages to the owner of a public key.
    pub fn of(receiver: &PublicKey) -> Self {
        let derive = |label: &[u8]| {
            Blake2s256::new().chain_update(label).chain_update(receiver.0).finalize().into()
        };
        Self { mac1: derive(b"mac1----"), cookie: derive(b"cookie--") }
    }

    /// Writes the two MACs at the end of a message, the second with a cookie if there is one.
    /// Returns the first.
    pub fn sign(&self, message: &mut [u8], cookie: Option<&Cookie>) -> [u8; MAC] {
        let MacOffsets { first, second } = MacOffsets::of(message);
        let mac1 = mac(&self.mac1, &[&message[..first]]);
        message[first..second].copy_from_slice(&mac1);
        let mac2 = cookie.map_or([0; MAC], |cookie| mac(cookie, &[&message[..second]]));
        message[second..].copy_from_slice(&mac2);
        mac1
    }

    /// Returns whether the first MAC of a message is right.
    pub fn verify(&self, message: &[u8]) -> bool {
        let MacOffsets { first, second } = MacOffsets::of(message);
        is_mac(&self.mac1, &message[..first], &message[first..second])
    }

    /// Opens the cookie in a reply to the message with this first MAC. `self` has the keys of who
    /// sent the reply.
    pub fn open_reply(&self, reply: &[u8], mac1: &[u8; MAC]) -> Option<Cookie> {
        let mut cookie: Cookie = reply.get(REPLY_COOKIE)?.try_into().ok()?;
        let tag: [u8; MAC] = reply.get(REPLY_COOKIE.end..COOKIE_REPLY_LENGTH)?.try_into().ok()?;
        let cipher = XChaCha20Poly1305::new(&self.cookie.into());
        let nonce = XNonce::from_slice(&reply[REPLY_NONCE]);
        cipher.decrypt_in_place_detached(nonce, mac1, &mut cookie, &tag.into()).ok()?;
        Some(cookie)
    }
}

impl fmt::Debug for MacKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKeys(..)")
    }
}

/// Returns whether a message has a second MAC, right or wrong.
pub fn has_mac2(message: &[u8]) -> bool {
    message.last_chunk::<MAC>().is_some_and(|mac2| *mac2 != [0; MAC])
}

/// The responder's side: gives out cookies, and verifies MACs that were made with them.
pub struct CookieIssuer {
    random: SystemRandom,
    secret: [u8; 32],
    secret_since: Option<Millis>,
}

impl Default for CookieIssuer {
    fn default() -> Self {
        Self { random: SystemRandom::new(), secret: [0; 32], secret_since: None }
    }
}

impl CookieIssuer {
    /// Returns whether the second MAC of a message is made with its source's cookie.
    pub fn verify(&mut self, now: Millis, from: SocketAddr, message: &[u8]) -> bool {
        let MacOffsets { second, .. } = MacOffsets::of(message);
        let cookie = self.cookie(now, from);
        is_mac(&cookie, &message[..second], &message[second..])
    }

    /// Returns the reply that gives the sender of a message its cookie. `keys` are those of the
    /// responder, to whom the message was sent.
    ///
    /// # Panics
    /// Panics if the message is shorter than a handshake message.
    pub fn reply(
        &mut self,
        keys: &MacKeys,
        now: Millis,
        from: SocketAddr,
        message: &[u8],
    ) -> [u8; COOKIE_REPLY_LENGTH] {
        let mut reply = [0; COOKIE_REPLY_LENGTH];
        write_u32(&mut reply, 0, MessageType::CookieReply.number());
        write_u32(&mut reply, RECEIVER_INDEX, read_u32(message, SENDER_INDEX));
        self.fill_random(&mut reply[REPLY_NONCE]);
        let mut cookie = self.cookie(now, from);
        let MacOffsets { first, second } = MacOffsets::of(message);
        let cipher = XChaCha20Poly1305::new(&keys.cookie.into());
        let nonce = XNonce::from_slice(&reply[REPLY_NONCE]);
        let tag = cipher.encrypt_in_place_detached(nonce, &message[first..second], &mut cookie);
        reply[REPLY_COOKIE].copy_from_slice(&cookie);
        // XChaCha20-Poly1305 refuses only texts of 256 GiB and more.
        reply[REPLY_COOKIE.end..].copy_from_slice(&tag.expect("sixteen bytes can be sealed"));
        reply
    }

    fn cookie(&mut self, now: Millis, from: SocketAddr) -> Cookie {
        if self.secret_since.is_none_or(|since| now.has_passed(COOKIE_SECRET_MAX_AGE, since)) {
            let mut secret = [0; 32];
            self.fill_random(&mut secret);
            (self.secret, self.secret_since) = (secret, Some(now));
        }
        let port = from.port().to_be_bytes();
        match from.ip() {
            IpAddr::V4(ip) => mac(&self.secret, &[&ip.octets(), &port]),
            IpAddr::V6(ip) => mac(&self.secret, &[&ip.octets(), &port]),
        }
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        // getrandom(2) does not fail once the kernel is up.
        self.random.fill(bytes).expect("the kernel gives random bytes");
    }
}

/// A cookie that a peer has given us.
pub struct ReceivedCookie {
    cookie: Cookie,
    received: Millis,
}

impl ReceivedCookie {
    /// A cookie that was received just now.
    pub fn new(cookie: Cookie, now: Millis) -> Self {
        Self { cookie, received: now }
    }

    /// Returns the cookie, while its giver knows its secret.
    pub fn get(&self, now: Millis) -> Option<&Cookie> {
        let lifetime = COOKIE_SECRET_MAX_AGE.saturating_sub(COOKIE_SECRET_LATENCY);
        (!now.has_passed(lifetime, self.received)).then_some(&self.cookie)
    }
}

/// The offsets of the two MACs at the end of a handshake message.
struct MacOffsets {
    first: usize,
    second: usize,
}

impl MacOffsets {
    fn of(message: &[u8]) -> Self {
        Self { first: message.len() - 2 * MAC, second: message.len() - MAC }
    }
}

fn keyed_hash(key: &[u8], parts: &[&[u8]]) -> Blake2sMac<U16> {
    // BLAKE2s takes keys of up to 32 bytes (RFC 7693 §2.1); these have 16 or 32.
    let mut hash =
        <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("a key of 16 or 32 bytes");
    for part in parts {
        hash.update(part);
    }
    hash
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    keyed_hash(key, parts).finalize().into_bytes().into()
}

fn is_mac(key: &[u8], message: &[u8], mac: &[u8]) -> bool {
    keyed_hash(key, &[message]).verify_slice(mac).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PublicKey = PublicKey([7; 32]);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_cookie_proves_the_address_that_it_was_given_to_for_two_minutes() {
        let (mut issuer, keys) = (CookieIssuer::default(), MacKeys::of(&KEY));
        let (now, here) = (Millis(10), address("192.0.2.1:51820"));
        let mut message = [1; 148];
        let mac1 = keys.sign(&mut message, None);
        assert!(keys.verify(&message) && !issuer.verify(now, here, &message));
        let reply = issuer.reply(&keys, now, here, &message);
        let cookie = keys.open_reply(&reply, &mac1).unwrap();
        keys.sign(&mut message, Some(&cookie));
        assert!(keys.verify(&message) && issuer.verify(now, here, &message));
        assert!(!issuer.verify(now, address("192.0.2.2:51820"), &message), "another address");
        assert!(!issuer.verify(now + COOKIE_SECRET_MAX_AGE, here, &message), "too late");
        message[20] ^= 1;
        assert!(!keys.verify(&message));
    }

    #[test]
    fn a_cookie_reply_for_another_message_does_not_open() {
        let (mut issuer, keys) = (CookieIssuer::default(), MacKeys::of(&KEY));
        let mut message = [1; 148];
        let mac1 = keys.sign(&mut message, None);
        let reply = issuer.reply(&keys, Millis(0), address("192.0.2.1:1"), &message);
        assert!(keys.open_reply(&reply, &[0; 16]).is_none());
        assert!(MacKeys::of(&PublicKey([8; 32])).open_reply(&reply, &mac1).is_none());
    }
}
