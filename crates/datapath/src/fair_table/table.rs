//! A table with a quota for each owner.

use super::{
    entry::{CLASSES, Entry, Evictable, EvictionClass, List, ListOfEntry, NONE, OwnedEntries},
    ledger::{Ledger, Reply},
};
use crate::owner::QuotaOwner;
use hashbrown::{HashMap, HashTable};
use std::{
    hash::{BuildHasher, Hash},
    sync::Arc,
};

/// Entries that one allocation holds: a table never moves more than pointers when it grows.
const CHUNK: usize = 256;
/// Entries in a row that are spared because they were used lately, before one is evicted all the
/// same.
const SECOND_CHANCES: usize = 8;
/// Maximum number of owed entries that a table evicts at once.
const MAX_PAID: u32 = 64;

/// The id of an entry, and the hash of its key: the index grows and compares without touching
/// entries, which are rarely in the cache.
#[derive(Debug, Clone, Copy)]
struct IndexEntry {
    hash: u32,
    id: u32,
}

impl IndexEntry {
    fn spread(self) -> u64 {
        spread(self.hash)
    }
}

/// A table with a quota for each owner.
#[derive(Debug)]
pub(crate) struct FairTable<K, V> {
    ledger: Arc<Ledger>,
    index: HashTable<IndexEntry>,
    /// Dense: an entry that goes is replaced by the last.
    chunks: Vec<Vec<Entry<K, V>>>,
    length: usize,
    of_class: [usize; CLASSES],
    pub(super) owned: Vec<OwnedEntries>,
    free_owned: Vec<u32>,
    pub(super) owners: HashMap<QuotaOwner, u32, foldhash::fast::RandomState>,
    /// The id before which the next sweep goes on.
    next_expiry_check: usize,
}

/// The hash of a key, in as many bits as an entry keeps.
#[inline]
pub(crate) fn hash_of(hasher: &impl BuildHasher, key: &impl Hash) -> u32 {
    let hash = hasher.hash_one(key);
    (hash ^ (hash >> 32)) as u32
}

/// Spreads a hash over 64 bits: `hashbrown` uses the lowest bits and the seven highest.
#[inline]
fn spread(hash: u32) -> u64 {
    u64::from(hash) | u64::from(hash.wrapping_mul(0x9e37_79b1)) << 32
}

impl<K: Eq, V: Evictable> FairTable<K, V> {
    /// Bytes of an entry.
    #[cfg(test)]
    pub(crate) const ENTRY: usize = size_of::<Entry<K, V>>();

    /// An empty table for at most `limit` entries.
    pub(crate) fn new(limit: usize) -> Self {
        Self::with_ledger(Arc::new(Ledger::new(limit)))
    }

