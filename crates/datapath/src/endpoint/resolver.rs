//! The resolver of the network, as the node sets it.

use super::api::Endpoint;
use crate::{
    packet_batch::WorkerScratch,
    resolver::{QueryAsker, ResolverConfig},
};
use std::{net::IpAddr, time::Instant};

impl Endpoint {
    /// Sets where the node answers DNS queries.
    pub fn set_resolver(&self, resolver: ResolverConfig) {
        self.state.tables.write().resolver = resolver;
    }

    /// Returns where the node answers DNS queries.
    pub fn resolver(&self) -> ResolverConfig {
        self.state.tables.read().resolver.clone()
    }

    /// Returns the workload of this node that asks from an address; `None` if there is none that
    /// may ask.
    pub fn asker_at(&self, now: Instant, address: IpAddr) -> Option<QueryAsker> {
        let mut scratch = WorkerScratch::default();
        let batch = self.begin_batch(&mut scratch, now);
        batch.asker_at(address).ok()
    }
}
