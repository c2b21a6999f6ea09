//! The ledger: each owner's part of a bound that several tables share.
//!
//! A table asks for room in batches and gives back what it does not need, so that tables that are
//! used by different processor cores seldom meet here. An owner that is to lose entries owes them:
//! whichever table has them evicts them.

use crate::{index::PeerIndex, owner::QuotaOwner};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;
/// Maximum number of entries that a table is given room for at once.
pub(super) const MAX_BATCH: usize = 64;
/// A batch is so small a part of an owner's share that what its tables have asked for and do not
/// use yet is an eighth of it, if it is in sixteen tables.
const PART_OF_SHARE: usize = 128;
/// Maximum number of entries that are owed: this part of the bound, or so many.
pub(super) const OWED_PART: usize = 16;
pub(super) const MIN_OWED: usize = 64;

/// The answer to a request for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// Room for so many entries, and the owner that owes entries for them, if there was no room
    /// left.
    Room(u32, Option<QuotaOwner>),
    /// So many entries may be added, each in exchange for one of the owner's own.
    InExchange(u32),
}

/// A bound, and each owner's part of it.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: usize,
    owed: AtomicUsize,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    /// Entries of all owners, but for those that are owed.
    total: usize,
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    owners: HashMap<QuotaOwner, u32, foldhash::fast::RandomState>,
    peers: HashMap<PeerIndex, u32, foldhash::fast::RandomState>,
    owed: HashMap<QuotaOwner, u32, foldhash::fast::RandomState>,
}

/// The meaning of a node of the tree.
#[derive(Debug, Clone, Copy)]
enum Name {
    Table,
    /// A peer with its workloads.
    Peer(PeerIndex),
    QuotaOwner(QuotaOwner),
}

#[derive(Debug)]
struct Node {
    name: Name,
    parent: u32,
    /// Entries of the node and of all below it.
    count: u32,
    /// The position in its parent's heap.
    position: u32,
    /// A heap: the first of them has the most entries.
    children: Vec<u32>,
}

impl Node {
    fn new(name: Name, parent: u32) -> Self {
        Self { name, parent, count: 0, position: 0, children: Vec::new() }
    }
}

impl Ledger {
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, NONE as usize / 2);
        Self { limit, owed: AtomicUsize::new(0), books: Mutex::new(Books::new()) }
    }

    /// Asks for room for entries of an owner.
    pub(super) fn ask(&self, owner: QuotaOwner) -> Reply {
        let mut books = self.books.lock();
        let leaf = books.node_of(owner);
        let batch = (self.limit / PART_OF_SHARE / books.owners.len()).clamp(1, MAX_BATCH);
        if books.total + batch <= self.limit {
            books.total += batch;
            books.count_up(leaf, batch as u32);
            return Reply::Room(batch as u32, None);
        }
        let (mut granted, mut loser) = (0, None);
        while granted < batch {
            books.count_up(leaf, 1);
            if books.total < self.limit {
                books.total += 1;
            } else {
                let victim = books.victim(leaf, self.limit);
                let too_much = self.owed.load(Relaxed) >= (self.limit / OWED_PART).max(MIN_OWED);
                if victim == leaf || too_much {
                    books.count_down(leaf, 1);
                    break;
                }
                loser = books.owe(victim);
                self.owed.fetch_add(1, Relaxed);
            }
            granted += 1;
        }
        if granted == 0 {
            Reply::InExchange(batch as u32)
        } else {
            Reply::Room(granted as u32, loser)
        }
    }

    /// Gives back room for so many entries, or pays what the owner owes with it.
    pub(super) fn return_room(&self, owner: QuotaOwner, count: u32) {
        let mut books = self.books.lock();
        let paid = self.settle(&mut books, owner, count);
        let rest = count - paid;
        if rest > 0
            && let Some(&leaf) = books.owners.get(&owner)
        {
            books.total -= rest as usize;
            books.count_down(leaf, rest);
        }
    }

    /// Returns whether any owner owes entries.
    pub(crate) fn owes(&self) -> bool {
        self.owed.load(Relaxed) > 0
    }

    /// Settles up to `most` of the entries that an owner owes: the caller evicts them. Returns how
    /// many.
    pub(super) fn settle_debt(&self, owner: QuotaOwner, most: u32) -> u32 {
        self.settle(&mut self.books.lock(), owner, most)
    }

    fn settle(&self, books: &mut Books, owner: QuotaOwner, most: u32) -> u32 {
        let settled = books.reduce_debt(owner, most);
        self.owed.fetch_sub(settled as usize, Relaxed);
        settled
    }

    /// Notes that an owner has an entry for which there is no room.
    pub(super) fn owe(&self, owner: QuotaOwner) {
        *self.books.lock().owed.entry(owner).or_default() += 1;
        self.owed.fetch_add(1, Relaxed);
    }
}

/// The account of an owner.
#[cfg(test)]
pub(super) struct Account {
    /// The number of entries that the owner has room for.
    pub(super) granted: usize,
    /// The number of entries that it owes.
    pub(super) owed: usize,
}

#[cfg(test)]
impl Ledger {
    pub(super) fn account(&self, owner: QuotaOwner) -> Account {
        let books = self.books.lock();
        let granted =
            books.owners.get(&owner).map_or(0, |leaf| books.nodes[*leaf as usize].count as usize);
        Account { granted, owed: books.owed.get(&owner).map_or(0, |owed| *owed as usize) }
    }

