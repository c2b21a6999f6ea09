//! The flow table: which conversations have been let through, in what state they are, and until
//! when they are kept.

use super::{
    key::{FlowKey, FlowTuple},
    state::{Flow, SavedFlow},
};
use crate::{
    fair_table::{
        entry::{Evictable, EvictionClass},
        shards::Shards,
        table::FairTable,
    },
    link_counters::Counters,
    owner::QuotaOwner,
    services::translation::Translation,
};
use parking_lot::MutexGuard;
use std::sync::Arc;

/// Maximum number of flows of one endpoint.
pub const MAX_FLOWS: usize = 1 << 20;

/// The table is split by the address that has probably begun a flow, so that whoever opens many
/// slows no other down: what each touches lies in memory of its own, unless the addresses meet in
/// one of so many groups ...
const GROUPS: usize = 128;
/// ... and each group by flow, into parts with locks of their own, so that workers do not wait for
/// each other.
const PARTS: usize = 8;
pub(super) const SHARDS: usize = GROUPS * PARTS;
/// Shards that are searched for expired flows at once.
pub(super) const SHARDS_AT_ONCE: usize = SHARDS / 16;

/// The flows of one endpoint, at most [`MAX_FLOWS`].
#[derive(Debug)]
pub(crate) struct FlowTable {
    shards: Shards<FlowKey, Flow, SHARDS>,
}

/// A chunk of the flow table: some hundreds of flows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowChunk {
    shard: usize,
    number: usize,
}

/// The circumstances of a saved flow that are not saved.
#[derive(Debug)]
pub(crate) struct Restoration {
    /// The owner of the address that began it, who is charged for it.
    pub(crate) owner: QuotaOwner,
    /// The connection through a service that it is.
    pub(crate) translation: Option<Arc<Translation>>,
}

/// The entry of a flow, whether there is one or not. Its shard is locked.
pub(crate) struct FlowEntry<'a> {
    shard: MutexGuard<'a, FairTable<FlowKey, Flow>>,
    hash: u32,
    key: FlowKey,
    found: Option<u32>,
}

impl FlowTable {
    pub(crate) fn new(limit: usize) -> Self {
        Self { shards: Shards::new(limit) }
    }

    /// Returns how many flows there are that the rules allowed when they were last asked.
    pub(crate) fn len(&self) -> usize {
        self.shards.each().map(|shard| shard.len() - shard.len_of(EvictionClass::Denied)).sum()
    }

    /// Locks the entry of a flow.
    #[inline]
    pub(crate) fn entry(&self, key: FlowKey) -> FlowEntry<'_> {
        let hash = self.shards.hash_of(&key);
        let group = self.shards.hash_of(&key.probable_initiator()) as usize % GROUPS;
        let part = (hash >> 26) as usize % PARTS;
        let shard = self.shards.lock(group * PARTS + part);
        let found = shard.find(hash, &key);
        FlowEntry { shard, hash, key, found }
    }

    /// Visits every flow that passes, is not closed, and has not expired at `now`, in seconds. Few
    /// are visited under one lock, so one that moves meanwhile may be visited twice or not at all.
    pub(crate) fn for_each_live(&self, now: u32, mut visit: impl FnMut(FlowTuple)) {
        for chunk in self.chunks() {
            let tuples: Vec<FlowTuple> = {
                let shard = self.shards.lock(chunk.shard);
                let Some(flows) = shard.chunk(chunk.number) else { continue };
                let lives =
                    |flow: &Flow| flow.expires_at() > now && !flow.is_denied() && !flow.is_closed();
                let live = flows.filter(|(_, flow)| lives(flow));
                live.map(|(key, flow)| key.tuple_from(flow.initiator())).collect()
            };
            tuples.into_iter().for_each(&mut visit);
        }
    }

    /// Returns the chunks of the table, each some hundreds of flows. They change while nobody holds
    /// a lock.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = FlowChunk> {
        (0..SHARDS).flat_map(|shard| {
            (0..)
                .map(move |number| FlowChunk { shard, number })
                .take_while(|chunk| self.shards.lock(chunk.shard).has_chunk(chunk.number))
        })
    }

    /// Changes the flows of a chunk.
    pub(crate) fn change_chunk(&self, chunk: FlowChunk, change: impl FnMut(&FlowKey, &mut Flow)) {
        self.shards.lock(chunk.shard).change_chunk(chunk.number, change);
    }

    /// Returns the flows that have not expired at `now`, in seconds: those first that are worth
    /// most. Those of connections through services are left out whose clients have other instances
    /// now.
    pub(crate) fn save(&self, now: u32) -> Vec<SavedFlow> {
        let (mut saved, mut fleeting) = (Vec::new(), Vec::new());
        for chunk in self.chunks() {
            let shard = self.shards.lock(chunk.shard);
            let Some(flows) = shard.chunk(chunk.number) else { continue };
            let lives = |flow: &Flow| flow.expires_at() > now && !flow.is_moved();
            for (key, flow) in flows.filter(|(_, flow)| lives(flow)) {
                let is_fleeting = flow.eviction_class() == EvictionClass::Fleeting;
                let list = if is_fleeting { &mut fleeting } else { &mut saved };
                list.push(flow.saved(*key, now));
            }
        }
        saved.append(&mut fleeting);
        saved
    }

    /// Adds a saved flow, unless it has gone on already.
    /// `link`: the counters of its link, until the rules have checked it.
    pub(crate) fn restore(
        &self,
        now: u32,
        saved: &SavedFlow,
        Restoration { owner, translation }: Restoration,
        link: &Arc<Counters>,
    ) -> bool {
        let mut entry = self.entry(saved.key);
        let is_free = entry.get(now).is_none();
        if is_free {
            entry.insert(owner, Flow::restored(saved, link.clone(), translation, now));
        }
        is_free
    }

    /// Ends the flows of some shards that have expired at `now`, in seconds. Sixteen calls cover
    /// all shards.
    pub(crate) fn expire(&self, now: u32) {
        self.shards.expire(now, SHARDS_AT_ONCE);
    }
}

impl FlowEntry<'_> {
    /// Returns the flow, unless it had expired at `now`, in seconds.
    #[inline]
    pub(crate) fn get(&mut self, now: u32) -> Option<&mut Flow> {
        let flow = self.shard.value(self.found?);
        (flow.expires_at() > now).then_some(flow)
    }

    /// Moves the flow to the eviction class of its state.
    #[inline]
    pub(crate) fn reclassify(&mut self) {
        if let Some(id) = self.found {
            self.shard.reclassify(id);
        }
    }

    /// Inserts a flow, in place of what may have been there, charged to `owner`.
    pub(crate) fn insert(&mut self, owner: QuotaOwner, flow: Flow) {
        if let Some(id) = self.found.take() {
            self.shard.remove(id);
        }
        self.found = Some(self.shard.insert(self.hash, self.key, owner, flow));
    }
}
