//! A bounded table in which every owner has its share: what one of them does never takes another's.
//!
//! Owners form a tree of two levels: the workloads of this node, and the peers with their workloads. A place that nobody uses
//! goes to whoever asks. Once the table is full, an owner that holds its share or more loses the oldest of its own entries;
//! one that holds less is given a place of whoever holds the most, who is then over its share (max-min fairness, as in
//! Demers, Keshav, Shenker: "Analysis and simulation of a fair queueing algorithm", 1989). Every operation takes constant
//! time, but for the logarithm of the number of owners when entries come and go.

use hashbrown::{HashMap, HashTable};
use std::hash::{BuildHasher, Hash};

/// Entries that one allocation holds: a table never moves more than pointers when it grows.
const CHUNK: usize = 256;
/// How many entries that were used lately are passed over before one has to go all the same.
const SECOND_CHANCES: usize = 8;
const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;
const CLASSES: usize = 3;

/// Who is charged for what is kept of a packet: its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A workload of this node, by its slot.
    Workload(u32),
    /// A workload behind a peer: the peer's index, and a number that tells the peer's workloads apart.
    Peer(u32, u32),
}

impl Owner {
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
    owner: u32,
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

/// Whom a node of the tree stands for.
#[derive(Debug, Clone, Copy)]
enum Name {
    Table,
    /// A peer with its workloads.
    Group(u32),
    Owner(Owner),
}

#[derive(Debug)]
struct Node {
    name: Name,
    parent: u32,
    /// Entries of the node and of all below it.
    count: u32,
    /// Where it stands in its parent's heap.
    position: u32,
    /// A heap: the first of them holds the most.
    children: Vec<u32>,
    lists: [List; CLASSES],
}

/// The table.
#[derive(Debug)]
pub(crate) struct SharedTable<K, V> {
    index: HashTable<u32>,
    /// Dense: an entry that goes is replaced by the last.
    chunks: Vec<Vec<Entry<K, V>>>,
    length: usize,
    limit: usize,
    of_class: [usize; CLASSES],
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    owners: HashMap<Owner, u32, foldhash::fast::RandomState>,
    groups: HashMap<u32, u32, foldhash::fast::RandomState>,
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
        let root = Node::new(Name::Table, NONE);
        Self {
            index: HashTable::new(),
            chunks: Vec::new(),
            length: 0,
            limit: limit.clamp(1, NONE as usize - 1),
            of_class: [0; CLASSES],
            nodes: vec![root],
            free_nodes: Vec::new(),
            owners: HashMap::default(),
            groups: HashMap::default(),
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

    /// Some hundreds of the entries, in no order: the first, second and so on. `None`: there are no more.
    pub fn part(&self, number: usize) -> Option<impl Iterator<Item = (&K, &V)>> {
        let chunk = self.chunks.get(number).filter(|chunk| !chunk.is_empty())?;
        Some(chunk.iter().map(|entry| (&entry.key, &entry.value)))
    }

    /// Changes some hundreds of the entries: the first, second and so on. `false`: there are no more.
    pub fn change_part(&mut self, number: usize, mut change: impl FnMut(&K, &mut V)) -> bool {
        let Some(chunk) = self.chunks.get_mut(number).filter(|chunk| !chunk.is_empty()) else { return false };
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

    /// Adds an entry for a key that has none. If there is no room, somebody's oldest goes, as the module says.
    pub fn insert(&mut self, hash: u32, key: K, owner: Owner, value: V) -> u32 {
        let (id, leaf) = (self.length as u32, self.node_of(owner));
        if self.length / CHUNK == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let class = value.class();
        let entry = Entry { key, value, hash, owner: leaf, before: NONE, after: NONE, class };
        self.chunks[id as usize / CHUNK].push(entry);
        self.length += 1;
        let Self { index, chunks, .. } = self;
        let hash_at = |id: &u32| spread(chunks[*id as usize / CHUNK][*id as usize % CHUNK].hash);
        index.insert_unique(spread(hash), id, hash_at);
        self.link(id);
        self.count_up(leaf);
        if self.length <= self.limit {
            return id;
        }
        // The new one is the last, so it comes to where the other was.
        let victim = self.victim(leaf, id);
        self.remove(victim);
        victim
    }

    /// Takes an entry out. What else was found is not valid any more.
    pub fn remove(&mut self, id: u32) {
        self.unlink(id);
        let (hash, owner) = (self.entry(id).hash, self.entry(id).owner);
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
        self.count_down(owner);
    }

    /// Has everything that points at an entry point at where it will be.
    fn rename(&mut self, from: u32, to: u32) {
        let Entry { hash, owner, before, after, class, .. } = *self.entry(from);
        if let Some(found) = self.index.find_mut(spread(hash), |own| *own == from) {
            *found = to;
        }
        let list = &mut self.nodes[owner as usize].lists[class as usize];
        if list.first == from {
            list.first = to;
        }
        if list.last == from {
            list.last = to;
        }
        if before != NONE {
            self.entry_mut(before).after = to;
        }
        if after != NONE {
            self.entry_mut(after).before = to;
        }
    }

    /// Looks at up to `most` entries, and takes out those whose time is up at `now`, in seconds. All entries have had their turn
    /// when it returns true.
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
            index
                .shrink_to(*length * 2, |id| spread(chunks[*id as usize / CHUNK][*id as usize % CHUNK].hash));
            self.chunks.shrink_to_fit();
        }
    }

