//! The peers of an endpoint, by slot and by key.

use super::{Millis, Peer, stamp::Stamp};
use crate::claims::Claims;
use meshward_types::PublicKey;
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
};

/// For how long the key that a peer had before is taken, in milliseconds: its initiations may still
/// be under way.
const FORMER_LASTS: u64 = 120_000;

/// The peers.
#[derive(Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Arc<Peer>>>,
    /// A key that somebody else has or had lately is not another's: it stays with the first.
    by_key: Claims<PublicKey, u32, u32>,
    /// Keys that peers had before, and until when they are taken.
    former: Vec<(PublicKey, u32, Millis)>,
    /// The greatest timestamp that a peer got which is gone.
    stamped: Option<Stamp>,
}

impl Peers {
    pub fn get(&self, slot: usize) -> Option<&Arc<Peer>> {
        self.slots.get(slot)?.as_ref()
    }

    /// The peer whose sessions have this index.
    pub fn by_index(&self, index: u32) -> Option<&Arc<Peer>> {
        self.get((index >> 8) as usize)
    }

    pub fn by_key(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.get(*self.by_key.get(key)? as usize)
    }

    /// The greatest timestamp that a peer got which is gone: it may come back.
    pub fn stamped_gone(&self) -> Option<Stamp> {
        self.stamped
    }

    /// Where the peer in a slot may be, as the coordinator says.
    pub fn candidates(&self, slot: usize) -> Vec<SocketAddr> {
        self.get(slot).map(|peer| peer.handshake.lock().candidates.clone()).unwrap_or_default()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Peer>> {
        self.slots.iter().flatten().cloned().collect()
    }

    /// Puts a peer into a slot. What was agreed with a node's endpoint holds on under its new key.
    /// `staged`: bytes of all packets that wait for a session.
    pub fn put(
        &mut self,
        now: Millis,
        slot: usize,
        key: PublicKey,
        candidates: Vec<SocketAddr>,
        device: bool,
        staged: &AtomicUsize,
    ) {
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let new = match &self.slots[slot] {
            Some(peer) if peer.key == key => return peer.set_candidates(now, candidates),
            Some(before) if !device && !before.device => {
                self.former.push((before.key, slot as u32, Millis(now.0 + FORMER_LASTS)));
                before.succeeded_by(key, candidates)
            }
            _ => {
                self.remove(slot, staged);
                Peer::new(slot as u32, key, candidates, device)
            }
        };
        // It may come back to one that it had.
        self.former.retain(|(known, own, _)| *known != key || *own != slot as u32);
        self.by_key.put(key, slot as u32, slot as u32, |_, _| false);
        self.slots[slot] = Some(Arc::new(new));
    }

    pub fn remove(&mut self, slot: usize, staged: &AtomicUsize) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        peer.take_staged(staged);
        self.stamped = self.stamped.max(peer.handshake.lock().stamped);
        let former: Vec<_> =
            self.former.extract_if(.., |(_, own, _)| *own == slot as u32).collect();
        former
            .into_iter()
            .map(|(key, _, _)| key)
            .chain([peer.key])
            .for_each(|key| self.by_key.remove(&key, slot as u32));
    }

    /// Whether a key that a peer had before has had its time.
    pub fn has_old_keys(&self, now: Millis) -> bool {
        self.former.iter().any(|(_, _, until)| now >= *until)
    }

    /// Forgets those keys.
    pub fn forget_old_keys(&mut self, now: Millis) {
        let old: Vec<_> = self.former.extract_if(.., |(_, _, until)| now >= *until).collect();
        old.into_iter().for_each(|(key, slot, _)| self.by_key.remove(&key, slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    proptest! {
        /// Peers come, go, and change their keys, among them those of others: a key leads to who
        /// claimed it first of those that have it, or had it less than two minutes ago.
        #[test]
        fn a_key_leads_to_who_claimed_it_first(
            steps in prop::collection::vec((0usize..4, prop::option::weighted(0.7, 1u8..5), 0u64..90_000), 1..50),
        ) {
            let (mut peers, staged, mut now) = (Peers::default(), AtomicUsize::new(0), 0);
            // WorkloadIndex, key, since when in the order of steps, and until when if it is a former one.
            let mut all: Vec<(usize, u8, usize, Option<u64>)> = Vec::new();
            for (turn, (slot, wanted, passed)) in steps.into_iter().enumerate() {
                now += passed;
                peers.forget_old_keys(Millis(now));
                all.retain(|(.., until)| until.is_none_or(|until| now < until));
                match wanted {
                    Some(number) => {
                        peers.put(Millis(now), slot, key(number), vec![], false, &staged);
                        for own in all.iter_mut().filter(|own| own.0 == slot && own.3.is_none() && own.1 != number) {
                            own.3 = Some(now + FORMER_LASTS);
                        }
                        match all.iter_mut().find(|own| own.0 == slot && own.1 == number) {
                            Some(own) => own.3 = None,
                            None => all.push((slot, number, turn, None)),
                        }
                    }
                    None => {
                        peers.remove(slot, &staged);
                        all.retain(|own| own.0 != slot);
                    }
                }
                for number in 1..5 {
                    let first = all.iter().filter(|own| own.1 == number).min_by_key(|own| own.2).map(|own| own.0);
                    prop_assert_eq!(peers.by_key(&key(number)).map(|peer| peer.slot as usize), first);
                }
            }
        }
    }
}
