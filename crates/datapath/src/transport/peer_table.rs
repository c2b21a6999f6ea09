//! The peers of an endpoint, by index and by key.

use super::peer::{Peer, PeerKind};
use crate::{claims::Claims, index::PeerIndex, paths::candidates::CandidatePaths};
use meshward_wireguard::{Millis, PublicKey, timestamp::Timestamp};
use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

/// Time for which a former key of a peer is accepted: its initiations may still be on their way.
const FORMER_KEY_LIFETIME: Duration = Duration::from_mins(2);

/// A key that a peer had before.
#[derive(Debug)]
struct FormerKey {
    key: PublicKey,
    peer: PeerIndex,
    until: Millis,
}

/// The settings of a peer.
#[derive(Debug, Clone)]
pub(crate) struct PeerSettings {
    pub(crate) key: PublicKey,
    pub(crate) kind: PeerKind,
    pub(crate) candidates: CandidatePaths,
}

/// The peers of an endpoint.
#[derive(Default)]
pub(crate) struct PeerTable {
    peers: Vec<Option<Arc<Peer>>>,
    /// A key that another peer has or had lately stays with the first.
    by_key: Claims<PublicKey, PeerIndex, PeerIndex>,
    former_keys: Vec<FormerKey>,
    /// The greatest timestamp that was sent to a peer which is gone.
    removed_timestamp: Option<Timestamp>,
}

impl PeerTable {
    #[inline]
    pub(crate) fn get(&self, index: PeerIndex) -> Option<&Arc<Peer>> {
        self.peers.get(index.position())?.as_ref()
    }

    /// Returns the peer whose session has this index.
    #[inline]
    pub(crate) fn by_session(&self, index: u32) -> Option<&Arc<Peer>> {
        self.get(PeerIndex::of_session(index))
    }

    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.get(*self.by_key.get(key)?)
    }

    /// Returns the greatest timestamp that was sent to a peer which is gone: it may come back.
    pub(crate) fn removed_timestamp(&self) -> Option<Timestamp> {
        self.removed_timestamp
    }

    /// Returns the candidate paths of a peer.
    pub(crate) fn candidates(&self, index: PeerIndex) -> CandidatePaths {
        self.get(index).map(|peer| peer.handshake.lock().candidates.clone()).unwrap_or_default()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        self.peers.iter().flatten().cloned().collect()
    }

    /// Adds or changes a peer. The sessions of a node's endpoint go on under its new key. `staged`
    /// counts the bytes of all packets that wait for a session.
    pub(crate) fn put(
        &mut self,
        now: Millis,
        index: PeerIndex,
        config: PeerSettings,
        staged: &AtomicUsize,
    ) {
        let PeerSettings { key, kind, candidates } = config;
        let position = index.position();
        if self.peers.len() <= position {
            self.peers.resize_with(position + 1, || None);
        }
        let nodes = [PeerKind::Node; 2];
        let new = match &self.peers[position] {
            Some(peer) if peer.key == key => return peer.set_candidates(now, candidates),
            Some(before) if [kind, before.kind] == nodes => {
                let until = now + FORMER_KEY_LIFETIME;
                self.former_keys.push(FormerKey { key: before.key, peer: index, until });
                before.with_key(key, candidates)
            }
            _ => {
                self.remove(index, staged);
                Peer::new(index, key, kind, candidates)
            }
        };
        // A peer may come back to a key that it had.
        self.former_keys.retain(|former| former.key != key || former.peer != index);
        self.by_key.put(key, index, index, |_, _| false);
        self.peers[position] = Some(Arc::new(new));
    }

    /// Removes a peer, the packets that wait for it, and its keys.
    pub(crate) fn remove(&mut self, index: PeerIndex, staged: &AtomicUsize) {
        let Some(peer) = self.peers.get_mut(index.position()).and_then(Option::take) else {
            return;
        };
        peer.take_staged(staged);
        self.removed_timestamp = self.removed_timestamp.max(peer.handshake.lock().last_timestamp);
        let former: Vec<FormerKey> =
            self.former_keys.extract_if(.., |former| former.peer == index).collect();
        let keys = former.into_iter().map(|former| former.key).chain([peer.key]);
        keys.for_each(|key| self.by_key.remove(&key, index));
    }

    /// Returns whether any former key has expired.
    pub(crate) fn has_expired_keys(&self, now: Millis) -> bool {
        self.former_keys.iter().any(|former| now >= former.until)
    }

    /// Forgets former keys that have expired.
    pub(crate) fn forget_expired_keys(&mut self, now: Millis) {
        let expired: Vec<FormerKey> =
            self.former_keys.extract_if(.., |former| now >= former.until).collect();
        for former in expired {
            self.by_key.remove(&former.key, former.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A key that a peer has or had, in the model.
    struct Known {
        peer: u32,
        key: u8,
        /// Returns the step since which the peer has it.
        since: usize,
        /// The millisecond until which it is accepted, if it is a former one.
        until: Option<u64>,
    }

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    proptest! {
        /// Peers come, go, and change their keys, among them those of others: a key leads to the
        /// peer that claimed it first of those that have it, or had it less than two minutes ago.
        #[test]
        fn a_key_leads_to_the_peer_that_claimed_it_first(
            steps in prop::collection::vec(
                (0u32..4, prop::option::weighted(0.7, 1u8..5), 0u64..90_000),
                1..50,
            ),
        ) {
            let (mut peers, staged, mut now) = (PeerTable::default(), AtomicUsize::new(0), 0);
            let mut all: Vec<Known> = Vec::new();
            for (step, (peer, wanted, passed)) in steps.into_iter().enumerate() {
                now += passed;
                peers.forget_expired_keys(Millis(now));
                all.retain(|own| own.until.is_none_or(|until| now < until));
                match wanted {
                    Some(number) => {
                        let config = PeerSettings {
                            key: key(number),
                            kind: PeerKind::Node,
                            candidates: CandidatePaths::default(),
                        };
                        peers.put(Millis(now), PeerIndex(peer), config, &staged);
                        let mine = all.iter_mut().filter(|own| own.peer == peer);
                        for own in mine.filter(|own| own.until.is_none() && own.key != number) {
                            own.until = Some(now + FORMER_KEY_LIFETIME.as_millis() as u64);
                        }
                        match all.iter_mut().find(|own| own.peer == peer && own.key == number) {
                            Some(own) => own.until = None,
                            None => all.push(Known { peer, key: number, since: step, until: None }),
                        }
                    }
                    None => {
                        peers.remove(PeerIndex(peer), &staged);
                        all.retain(|own| own.peer != peer);
                    }
                }
                for number in 1..5 {
                    let own = all.iter().filter(|own| own.key == number);
                    let first = own.min_by_key(|own| own.since).map(|own| own.peer);
                    let found = peers.by_key(&key(number)).map(|peer| peer.index.0);
                    prop_assert_eq!(found, first);
                }
            }
        }
    }
}