    fn link(&mut self, id: u32) {
        let Entry { owner, class, .. } = *self.entry(id);
        let list = &mut self.nodes[owner as usize].lists[class as usize];
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
        let Entry { owner, class, before, after, .. } = *self.entry(id);
        let list = &mut self.nodes[owner as usize].lists[class as usize];
        if list.first == id {
            list.first = after;
        }
        if list.last == id {
            list.last = before;
        }
        if before != NONE {
            self.entry_mut(before).after = after;
        }
        if after != NONE {
            self.entry_mut(after).before = before;
        }
        self.of_class[class as usize] -= 1;
    }

    /// Who goes for the entry that `leaf` has just got. There are more than one.
    fn victim(&mut self, leaf: u32, new: u32) -> u32 {
        let parent = self.nodes[leaf as usize].parent;
        let own = if parent == ROOT { leaf } else { parent };
        let mut at = self.loser(ROOT, own, self.limit);
        if !self.nodes[at as usize].children.is_empty() {
            let room = self.nodes[at as usize].count as usize - 1;
            at = if at == own { self.loser(at, leaf, room) } else { self.nodes[at as usize].children[0] };
        }
        self.oldest(at, new)
    }

    /// Which child of a node with so much room loses an entry, since `own` has got one.
    fn loser(&self, node: u32, own: u32, room: usize) -> u32 {
        let children = &self.nodes[node as usize].children;
        let before = self.nodes[own as usize].count as usize - 1;
        if before * children.len() >= room && before > 0 { own } else { children[0] }
    }

    /// The entry of an owner that goes first, but for one.
    fn oldest(&mut self, owner: u32, but: u32) -> u32 {
        for class in 0..CLASSES {
            for chance in 0..=SECOND_CHANCES {
                let mut id = self.nodes[owner as usize].lists[class].first;
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

    fn node_of(&mut self, owner: Owner) -> u32 {
        if let Some(&node) = self.owners.get(&owner) {
            return node;
        }
        let parent = match owner.group() {
            None => ROOT,
            Some(group) => match self.groups.get(&group) {
                Some(&node) => node,
                None => {
                    let node = self.add_node(Name::Group(group), ROOT);
                    self.groups.insert(group, node);
                    node
                }
            },
        };
        let node = self.add_node(Name::Owner(owner), parent);
        self.owners.insert(owner, node);
        node
    }

    fn add_node(&mut self, name: Name, parent: u32) -> u32 {
        let mut node = Node::new(name, parent);
        let free = self.free_nodes.pop();
        let id = free.unwrap_or(self.nodes.len() as u32);
        let siblings = &mut self.nodes[parent as usize].children;
        node.position = siblings.len() as u32;
        siblings.push(id);
        match free {
            Some(id) => self.nodes[id as usize] = node,
            None => self.nodes.push(node),
        }
        id
    }

    fn count_up(&mut self, leaf: u32) {
        let mut at = leaf;
        while at != ROOT {
            let parent = self.nodes[at as usize].parent;
            self.nodes[at as usize].count += 1;
            self.rise(parent, at);
            at = parent;
        }
    }

    fn count_down(&mut self, leaf: u32) {
        let mut at = leaf;
        while at != ROOT {
            let Node { parent, name, .. } = self.nodes[at as usize];
            self.nodes[at as usize].count -= 1;
            self.sink(parent, at);
            if self.nodes[at as usize].count == 0 {
                match name {
                    Name::Owner(owner) => _ = self.owners.remove(&owner),
                    Name::Group(group) => _ = self.groups.remove(&group),
                    Name::Table => {}
                }
                self.remove_node(parent, at);
            }
            at = parent;
        }
    }

    /// Takes a node without entries out of its parent's heap.
    fn remove_node(&mut self, parent: u32, node: u32) {
        let position = self.nodes[node as usize].position as usize;
        let siblings = &mut self.nodes[parent as usize].children;
        siblings.swap_remove(position);
        if let Some(&moved) = siblings.get(position) {
            self.nodes[moved as usize].position = position as u32;
            self.rise(parent, moved);
            self.sink(parent, moved);
        }
        self.free_nodes.push(node);
    }

    /// Moves a node that holds more up its parent's heap.
    fn rise(&mut self, parent: u32, node: u32) {
        let mut heap = std::mem::take(&mut self.nodes[parent as usize].children);
        let Node { count, position, .. } = self.nodes[node as usize];
        let mut at = position as usize;
        while at > 0 {
            let above = (at - 1) / 2;
            if self.nodes[heap[above] as usize].count >= count {
                break;
            }
            heap[at] = heap[above];
            self.nodes[heap[at] as usize].position = at as u32;
            at = above;
        }
        heap[at] = node;
        self.nodes[node as usize].position = at as u32;
        self.nodes[parent as usize].children = heap;
    }

    /// Moves a node that holds less down its parent's heap.
    fn sink(&mut self, parent: u32, node: u32) {
        let mut heap = std::mem::take(&mut self.nodes[parent as usize].children);
        let Node { count, position, .. } = self.nodes[node as usize];
        let mut at = position as usize;
        loop {
            let below = (2 * at + 1..heap.len().min(2 * at + 3))
                .max_by_key(|below| self.nodes[heap[*below] as usize].count);
            let Some(below) = below.filter(|below| self.nodes[heap[*below] as usize].count > count) else {
                break;
            };
            heap[at] = heap[below];
            self.nodes[heap[at] as usize].position = at as u32;
            at = below;
        }
        heap[at] = node;
        self.nodes[node as usize].position = at as u32;
        self.nodes[parent as usize].children = heap;
    }
}

impl Node {
    fn new(name: Name, parent: u32) -> Self {
        Self { name, parent, count: 0, position: 0, children: Vec::new(), lists: [List::EMPTY; CLASSES] }
    }
}

#[cfg(test)]
#[path = "shares_tests.rs"]
mod tests;
