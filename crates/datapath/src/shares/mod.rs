//! Bounded tables in which every owner has its share: what one of them does never takes another's.
//!
//! Owners form a tree of two levels: the workloads of this node, and the peers with their
//! workloads. Room that nobody uses goes to whoever asks. Once the tables of a [`Ledger`] are full,
//! an owner that holds its share or more loses the oldest of its own entries; one that holds less
//! is given the room of whoever holds the most, who is then over its share (max-min fairness, as in
//! Demers, Keshav, Shenker: "Analysis and simulation of a fair queueing algorithm", 1989). Every
//! operation takes constant time, but for the logarithm of the number of owners when entries come
//! and go.

mod ledger;

pub(crate) use ledger::Ledger;

use hashbrown::{HashMap, HashTable};
use ledger::Reply;
use std::{
    hash::{BuildHasher, Hash},
    sync::Arc,
};

/// Entries that one allocation holds: a table never moves more than pointers when it grows.
const CHUNK: usize = 256;
/// How many entries that were used lately are passed over before one has to go all the same.
const SECOND_CHANCES: usize = 8;
/// The most entries that an owner owes and a table takes out in one go.
const MOST_PAID: u32 = 64;
const NONE: u32 = u32::MAX;
const CLASSES: usize = 3;

/// Who is charged for what is kept of a packet: its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaOwner {
    /// A workload of this node, by its slot.
    Workload(u32),
    /// A workload behind a peer: the peer's index, and a number that tells the peer's workloads
    /// apart.
    Peer(u32, u32),
}

impl QuotaOwner {
    fn group(self) -> Option<u32> {
        if let Self::Peer(peer, _) = self { Some(peer) } else { None }
    }
}

/// In which order an owner's entries go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    /// Nothing is lost with it: a conversation that only one side speaks in, or that has ended.
    Fleeting,
    /// A conversation that the rules of now deny.
    Denied,
    /// A conversation of two.
    Lasting,
}

/// What a table holds.
pub(crate) trait Kept {
    /// In which order it goes.
    fn class(&self) -> Class;
    /// Until when it is kept, in seconds.
    fn deadline(&self) -> u32;
    /// Whether it was used since this was asked last.
    fn take_used(&mut self) -> bool;
}

/// An entry, in the list of its owner and class.
#[derive(Debug)]
#[repr(align(64))]
struct Entry<K, V> {
    key: K,
    value: V,
    hash: u32,
    holding: u32,
    before: u32,
    after: u32,
    class: Class,
}

/// The entries of one class, oldest first.
#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

impl List {
    const EMPTY: Self = Self { first: NONE, last: NONE };
}

/// What a table holds of one owner.
#[derive(Debug)]
struct Holding {
    owner: QuotaOwner,
    count: u32,
    /// Entries that may be added before the ledger is asked again ...
    credit: u32,
    /// ... and those that may be, each in the place of one of the owner's own.
    in_place: u32,
    /// What the ledger has given last.
    batch: u32,
    lists: [List; CLASSES],
}

/// A table.
#[derive(Debug)]
pub(crate) struct SharedTable<K, V> {
    ledger: Arc<Ledger>,
    index: HashTable<u32>,
    /// Dense: an entry that goes is replaced by the last.
    chunks: Vec<Vec<Entry<K, V>>>,
    length: usize,
    of_class: [usize; CLASSES],
    holdings: Vec<Holding>,
    free_holdings: Vec<u32>,
    owners: HashMap<QuotaOwner, u32, foldhash::fast::RandomState>,
    /// Where the next sweep goes on.
    swept: usize,
}

/// The hash of a key, in as many bits as an entry keeps.
pub(crate) fn hash_of(hasher: &impl BuildHasher, key: &impl Hash) -> u32 {
    let hash = hasher.hash_one(key);
    (hash ^ (hash >> 32)) as u32
}

/// The table uses the lowest bits and the seven highest.
fn spread(hash: u32) -> u64 {
    u64::from(hash) | u64::from(hash.wrapping_mul(0x9e37_79b1)) << 32
}

impl<K: Eq, V: Kept> SharedTable<K, V> {
    /// Bytes of an entry.
    #[cfg(test)]
    pub const ENTRY: usize = size_of::<Entry<K, V>>();

    /// An empty table for at most `limit` entries.
    pub fn new(limit: usize) -> Self {
        Self::of(Arc::new(Ledger::new(limit)))
    }

