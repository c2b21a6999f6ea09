//! Entries of a table, and the lists of them by owner.

use crate::owner::QuotaOwner;

/// The id of no entry.
pub(super) const NONE: u32 = u32::MAX;
pub(super) const CLASSES: usize = 3;

/// The order in which an owner's entries are evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EvictionClass {
    /// A conversation that only one side speaks in, or that has ended: nothing is lost with it.
    Fleeting,
    /// A conversation that the rules of now deny.
    Denied,
    /// A conversation of both sides.
    Lasting,
}

/// A value that a table can evict.
pub(crate) trait Evictable {
    /// Returns its class.
    fn eviction_class(&self) -> EvictionClass {
        EvictionClass::Fleeting
    }
    /// Returns the second in which it expires.
    fn expires_at(&self) -> u32;
    /// Returns whether it was used since the last call. What does not note its uses is evicted in
    /// the order in which it came.
    fn reset_referenced(&mut self) -> bool {
        false
    }
}

/// An entry, in the list of its owner and class.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Entry<K, V> {
    pub(super) key: K,
    pub(super) value: V,
    pub(super) hash: u32,
    pub(super) list: ListOfEntry,
    pub(super) before: u32,
    pub(super) after: u32,
}

/// The list that an entry is in: its owner's number, and the class. Both are in one word, so that an
/// entry of the flow table fits two lines of cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListOfEntry(u32);

impl ListOfEntry {
    const CLASS_BITS: u32 = 2;

    pub(super) fn new(owned_id: u32, class: EvictionClass) -> Self {
        Self(owned_id << Self::CLASS_BITS | class as u32)
    }

    /// Returns the number of the owner; there are fewer than entries, which are below 2^30.
    #[inline]
    pub(super) fn owned_id(self) -> u32 {
        self.0 >> Self::CLASS_BITS
    }

    #[inline]
    pub(super) fn class(self) -> EvictionClass {
        match self.0 & ((1 << Self::CLASS_BITS) - 1) {
            0 => EvictionClass::Fleeting,
            1 => EvictionClass::Denied,
            _ => EvictionClass::Lasting,
        }
    }
}

/// The entries of one class, oldest first.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };
}

/// The entries of one owner.
#[derive(Debug)]
pub(super) struct OwnedEntries {
    pub(super) owner: QuotaOwner,
    pub(super) count: u32,
    /// Entries that may be added before the ledger is asked again.
    pub(super) credit: u32,
    /// Entries that may be added before that, each in exchange for one of the owner's own.
    pub(super) exchanges: u32,
    /// The last grant of the ledger.
    pub(super) batch: u32,
    pub(super) lists: [List; CLASSES],
}
