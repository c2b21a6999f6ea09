//! The periodic work of an endpoint, every quarter of a second.

use super::api::Endpoint;
use crate::{
    drop_reason::DropReason,
    in_band::vouch,
    index::PeerIndex,
    packet_batch::WorkerScratch,
    sink::{Sink, send_plain},
    transport::{state::Now, ticks::GatewayState},
};
use std::time::Instant;

impl Endpoint {
    /// Does what is due: handshakes, keepalives, vouches, the end of idle flows. To be called every
    /// quarter of a second.
    pub fn tick(&self, now: Now, scratch: &mut WorkerScratch, sink: &mut impl Sink) {
        let state = &self.state;
        self.apply_flow_changes(now.instant, scratch, sink);
        self.reflexive.lock().tick(now.instant, &mut send_plain(sink));
        let network_mtu = state.tables.read().mtu;
        let given_up = state.transport.tick(now, network_mtu, &mut send_plain(sink));
        for (to, datagram) in state.transport.take_unfragmented() {
            sink.to_network_unfragmented(to, &datagram);
        }
        state.drops.count(DropReason::NoSession, given_up);
        self.watch_gateways(now.instant, sink);
        state.filter.tick(now.instant);
        state.services.tick(now.instant);
        self.tick_names(now.instant);
        state.drops.count(DropReason::OrphanFragment, state.filter.take_lost_fragments());
        if state.tables.read().has_expired_vouches(now.instant) {
            state.tables.write().forget_expired_vouches(now.instant);
        }
        let mut next = self.next_vouch.lock();
        if next.is_none_or(|due| now.instant >= due) {
            *next = Some(now.instant + vouch::REPEAT);
            drop(next);
            self.send_vouches(now.instant, scratch, sink);
        }
    }

    /// Finds out which redundant gateways are down, and has the others stand in.
    fn watch_gateways(&self, now: Instant, sink: &mut impl Sink) {
        let (redundant, before) = {
            let tables = self.state.tables.read();
            (tables.redundant_gateways(), tables.down.clone())
        };
        if redundant.is_empty() && before.is_empty() {
            return;
        }
        let GatewayState { down, handshakes_requested } =
            self.state.transport.watch_gateways(now, &redundant, &before);
        if handshakes_requested {
            sink.request_handshakes();
        }
        if down != before {
            let mut tables = self.state.tables.write();
            tables.down = down;
            tables.rules.begin_generation();
        }
    }

    fn send_vouches(&self, now: Instant, scratch: &mut WorkerScratch, sink: &mut impl Sink) {
        let vouches = self.own_vouches();
        if vouches.is_empty() {
            return;
        }
        let peers: Vec<PeerIndex> =
            self.state.tables.read().peers().map(|(peer, _)| peer).collect();
        let mut batch = self.begin_batch(scratch, now);
        for peer in peers {
            for vouch in &vouches {
                batch.send_control(peer, &vouch.encode(), sink);
            }
        }
        batch.finish(sink);
    }
}
