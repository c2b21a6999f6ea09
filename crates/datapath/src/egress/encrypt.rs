//! Sealing packets for a peer where they leave from, or staging them until there is a session.

use super::{
    EgressPacket,
    segment::{self, Segments},
};
use crate::{
    drop_reason::{DropReason, Dropped},
    ecn::Ecn,
    endpoint_state::EndpointState,
    index::PeerIndex,
    packet_batch::PacketBatch,
    sink::Sink,
    transport::peer::{Peer, SendPath},
};
use meshward_wireguard::message::{DATA_HEADER, OVERHEAD};

/// Packets are padded to a multiple of this, in bytes (the WireGuard paper §5.4.6).
const PADDING_MULTIPLE: usize = 16;

impl PacketBatch<'_> {
    /// Seals packets for a peer, or stages them.
    pub(crate) fn encrypt(
        &mut self,
        index: PeerIndex,
        segments: &Segments<'_>,
        ecn: Ecn,
        sink: &mut impl Sink,
    ) {
        self.load_send_path(index);
        let Self { state, tables, peers, scratch, millis, cached_send_path, .. } = self;
        let count = segments.count();
        let Some(peer) = peers.get(index) else {
            return state.drops.count(DropReason::NoSession, count as u64);
        };
        let reserved = cached_send_path.as_ref().and_then(|cached| {
            let first = cached.send_path.session.reserve(count as u64)?;
            Some((&cached.send_path, first))
        });
        let Some((SendPath { session, address }, first)) = reserved else {
            return stage(state, peer, segments, sink);
        };
        let limit = peer.path_mtu_below(tables.mtu).map_or(tables.mtu, |limit| limit.bytes);
        let mut bytes = 0;
        for number in 0..count {
            let length = segments.length(number);
            let padded = padded_length(length, limit);
            let datagram = scratch.send_batch.push(*address, ecn, padded + OVERHEAD, sink);
            let (packet, padding) =
                datagram[DATA_HEADER..DATA_HEADER + padded].split_at_mut(length);
            segments.write(number, packet);
            padding.fill(0);
            session.seal(first + number as u64, datagram);
            bytes += length as u64;
        }
        if peer.note_data_sent(*millis, session, bytes) {
            state.request_handshake(peer, sink);
        }
    }

    /// Seals a packet that may pass for a device.
    pub(crate) fn send_to_device(
        &mut self,
        device: PeerIndex,
        EgressPacket { packet, headers, offload }: EgressPacket<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Dropped> {
        let packets = segment::count(headers, offload);
        let ecn = Ecn::of_packet(packet);
        let segments = Segments::new(packet, headers, offload, None)
            .map_err(|reason| Dropped { reason, packets })?;
        self.encrypt(device, &segments, ecn, sink);
        Ok(())
    }

    /// Sends a packet of the endpoint's own, past the filter.
    pub(crate) fn send_control(&mut self, peer: PeerIndex, packet: &[u8], sink: &mut impl Sink) {
        self.encrypt(peer, &Segments::Whole(packet), Ecn::NotCapable, sink);
    }
}

#[cold]
fn stage(state: &EndpointState, peer: &Peer, segments: &Segments<'_>, sink: &mut impl Sink) {
    let mut dropped = 0;
    for number in 0..segments.count() {
        let mut packet = vec![0; segments.length(number)];
        segments.write(number, &mut packet);
        dropped += peer.stage(packet, &state.transport.staged);
    }
    state.drops.count(DropReason::NoSession, dropped);
    state.request_handshake(peer, sink);
}

/// Returns the length of a packet with its padding, which does not go over the MTU.
#[inline]
fn padded_length(length: usize, mtu: u16) -> usize {
    length.next_multiple_of(PADDING_MULTIPLE).min(usize::from(mtu).max(length))
}