    /// An empty table that shares the bound of a ledger with others.
    pub(crate) fn with_ledger(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            index: HashTable::new(),
            chunks: Vec::new(),
            length: 0,
            of_class: [0; CLASSES],
            owned: Vec::new(),
            free_owned: Vec::new(),
            owners: HashMap::default(),
            next_expiry_check: usize::MAX,
        }
    }

    /// Returns how many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Returns whether an owner has any.
    pub(crate) fn has_any_of(&self, owner: QuotaOwner) -> bool {
        self.owners.contains_key(&owner)
    }

    /// Returns how many of them are of a class.
    pub(crate) fn len_of(&self, class: EvictionClass) -> usize {
        self.of_class[class as usize]
    }

    /// Returns whether there is a chunk with this number: each has some hundreds of the entries, in
    /// no order.
    pub(crate) fn has_chunk(&self, number: usize) -> bool {
        self.chunks.get(number).is_some_and(|chunk| !chunk.is_empty())
    }

    /// Returns the entries of a chunk; `None`: there is no such chunk.
    pub(crate) fn chunk(&self, number: usize) -> Option<impl Iterator<Item = (&K, &V)>> {
        let chunk = self.chunks.get(number).filter(|chunk| !chunk.is_empty())?;
        Some(chunk.iter().map(|entry| (&entry.key, &entry.value)))
    }

    /// Changes the entries of a chunk, if there is one.
    pub(crate) fn change_chunk(&mut self, number: usize, mut change: impl FnMut(&K, &mut V)) {
        let Some(chunk) = self.chunks.get_mut(number) else { return };
        for entry in chunk.iter_mut() {
            change(&entry.key, &mut entry.value);
        }
        let first = number * CHUNK;
        let ids = first..first + chunk.len();
        ids.for_each(|id| self.reclassify(id as u32));
    }

    #[inline]
    fn entry(&self, id: u32) -> &Entry<K, V> {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    #[inline]
    fn entry_mut(&mut self, id: u32) -> &mut Entry<K, V> {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    /// Returns the id of a key's entry, which stays valid until an entry is added or removed.
    #[inline]
    pub(crate) fn find(&self, hash: u32, key: &K) -> Option<u32> {
        self.index
            .find(spread(hash), |own| own.hash == hash && self.entry(own.id).key == *key)
            .map(|own| own.id)
    }

    /// Returns the value of an entry that was found.
    #[inline]
    pub(crate) fn value(&mut self, id: u32) -> &mut V {
        &mut self.entry_mut(id).value
    }

    /// Moves an entry that has changed to the list of its class.
    #[inline]
    pub(crate) fn reclassify(&mut self, id: u32) {
        let entry = self.entry(id);
        if entry.list.class() != entry.value.eviction_class() {
            self.unlink(id);
            let entry = self.entry_mut(id);
            entry.list = ListOfEntry::new(entry.list.owned_id(), entry.value.eviction_class());
            self.link(id);
        }
    }

    /// Adds an entry for a key that has none. If there is no room, an owner's oldest is evicted, as
    /// the module says.
    pub(crate) fn insert(&mut self, hash: u32, key: K, owner: QuotaOwner, value: V) -> u32 {
        let owned_id = self.owned_by(owner);
        let id = self.add(hash, key, owned_id, value);
        self.make_room(owned_id, id)
    }

    fn add(&mut self, hash: u32, key: K, owned_id: u32, value: V) -> u32 {
        let id = self.length as u32;
        let list = ListOfEntry::new(owned_id, value.eviction_class());
        if self.length / CHUNK == self.chunks.len() {
            // The first grows, since most tables are small.
            let room = if self.chunks.is_empty() { 4 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(room));
        }
        let entry = Entry { key, value, hash, list, before: NONE, after: NONE };
        self.chunks[id as usize / CHUNK].push(entry);
        self.length += 1;
        self.index.insert_unique(spread(hash), IndexEntry { hash, id }, |own| own.spread());
        self.link(id);
        self.owned[owned_id as usize].count += 1;
        id
    }

    /// Makes room for an entry that was just added. Returns its id after that.
    fn make_room(&mut self, owned_id: u32, new: u32) -> u32 {
        let own = &mut self.owned[owned_id as usize];
        if own.credit > 0 {
            own.credit -= 1;
            return new;
        }
        if own.exchanges > 0 {
            own.exchanges -= 1;
            return self.replace_own(owned_id, new);
        }
        let owner = own.owner;
        let new = self.pay(owned_id, new);
        match self.ledger.ask(owner) {
            Reply::Room(granted, loser) => {
                let own = &mut self.owned[owned_id as usize];
                (own.credit, own.batch) = (granted - 1, granted);
                let loser = loser.and_then(|loser| self.owners.get(&loser).copied());
                loser.map_or(new, |loser| self.pay(loser, new))
            }
            Reply::InExchange(count) => {
                self.owned[owned_id as usize].exchanges = count - 1;
                self.replace_own(owned_id, new)
            }
        }
    }

    /// Evicts the oldest entry of an owner, but for the entry `new`. Returns the id of `new` after
    /// that.
    fn replace_own(&mut self, owned_id: u32, new: u32) -> u32 {
        let OwnedEntries { owner, count, .. } = self.owned[owned_id as usize];
        if count > 1 {
            let victim = self.oldest(owned_id, new);
            return self.evict(victim, new);
        }
        // The owner's others are in other tables.
        self.ledger.owe(owner);
        new
    }

    /// Evicts the entries that an owner owes, but for the entry `new`. Returns the id of `new`
    /// after that.
    fn pay(&mut self, owned_id: u32, mut new: u32) -> u32 {
        if !self.ledger.owes() {
            return new;
        }
        let own = &mut self.owned[owned_id as usize];
        let (owner, mut most) = (own.owner, own.count.min(MAX_PAID));
        let credit = std::mem::take(&mut own.credit);
        if credit > 0 {
            self.ledger.return_room(owner, credit);
        }
        if new != NONE && self.entry(new).list.owned_id() == owned_id {
            most = most.min(self.owned[owned_id as usize].count - 1);
        }
        for _ in 0..self.ledger.settle_debt(owner, most) {
            let victim = self.oldest(owned_id, new);
            new = self.evict(victim, new);
        }
        new
    }

    /// Evicts some of the entries that this table's owners owe. Returns `false` if none is left
    /// here.
    pub(crate) fn pay_debts(&mut self) -> bool {
        let before = self.length;
        if self.ledger.owes() {
            let owned: Vec<u32> = self.owners.values().copied().collect();
            for owned_id in owned {
                self.pay(owned_id, NONE);
            }
        }
        self.length < before
    }

    /// Removes an entry whose room another uses. Returns the id of the entry `new` after that.
    fn evict(&mut self, id: u32, new: u32) -> u32 {
        let last = self.length as u32 - 1;
        let owned_id = self.detach(id);
        self.forget_if_empty(owned_id);
        if new == last { id } else { new }
    }

    /// Removes an entry. Other ids are not valid any more.
    pub(crate) fn remove(&mut self, id: u32) {
        let owned_id = self.detach(id);
        let own = &mut self.owned[owned_id as usize];
        own.credit += 1;
        if own.count > 0 && own.credit + 1 >= 2 * own.batch.max(1) {
            let spare = own.credit + 1 - own.batch.max(1);
            own.credit -= spare;
            self.ledger.return_room(own.owner, spare);
        }
        self.forget_if_empty(owned_id);
    }

    /// Removes an entry from the index, its list and its chunk. Returns the number of its owner.
    fn detach(&mut self, id: u32) -> u32 {
        self.unlink(id);
        let (hash, owned_id) = (self.entry(id).hash, self.entry(id).list.owned_id());
        if let Ok(found) = self.index.find_entry(spread(hash), |own| own.id == id) {
            found.remove();
        }
        let last = self.length as u32 - 1;
        if last != id {
            self.rename(last, id);
        }
        let chunk = &mut self.chunks[last as usize / CHUNK];
        if let Some(moved) = chunk.pop()
            && last != id
        {
            *self.entry_mut(id) = moved;
        }
        self.length -= 1;
        // One empty chunk is kept, so that a border is not an allocation each time it is crossed.
        self.chunks.truncate(self.length / CHUNK + 2);
        self.owned[owned_id as usize].count -= 1;
        owned_id
    }

    fn forget_if_empty(&mut self, owned_id: u32) {
        let OwnedEntries { owner, count, credit, .. } = self.owned[owned_id as usize];
        if count > 0 {
            return;
        }
        if credit > 0 {
            self.ledger.return_room(owner, credit);
        }
        self.owners.remove(&owner);
        self.free_owned.push(owned_id);
    }

    fn owned_by(&mut self, owner: QuotaOwner) -> u32 {
        if let Some(&owned_id) = self.owners.get(&owner) {
            return owned_id;
        }
        let owned_id = OwnedEntries {
            owner,
            count: 0,
            credit: 0,
            exchanges: 0,
            batch: 0,
            lists: [List::EMPTY; CLASSES],
        };
        let id = match self.free_owned.pop() {
            Some(id) => {
                self.owned[id as usize] = owned_id;
                id
            }
            None => {
                self.owned.push(owned_id);
                self.owned.len() as u32 - 1
            }
        };
        self.owners.insert(owner, id);
        id
    }

    /// Changes the id of an entry in the index and in the lists.
    fn rename(&mut self, from: u32, to: u32) {
        let hash = self.entry(from).hash;
        if let Some(found) = self.index.find_mut(spread(hash), |own| own.id == from) {
            found.id = to;
        }
        self.repoint(from, to, to);
    }

    /// Replaces an entry in its list: its predecessor, or the list itself, points at `from_before`,
    /// its successor at `from_behind`.
    fn repoint(&mut self, id: u32, from_before: u32, from_behind: u32) {
        let Entry { list: own, before, after, .. } = *self.entry(id);
        let list = self.list_mut(own);
        if list.first == id {
            list.first = from_before;
        }
        if list.last == id {
            list.last = from_behind;
        }
        if before != NONE {
            self.entry_mut(before).after = from_before;
        }
        if after != NONE {
            self.entry_mut(after).before = from_behind;
        }
    }

    /// Checks up to `most` entries, and removes those that have expired at `now`, in seconds.
    /// Returns `true` once all entries were checked.
    pub(crate) fn expire(&mut self, now: u32, most: usize) -> bool {
        for _ in 0..most {
            self.next_expiry_check = self.next_expiry_check.min(self.length);
            if self.next_expiry_check == 0 {
                self.next_expiry_check = usize::MAX;
                self.shrink();
                return true;
            }
            self.next_expiry_check -= 1;
            // The last entry replaces one that is removed, and was checked before.
            let id = self.next_expiry_check as u32;
            if self.entry(id).value.expires_at() <= now {
                self.remove(id);
            }
        }
        false
    }

    fn shrink(&mut self) {
        let room = self.index.capacity();
        if room > 64 && self.length < room / 4 {
            self.index.shrink_to(self.length * 2, |own| own.spread());
            self.chunks.shrink_to_fit();
        }
    }

    #[inline]
    fn list_mut(&mut self, list: ListOfEntry) -> &mut List {
        &mut self.owned[list.owned_id() as usize].lists[list.class() as usize]
    }

    fn link(&mut self, id: u32) {
        let own = self.entry(id).list;
        let list = self.list_mut(own);
        let before = std::mem::replace(&mut list.last, id);
        if before == NONE {
            list.first = id;
        }
        let entry = self.entry_mut(id);
        (entry.before, entry.after) = (before, NONE);
        if before != NONE {
            self.entry_mut(before).after = id;
        }
        self.of_class[own.class() as usize] += 1;
    }

    fn unlink(&mut self, id: u32) {
        let Entry { before, after, list, .. } = *self.entry(id);
        self.repoint(id, after, before);
        self.of_class[list.class() as usize] -= 1;
    }

    /// Returns the entry of an owner that is evicted first, but for one.
    fn oldest(&mut self, owned_id: u32, but: u32) -> u32 {
        for class in 0..CLASSES {
            for chance in 0..=SECOND_CHANCES {
                let mut id = self.owned[owned_id as usize].lists[class].first;
                if id == but {
                    id = self.entry(id).after;
                }
                if id == NONE {
                    break;
                }
                if !self.entry_mut(id).value.reset_referenced() || chance == SECOND_CHANCES {
                    return id;
                }
                self.unlink(id);
                self.link(id);
            }
        }
        // Who loses has entries beside the new one; were it not so, the new one would go.
        but
    }
}
