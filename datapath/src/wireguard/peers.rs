//! The peers of an endpoint, by slot and by key.

use super::{Millis, Peer};
use meshward_model::PublicKey;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
};

/// For how long the key that a peer had before is taken, in milliseconds: its initiations may still be under way.
const FORMER_LASTS: u64 = 120_000;

/// The peers.
#[derive(Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Arc<Peer>>>,
    by_key: HashMap<PublicKey, u32>,
    /// Keys that peers had before, and until when they are taken.
    former: Vec<(PublicKey, u32, Millis)>,
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

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Peer>> {
        self.slots.iter().flatten().cloned().collect()
    }

    /// Puts a peer into a slot. What was agreed with a node's endpoint holds on under its new key. `staged`: bytes of all packets
    /// that wait for a session.
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
        self.former.retain(|(known, _, _)| *known != key);
        self.by_key.insert(key, slot as u32);
        self.slots[slot] = Some(Arc::new(new));
    }

    pub fn remove(&mut self, slot: usize, staged: &AtomicUsize) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        peer.take_staged(staged);
        let former: Vec<_> = self.former.extract_if(.., |(_, own, _)| *own == slot as u32).collect();
        former
            .into_iter()
            .map(|(key, _, _)| key)
            .chain([peer.key])
            .for_each(|key| self.forget(key, slot as u32));
    }

    /// Whether a key that a peer had before has had its time.
    pub fn has_old_keys(&self, now: Millis) -> bool {
        self.former.iter().any(|(_, _, until)| now >= *until)
    }

    /// Forgets those keys.
    pub fn forget_old_keys(&mut self, now: Millis) {
        let old: Vec<_> = self.former.extract_if(.., |(_, _, until)| now >= *until).collect();
        old.into_iter().for_each(|(key, slot, _)| self.forget(key, slot));
    }

    fn forget(&mut self, key: PublicKey, slot: u32) {
        if self.by_key.get(&key) == Some(&slot) {
            self.by_key.remove(&key);
        }
    }
}