    /// An empty table that shares the bound of a ledger with others.
    pub fn of(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            index: HashTable::new(),
            chunks: Vec::new(),
            length: 0,
            of_class: [0; CLASSES],
            holdings: Vec::new(),
            free_holdings: Vec::new(),
            owners: HashMap::default(),
            swept: usize::MAX,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// How many of them are of a class.
    pub fn len_of(&self, class: Class) -> usize {
        self.of_class[class as usize]
    }

    /// Some hundreds of the entries, in no order: the first, second and so on. `None`: there are no
    /// more.
    pub fn part(&self, number: usize) -> Option<impl Iterator<Item = (&K, &V)>> {
        let chunk = self.chunks.get(number).filter(|chunk| !chunk.is_empty())?;
        Some(chunk.iter().map(|entry| (&entry.key, &entry.value)))
    }

    /// Changes some hundreds of the entries: the first, second and so on. `false`: there are no
    /// more.
    pub fn change_part(&mut self, number: usize, mut change: impl FnMut(&K, &mut V)) -> bool {
        let Some(chunk) = self.chunks.get_mut(number).filter(|chunk| !chunk.is_empty()) else {
            return false;
        };
        chunk.iter_mut().for_each(|entry| change(&entry.key, &mut entry.value));
        let first = number * CHUNK;
        let ids = first..first + chunk.len();
        ids.for_each(|id| self.settle(id as u32));
        true
    }

    fn entry(&self, id: u32) -> &Entry<K, V> {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    fn entry_mut(&mut self, id: u32) -> &mut Entry<K, V> {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    /// Finds the entry of a key. What is found stays valid until an entry comes or goes.
    pub fn find(&self, hash: u32, key: &K) -> Option<u32> {
        self.index
            .find(spread(hash), |id| {
                let entry = self.entry(*id);
                entry.hash == hash && entry.key == *key
            })
            .copied()
    }

    /// What was found.
    pub fn value(&mut self, id: u32) -> &mut V {
        &mut self.entry_mut(id).value
    }

    /// Puts an entry that has changed into the list that it belongs to now.
    pub fn settle(&mut self, id: u32) {
        let entry = self.entry(id);
        if entry.class != entry.value.class() {
            self.unlink(id);
            let entry = self.entry_mut(id);
            entry.class = entry.value.class();
            self.link(id);
        }
    }

    /// Adds an entry for a key that has none. If there is no room, somebody's oldest goes, as the
    /// module says.
    pub fn insert(&mut self, hash: u32, key: K, owner: QuotaOwner, value: V) -> u32 {
        let holding = self.holding_of(owner);
        let id = self.add(hash, key, holding, value);
        self.make_room(holding, id)
    }

    fn add(&mut self, hash: u32, key: K, holding: u32, value: V) -> u32 {
        let (id, class) = (self.length as u32, value.class());
        if self.length / CHUNK == self.chunks.len() {
            // The first grows, since most tables are small.
            let room = if self.chunks.is_empty() { 4 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(room));
        }
        let entry = Entry { key, value, hash, holding, before: NONE, after: NONE, class };
        self.chunks[id as usize / CHUNK].push(entry);
        self.length += 1;
        let Self { index, chunks, .. } = self;
        let hash_at = |id: &u32| spread(chunks[*id as usize / CHUNK][*id as usize % CHUNK].hash);
        index.insert_unique(spread(hash), id, hash_at);
        self.link(id);
        self.holdings[holding as usize].count += 1;
        id
    }

    /// Finds room for an entry that was just added. Returns where it is then.
    fn make_room(&mut self, holding: u32, new: u32) -> u32 {
        let own = &mut self.holdings[holding as usize];
        if own.credit > 0 {
            own.credit -= 1;
            return new;
        }
        if own.in_place > 0 {
            own.in_place -= 1;
            return self.replace_own(holding, new);
        }
        let owner = own.owner;
        let new = self.pay(holding, new);
        match self.ledger.ask(owner) {
            Reply::Room(granted, loser) => {
                let own = &mut self.holdings[holding as usize];
                (own.credit, own.batch) = (granted - 1, granted);
                let loser = loser.and_then(|loser| self.owners.get(&loser).copied());
                loser.map_or(new, |loser| self.pay(loser, new))
            }
            Reply::InPlaceOfOwn(count) => {
                self.holdings[holding as usize].in_place = count - 1;
                self.replace_own(holding, new)
            }
        }
    }

    /// Takes out the oldest entry of an owner, but for a new one. Returns where that is then.
    fn replace_own(&mut self, holding: u32, new: u32) -> u32 {
        let Holding { owner, count, .. } = self.holdings[holding as usize];
        if count > 1 {
            let victim = self.oldest(holding, new);
            return self.evict(victim, new);
        }
        // The owner's others are in other tables.
        self.ledger.owe(owner);
        new
    }

    /// Takes out what an owner owes, but for a new entry. Returns where that is then.
    fn pay(&mut self, holding: u32, mut new: u32) -> u32 {
        if !self.ledger.owes() {
            return new;
        }
        let own = &mut self.holdings[holding as usize];
        let (owner, mut most) = (own.owner, own.count.min(MOST_PAID));
        let credit = std::mem::take(&mut own.credit);
        if credit > 0 {
            self.ledger.give_back(owner, credit);
        }
        if new != NONE && self.entry(new).holding == holding {
            most = most.min(self.holdings[holding as usize].count - 1);
        }
        for _ in 0..self.ledger.take_debt(owner, most) {
            let victim = self.oldest(holding, new);
            new = self.evict(victim, new);
        }
        new
    }

    /// Takes out some of what this table's owners owe. `false`: that was all of it that is here.
    pub fn pay_debts(&mut self) -> bool {
        let before = self.length;
        if self.ledger.owes() {
            let holdings: Vec<u32> = self.owners.values().copied().collect();
            holdings.into_iter().for_each(|holding| _ = self.pay(holding, NONE));
        }
        self.length < before
    }

    /// Takes an entry out whose room is used by another. Returns where the entry `new` is then.
    fn evict(&mut self, id: u32, new: u32) -> u32 {
        let last = self.length as u32 - 1;
        let holding = self.take_out(id);
        self.forget_if_empty(holding);
        if new == last { id } else { new }
    }

    /// Takes an entry out. What else was found is not valid any more.
    pub fn remove(&mut self, id: u32) {
        let holding = self.take_out(id);
        let own = &mut self.holdings[holding as usize];
        own.credit += 1;
        if own.count > 0 && own.credit + 1 >= 2 * own.batch.max(1) {
            let spare = own.credit + 1 - own.batch.max(1);
            own.credit -= spare;
            self.ledger.give_back(own.owner, spare);
        }
        self.forget_if_empty(holding);
    }

    /// Takes an entry out. Returns whose it was.
    fn take_out(&mut self, id: u32) -> u32 {
        self.unlink(id);
        let (hash, holding) = (self.entry(id).hash, self.entry(id).holding);
        if let Ok(found) = self.index.find_entry(spread(hash), |own| *own == id) {
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
        self.holdings[holding as usize].count -= 1;
        holding
    }

    fn forget_if_empty(&mut self, holding: u32) {
        let Holding { owner, count, credit, .. } = self.holdings[holding as usize];
        if count > 0 {
            return;
        }
        if credit > 0 {
            self.ledger.give_back(owner, credit);
        }
        self.owners.remove(&owner);
        self.free_holdings.push(holding);
    }

    fn holding_of(&mut self, owner: QuotaOwner) -> u32 {
        if let Some(&holding) = self.owners.get(&owner) {
            return holding;
        }
        let holding = Holding {
            owner,
            count: 0,
            credit: 0,
            in_place: 0,
            batch: 0,
            lists: [List::EMPTY; CLASSES],
        };
        let id = match self.free_holdings.pop() {
            Some(id) => {
                self.holdings[id as usize] = holding;
                id
            }
            None => {
                self.holdings.push(holding);
                self.holdings.len() as u32 - 1
            }
        };
        self.owners.insert(owner, id);
        id
    }

    /// Has everything that points at an entry point at where it will be.
    fn rename(&mut self, from: u32, to: u32) {
        let hash = self.entry(from).hash;
        if let Some(found) = self.index.find_mut(spread(hash), |own| *own == from) {
            *found = to;
        }
        self.repoint(from, to, to);
    }

    /// Has what stands before an entry in its list, or the list itself, point at another, and what
    /// stands behind it likewise.
    fn repoint(&mut self, id: u32, from_before: u32, from_behind: u32) {
        let Entry { holding, before, after, class, .. } = *self.entry(id);
        let list = &mut self.holdings[holding as usize].lists[class as usize];
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

    /// Looks at up to `most` entries, and takes out those whose time is up at `now`, in seconds.
    /// All entries have had their turn when it returns true.
    pub fn sweep(&mut self, now: u32, most: usize) -> bool {
        for _ in 0..most {
            self.swept = self.swept.min(self.length);
            if self.swept == 0 {
                self.swept = usize::MAX;
                self.shrink();
                return true;
            }
            self.swept -= 1;
            // The last takes the place of one that goes, and has had its turn.
            let id = self.swept as u32;
            if self.entry(id).value.deadline() <= now {
                self.remove(id);
            }
        }
        false
    }

    fn shrink(&mut self) {
        let room = self.index.capacity();
        if room > 64 && self.length < room / 4 {
            let Self { index, chunks, length, .. } = self;
            index.shrink_to(*length * 2, |id| {
                spread(chunks[*id as usize / CHUNK][*id as usize % CHUNK].hash)
            });
            self.chunks.shrink_to_fit();
        }
    }

    fn link(&mut self, id: u32) {
        let Entry { holding, class, .. } = *self.entry(id);
        let list = &mut self.holdings[holding as usize].lists[class as usize];
        let before = std::mem::replace(&mut list.last, id);
        if before == NONE {
            list.first = id;
        }
        let entry = self.entry_mut(id);
        (entry.before, entry.after) = (before, NONE);
        if before != NONE {
            self.entry_mut(before).after = id;
        }
        self.of_class[class as usize] += 1;
    }

    fn unlink(&mut self, id: u32) {
        let Entry { before, after, class, .. } = *self.entry(id);
        self.repoint(id, after, before);
        self.of_class[class as usize] -= 1;
    }

    /// The entry of an owner that goes first, but for one.
    fn oldest(&mut self, holding: u32, but: u32) -> u32 {
        for class in 0..CLASSES {
            for chance in 0..=SECOND_CHANCES {
                let mut id = self.holdings[holding as usize].lists[class].first;
                if id == but {
                    id = self.entry(id).after;
                }
                if id == NONE {
                    break;
                }
                if !self.entry_mut(id).value.take_used() || chance == SECOND_CHANCES {
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

#[cfg(test)]
mod tests;
