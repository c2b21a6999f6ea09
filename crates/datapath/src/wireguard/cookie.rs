//! What protects the handshake from floods: MACs that only who knows the receiver's key can make,
//! cookies that only who receives at its source address can know, and a limit for each source
//! (paper §5.3, §5.4.4, §5.4.7).

use super::{
    Millis,
    message::{COOKIE_REPLY, MAC, MessageType, number, set_number},
};
use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{KeyInit, Mac, consts::U16},
};
use chacha20poly1305::{AeadInPlace, XChaCha20Poly1305, XNonce};
use meshward_types::PublicKey;
use ring::rand::{SecureRandom, SystemRandom};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

type Cookie = [u8; MAC];

/// For how long a cookie, and the secret behind it, is good.
const COOKIE_LIFETIME: u64 = 120_000;
/// Handshakes a second, and in a row, that one source may ask for while there is load (the kernel's
/// figures).
const PER_SECOND: u64 = 20;
const IN_A_ROW: u64 = 5;
/// The most sources that are told apart. While they are all in use, others wait.
const MOST_SOURCES: usize = 1 << 16;

/// What is derived from a receiver's public key.
pub(crate) struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    pub fn of(key: &PublicKey) -> Self {
        let derive = |label: &[u8]| {
            Blake2s256::new().chain_update(label).chain_update(key.0).finalize().into()
        };
        Self { mac1: derive(b"mac1----"), cookie: derive(b"cookie--") }
    }

    /// Writes the two MACs at the end of a message, the second with a cookie if there is one; gives
    /// the first.
    pub fn sign(&self, message: &mut [u8], cookie: Option<&Cookie>) -> [u8; MAC] {
        let (first, second) = (message.len() - 2 * MAC, message.len() - MAC);
        let mac1 = mac(&self.mac1, &[&message[..first]]);
        message[first..second].copy_from_slice(&mac1);
        let mac2 = cookie.map_or([0; MAC], |cookie| mac(cookie, &[&message[..second]]));
        message[second..].copy_from_slice(&mac2);
        mac1
    }

    /// Whether the first MAC of a message to the key with these holds.
    pub fn holds(&self, message: &[u8]) -> bool {
        let (first, second) = (message.len() - 2 * MAC, message.len() - MAC);
        is_mac(&self.mac1, &message[..first], &message[first..second])
    }

    /// Reads the cookie out of a reply to the message with this first MAC.
    pub fn read_reply(&self, reply: &[u8], mac1: &[u8; MAC]) -> Option<Cookie> {
        let mut cookie: Cookie = reply.get(32..48)?.try_into().ok()?;
        let (nonce, tag) = (XNonce::from_slice(&reply[8..32]), reply[48..64].into());
        let cipher = XChaCha20Poly1305::new(&self.cookie.into());
        cipher.decrypt_in_place_detached(nonce, mac1, &mut cookie, tag).ok()?;
        Some(cookie)
    }
}

/// The receiver's side: checks messages, and gives out cookies.
pub(crate) struct Guard {
    random: SystemRandom,
    secret: [u8; 32],
    secret_since: Option<Millis>,
    sources: HashMap<IpAddr, Bucket>,
}

/// How much of its limit a source has left, in milliseconds' worth.
struct Bucket {
    left: u64,
    at: Millis,
}

impl Guard {
    pub fn new() -> Self {
        Self {
            random: SystemRandom::new(),
            secret: [0; 32],
            secret_since: None,
            sources: HashMap::new(),
        }
    }

    /// Whether the second MAC of a message is made with its source's cookie.
    pub fn has_cookie(&mut self, now: Millis, from: SocketAddr, message: &[u8]) -> bool {
        let second = message.len() - MAC;
        let cookie = self.cookie(now, from);
        is_mac(&cookie, &message[..second], &message[second..])
    }

    /// The reply that gives a message's sender its cookie.
    pub fn reply(
        &mut self,
        keys: &MacKeys,
        now: Millis,
        from: SocketAddr,
        message: &[u8],
    ) -> [u8; COOKIE_REPLY] {
        let mut reply = [0; COOKIE_REPLY];
        set_number(&mut reply, 0, MessageType::CookieReply.number());
        set_number(&mut reply, 4, number(message, 4));
        self.fill(&mut reply[8..32]);
        let mut cookie = self.cookie(now, from);
        let mac1 = &message[message.len() - 2 * MAC..message.len() - MAC];
        let cipher = XChaCha20Poly1305::new(&keys.cookie.into());
        let tag =
            cipher.encrypt_in_place_detached(XNonce::from_slice(&reply[8..32]), mac1, &mut cookie);
        reply[32..48].copy_from_slice(&cookie);
        // XChaCha20-Poly1305 refuses only texts of 256 GiB and more.
        reply[48..].copy_from_slice(&tag.expect("sixteen bytes can be sealed"));
        reply
    }

