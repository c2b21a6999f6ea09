//! The connections through services, by what their clients send. There is a bound on them, and every
//! client has its share, as in the flow table.

use super::{
    mapping::{Ends, Mapping, Socket},
    translation::Translation,
};
use crate::{
    fair_table::{
        entry::{Evictable, EvictionClass},
        shards::Shards,
        table::FairTable,
    },
    flow::key::words,
    headers::Headers,
    owner::QuotaOwner,
};
use parking_lot::MutexGuard;
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Maximum number of connections through the services of one endpoint.
pub(crate) const MAX_CONNECTIONS: usize = 1 << 19;
/// The table is split by client, and each group by connection, as the flow table is.
const GROUPS: usize = 64;
const PARTS: usize = 8;
const SHARDS: usize = GROUPS * PARTS;
/// Shards that are searched for what has ended at once.
const SHARDS_AT_ONCE: usize = SHARDS / 16;
/// Seconds for which a connection is kept whose flow is gone.
const KEPT_WITHOUT_FLOW: u32 = 2;

/// The addresses, ports and protocol of what a client sends to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientKey {
    client: [u64; 2],
    service: [u64; 2],
    /// Both ports, the IP protocol, and whether it is IPv6.
    rest: u64,
}

impl Hash for ClientKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { client, service, rest } = self;
        for word in [client[0], client[1], service[0], service[1], *rest] {
            state.write_u64(word);
        }
    }
}

impl ClientKey {
    /// Returns the key of what has these ends.
    #[inline]
    pub(crate) fn of(ends: &Ends, ip_protocol: u8) -> Self {
        let Ends { source, destination } = ends;
        let ports = u64::from(source.port) << 48 | u64::from(destination.port) << 32;
        let is_v6 = u64::from(source.address.is_ipv6());
        Self {
            client: words(&source.address),
            service: words(&destination.address),
            rest: ports | u64::from(ip_protocol) << 8 | is_v6,
        }
    }

    /// Returns the key of what a client sends on a connection.
    pub(crate) fn of_request(mapping: &Mapping) -> Self {
        Self::of(&mapping.request(), mapping.ip_protocol)
    }

    /// Returns the key of what an instance sends that is its own client.
    pub(crate) fn of_looped_answer(mapping: &Mapping) -> Self {
        Self::of(&mapping.looped_answer(), mapping.ip_protocol)
    }

    /// Returns the key of a packet of a client.
    #[inline]
    pub(crate) fn of_packet(headers: &Headers) -> Self {
        let source = Socket { address: headers.source, port: headers.source_port };
        let destination = Socket { address: headers.destination, port: headers.destination_port };
        Self::of(&Ends { source, destination }, headers.ip_protocol)
    }
}

/// An entry of the table. It lives as long as the flow of its connection.
#[derive(Debug)]
struct Connection {
    translation: Arc<Translation>,
    /// The second until which it is kept without a flow.
    kept_until: u32,
}

impl Evictable for Connection {
    fn eviction_class(&self) -> EvictionClass {
        match self.translation.is_answered() && !self.translation.is_over() {
            true => EvictionClass::Lasting,
            false => EvictionClass::Fleeting,
        }
    }

    fn expires_at(&self) -> u32 {
        // That of a client which is its own instance is found by packets of both roles.
        let entries = if self.translation.mapping.is_hairpin() { 2 } else { 1 };
        match Arc::strong_count(&self.translation) > entries {
            true => u32::MAX,
            false => self.kept_until,
        }
    }
}

/// The connections through services, at most [`MAX_CONNECTIONS`].
#[derive(Debug)]
pub(crate) struct Connections {
    shards: Shards<ClientKey, Connection, SHARDS>,
}

impl Connections {
    pub(crate) fn new(limit: usize) -> Self {
        Self { shards: Shards::new(limit) }
    }

    /// Locks the table of a key. Returns it with the key's hash.
    #[inline]
    fn shard(&self, key: &ClientKey) -> (u32, MutexGuard<'_, FairTable<ClientKey, Connection>>) {
        let hash = self.shards.hash_of(key);
        let group = self.shards.hash_of(&key.client) as usize % GROUPS;
        (hash, self.shards.lock(group * PARTS + (hash >> 26) as usize % PARTS))
    }

    /// Returns the connection that a packet of a client belongs to.
    #[inline]
    pub(crate) fn get(&self, key: &ClientKey) -> Option<Arc<Translation>> {
        let (hash, mut shard) = self.shard(key);
        let id = shard.find(hash, key)?;
        let found = shard.value(id).translation.clone();
        shard.reclassify(id);
        Some(found)
    }

    /// Adds a connection. Returns the one that it replaces. `now` is in seconds.
    pub(crate) fn put(
        &self,
        key: ClientKey,
        owner: QuotaOwner,
        translation: Arc<Translation>,
        now: u32,
    ) -> Option<Arc<Translation>> {
        let (hash, mut shard) = self.shard(&key);
        let before = shard.find(hash, &key).map(|id| {
            let before = shard.value(id).translation.clone();
            shard.remove(id);
            before
        });
        let connection = Connection { translation, kept_until: now + KEPT_WITHOUT_FLOW };
        shard.insert(hash, key, owner, connection);
        before
    }

    /// Removes a connection.
    pub(crate) fn remove(&self, key: &ClientKey) {
        let (hash, mut shard) = self.shard(key);
        if let Some(id) = shard.find(hash, key) {
            shard.remove(id);
        }
    }

    /// Returns how many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.each().map(|shard| shard.len()).sum()
    }

    /// Forgets the connections of some shards whose flows are gone at `now`, in seconds. Sixteen
    /// calls cover all shards.
    pub(crate) fn expire(&self, now: u32) {
        self.shards.expire(now, SHARDS_AT_ONCE);
    }
}
