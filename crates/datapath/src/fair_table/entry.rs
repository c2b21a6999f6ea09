//! What a table holds, and how it lists what it holds of each owner.

use crate::owner::QuotaOwner;

/// The id of no entry.
pub(super) const NONE: u32 = u32::MAX;
pub(super) const CLASSES: usize = 3;

/// In which order an owner's entries go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EvictionClass {
    /// Nothing is lost with it: a conversation that only one side speaks in, or that has ended.
    Fleeting,
    /// A conversation that the rules of now deny.
    Denied,
    /// A conversation of two.
    Lasting,
}

/// What a table holds.
pub(crate) trait Evictable {
    /// In which order it goes.
    fn eviction_class(&self) -> EvictionClass;
    /// Until when it is kept, in seconds.
    fn expires_at(&self) -> u32;
    /// Returns whether it was used since this was asked last.
    fn take_referenced(&mut self) -> bool;
}

/// An entry, in the list of its owner and class.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Entry<K, V> {
    pub(super) key: K,
    pub(super) value: V,
    pub(super) hash: u32,
    pub(super) owned_id: u32,
    pub(super) before: u32,
    pub(super) after: u32,
    pub(super) class: EvictionClass,
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

/// What a table holds of one owner.
#[derive(Debug)]
pub(super) struct OwnedEntries {
    pub(super) owner: QuotaOwner,
    pub(super) count: u32,
    /// Entries that may be added before the ledger is asked again ...
    pub(super) credit: u32,
    /// ... and those that may be, each in the place of one of the owner's own.
    pub(super) in_place: u32,
    /// What the ledger has given last.
    pub(super) batch: u32,
    pub(super) lists: [List; CLASSES],
}