    pub(super) fn owed(&self) -> usize {
        self.owed.load(Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        let books = self.books.lock();
        (books.total, books.owners.len(), books.peers.len(), books.owed.len()) == (0, 0, 0, 0)
    }
}

impl Books {
    fn new() -> Self {
        Self {
            total: 0,
            nodes: vec![Node::new(Name::Table, NONE)],
            free_nodes: Vec::new(),
            owners: HashMap::default(),
            peers: HashMap::default(),
            owed: HashMap::default(),
        }
    }

    /// Notes that a leaf of the tree owes one of its entries. Returns its owner.
    fn owe(&mut self, leaf: u32) -> Option<QuotaOwner> {
        let Name::QuotaOwner(owner) = self.nodes[leaf as usize].name else { return None };
        *self.owed.entry(owner).or_default() += 1;
        self.count_down(leaf, 1);
        Some(owner)
    }

    fn reduce_debt(&mut self, owner: QuotaOwner, most: u32) -> u32 {
        let Some(owed) = self.owed.get_mut(&owner) else { return 0 };
        let reduced = most.min(*owed);
        *owed -= reduced;
        if *owed == 0 {
            self.owed.remove(&owner);
        }
        reduced
    }

    /// Returns the leaf or peer that loses an entry for the one that `leaf` has just got. There is
    /// one more than the limit.
    fn victim(&self, leaf: u32, limit: usize) -> u32 {
        let parent = self.nodes[leaf as usize].parent;
        let own = if parent == ROOT { leaf } else { parent };
        let at = self.loser(ROOT, own, limit);
        if self.nodes[at as usize].children.is_empty() {
            return at;
        }
        let room = self.nodes[at as usize].count as usize - 1;
        if at == own { self.loser(at, leaf, room) } else { self.nodes[at as usize].children[0] }
    }

    /// Returns the child of a node with so much room that loses an entry, since `own` has got one.
    fn loser(&self, node: u32, own: u32, room: usize) -> u32 {
        let children = &self.nodes[node as usize].children;
        let before = self.nodes[own as usize].count as usize - 1;
        if before * children.len() >= room && before > 0 { own } else { children[0] }
    }

    fn node_of(&mut self, owner: QuotaOwner) -> u32 {
        if let Some(&node) = self.owners.get(&owner) {
            return node;
        }
        let parent = match owner.peer() {
            None => ROOT,
            Some(peer) => match self.peers.get(&peer) {
                Some(&node) => node,
                None => {
                    let node = self.add_node(Name::Peer(peer), ROOT);
                    self.peers.insert(peer, node);
                    node
                }
            },
        };
        let node = self.add_node(Name::QuotaOwner(owner), parent);
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

    fn count_up(&mut self, leaf: u32, by: u32) {
        let mut at = leaf;
        while at != ROOT {
            let parent = self.nodes[at as usize].parent;
            self.nodes[at as usize].count += by;
            self.rise(parent, at);
            at = parent;
        }
    }

    fn count_down(&mut self, leaf: u32, by: u32) {
        let mut at = leaf;
        while at != ROOT {
            let Node { parent, name, .. } = self.nodes[at as usize];
            self.nodes[at as usize].count -= by;
            self.sink(parent, at);
            if self.nodes[at as usize].count == 0 {
                match name {
                    Name::QuotaOwner(owner) => _ = self.owners.remove(&owner),
                    Name::Peer(peer) => _ = self.peers.remove(&peer),
                    Name::Table => {}
                }
                self.remove_node(parent, at);
            }
            at = parent;
        }
    }

    /// Removes a node without entries from its parent's heap.
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

    /// Moves a node that has more entries now up its parent's heap.
    fn rise(&mut self, parent: u32, node: u32) {
        self.sift(parent, node, |nodes, heap, at, count| {
            let above = at.checked_sub(1)? / 2;
            (nodes[heap[above] as usize].count < count).then_some(above)
        });
    }

    /// Moves a node that has fewer entries now down its parent's heap.
    fn sink(&mut self, parent: u32, node: u32) {
        self.sift(parent, node, |nodes, heap, at, count| {
            let count_of = |below: &usize| nodes[heap[*below] as usize].count;
            let below = (2 * at + 1..heap.len().min(2 * at + 3)).max_by_key(count_of);
            below.filter(|below| count_of(below) > count)
        });
    }

    /// Moves a node through its parent's heap. `next`: returns the position that one with so many
    /// entries is swapped with, if any.
    fn sift(
        &mut self,
        parent: u32,
        node: u32,
        next: impl Fn(&[Node], &[u32], usize, u32) -> Option<usize>,
    ) {
        let mut heap = std::mem::take(&mut self.nodes[parent as usize].children);
        let Node { count, position, .. } = self.nodes[node as usize];
        let mut at = position as usize;
        while let Some(other) = next(&self.nodes, &heap, at, count) {
            heap[at] = heap[other];
            self.nodes[heap[at] as usize].position = at as u32;
            at = other;
        }
        heap[at] = node;
        self.nodes[node as usize].position = at as u32;
        self.nodes[parent as usize].children = heap;
    }
}
