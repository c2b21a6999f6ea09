//! The keys of an endpoint: the current one, the previous one, as long as peers may not have heard
//! of the current one, and one that only devices know, which stands in their configuration and so
//! does not change.

use super::peer::PeerKind;
use meshward_wireguard::{Millis, PublicKey, SecretKey, cookie::MacKeys};
use std::{sync::Arc, time::Duration};

/// Time for which handshakes are still begun with the previous key: by then all peers that are
/// connected to the coordinator have heard of the current one.
const PREFER_PREVIOUS: Duration = Duration::from_secs(30);

/// A key of the endpoint.
pub(crate) struct OwnKey {
    pub(crate) secret: SecretKey,
    pub(crate) public: PublicKey,
    /// The keys of MACs of messages to us.
    pub(crate) macs: MacKeys,
    /// The kind of peers that use it.
    pub(crate) peers: PeerKind,
}

impl OwnKey {
    fn new(secret: SecretKey, peers: PeerKind) -> Arc<Self> {
        let public = secret.public();
        Arc::new(Self { secret, public, macs: MacKeys::of(&public), peers })
    }
}

/// The keys of an endpoint.
pub(crate) struct OwnKeys {
    current: Arc<OwnKey>,
    previous: Option<PreviousKey>,
    for_devices: Option<Arc<OwnKey>>,
}

struct PreviousKey {
    key: Arc<OwnKey>,
    since: Millis,
    until: Millis,
}

impl OwnKeys {
    pub(crate) fn new(secret: SecretKey) -> Self {
        let current = OwnKey::new(secret, PeerKind::Node);
        Self { current, previous: None, for_devices: None }
    }

    /// Makes `next` the current key; the one of now is good for `keep` more.
    pub(crate) fn rotate(&mut self, now: Millis, next: SecretKey, keep: Duration) {
        let next = OwnKey::new(next, PeerKind::Node);
        let key = std::mem::replace(&mut self.current, next);
        self.previous = Some(PreviousKey { key, since: now, until: now + keep });
    }

    /// Sets the key that devices know.
    pub(crate) fn set_for_devices(&mut self, secret: SecretKey) {
        self.for_devices = Some(OwnKey::new(secret, PeerKind::Device));
    }

    pub(crate) fn current(&self) -> &Arc<OwnKey> {
        &self.current
    }

    pub(crate) fn for_devices(&self) -> Option<&Arc<OwnKey>> {
        self.for_devices.as_ref()
    }

    /// All keys that are good.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<OwnKey>> {
        let previous = self.previous.as_ref().map(|previous| &previous.key);
        [Some(&self.current), previous, self.for_devices.as_ref()].into_iter().flatten()
    }

    /// Returns the key whose first MAC a message has.
    pub(crate) fn of_message(&self, message: &[u8]) -> Option<&Arc<OwnKey>> {
        self.all().find(|key| key.macs.verify(message))
    }

    /// Returns the key to begin a handshake with. `tries`: the initiations that had no answer; a
    /// peer that is cut off from the coordinator knows the previous key alone.
    pub(crate) fn to_begin(&self, now: Millis, peer: PeerKind, tries: u64) -> Option<Arc<OwnKey>> {
        if peer == PeerKind::Device {
            return self.for_devices.clone();
        }
        let previous = self.previous.as_ref().filter(|previous| {
            let previous_first = !now.has_passed(PREFER_PREVIOUS, previous.since);
            previous_first == tries.is_multiple_of(2)
        });
        Some(previous.map_or_else(|| self.current.clone(), |previous| previous.key.clone()))
    }

    /// Forgets the previous key, once its time is up.
    pub(crate) fn tick(&mut self, now: Millis) {
        self.previous.take_if(|previous| now >= previous.until);
    }

    /// Returns whether there is something for [`Self::tick`] to do.
    pub(crate) fn is_due(&self, now: Millis) -> bool {
        self.previous.as_ref().is_some_and(|previous| now >= previous.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_previous_key_is_used_first_then_the_current_one_and_is_forgotten_in_the_end() {
        let secrets = [1, 2, 3].map(|byte| SecretKey::from_bytes([byte; 32]));
        let mut keys = OwnKeys::new(secrets[0].clone());
        let begins = |keys: &OwnKeys, at: u64, tries: u64| {
            keys.to_begin(Millis(at), PeerKind::Node, tries).unwrap().public
        };
        assert_eq!(begins(&keys, 0, 1), secrets[0].public());
        keys.rotate(Millis(1_000), secrets[1].clone(), Duration::from_mins(10));
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
        assert!(keys.to_begin(Millis(0), PeerKind::Device, 0).is_none());
        keys.set_for_devices(secrets[2].clone());
        let for_devices = keys.to_begin(Millis(0), PeerKind::Device, 0).unwrap();
        assert_eq!(for_devices.public, secrets[2].public());
    }
}