    /// Whether a source that has proven its address is still within its limit.
    pub fn admits(&mut self, now: Millis, from: IpAddr) -> bool {
        const EACH: u64 = 1000 / PER_SECOND;
        let source = source(from);
        if self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&source) {
            return false;
        }
        let bucket =
            self.sources.entry(source).or_insert(Bucket { left: IN_A_ROW * EACH, at: now });
        bucket.left = (bucket.left + now.since(bucket.at)).min(IN_A_ROW * EACH);
        bucket.at = now;
        let within = bucket.left >= EACH;
        if within {
            bucket.left -= EACH;
        }
        within
    }

    /// Forgets the sources that have been quiet.
    pub fn forget_quiet_sources(&mut self, now: Millis) {
        self.sources.retain(|_, bucket| now.since(bucket.at) < 1000);
    }

    fn cookie(&mut self, now: Millis, from: SocketAddr) -> Cookie {
        if self.secret_since.is_none_or(|since| now.since(since) >= COOKIE_LIFETIME) {
            let mut secret = [0; 32];
            self.fill(&mut secret);
            (self.secret, self.secret_since) = (secret, Some(now));
        }
        let port = from.port().to_be_bytes();
        match from.ip() {
            IpAddr::V4(ip) => mac(&self.secret, &[&ip.octets(), &port]),
            IpAddr::V6(ip) => mac(&self.secret, &[&ip.octets(), &port]),
        }
    }

    fn fill(&self, bytes: &mut [u8]) {
        // getrandom(2) does not fail once the kernel is up.
        self.random.fill(bytes).expect("the kernel gives random bytes");
    }
}

/// The cookie that a peer has given us.
pub(crate) struct Held {
    cookie: Cookie,
    since: Millis,
}

impl Held {
    pub fn new(cookie: Cookie, since: Millis) -> Self {
        Self { cookie, since }
    }

    /// The cookie, while it is good. It ends a little before its giver forgets it.
    pub fn cookie(&self, now: Millis) -> Option<&Cookie> {
        (now.since(self.since) + 5_000 < COOKIE_LIFETIME).then_some(&self.cookie)
    }
}

/// Who counts as one source: an IPv4 address, or what one site has of IPv6.
fn source(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Blake2sMac<U16> {
    // BLAKE2s takes keys of up to 32 bytes (RFC 7693 §2.1); these have 16 or 32.
    let mut mac =
        <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("a key of 16 or 32 bytes");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    keyed(key, parts).finalize().into_bytes().into()
}

fn is_mac(key: &[u8], message: &[u8], tag: &[u8]) -> bool {
    keyed(key, &[message]).verify_slice(tag).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PublicKey = PublicKey([7; 32]);

    fn from(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_cookie_proves_the_address_that_it_was_given_to_for_two_minutes() {
        let (mut guard, keys) = (Guard::new(), MacKeys::of(&KEY));
        let (now, here) = (Millis(10), from("192.0.2.1:51820"));
        let mut message = [1; 148];
        let mac1 = keys.sign(&mut message, None);
        assert!(keys.holds(&message) && !guard.has_cookie(now, here, &message));
        let reply = guard.reply(&keys, now, here, &message);
        let cookie = keys.read_reply(&reply, &mac1).unwrap();
        keys.sign(&mut message, Some(&cookie));
        assert!(keys.holds(&message) && guard.has_cookie(now, here, &message));
        assert!(!guard.has_cookie(now, from("192.0.2.2:51820"), &message), "another address");
        assert!(!guard.has_cookie(Millis(now.0 + COOKIE_LIFETIME), here, &message), "too late");
        message[20] ^= 1;
        assert!(!keys.holds(&message));
    }

    #[test]
    fn a_cookie_reply_for_another_message_is_not_taken() {
        let (mut guard, keys) = (Guard::new(), MacKeys::of(&KEY));
        let mut message = [1; 148];
        let mac1 = keys.sign(&mut message, None);
        let reply = guard.reply(&keys, Millis(0), from("192.0.2.1:1"), &message);
        assert!(keys.read_reply(&reply, &[0; 16]).is_none());
        assert!(MacKeys::of(&PublicKey([8; 32])).read_reply(&reply, &mac1).is_none());
    }

    #[test]
    fn a_source_has_a_limit_and_gets_it_back_with_time() {
        let mut guard = Guard::new();
        let within =
            |guard: &mut Guard, now, ip: &str| guard.admits(Millis(now), ip.parse().unwrap());
        let taken = (0..100).filter(|_| within(&mut guard, 0, "192.0.2.1")).count();
        assert_eq!(taken as u64, IN_A_ROW);
        assert!(within(&mut guard, 0, "192.0.2.2"), "another source has its own");
        let taken = (1..=1000).filter(|now| within(&mut guard, *now, "192.0.2.1")).count();
        assert_eq!(taken as u64, PER_SECOND);
        assert_eq!(
            (0..100).filter(|at| within(&mut guard, 0, &format!("2001:db8::{at}"))).count() as u64,
            IN_A_ROW
        );
        guard.forget_quiet_sources(Millis(10_000));
        assert!(guard.sources.is_empty());
    }
}
