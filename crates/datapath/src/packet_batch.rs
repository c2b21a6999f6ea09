//! A packet batch: packets that a worker passes through an endpoint in a row. The configuration
//! does not change meanwhile.
//!
//! [`egress`](crate::egress) sends packets of workloads to the network,
//! [`ingress`](crate::ingress) datagrams from the network to workloads.

use crate::{
    drop_reason::DropReason,
    egress::send_batch::SendBatch,
    endpoint_state::EndpointState,
    in_band::vouch::Vouch,
    index::PeerIndex,
    ingress::coalesce::{CoalesceOptions, Coalescer},
    services::{connections::ClientKey, load::Micros, translation::Translation},
    sink::Sink,
    tables::state::Tables,
    transport::{peer::SendPath, peer_table::PeerTable},
};
use meshward_wireguard::Millis;
use parking_lot::RwLockReadGuard;
use std::{sync::Arc, time::Instant};

/// Maximum number of vouches that are accepted in one batch.
const MAX_VOUCHES: usize = 256;

/// A vouch, and the peer that has sent it.
struct ReceivedVouch {
    peer: PeerIndex,
    vouch: Vouch,
}

/// A worker's buffers, which are used again by the next batch.
#[derive(Default)]
pub struct WorkerScratch {
    pub(crate) send_batch: SendBatch,
    pub(crate) coalescer: Coalescer,
    vouches: Vec<ReceivedVouch>,
    /// The answer to a DNS query.
    pub(crate) answer: Vec<u8>,
}

impl WorkerScratch {
    /// Sets which packets are coalesced from now on.
    pub fn set_coalesce_options(&mut self, options: CoalesceOptions) {
        self.coalescer.set_options(options);
    }
}

/// The session and the path of the peer that was sent to last.
pub(crate) struct CachedSendPath {
    peer: PeerIndex,
    pub(crate) send_path: SendPath,
}

/// A connection through a service, and the key of what its client sends.
#[derive(Debug)]
pub(crate) struct FoundConnection {
    pub(crate) key: ClientKey,
    pub(crate) translation: Arc<Translation>,
}

/// A packet batch.
pub struct PacketBatch<'a> {
    pub(crate) state: &'a EndpointState,
    pub(crate) tables: RwLockReadGuard<'a, Tables>,
    pub(crate) peers: RwLockReadGuard<'a, PeerTable>,
    pub(crate) scratch: &'a mut WorkerScratch,
    pub(crate) now: Instant,
    pub(crate) millis: Millis,
    pub(crate) micros: Micros,
    pub(crate) cached_send_path: Option<CachedSendPath>,
    /// The connection that the last packet to a service belonged to. It is moved to a packet while
    /// that is processed: counting its references would cost as much as finding it.
    pub(crate) last_connection: Option<FoundConnection>,
}

impl<'a> PacketBatch<'a> {
    pub(crate) fn new(
        state: &'a EndpointState,
        scratch: &'a mut WorkerScratch,
        now: Instant,
    ) -> Self {
        let tables = state.tables.read();
        let peers = state.transport.peers.read();
        let millis = state.transport.millis(now);
        Self {
            state,
            tables,
            peers,
            scratch,
            now,
            millis,
            micros: state.services.micros(now),
            cached_send_path: None,
            last_connection: None,
        }
    }

    /// Loads the session and the path to send to a peer with, if there are any, into the cache.
    #[inline]
    pub(crate) fn load_send_path(&mut self, index: PeerIndex) {
        if self.cached_send_path.as_ref().is_none_or(|cached| cached.peer != index) {
            let send_path = self.peers.get(index).and_then(|peer| peer.send_path(self.millis));
            self.cached_send_path =
                send_path.map(|send_path| CachedSendPath { peer: index, send_path });
        }
    }

    /// Forgets the session and the path that were loaded last: one of them has changed.
    pub(crate) fn forget_send_path(&mut self) {
        self.cached_send_path = None;
    }

    /// Keeps a vouch of a peer, which may give it, until the batch is finished.
    pub(crate) fn keep_vouch(&mut self, peer: PeerIndex, vouch: Vouch) {
        if self.scratch.vouches.len() < MAX_VOUCHES {
            self.scratch.vouches.push(ReceivedVouch { peer, vouch });
        }
    }

    /// Sends what was kept to leave together, and ends the batch.
    pub fn finish(self, sink: &mut impl Sink) {
        let Self { state, tables, peers, scratch, now, .. } = self;
        scratch.send_batch.flush(sink);
        state.drops.count(DropReason::SendFailed, scratch.send_batch.take_lost());
        drop((tables, peers));
        if !scratch.vouches.is_empty() {
            let mut tables = state.tables.write();
            for ReceivedVouch { peer, vouch } in scratch.vouches.drain(..) {
                // The rules may have changed since.
                if tables.may_vouch(peer, vouch) {
                    tables.accept_vouch(now, peer, vouch);
                }
            }
        }
    }
}
