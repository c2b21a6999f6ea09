//! The keys by which an endpoint is known: the one that it has, the one that it had before, as long
//! as peers may not have heard of the new one, and one that only devices know, which is in their
//! configuration and so does not change.

use super::{Millis, SecretKey, cookie::MacKeys};
use meshward_types::PublicKey;
use std::sync::Arc;

/// For how long handshakes are still begun with the key of before: by then all peers that are
/// connected to the coordinator have heard of the new one.
const BEGIN_WITH_OLD: u64 = 30_000;

/// A key of the endpoint's own.
pub(crate) struct OwnKey {
    pub secret: SecretKey,
    pub public: PublicKey,
    /// For messages to us.
    pub macs: MacKeys,
    /// Whether it is for devices.
    pub devices: bool,
}

impl OwnKey {
    fn new(secret: SecretKey, devices: bool) -> Arc<Self> {
        let public = secret.public();
        Arc::new(Self { secret, public, macs: MacKeys::of(&public), devices })
    }
}

/// All of them.
pub(crate) struct OwnKeys {
    current: Arc<OwnKey>,
    previous: Option<Previous>,
    devices: Option<Arc<OwnKey>>,
}

struct Previous {
    key: Arc<OwnKey>,
    since: Millis,
    until: Millis,
}

impl OwnKeys {
    pub fn new(secret: SecretKey) -> Self {
        Self { current: OwnKey::new(secret, false), previous: None, devices: None }
    }

    /// Takes another key; the one of now is good for `keep` milliseconds more.
    pub fn rotate(&mut self, now: Millis, next: SecretKey, keep: u64) {
        let key = std::mem::replace(&mut self.current, OwnKey::new(next, false));
        self.previous = Some(Previous { key, since: now, until: Millis(now.0 + keep) });
    }

    /// Sets the key that devices know.
    pub fn set_devices(&mut self, secret: SecretKey) {
        self.devices = Some(OwnKey::new(secret, true));
    }

    pub fn current(&self) -> &Arc<OwnKey> {
        &self.current
    }

    pub fn for_devices(&self) -> Option<&Arc<OwnKey>> {
        self.devices.as_ref()
    }

    /// All that are good.
    pub fn all(&self) -> impl Iterator<Item = &Arc<OwnKey>> {
        let previous = self.previous.as_ref().map(|previous| &previous.key);
        [Some(&self.current), previous, self.devices.as_ref()].into_iter().flatten()
    }

    /// The one to begin a handshake with. `tried`: how many initiations had no answer; who is away
    /// from the coordinator knows the old key alone.
    pub fn to_begin(&self, now: Millis, device: bool, tried: u64) -> Option<Arc<OwnKey>> {
        if device {
            return self.devices.clone();
        }
        let old = self.previous.as_ref().filter(|previous| {
            let first_with_old = now.since(previous.since) < BEGIN_WITH_OLD;
            first_with_old == tried.is_multiple_of(2)
        });
        Some(old.map_or_else(|| self.current.clone(), |previous| previous.key.clone()))
    }

    /// Forgets the one of before, once its time is up.
    pub fn tick(&mut self, now: Millis) {
        self.previous.take_if(|previous| now >= previous.until);
    }

    /// Whether there is something for [`Self::tick`] to do.
    pub fn is_due(&self, now: Millis) -> bool {
        self.previous.as_ref().is_some_and(|previous| now >= previous.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_key_is_used_first_then_the_new_one_and_goes_in_the_end() {
        let secrets = [1, 2, 3].map(|byte| SecretKey::from_bytes([byte; 32]));
        let mut keys = OwnKeys::new(secrets[0].clone());
        let begins = |keys: &OwnKeys, at: u64, tried: u64| {
            keys.to_begin(Millis(at), false, tried).unwrap().public
        };
        assert_eq!(begins(&keys, 0, 1), secrets[0].public());
        keys.rotate(Millis(1_000), secrets[1].clone(), 600_000);
        assert_eq!(keys.current().public, secrets[1].public());
        assert_eq!(
            [begins(&keys, 2_000, 0), begins(&keys, 2_000, 1)],
            [secrets[0].public(), secrets[1].public()]
        );
        assert_eq!(
            [begins(&keys, 40_000, 0), begins(&keys, 40_000, 1)],
            [secrets[1].public(), secrets[0].public()]
        );
        assert!(!keys.is_due(Millis(600_999)) && keys.is_due(Millis(601_000)));
        keys.tick(Millis(601_000));
        assert_eq!(keys.all().count(), 1);
        assert_eq!(begins(&keys, 700_000, 1), secrets[1].public());
        assert!(keys.to_begin(Millis(0), true, 0).is_none());
        keys.set_devices(secrets[2].clone());
        assert_eq!(keys.to_begin(Millis(0), true, 0).unwrap().public, secrets[2].public());
    }
}
